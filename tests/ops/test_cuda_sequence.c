/* test_cuda_sequence.c: rope, the paged cache and attention of the CUDA backend, executed on the
 * emulated GPU, against the CPU backend: with and without shared heads, FP16 and INT8 keys and
 * values, prefix masks, blocks in any order. And by themselves, bit by bit: prefill against decode,
 * a sequence alone against the same one in company, whichever CTA ends first. */
#include "world.h"

#include "base/half.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"
#include "tests/support/emulated_driver.h"

enum { MAX_SEQ = 320, N_LAYERS = 2, LAYER = 1, MAX_TOKENS = 1024 };

static const struct model models[] = {
    {1, 1, 128, 16}, {2, 2, 16, 16},   {3, 3, 64, 32},
    {8, 2, 32, 16},  {16, 1, 128, 16}, {6, 2, 112, 48},
};
enum { N_MODELS = sizeof models / sizeof *models };

/* Around the borders of rows (16, 128), keys (64) and CTAs (256). */
static const struct sequence sequences[] = {{1, 0},   {37, 0},      {16, 16},   {150, 33}, {50, 49},
                                            {64, 64}, {MAX_SEQ, 0}, {129, 128}, {17, 3}};
enum { N_SEQS = sizeof sequences / sizeof *sequences };

/* What the device is given: binary16, and among it a token of zeros (scale 0 with INT8). */
static struct world device_world(const struct model *m, struct rng *r)
{
    struct world w = world_new(m, sequences, N_SEQS, MAX_SEQ, r);
    assert_true(w.n_tokens <= MAX_TOKENS);
    for (size_t i = 0; i < (size_t)w.n_tokens * w.row_len; i++)
        w.qkv[i] = half_round(w.qkv[i]);
    memset(w.qkv + (size_t)(w.row0[1] + 5) * w.row_len, 0, w.row_len * sizeof *w.qkv);
    return w;
}

static struct k_seq part_of(const struct world *w, int i, uint32_t row0, uint32_t start, uint32_t n)
{
    return (struct k_seq){row0, n, start, sequences[i].prefix, w->blocks[i]};
}

/* ---- the CPU's answer ---- */

struct answer {
    float *q, *out; /* [n_tokens, q_len] */
};

static struct answer cpu_answer(const struct world *w, enum k_kv_type type)
{
    const struct k_ops *ops = op_cpu();
    struct k_ctx *c = op_open(ops, NULL, K_MODE_FP32, 2, MAX_TOKENS, 64, MAX_SEQ);
    const struct model *m = w->m;
    const struct k_kv_params kp = {N_LAYERS,    m->n_kv_heads,   m->dim,
                                   w->n_blocks, m->block_tokens, type};
    struct k_kv *kv = ops->kv_new(c, &kp);
    struct k_rope *rope = ops->rope_new(c, w->cos, w->sin, MAX_SEQ, m->dim / 2);
    const struct k_attn_params p = {m->n_heads, m->n_kv_heads, m->dim, LAYER};
    struct answer a = {op_malloc((size_t)w->n_tokens * w->q_len * sizeof(float)),
                       op_malloc((size_t)w->n_tokens * w->q_len * sizeof(float))};
    struct k_seq seqs[N_SEQS];
    for (int i = 0; i < N_SEQS; i++)
        seqs[i] = part_of(w, i, w->row0[i], 0, sequences[i].len);
    ops->rope_kv(c, &p, rope, w->qkv, w->positions, seqs, N_SEQS, kv, a.q);
    for (size_t i = 0; i < (size_t)w->n_tokens * w->q_len; i++)
        a.q[i] = half_round(a.q[i]); /* as the device keeps it */
    ops->attention(c, &p, a.q, seqs, N_SEQS, kv, a.out);
    ops->kv_free(c, kv);
    ops->rope_free(c, rope);
    ops->close(c);
    return a;
}

/* ---- the emulated GPU ---- */

struct gpu {
    struct k_ctx *c;
    struct k_kv *kv;
    struct k_rope *rope;
    void *qkv, *q, *out; /* of a step */
    int32_t ids[MAX_TOKENS];
};

