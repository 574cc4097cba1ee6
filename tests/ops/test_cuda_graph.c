/* test_cuda_graph.c: decode steps with begin_decode on the emulated GPU, without an engine: padding
 * leaves no trace, sequences of all lengths in steps of one shape have the bits of plain steps,
 * also where many q heads share a key-value head and where the scratch of attention takes several
 * launches; records are as many as there are kinds of steps, and no more than there is room for. */
#include "harness.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"
#include "tests/support/emulated_driver.h"

enum { MAX_ROWS = 320, MAX_SEQ = 1600, BLOCK = 16, N_SEQS = 5, PER_SEQ = MAX_SEQ / BLOCK };

struct world {
    uint32_t n_heads, n_kv_heads, dim, row_len, q_len;
    struct k_ctx *c;
    struct k_rope *rope;
    struct k_kv *kv;
    void *qkv, *q, *out;
    float *values; /* [MAX_ROWS, row_len] */
    int32_t ids[MAX_ROWS], positions[MAX_ROWS];
    uint32_t blocks[N_SEQS][PER_SEQ];
    struct k_seq seqs[N_SEQS];
};

static struct k_attn_params attention_of(const struct world *w)
{
    return (struct k_attn_params){w->n_heads, w->n_kv_heads, w->dim, 0};
}

static void world_init(struct world *w, uint32_t n_heads, uint32_t n_kv_heads, uint32_t dim,
                       enum k_kv_type type, struct rng *r)
{
    *w = (struct world){.n_heads = n_heads, .n_kv_heads = n_kv_heads, .dim = dim};
    w->row_len = (n_heads + 2 * n_kv_heads) * dim;
    w->q_len = n_heads * dim;
    const struct k_open_params p = {.device = "cuda:0",
                                    .mode = K_MODE_FP16,
                                    .max_rows = MAX_ROWS,
                                    .max_cols = w->row_len,
                                    .max_seq = MAX_SEQ};
    char message[512];
    if (cuda_open(&p, &w->c, message, sizeof message))
        fail_msg("%s", message);
    float *table = op_malloc((size_t)MAX_SEQ * dim * sizeof *table);
    for (size_t i = 0; i < (size_t)MAX_SEQ * dim; i++)
        table[i] = (float)(rng_below(r, 2048)) / 1024.0f - 1.0f;
    w->rope = cuda_rope_new(w->c, table, table + (size_t)MAX_SEQ * dim / 2, MAX_SEQ, dim / 2);
    free(table);
    const struct k_kv_params kv = {1, n_kv_heads, dim, N_SEQS * PER_SEQ, BLOCK, type};
    w->kv = cuda_kv_new(w->c, &kv);
    w->qkv = cuda_new(w->c, (size_t)MAX_ROWS * w->row_len * 2);
    w->q = cuda_new(w->c, (size_t)MAX_ROWS * w->q_len * 2);
    w->out = cuda_new(w->c, (size_t)MAX_ROWS * w->q_len * 2);
    assert_true(w->rope && w->kv && w->qkv && w->q && w->out);
    w->values = op_malloc((size_t)MAX_ROWS * w->row_len * sizeof(float));
    for (uint32_t s = 0; s < N_SEQS; s++)
        for (uint32_t b = 0; b < PER_SEQ; b++)
            w->blocks[s][b] = s * PER_SEQ + (b * 7 + s) % PER_SEQ; /* block 0 is used */
}

static void world_deinit(struct world *w)
{
    cuda_free(w->c, w->qkv);
    cuda_free(w->c, w->q);
    cuda_free(w->c, w->out);
    cuda_rope_free(w->c, w->rope);
    cuda_kv_free(w->c, w->kv);
    cuda_close(w->c);
    free(w->values);
    const struct emulated_driver *d = emulated_driver_state();
    assert_int_equal(d->allocated, 0);
    assert_int_equal(d->n_graphs, 0);
}

