/* synthetic.c: see synthetic.h. Pure functions. */
#include "model/synthetic.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <xxhash.h>

#include "base/util.h"
#include "model/shard.h"

/* ---- shapes ---- */

const char synthetic_names[] = "glm-130b, glm-1.6b, glm-300m or glm-tiny";

struct shape {
    const char *name;
    uint32_t hidden, n_layers, n_heads, inner, vocab;
};

static const struct shape shapes[] = {
    {"glm-1.6b", 2048, 24, 16, 5504, 32000},
    {"glm-300m", 1024, 22, 16, 2752, 32000},
    {"glm-tiny", 256, 2, 64, 512, 2048},
};

/* The published model in another size: special tokens stand behind the text, as there. */
static void set_shape(struct arch *a, const struct shape *s)
{
    snprintf(a->name, sizeof a->name, "%s", s->name);
    a->hidden = s->hidden;
    a->n_layers = s->n_layers;
    a->n_heads = a->n_kv_heads = s->n_heads;
    a->head_dim = s->hidden / s->n_heads;
    a->inner = s->inner;
    a->vocab = s->vocab;
    int32_t base = (int32_t)s->vocab - 64;
    a->tokens = (struct arch_tokens){.mask = base,
                                     .gmask = base + 1,
                                     .smask = base + 2,
                                     .eod = base + 3,
                                     .sop = base + 4,
                                     .eop = base + 5,
                                     .enc = base + 6,
                                     .dblock = base + 7,
                                     .eos = 2,
                                     .n_image_tokens = 0,
                                     .special_base = (uint32_t)base};
}

/* Whether `name` is that of a shape, "glm-130b", or what is behind its "glm-". */
static bool is_name(const char *name, const char *shape)
{
    return strcmp(name, shape) == 0 || strcmp(name, shape + strlen("glm-")) == 0;
}

int synthetic_arch(const char *name, uint32_t n_layers, struct arch *ret)
{
    *ret = arch_glm_130b;
    bool found = is_name(name, "glm-130b");
    for (size_t i = 0; i != ARRAY_LEN(shapes); i++) {
        if (!is_name(name, shapes[i].name))
            continue;
        set_shape(ret, &shapes[i]);
        found = true;
    }
    if (!found)
        return -ENOENT;
    if (n_layers)
        ret->n_layers = n_layers;
    ret->residual_alpha = sqrt(2.0 * ret->n_layers);
    return 0;
}

uint64_t synthetic_n_parameters(const struct arch *a)
{
    uint64_t n = 0;
    for (size_t i = 0; i != shard_n_tensors(a); i++) {
        struct shard_tensor t;
        shard_tensor_at(a, i, &t);
        n += t.rows * t.cols;
    }
    return n;
}

/* ---- contents ---- */

/* How 64 random bits become 8 bytes of a tensor: (w & keep) + add, in each 16-bit lane. */
struct recipe {
    uint64_t keep, add;
};

#define LANES(x) ((uint64_t)(x)*UINT64_C(0x0001000100010001))

static bool ends_with(const char *text, const char *suffix)
{
    size_t n = strlen(text), m = strlen(suffix);
    return n >= m && strcmp(text + n - m, suffix) == 0;
}

/* binary16: exponent e and fraction f stand for 2^(e - 15) (1 + f / 1024). */
static struct recipe recipe_of(const struct st_tensor *t, enum quant_weights weights)
{
    bool norm = strstr(t->name, "layernorm");
    if (t->dtype != ST_F16)
        return (struct recipe){UINT64_MAX, 0};        /* all codes alike */
    if (ends_with(t->name, "final_layernorm.weight")) /* +-1 */
        return (struct recipe){LANES(0x8000), LANES(0x3c00)};
    if (norm)
        return (struct recipe){0, ends_with(t->name, ".weight") ? LANES(0x3c00) : 0};
    if (ends_with(t->name, "_scale")) /* codes have a root mean square of 74 or 4.6: about 0.02 */
        return (struct recipe){LANES(0x00ff), LANES(weights == QUANT_INT8 ? 3 << 10 : 7 << 10)};
    if (ends_with(t->name, ".bias"))
        return (struct recipe){LANES(0x83ff), LANES(5 << 10)}; /* +-2^-10 .. 2^-9 */
    return (struct recipe){LANES(0x8fff), LANES(7 << 10)};     /* +-2^-8 .. 2^-4 */
}

/* Steele, Lea and Flood's SplitMix64 at position i. */
static uint64_t word_at(uint64_t key, uint64_t i)
{
    uint64_t z = key + (i + 1) * UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

void synthetic_fill(const struct st_tensor *t, enum quant_weights weights, uint64_t seed,
                    uint64_t byte0, size_t n, void *dst)
{
    struct recipe r = recipe_of(t, weights);
    uint64_t key = XXH3_64bits_withSeed(t->name, strlen(t->name), seed);
    unsigned char *out = dst;
    while (n) {
        uint64_t word = (word_at(key, byte0 / 8) & r.keep) + r.add;
        size_t skip = byte0 % 8, take = MIN(8 - skip, n);
        if (take == 8)
            memcpy(out, &word, 8);
        else
            memcpy(out, (const unsigned char *)&word + skip, take);
        out += take;
        byte0 += take;
        n -= take;
    }
}