static void gpu_open(struct gpu *g, const struct world *w, enum k_kv_type type)
{
    char message[256];
    const struct model *m = w->m;
    const struct k_open_params p = {.device = "cuda",
                                    .mode = K_MODE_FP16,
                                    .max_rows = MAX_TOKENS,
                                    .max_cols = 8,
                                    .max_seq = MAX_SEQ};
    *g = (struct gpu){0};
    emulated_driver_reset();
    if (cuda_open(&p, &g->c, message, sizeof message))
        fail_msg("%s", message);
    const struct k_kv_params kp = {N_LAYERS,    m->n_kv_heads,   m->dim,
                                   w->n_blocks, m->block_tokens, type};
    g->kv = cuda_kv_new(g->c, &kp);
    g->rope = cuda_rope_new(g->c, w->cos, w->sin, MAX_SEQ, m->dim / 2);
    g->qkv = cuda_new(g->c, (size_t)w->n_tokens * w->row_len * 2);
    g->q = cuda_new(g->c, (size_t)w->n_tokens * w->q_len * 2);
    g->out = cuda_new(g->c, (size_t)w->n_tokens * w->q_len * 2);
    assert_true(g->kv && g->rope && g->qkv && g->q && g->out);
}

static void gpu_close(struct gpu *g)
{
    char message[256];
    assert_int_equal(cuda_sync(g->c, message, sizeof message), 0);
    cuda_free(g->c, g->qkv);
    cuda_free(g->c, g->q);
    cuda_free(g->c, g->out);
    cuda_kv_free(g->c, g->kv);
    cuda_rope_free(g->c, g->rope);
    cuda_close(g->c);
    assert_int_equal(emulated_driver_state()->allocated, 0);
}

/* One step of sequences, whose rows come from the world's; writes q and out [rows, q_len]. */
static void gpu_step(struct gpu *g, const struct world *w, const int *which,
                     const struct k_seq *seqs, uint32_t n_seqs, float *q, float *out)
{
    const struct k_attn_params p = {w->m->n_heads, w->m->n_kv_heads, w->m->dim, LAYER};
    int32_t positions[MAX_TOKENS];
    uint32_t n_rows = 0;
    for (uint32_t i = 0; i < n_seqs; i++) {
        uint32_t from = w->row0[which[i]] + seqs[i].start;
        assert_int_equal(seqs[i].row0, n_rows);
        memcpy(positions + n_rows, w->positions + from, seqs[i].n_rows * sizeof *positions);
        cuda_upload(g->c, (uint16_t *)g->qkv + (size_t)n_rows * w->row_len,
                    w->qkv + (size_t)from * w->row_len, (size_t)seqs[i].n_rows * w->row_len);
        n_rows += seqs[i].n_rows;
    }
    const struct k_step step = {g->ids, positions, n_rows, seqs, n_seqs, w->m->block_tokens};
    cuda_begin_step(g->c, &step);
    cuda_rope_kv(g->c, &p, g->rope, g->qkv, positions, seqs, n_seqs, g->kv, g->q);
    cuda_attention(g->c, &p, g->q, seqs, n_seqs, g->kv, g->out);
    if (q)
        cuda_download(g->c, q, g->q, (size_t)n_rows * w->q_len);
    cuda_download(g->c, out, g->out, (size_t)n_rows * w->q_len);
}

/* All sequences in one step. */
static struct answer gpu_answer(struct gpu *g, const struct world *w)
{
    struct answer a = {op_malloc((size_t)w->n_tokens * w->q_len * sizeof(float)),
                       op_malloc((size_t)w->n_tokens * w->q_len * sizeof(float))};
    struct k_seq seqs[N_SEQS];
    int which[N_SEQS];
    for (int i = 0; i < N_SEQS; i++) {
        seqs[i] = part_of(w, i, w->row0[i], 0, sequences[i].len);
        which[i] = i;
    }
    gpu_step(g, w, which, seqs, N_SEQS, a.q, a.out);
    return a;
}

static void answer_free(struct answer *a)
{
    free(a->q);
    free(a->out);
}

static const enum k_kv_type types[] = {K_KV_F16, K_KV_I8};

static void test_against_cpu(void **state)
{
    (void)state;
    for (int m = 0; m < N_MODELS; m++)
        for (int t = 0; t < 2; t++) {
            struct rng r = {100 + (uint64_t)m};
            struct world w = device_world(&models[m], &r);
            struct gpu g;
            gpu_open(&g, &w, types[t]);
            struct answer want = cpu_answer(&w, types[t]), got = gpu_answer(&g, &w);
            const size_t n = (size_t)w.n_tokens * w.q_len;
            assert_same_bits(got.q, want.q, n, "model %d: q", m);
            double worst = 0;
            for (size_t i = 0; i < n; i++) {
                double d = fabs((double)got.out[i] - (double)want.out[i]);
                worst = d > worst ? d : worst;
                /* weights and results are rounded to binary16; values up to about 8 */
                assert_near((double)got.out[i], (double)want.out[i],
                            6e-3 + 1e-3 * fabs((double)want.out[i]),
                            "model %d, %s: row %zu, column %zu", m, k_kv_type_name(types[t]),
                            i / w.q_len, i % w.q_len);
            }
            print_message("model %d, keys and values in %s: largest difference %.2g\n", m,
                          k_kv_type_name(types[t]), worst);
            answer_free(&want);
            answer_free(&got);
            gpu_close(&g);
            world_free(&w);
        }
}