static void random_rows(struct world *w, uint32_t n, struct rng *r)
{
    rng_fill(r, w->values, (size_t)n * w->row_len, 2);
    cuda_upload(w->c, w->qkv, w->values, (size_t)n * w->row_len);
    for (uint32_t i = 0; i < n; i++)
        w->positions[i] = (int32_t)rng_below(r, MAX_SEQ);
}

static void enqueue(struct world *w, const struct k_step *s)
{
    const struct k_attn_params a = attention_of(w);
    cuda_rope_kv(w->c, &a, w->rope, w->qkv, s->positions, s->seqs, s->n_seqs, w->kv, w->q);
    cuda_attention(w->c, &a, w->q, s->seqs, s->n_seqs, w->kv, w->out);
}

static void take(struct world *w, float *ret, uint32_t n)
{
    cuda_download(w->c, ret, w->out, (size_t)n * w->q_len);
    char message[512];
    if (cuda_sync(w->c, message, sizeof message))
        fail_msg("%s", message);
}

/* Fills the cache up to `len` tokens of a sequence. */
static void prompt(struct world *w, uint32_t seq, uint32_t len, struct rng *r)
{
    for (uint32_t start = 0; start < len; start += MAX_ROWS) {
        uint32_t n = len - start < MAX_ROWS ? len - start : MAX_ROWS;
        const struct k_seq q = {0, n, start, 0, w->blocks[seq]};
        const struct k_step s = {w->ids, w->positions, n, &q, 1, BLOCK};
        const struct k_attn_params a = attention_of(w);
        random_rows(w, n, r);
        cuda_begin_step(w->c, &s);
        cuda_rope_kv(w->c, &a, w->rope, w->qkv, s.positions, s.seqs, 1, w->kv, w->q);
    }
}

static void test_steps(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_heads, n_kv_heads, dim;
        enum k_kv_type type;
    } models[] = {{2, 2, 64, K_KV_F16}, {3, 1, 128, K_KV_I8}, {20, 1, 32, K_KV_F16}};
    /* Lengths in the cache: 4, 8, 16 and 25 (of 25) tiles of keys. */
    static const struct {
        uint32_t n_seqs, start[N_SEQS];
    } steps[] = {
        {3, {0, 9, 200}},
        {3, {1, 10, 255}},
        {3, {2, 256, 11}},
        {1, {1590}},
        {5, {3, 12, 257, 20, 30}},
        {1, {1024}},
        {3, {4, 258, 13}},
        {2, {1, 600}},
        {5, {900, 8, 511, 21, 31}},
        {5, {5, 64, 63, 500, 1}},
        {1, {1599}},
    };
    emulated_driver_reset();
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        struct rng r = {m + 1};
        struct world w;
        world_init(&w, models[m].n_heads, models[m].n_kv_heads, models[m].dim, models[m].type, &r);
        static const uint32_t lengths[N_SEQS] = {1599, 700, 520, 501, 32};
        for (uint32_t s = 0; s < N_SEQS; s++)
            prompt(&w, s, lengths[s], &r);
        if (m == 0)
            w.c->attention_bytes /= 16; /* room for one long sequence: several launches */
        float *got = op_malloc(sizeof(float) * N_SEQS * w.q_len);
        float *want = op_malloc(sizeof(float) * N_SEQS * w.q_len);
        for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
            uint32_t n = steps[i].n_seqs;
            for (uint32_t s = 0; s < n; s++)
                w.seqs[s] = (struct k_seq){s, 1, steps[i].start[s], s, w.blocks[s]};
            const struct k_step step = {w.ids, w.positions, n, w.seqs, n, BLOCK};
            random_rows(&w, n, &r);
            uint32_t rows = cuda_begin_decode(w.c, &step);
            assert_int_equal(rows, n == 1 ? 1 : n == 2 ? 2 : n == 3 ? 4 : 8);
            for (bool go = cuda_graph_begin(w.c, 0); go; go = cuda_graph_end(w.c))
                enqueue(&w, &step);
            take(&w, got, n);
            cuda_begin_step(w.c, &step);
            enqueue(&w, &step);
            take(&w, want, n);
            assert_same_bits(got, want, (size_t)n * w.q_len, "model %zu, step %zu", m, i);
        }
        struct k_graph_stats stats;
        cuda_graph_stats(w.c, &stats);
        assert_null(stats.off);
        /* (4 rows, 4 tiles) and (4, 8), (1, 25), (8, 8), (2, 16), (8, 16): two came once */
        assert_int_equal(stats.n_replays + stats.n_enqueued, sizeof steps / sizeof *steps);
        assert_int_equal(stats.n_enqueued, 6);
        assert_int_equal(stats.n_graphs, 4);
        free(got);
        free(want);
        world_deinit(&w);
    }
}

