/* gpu-check-sequences.c: rope, the cache, attention: against the CPU, and prefill against decode.
 */
#include "gpu-check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"

enum { MAX_SEQS = 8, BLOCK = 16, LAYER = 1, N_LAYERS = 2 };

struct shape {
    uint32_t n_heads, n_kv_heads, dim;
    enum k_kv_type type;
    uint32_t n_seqs;
    struct {
        uint32_t len, prefix;
    } seq[MAX_SEQS];
};

/* Everything that is fed to both. */
struct input {
    uint32_t n_rows, row_len, q_len, n_blocks, max_seq;
    float *qkv, *cos, *sin;
    int32_t *positions;
    uint32_t *blocks; /* shuffled, one list behind the other */
    struct k_seq seqs[MAX_SEQS];
};

static void input_init(struct input *in, const struct shape *s, uint32_t max_seq)
{
    *in = (struct input){.max_seq = max_seq};
    uint32_t at = 0;
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        in->n_blocks += (s->seq[i].len + BLOCK - 1) / BLOCK;
        in->n_rows += s->seq[i].len;
    }
    in->n_blocks += 3;
    in->blocks = check_malloc(in->n_blocks * sizeof *in->blocks);
    for (uint32_t i = 0; i < in->n_blocks; i++)
        in->blocks[i] = i;
    for (uint32_t i = in->n_blocks - 1; i; i--) {
        uint32_t j = check_below(i + 1), t = in->blocks[i];
        in->blocks[i] = in->blocks[j];
        in->blocks[j] = t;
    }
    for (uint32_t i = 0, row = 0; i < s->n_seqs; i++) {
        in->seqs[i] = (struct k_seq){row, s->seq[i].len, 0, s->seq[i].prefix, in->blocks + at};
        row += s->seq[i].len;
        at += (s->seq[i].len + BLOCK - 1) / BLOCK;
    }
    in->row_len = (s->n_heads + 2 * s->n_kv_heads) * s->dim;
    in->q_len = s->n_heads * s->dim;
    in->qkv = check_random((size_t)in->n_rows * in->row_len, 0, 2);
    in->positions = check_malloc(in->n_rows * sizeof *in->positions);
    for (uint32_t i = 0; i < in->n_rows; i++)
        in->positions[i] = (int32_t)check_below(max_seq);
    const size_t table = (size_t)max_seq * s->dim / 2;
    in->cos = check_malloc(table * sizeof(float));
    in->sin = check_malloc(table * sizeof(float));
    for (size_t i = 0; i < table; i++) {
        in->cos[i] = half_round(cosf((float)i));
        in->sin[i] = half_round(sinf((float)i));
    }
}

static void input_deinit(struct input *in)
{
    free(in->qkv);
    free(in->cos);
    free(in->sin);
    free(in->positions);
    free(in->blocks);
}

static struct k_kv_params kv_params(const struct shape *s, const struct input *in)
{
    return (struct k_kv_params){N_LAYERS, s->n_kv_heads, s->dim, in->n_blocks, BLOCK, s->type};
}

/* The CPU's q and result. */
static void reference(const struct shape *s, const struct input *in, float *q, float *out)
{
    const struct k_kv_params kp = kv_params(s, in);
    const struct k_attn_params p = {s->n_heads, s->n_kv_heads, s->dim, LAYER};
    struct k_kv *kv = check_cpu->kv_new(check_ref, &kp);
    struct k_rope *rope = check_cpu->rope_new(check_ref, in->cos, in->sin, in->max_seq, s->dim / 2);
    check_cpu->rope_kv(check_ref, &p, rope, in->qkv, in->positions, in->seqs, s->n_seqs, kv, q);
    for (size_t i = 0; i < (size_t)in->n_rows * in->q_len; i++)
        q[i] = half_round(q[i]);
    check_cpu->attention(check_ref, &p, q, in->seqs, s->n_seqs, kv, out);
    check_cpu->kv_free(check_ref, kv);
    check_cpu->rope_free(check_ref, rope);
}

struct device {
    struct k_kv *kv;
    struct k_rope *rope;
    struct k_attn_params p;
};

/* Some rows: `seqs` are cuts of the input's sequences, whose rows begin at from[i] in the input. */
static void step(const struct device *d, const struct input *in, const struct k_seq *seqs,
                 const uint32_t *from, uint32_t n_seqs, float **ret_q, float **ret_out)
{
    uint32_t n_rows = 0;
    for (uint32_t i = 0; i < n_seqs; i++)
        n_rows += seqs[i].n_rows;
    float *qkv = check_malloc((size_t)n_rows * in->row_len * sizeof *qkv);
    int32_t *positions = check_malloc(n_rows * sizeof *positions);
    int32_t *ids = calloc(n_rows, sizeof *ids);
    for (uint32_t i = 0; i < n_seqs; i++) {
        memcpy(qkv + (size_t)seqs[i].row0 * in->row_len, in->qkv + (size_t)from[i] * in->row_len,
               (size_t)seqs[i].n_rows * in->row_len * sizeof *qkv);
        memcpy(positions + seqs[i].row0, in->positions + from[i],
               seqs[i].n_rows * sizeof *positions);
    }
    const size_t n = (size_t)n_rows * in->q_len;
    void *dx = check_device(qkv, (size_t)n_rows * in->row_len);
    void *dq = check_device(NULL, n), *dout = check_device(NULL, n);
    const struct k_step s = {ids, positions, n_rows, seqs, n_seqs, BLOCK};
    if (check_ops->begin_step)
        check_ops->begin_step(check_c, &s);
    check_ops->rope_kv(check_c, &d->p, d->rope, dx, positions, seqs, n_seqs, d->kv, dq);
    check_ops->attention(check_c, &d->p, dq, seqs, n_seqs, d->kv, dout);
    if (ret_q)
        *ret_q = check_fetch(dq, n);
    *ret_out = check_fetch(dout, n);
    check_drop(dx);
    check_drop(dq);
    check_drop(dout);
    free(qkv);
    free(positions);
    free(ids);
}