/* Sequence i: its prefix (or first token) at once, then pieces of `piece` tokens, in company of a
 * sequence of another length that goes along. */
static void in_pieces(struct gpu *g, const struct world *w, int i, uint32_t piece, float *out)
{
    uint32_t start = sequences[i].prefix ? sequences[i].prefix : 1;
    struct k_seq first[2] = {part_of(w, i, 0, 0, start), {0}};
    gpu_step(g, w, &i, first, 1, NULL, out);
    const int company = i == 3 ? 4 : 3;
    float *both = op_malloc((size_t)(piece + 1) * w->q_len * sizeof *both);
    for (uint32_t other = 0; start < sequences[i].len; other++) {
        uint32_t n = sequences[i].len - start < piece ? sequences[i].len - start : piece;
        bool alone = other % 3 == 0 || other >= sequences[company].len;
        struct k_seq seqs[2] = {{0}};
        int which[2] = {company, i};
        seqs[0] = part_of(w, company, 0, other % sequences[company].len, 1);
        seqs[0].prefix_len = 0;
        seqs[1] = part_of(w, i, alone ? 0 : 1, start, n);
        gpu_step(g, w, which + alone, seqs + alone, 2 - alone, NULL, both);
        memcpy(out + (size_t)start * w->q_len, both + (alone ? 0 : w->q_len),
               (size_t)n * w->q_len * sizeof *out);
        start += n;
    }
    free(both);
}

static void test_prefill_is_decode(void **state)
{
    (void)state;
    static const uint32_t pieces[] = {1, 3, 40};
    for (int m = 0; m < N_MODELS; m++) {
        const enum k_kv_type type = types[m % 2];
        struct rng r = {200 + (uint64_t)m};
        struct world w = device_world(&models[m], &r);
        struct gpu whole, cut;
        gpu_open(&whole, &w, type);
        struct answer want = gpu_answer(&whole, &w);
        gpu_close(&whole);
        gpu_open(&cut, &w, type);
        float *got = op_malloc((size_t)MAX_SEQ * w.q_len * sizeof *got);
        for (int i = 0; i < N_SEQS; i++) {
            if (sequences[i].len > 160 && m % 3)
                continue; /* they take long */
            uint32_t piece = pieces[i % 3];
            in_pieces(&cut, &w, i, piece, got);
            assert_same_bits(got, want.out + (size_t)w.row0[i] * w.q_len,
                             (size_t)sequences[i].len * w.q_len,
                             "model %d, sequence %d in pieces of %u", m, i, piece);
        }
        free(got);
        answer_free(&want);
        gpu_close(&cut);
        world_free(&w);
    }
}

/* A copied block holds what the other held, in all layers. */
static void test_copies(void **state)
{
    (void)state;
    for (int t = 0; t < 2; t++) {
        struct rng r = {300};
        struct world w = device_world(&models[3], &r);
        struct gpu g;
        gpu_open(&g, &w, types[t]);
        struct answer want = gpu_answer(&g, &w);
        float *got = op_malloc((size_t)w.q_len * sizeof *got);
        const int i = 3; /* its last token again, with copies of its blocks */
        uint32_t spare = w.n_blocks - 1;
        for (uint32_t b = 0; b * w.m->block_tokens < sequences[i].len; b++) {
            bool used = false;
            do {
                used = false;
                for (int s = 0; s < N_SEQS; s++)
                    for (uint32_t j = 0; j * w.m->block_tokens < sequences[s].len; j++)
                        used |= w.blocks[s][j] == spare;
                spare -= used;
            } while (used);
            cuda_kv_copy(g.c, g.kv, w.blocks[i][b], spare);
            w.blocks[i][b] = spare;
        }
        uint32_t last = sequences[i].len - 1;
        struct k_seq seq = part_of(&w, i, 0, last, 1);
        gpu_step(&g, &w, &i, &seq, 1, NULL, got);
        assert_same_bits(got, want.out + (size_t)(w.row0[i] + last) * w.q_len, w.q_len,
                         "after copies");
        free(got);
        answer_free(&want);
        gpu_close(&g);
        world_free(&w);
    }
}

int main(void)
{
    if (!emulated_driver_works())
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_cpu),
        cmocka_unit_test(test_prefill_is_decode),
        cmocka_unit_test(test_copies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