static void test_rows(void **state)
{
    (void)state;
    emulated_driver_reset();
    struct rng r = {1};
    struct world w;
    world_init(&w, 1, 1, 16, K_KV_F16, &r);
    static const struct {
        uint32_t n, rows;
    } cases[] = {{1, 1},     {2, 2},     {3, 4},     {5, 8},   {9, 16},   {17, 24},
                 {25, 32},   {33, 48},   {49, 64},   {65, 96}, {97, 128}, {129, 192},
                 {192, 192}, {193, 256}, {256, 256}, {257, 0}, {320, 0}};
    struct k_seq seqs[MAX_ROWS];
    for (uint32_t i = 0; i < MAX_ROWS; i++)
        seqs[i] = (struct k_seq){i, 1, 0, 0, w.blocks[0]};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct k_step step = {w.ids, w.positions, cases[i].n, seqs, cases[i].n, BLOCK};
        uint32_t rows = cuda_begin_decode(w.c, &step);
        if (rows != cases[i].rows)
            fail_msg("%u rows are padded to %u, expected %u", cases[i].n, rows, cases[i].rows);
    }
    world_deinit(&w);
}

/* More kinds of steps than there is room for: the one that was not used for longest goes. */
static void test_room(void **state)
{
    (void)state;
    emulated_driver_reset();
    struct rng r = {1};
    struct world w;
    world_init(&w, 1, 1, 16, K_KV_F16, &r);
    struct cuda_step *s = &w.c->step;
    void *buffer = cuda_new(w.c, 64);
    const float x[4] = {1, 2, 3, 4};
    for (uint32_t round = 0; round < 2; round++)
        for (uint32_t kind = 1; kind <= CUDA_MAX_GRAPHS + 3; kind++)
            for (int again = 0; again < 2; again++) {
                s->decode_rows = kind;
                s->decode_tiles = 4;
                for (bool go = cuda_graph_begin(w.c, 0); go; go = cuda_graph_end(w.c))
                    cuda_halves_from_floats(w.c, buffer, w.c->stage_device, 4);
                struct k_graph_stats stats;
                cuda_graph_stats(w.c, &stats);
                assert_true(stats.n_graphs <= CUDA_MAX_GRAPHS);
                assert_int_equal(emulated_driver_state()->n_graphs, stats.n_graphs);
            }
    struct k_graph_stats stats;
    cuda_graph_stats(w.c, &stats);
    assert_int_equal(stats.n_graphs, CUDA_MAX_GRAPHS);
    assert_int_equal(stats.n_enqueued,
                     2 * (CUDA_MAX_GRAPHS + 3)); /* in turn: none is found again */
    cuda_graph_hold(w.c);                        /* as a comm that ends */
    assert_int_equal(emulated_driver_state()->n_graphs, 0);
    assert_true(cuda_graph_begin(w.c, 0));
    assert_false(w.c->graphs.recording);
    cuda_upload(w.c, buffer, x, 4);
    cuda_graph_release(w.c);
    cuda_free(w.c, buffer);
    world_deinit(&w);
}

int main(void)
{
    if (!emulated_driver_works())
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
