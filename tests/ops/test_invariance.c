/* test_invariance.c: batch invariance as a property. A row goes through norm, INT4 product, GLU,
 * INT8 product, residual norm and FP16 head; whatever the other rows are, however many there are
 * and however many threads work, its result has the bits that it has alone. Attention has the same
 * test in test_sequence.c. Also: contexts are independent, so ranks may be threads.
 */
#include "harness.h"

#include "base/half.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { COLS = 144, INNER = 200, VOCAB = 70, N_ROWS = 24, MAX_BATCH = 40 };

/* Weights of the chain. */
struct chain {
    struct matrix up, down, head;
    uint16_t *weight, *bias;
};

static struct chain chain_new(struct rng *r)
{
    struct chain c = {
        .up = matrix_new(r, K_WEIGHT_I4, 2 * INNER, COLS, 48, true),
        .down = matrix_new(r, K_WEIGHT_I8, COLS, INNER, INNER, false),
        .head = matrix_new(r, K_WEIGHT_F16, VOCAB, COLS, COLS, false),
        .weight = rng_halves(r, COLS, 1, 0.1f),
        .bias = rng_halves(r, COLS, 0, 0.1f),
    };
    return c;
}

static void chain_free(struct chain *c)
{
    matrix_free(&c->up);
    matrix_free(&c->down);
    matrix_free(&c->head);
    free(c->weight);
    free(c->bias);
}

/* The chain on one device, with buffers. */
struct device {
    const struct k_ops *ops;
    struct k_ctx *c;
    struct k_linear *up, *down, *head;
    struct k_norm *norm;
    struct k_bias *bias;
    float *x, *a, *u, *g, *d, *y, *logits;
};

static bool device_open(struct device *d, const struct chain *chain, const char *isa,
                        enum k_mode mode, uint32_t threads)
{
    d->ops = op_cpu();
    d->c = op_open(d->ops, isa, mode, threads, MAX_BATCH, 256, 16);
    if (!d->c)
        return false;
    d->up = d->ops->linear_new(d->c, &chain->up.src);
    d->down = d->ops->linear_new(d->c, &chain->down.src);
    d->head = d->ops->linear_new(d->c, &chain->head.src);
    d->norm = d->ops->norm_new(d->c, K_NORM_LAYER, chain->weight, chain->bias, COLS);
    d->bias = d->ops->bias_new(d->c, chain->bias, COLS);
    float **buffers[] = {&d->x, &d->a, &d->u, &d->g, &d->d, &d->y, &d->logits};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        *buffers[i] = d->ops->alloc(d->c, sizeof(float) * MAX_BATCH * 2 * INNER);
        assert_non_null(*buffers[i]);
    }
    return true;
}

static void device_close(struct device *d)
{
    d->ops->linear_free(d->c, d->up);
    d->ops->linear_free(d->c, d->down);
    d->ops->linear_free(d->c, d->head);
    d->ops->norm_free(d->c, d->norm);
    d->ops->bias_free(d->c, d->bias);
    float *buffers[] = {d->x, d->a, d->u, d->g, d->d, d->y, d->logits};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        d->ops->free(d->c, buffers[i]);
    d->ops->close(d->c);
}

/* d->x [n, COLS] -> d->logits [n, VOCAB] */
static void run_chain(struct device *d, uint32_t n)
{
    const struct k_ops *ops = d->ops;
    ops->norm(d->c, d->norm, 1e-5f, d->x, n, d->a);
    ops->linear(d->c, d->up, d->a, n, d->u);
    ops->glu(d->c, K_GLU_GEGLU, d->u, n, INNER, d->g);
    ops->linear(d->c, d->down, d->g, n, d->d);
    ops->residual_norm(d->c, d->norm, 1e-5f, 3.5f, d->a, d->d, d->bias, n, d->y);
    ops->linear(d->c, d->head, d->y, n, d->logits);
}

static void base_rows(float *rows)
{
    struct rng r = {99};
    rng_fill(&r, rows, (size_t)N_ROWS * COLS, 1);
    for (int i = 0; i < N_ROWS; i++) /* rows of different sizes, some with outliers */
        for (int k = 0; k < COLS; k++)
            rows[i * COLS + k] *= k == i && i % 3 == 0 ? 100.0f : powf(2, (float)(i % 7 - 3));
}

/* Every base row alone. */
static void alone(const struct chain *chain, const char *isa, enum k_mode mode, const float *rows,
                  float *logits)
{
    struct device d = {0};
    bool opened = device_open(&d, chain, isa, mode, 1);
    assert_true(opened);
    for (int i = 0; opened && i < N_ROWS; i++) {
        memcpy(d.x, rows + (size_t)i * COLS, COLS * sizeof *rows);
        run_chain(&d, 1);
        memcpy(logits + (size_t)i * VOCAB, d.logits, VOCAB * sizeof *logits);
    }
    device_close(&d);
}