/* All sequences again: the prefix (or a token), then token by token, side by side. */
static bool decode_is_prefill(const struct device *d, const struct shape *s, const struct input *in,
                              const float *want)
{
    bool same = true;
    uint32_t done[MAX_SEQS] = {0};
    for (bool more = true; more;) {
        struct k_seq seqs[MAX_SEQS];
        uint32_t from[MAX_SEQS], n = 0, rows = 0;
        for (uint32_t i = 0; i < s->n_seqs; i++) {
            if (done[i] == s->seq[i].len)
                continue;
            uint32_t some = done[i] || s->seq[i].prefix < 2 ? 1 : s->seq[i].prefix;
            seqs[n] = in->seqs[i];
            seqs[n].row0 = rows;
            seqs[n].start = done[i];
            seqs[n].n_rows = some;
            from[n++] = in->seqs[i].row0 + done[i];
            rows += some;
            done[i] += some;
        }
        more = n > 0;
        if (!more)
            break;
        float *out;
        step(d, in, seqs, from, n, NULL, &out);
        for (uint32_t i = 0; i < n; i++)
            same &=
                !memcmp(out + (size_t)seqs[i].row0 * in->q_len, want + (size_t)from[i] * in->q_len,
                        (size_t)seqs[i].n_rows * in->q_len * sizeof *out);
        free(out);
    }
    return same;
}

static void one_shape(const struct shape *s, uint32_t max_seq)
{
    struct input in;
    input_init(&in, s, max_seq);
    const struct k_kv_params kp = kv_params(s, &in);
    struct device d = {
        .kv = check_ops->kv_new(check_c, &kp),
        .rope = check_ops->rope_new(check_c, in.cos, in.sin, max_seq, s->dim / 2),
        .p = {s->n_heads, s->n_kv_heads, s->dim, LAYER},
    };
    const size_t n = (size_t)in.n_rows * in.q_len;
    float *want_q = check_malloc(n * sizeof *want_q), *want = check_malloc(n * sizeof *want);
    reference(s, &in, want_q, want);
    uint32_t from[MAX_SEQS];
    for (uint32_t i = 0; i < s->n_seqs; i++)
        from[i] = in.seqs[i].row0;
    float *q, *out, *again;
    step(&d, &in, in.seqs, from, s->n_seqs, &q, &out);
    step(&d, &in, in.seqs, from, s->n_seqs, NULL, &again);
    char what[96], name[64];
    snprintf(name, sizeof name, "%u/%u heads of %u, %s cache", s->n_heads, s->n_kv_heads, s->dim,
             k_kv_type_name(s->type));
    snprintf(what, sizeof what, "rope, %s, %u rows", name, in.n_rows);
    check_report(what, check_error(q, want_q, n), 1e-3, true);
    snprintf(what, sizeof what, "attention, %s", name);
    check_report(what, check_error(out, want, n), 3e-3, !memcmp(out, again, n * sizeof *out));
    snprintf(what, sizeof what, "decode is prefill, %s", name);
    check_report(what, 0, 0, decode_is_prefill(&d, s, &in, out));

    /* the last sequence's last token again, over copies of its blocks */
    const uint32_t last = s->n_seqs - 1, len = s->seq[last].len;
    const uint32_t spare = in.blocks[in.n_blocks - 1];
    uint32_t *blocks = (uint32_t *)(uintptr_t)in.seqs[last].blocks;
    check_ops->kv_copy(check_c, d.kv, blocks[(len - 1) / BLOCK], spare);
    blocks[(len - 1) / BLOCK] = spare;
    struct k_seq one = in.seqs[last];
    one.row0 = 0;
    one.start = len - 1;
    one.n_rows = 1;
    uint32_t from_one = in.seqs[last].row0 + len - 1;
    float *copied;
    step(&d, &in, &one, &from_one, 1, NULL, &copied);
    snprintf(what, sizeof what, "copied block, %s", name);
    check_report(what, 0, 0,
                 !memcmp(copied, out + (size_t)from_one * in.q_len, in.q_len * sizeof *out));
    check_ops->kv_free(check_c, d.kv);
    check_ops->rope_free(check_c, d.rope);
    void *host[] = {want_q, want, q, out, again, copied};
    for (size_t i = 0; i < sizeof host / sizeof *host; i++)
        free(host[i]);
    input_deinit(&in);
}

void check_sequences(const struct check_limits *l)
{
    static const struct shape shapes[] = {
        {2, 2, 128, K_KV_F16, 5, {{1, 0}, {37, 0}, {16, 16}, {130, 129}, {65, 64}}},
        {2, 2, 128, K_KV_I8, 3, {{37, 30}, {17, 3}, {66, 0}}},
        {8, 2, 64, K_KV_F16, 3, {{20, 1}, {33, 33}, {50, 40}}},
        {8, 1, 32, K_KV_I8, 2, {{20, 0}, {40, 33}}},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        one_shape(&shapes[i], l->max_seq);
    if (!l->full)
        return;
    static const struct shape large[] = {
        {12, 12, 128, K_KV_F16, 3, {{1000, 990}, {520, 512}, {260, 250}}},
        {12, 12, 128, K_KV_I8, 2, {{1000, 990}, {520, 512}}},
        {32, 2, 128, K_KV_F16, 2, {{300, 0}, {1040, 1024}}},
    };
    for (size_t i = 0; i < sizeof large / sizeof *large; i++)
        one_shape(&large[i], l->max_seq);
}
