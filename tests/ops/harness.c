/* harness.c: see harness.h. */
#include "harness.h"

#include "base/half.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const op_sets[MAX_SETS] = {"c",      "avx2",       "avxvnni",
                                       "avx512", "avx512vnni", "avx512gfni"};

const struct k_ops *op_cpu(void)
{
    char message[256];
    const struct k_ops *ops = k_backend("cpu", message, sizeof message);
    assert_non_null(ops);
    return ops;
}

const char *op_mode_name(enum k_mode mode)
{
    return mode == K_MODE_FP32 ? "fp32" : mode == K_MODE_FP16 ? "fp16" : "a8";
}

struct k_ctx *op_open(const struct k_ops *ops, const char *isa, enum k_mode mode,
                      uint32_t n_threads, uint32_t max_rows, uint32_t max_cols, uint32_t max_seq)
{
    struct k_open_params p = {"cpu", mode, n_threads, max_rows, max_cols, max_seq, isa};
    struct k_ctx *c = NULL;
    char message[256] = "";
    int e = ops->open(&p, &c, message, sizeof message);
    if (e == -ENOTSUP && isa && strcmp(isa, "c") != 0) {
        print_message("skipped: %s\n", message);
        return NULL;
    }
    if (e)
        fail_msg("open failed with %d: %s", e, message);
    return c;
}

uint32_t rng_next(struct rng *r)
{
    r->state ^= r->state >> 12;
    r->state ^= r->state << 25;
    r->state ^= r->state >> 27;
    return (uint32_t)(r->state * UINT64_C(0x2545f4914f6cdd1d) >> 32);
}

uint32_t rng_below(struct rng *r, uint32_t n)
{
    return (uint32_t)((uint64_t)rng_next(r) * n >> 32);
}

float rng_normal(struct rng *r)
{
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (float)rng_next(r) * 0x1p-32f;
    return sum - 6;
}

void rng_fill(struct rng *r, float *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = scale * rng_normal(r);
}

void *op_malloc(size_t bytes)
{
    void *p = calloc(1, bytes ? bytes : 1);
    assert_non_null(p);
    return p;
}

uint16_t *rng_halves(struct rng *r, size_t n, float mean, float scale)
{
    uint16_t *h = op_malloc(n * sizeof *h);
    for (size_t i = 0; i < n; i++)
        h[i] = half_from_float(mean + scale * rng_normal(r));
    return h;
}

static int random_value(struct rng *r, enum k_weight type)
{
    return type == K_WEIGHT_I4 ? (int)rng_below(r, 16) - 8 : (int)rng_below(r, 255) - 127;
}

struct matrix matrix_new(struct rng *r, enum k_weight type, uint32_t rows, uint32_t cols,
                         uint32_t group_cols, bool bias)
{
    size_t n = (size_t)rows * cols;
    uint32_t n_groups = type == K_WEIGHT_F16 ? 1 : (cols + group_cols - 1) / group_cols;
    struct matrix m = {.exact = op_malloc(n * sizeof(double)),
                       .rounded = op_malloc(n * sizeof(double)),
                       .data = op_malloc(n * 2)};
    if (type != K_WEIGHT_F16) {
        m.scale = rng_halves(r, (size_t)rows * n_groups, 0, 0.001f);
        for (size_t i = 0; i < (size_t)rows * n_groups; i++)
            m.scale[i] = (m.scale[i] & 0x7fff) + 0x1400; /* positive, about 0.002 */
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t row = (uint32_t)(i / cols), col = (uint32_t)(i % cols);
        if (type == K_WEIGHT_F16) {
            uint16_t h = half_from_float(0.05f * rng_normal(r));
            memcpy(m.data + 2 * i, &h, 2);
            m.exact[i] = m.rounded[i] = (double)half_to_float(h);
            continue;
        }
        int q = random_value(r, type);
        float scale = half_to_float(m.scale[(size_t)row * n_groups + col / group_cols]);
        m.exact[i] = (double)q * (double)scale;
        m.rounded[i] = (double)half_round((float)q * scale);
        if (type == K_WEIGHT_I8)
            m.data[i] = (uint8_t)q;
        else
            m.data[i / 2] |= (uint8_t)((q & 15) << (i % 2 ? 0 : 4));
    }
    if (bias)
        m.bias = rng_halves(r, rows, 0, 1);
    m.src = (struct k_linear_src){type,   rows,    cols,  n_groups, type ? group_cols : cols,
                                  m.data, m.scale, m.bias};
    return m;
}

void matrix_free(struct matrix *m)
{
    free(m->data);
    free(m->scale);
    free(m->bias);
    free(m->exact);
    free(m->rounded);
}

void assert_same_bits(const float *a, const float *b, size_t n, const char *format, ...)
{
    const uint8_t *bytes_a = (const uint8_t *)a, *bytes_b = (const uint8_t *)b;
    if (!memcmp(bytes_a, bytes_b, n * sizeof *a))
        return;
    char place[256];
    va_list args;
    va_start(args, format);
    vsnprintf(place, sizeof place, format, args);
    va_end(args);
    size_t i = 0;
    while (!memcmp(bytes_a + i * sizeof *a, bytes_b + i * sizeof *a, sizeof *a))
        i++;
    fail_msg("%s: element %zu is %.9g (%a) but must have the bits of %.9g (%a)", place, i,
             (double)a[i], (double)a[i], (double)b[i], (double)b[i]);
}

void assert_near(double got, double want, double bound, const char *format, ...)
{
    if (fabs(got - want) <= bound)
        return;
    char place[256];
    va_list args;
    va_start(args, format);
    vsnprintf(place, sizeof place, format, args);
    va_end(args);
    fail_msg("%s: got %.9g, want %.9g, difference %.3g over %.3g", place, got, want,
             fabs(got - want), bound);
}

bool op_long(void)
{
    const char *value = getenv("GLMD_TEST_LONG");
    return value && *value && strcmp(value, "0") != 0;
}