/* A random batch on the device; the base rows that were picked, and their number. */
static uint32_t random_batch(struct device *d, const float *rows, struct rng *r,
                             uint32_t pick[MAX_BATCH])
{
    uint32_t n = 1 + rng_below(r, rng_below(r, 2) ? 9 : MAX_BATCH);
    for (uint32_t i = 0; i < n; i++) {
        pick[i] = rng_below(r, N_ROWS);
        memcpy(d->x + (size_t)i * COLS, rows + (size_t)pick[i] * COLS, COLS * sizeof *rows);
    }
    run_chain(d, n);
    return n;
}

static void random_batches(struct device *d, const char *isa, enum k_mode mode, const float *rows,
                           const float *logits, int n_batches, struct rng *r)
{
    for (int batch = 0; batch < n_batches; batch++) {
        uint32_t pick[MAX_BATCH], n = random_batch(d, rows, r, pick);
        for (uint32_t i = 0; i < n; i++)
            assert_same_bits(d->logits + (size_t)i * VOCAB, logits + (size_t)pick[i] * VOCAB, VOCAB,
                             "%s, %s, batch %d: row %u of %u (base row %u)", isa,
                             op_mode_name(mode), batch, i, n, pick[i]);
    }
}

static void test_batches(void **state)
{
    (void)state;
    struct rng r = {1};
    struct chain chain = chain_new(&r);
    float rows[N_ROWS * COLS], logits[N_ROWS * VOCAB];
    base_rows(rows);
    for (int mode = K_MODE_FP32; mode <= K_MODE_A8; mode++) {
        alone(&chain, "c", (enum k_mode)mode, rows, logits);
        for (int set = 0; set < MAX_SETS; set++)
            for (uint32_t threads = 1; threads <= 2; threads++) {
                struct device d = {0};
                int n_batches = set ? 500 : 20;
                if (!device_open(&d, &chain, op_sets[set], (enum k_mode)mode, threads))
                    continue;
                random_batches(&d, op_sets[set], (enum k_mode)mode, rows, logits,
                               op_long() ? 20 * n_batches : n_batches, &r);
                device_close(&d);
            }
    }
    chain_free(&chain);
}

/* Rows behind the first pass (CPU_PASS_ROWS = 512) are rows like others. */
static void test_long_batch(void **state)
{
    (void)state;
    enum { N = 1037 };
    const struct k_ops *ops = op_cpu();
    struct rng r = {3};
    struct matrix m = matrix_new(&r, K_WEIGHT_I4, 40, 64, 64, true);
    for (int mode = K_MODE_FP32; mode <= K_MODE_A8; mode++) {
        struct k_ctx *c = op_open(ops, NULL, (enum k_mode)mode, 2, N, 64, 16);
        struct k_linear *l = ops->linear_new(c, &m.src);
        float *x = op_malloc(N * 64 * 4), *y = op_malloc(N * 40 * 4), one[40];
        rng_fill(&r, x, N * 64, 1);
        ops->linear(c, l, x, N, y);
        for (int t = 0; t < N; t++) {
            ops->linear(c, l, x + t * 64, 1, one);
            assert_same_bits(y + t * 40, one, 40, "row %d of %d, %s", t, N,
                             op_mode_name((enum k_mode)mode));
        }
        free(x);
        free(y);
        ops->linear_free(c, l);
        ops->close(c);
    }
    matrix_free(&m);
}

struct rank {
    const struct chain *chain;
    const float *rows, *logits;
    uint64_t seed;
    uint32_t n_wrong; /* rows; asserted by the test's own thread */
};

static void *run_rank(void *arg)
{
    struct rank *k = arg;
    struct rng r = {k->seed};
    struct device d = {0};
    if (!device_open(&d, k->chain, NULL, K_MODE_FP16, 2))
        k->n_wrong++;
    for (int batch = 0; batch < 50 && d.c; batch++) {
        uint32_t pick[MAX_BATCH], n = random_batch(&d, k->rows, &r, pick);
        for (uint32_t i = 0; i < n; i++) {
            const void *got = d.logits + (size_t)i * VOCAB;
            const void *want = k->logits + (size_t)pick[i] * VOCAB;
            k->n_wrong += memcmp(got, want, VOCAB * sizeof(float)) != 0;
        }
    }
    if (d.c)
        device_close(&d);
    return NULL;
}

static void test_contexts_are_independent(void **state)
{
    (void)state;
    struct rng r = {1};
    struct chain chain = chain_new(&r);
    float rows[N_ROWS * COLS], logits[N_ROWS * VOCAB];
    base_rows(rows);
    alone(&chain, NULL, K_MODE_FP16, rows, logits);
    pthread_t threads[4];
    struct rank ranks[4];
    for (int i = 0; i < 4; i++) {
        ranks[i] = (struct rank){&chain, rows, logits, 50 + (uint64_t)i, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, run_rank, &ranks[i]), 0);
    }
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(ranks[i].n_wrong, 0);
    chain_free(&chain);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batches),
        cmocka_unit_test(test_long_batch),
        cmocka_unit_test(test_contexts_are_independent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
