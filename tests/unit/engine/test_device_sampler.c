/* test_device_sampler.c: tokens chosen on the device, executed on the emulated GPU, are the host's,
 * bit for bit with their log-probabilities: every option at random, ties, rows without order, rows
 * in parts, alone and in company, in any order of the CTAs; and by several ranks, each from its
 * part of the vocabulary. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/sample.h"
#include "tests/support/emulated_driver.h"
#include "tests/support/random.h"
#include "worker/engine/outputs.h"

enum { MAX_ROWS = 9, MAX_HISTORY = 200, MAX_LIST = 24 };

static float one_of(const float *values, size_t n)
{
    return values[random_below((uint32_t)n)];
}

/* ---- rows ---- */

struct row {
    struct plan_sampling p;
    bool score;
    int32_t target, previous;
    int32_t history[MAX_HISTORY];
    struct plan_bias bias[MAX_LIST];
    struct plan_range forbidden[MAX_LIST];
    int32_t banned[MAX_LIST];
    float *logits; /* [vocab] */
};

static int32_t random_token(uint32_t vocab)
{
    /* few of them, so that lists meet and repeat */
    return (int32_t)(random_below(3) ? random_below(MIN(vocab, 40u)) : random_below(vocab));
}

static void random_lists(struct row *r, uint32_t vocab)
{
    struct plan_sampling *p = &r->p;
    p->n_history = random_below(3) ? 0 : random_below(MAX_HISTORY);
    p->n_history_prompt = random_below(p->n_history + 1);
    p->n_bias = random_below(3) ? 0 : random_below(MAX_LIST);
    p->n_forbidden = random_below(3) ? 0 : random_below(6);
    p->n_banned = random_below(3) ? 0 : random_below(MAX_LIST);
    for (uint32_t i = 0; i != p->n_history; i++)
        r->history[i] = random_token(vocab);
    for (uint32_t i = 0; i != p->n_bias; i++)
        r->bias[i] =
            (struct plan_bias){random_token(vocab), (float)random_below(2000) / 100.0f - 10.0f};
    for (uint32_t i = 0; i != p->n_forbidden; i++) {
        int32_t begin = random_token(vocab);
        int32_t most = (int32_t)vocab - begin;
        r->forbidden[i] =
            (struct plan_range){begin, begin + (int32_t)random_below((uint32_t)most + 1) /
                                                   (int32_t)(1 + random_below(50))};
    }
    for (uint32_t i = 0; i != p->n_banned; i++)
        r->banned[i] = random_token(vocab);
    p->history = r->history;
    p->bias = r->bias;
    p->forbidden = r->forbidden;
    p->banned = r->banned;
}

static void random_params(struct row *r, uint32_t vocab)
{
    static const float temperature[] = {1, 1, 0.6f, 1.7f, 5, 1e-3f};
    static const float top_p[] = {0, 1, 0.7f, 0.95f, 0.01f, 0.99999f};
    static const float min_p[] = {0, 0, 0, 0.02f, 0.5f, 1, 1e-13f};
    static const float repetition[] = {0, 1, 1.2f, 3, 0.5f};
    static const float presence[] = {0, 0, 0.6f, 2, -2, -0.3f};
    const uint32_t top_k[] = {0, 0, 1, 2, 40, random_below(vocab) + 1, vocab - 1, vocab, vocab + 5};
    r->p = (struct plan_sampling){
        .temperature = one_of(temperature, ARRAY_LEN(temperature)),
        .top_k = top_k[random_below(ARRAY_LEN(top_k))],
        .top_p = one_of(top_p, ARRAY_LEN(top_p)),
        .min_p = one_of(min_p, ARRAY_LEN(min_p)),
        .repetition_penalty = one_of(repetition, ARRAY_LEN(repetition)),
        .presence_penalty = one_of(presence, ARRAY_LEN(presence)),
        .frequency_penalty = one_of(presence, ARRAY_LEN(presence)),
        .seed = (uint64_t)random_u32() << 32 | random_u32(),
        .request = (uint64_t)random_u32() << 32 | random_u32(),
        .choice = random_below(16),
        .output_index = random_below(2048),
        .n_top_logprobs =
            random_below(2) ? 0 : 1 + random_below(MIN(vocab, (uint32_t)PLAN_MAX_TOP_LOGPROBS)),
    };
    random_lists(r, vocab);
    r->score = random_below(6) == 0;
    r->target = random_token(vocab);
    r->previous = random_below(2) ? -1 : random_token(vocab);
}

enum kind { SMOOTH, COARSE, EQUAL, WIDE, SOME_NAN, ALL_NAN, PLUS_INF, MINUS_INF, ZEROS, N_KINDS };

static float random_logit(enum kind kind)
{
    float x = (float)random_below(20001) / 1000.0f - 10.0f;
    switch (kind) {
    case COARSE: /* ties everywhere */
        return roundf(x);
    case EQUAL:
        return -3.25f;
    case WIDE:
        return random_below(50) ? x * 1e3f : x * 1e37f;
    case SOME_NAN:
        return random_below(3) ? (random_below(2) ? NAN : -NAN) : random_below(4) ? x : -INFINITY;
    case ALL_NAN:
        return NAN;
    case PLUS_INF:
        return random_below(100) ? x : INFINITY;
    case MINUS_INF:
        return -INFINITY;
    case ZEROS:
        return random_below(2) ? 0.0f : -0.0f;
    default:
        return x;
    }
}

static void random_row(struct row *r, uint32_t vocab, enum kind kind)
{
    for (uint32_t i = 0; i != vocab; i++)
        r->logits[i] = random_logit(kind);
    random_params(r, vocab);
}

/* ---- both ways ---- */

static void on_host(struct sampler *s, const struct row *r, uint32_t vocab,
                    struct k_sample_result *ret)
{
    float *row = alloc_array(vocab, sizeof *row);
    struct result_logprob top[PLAN_MAX_TOP_LOGPROBS];
    memcpy(row, r->logits, vocab * sizeof *row);
    if (r->score) {
        ret->chosen.token = r->target;
        ret->chosen.logprob = sampler_logprob(s, row, r->target, r->p.n_top_logprobs, top);
    } else {
        ret->chosen.token = sampler_choose(s, row, &r->p, r->previous, &ret->chosen.logprob, top);
    }
    for (uint32_t i = 0; i != r->p.n_top_logprobs; i++)
        ret->top[i] = (struct k_sample_token){top[i].token, top[i].logprob};
    free(row);
}

static bool same_token(const struct k_sample_token *a, const struct k_sample_token *b)
{
    uint32_t bits_a, bits_b;
    memcpy(&bits_a, &a->logprob, sizeof bits_a);
    memcpy(&bits_b, &b->logprob, sizeof bits_b);
    return a->token == b->token && bits_a == bits_b;
}

static void compare(const struct row *r, const struct k_sample_result *found,
                    const struct k_sample_result *want, const char *what)
{
    const struct plan_sampling *p = &r->p;
    for (uint32_t i = 0; i != 1 + p->n_top_logprobs; i++) {
        const struct k_sample_token *a = i ? &found->top[i - 1] : &found->chosen;
        const struct k_sample_token *b = i ? &want->top[i - 1] : &want->chosen;
        if (!same_token(a, b))
            fail_msg("%s: %s %u: token %d, %.9g, on the host %d, %.9g (score %d, t %g, k %u, p "
                     "%.9g, min-p %g, r %g, presence %g, frequency %g, history %u, bias %u, "
                     "forbidden %u, banned %u)",
                     what, i ? "top" : "chosen", i, a->token, (double)a->logprob, b->token,
                     (double)b->logprob, r->score, (double)p->temperature, p->top_k,
                     (double)p->top_p, (double)p->min_p, (double)p->repetition_penalty,
                     (double)p->presence_penalty, (double)p->frequency_penalty, p->n_history,
                     p->n_bias, p->n_forbidden, p->n_banned);
    }
}

struct fixture {
    struct k_ctx *ctx;
    struct k_sampler *device;
    struct sampler *host;
    uint32_t vocab;
    struct row rows[MAX_ROWS];
};

/* A context and its sampler; n_ranks 0: alone. */
static struct k_sampler *open_device(uint32_t vocab, uint32_t n_ranks, struct k_ctx **ret_ctx)
{
    const struct k_open_params p = {
        .device = "cuda:0", .mode = K_MODE_FP16, .max_rows = 8, .max_cols = 8, .max_seq = 8};
    const struct k_sampler_params sp = {.vocab = vocab,
                                        .max_rows = MAX_ROWS,
                                        .buffer_rows = MAX_ROWS,
                                        .n_ranks = n_ranks,
                                        .max_history = MAX_HISTORY,
                                        .max_bias = MAX_LIST,
                                        .max_forbidden = MAX_LIST,
                                        .max_banned = MAX_LIST};
    char message[256];
    if (cuda_open(&p, ret_ctx, message, sizeof message))
        fail_msg("%s", message);
    struct k_sampler *s = cuda_sample_ops.create(*ret_ctx, &sp);
    assert_non_null(s);
    return s;
}

static void fixture_open(struct fixture *f, uint32_t vocab)
{
    memset(f, 0, sizeof *f);
    f->device = open_device(vocab, 0, &f->ctx);
    assert_int_equal(sampler_new(vocab, &f->host), 0);
    f->vocab = vocab;
    for (uint32_t i = 0; i != MAX_ROWS; i++)
        f->rows[i].logits = alloc_array(vocab, sizeof(float));
}

static void fixture_close(struct fixture *f)
{
    char message[256];
    assert_int_equal(cuda_sync(f->ctx, message, sizeof message), 0);
    cuda_sample_ops.destroy(f->ctx, f->device);
    cuda_close(f->ctx);
    sampler_free(f->host);
    for (uint32_t i = 0; i != MAX_ROWS; i++)
        free(f->rows[i].logits);
    assert_int_equal(emulated_driver_state()->allocated, 0);
    assert_int_equal(emulated_driver_state()->host_allocated, 0);
}

/* Rows [first, first + n), their logits in `n_parts` parts. */
static void on_device(struct fixture *f, uint32_t first, uint32_t n, uint32_t n_parts,
                      struct k_sample_result *ret)
{
    const uint32_t cols = f->vocab / n_parts;
    struct k_sample_row rows[MAX_ROWS];
    for (uint32_t i = 0; i != n; i++) {
        const struct row *r = &f->rows[first + i];
        rows[i] = outputs_sample_row(&r->p, r->previous);
        rows[i].score = r->score;
        rows[i].target = r->target;
        for (uint32_t part = 0; part != n_parts; part++)
            cuda_sample_ops.put(f->ctx, f->device, ((size_t)part * n + i) * cols,
                                r->logits + (size_t)part * cols, cols);
    }
    void *logits = cuda_sample_ops.buffer(f->device);
    /* All at once, or those behind the first one. */
    uint32_t skip = n > 1 && n_parts > 1 ? 1 : 0;
    if (skip) {
        cuda_sample_ops.begin(f->ctx, f->device, logits, n_parts, n, 0, rows, 1);
        cuda_sample_ops.end(f->ctx, f->device, ret);
    }
    cuda_sample_ops.begin(f->ctx, f->device, logits, n_parts, n, skip, rows + skip, n - skip);
    ret += skip;
    cuda_sample_ops.end(f->ctx, f->device, ret);
}

/* ---- tests ---- */

static void check_rows(struct fixture *f, uint32_t n, uint32_t n_parts, const char *what)
{
    struct k_sample_result found[MAX_ROWS], want = {.chosen = {0}};
    on_device(f, 0, n, n_parts, found);
    for (uint32_t i = 0; i != n; i++) {
        on_host(f->host, &f->rows[i], f->vocab, &want);
        compare(&f->rows[i], &found[i], &want, what);
    }
    /* one of them alone */
    struct k_sample_result alone;
    uint32_t i = random_below(n);
    on_device(f, i, 1, 1, &alone);
    compare(&f->rows[i], &alone, &found[i], "alone");
}

static void test_random_rows(void **state)
{
    (void)state;
    static const struct {
        uint32_t vocab, n_rounds, n_parts;
    } cases[] = {{1, 5, 1},     {2, 20, 2},    {64, 60, 1},   {703, 60, 1},
                 {2048, 12, 1}, {4104, 24, 2}, {6000, 16, 4}, {20480, 4, 1}};
    for (size_t c = 0; c != ARRAY_LEN(cases); c++) {
        struct fixture f;
        fixture_open(&f, cases[c].vocab);
        for (uint32_t round = 0; round != cases[c].n_rounds; round++) {
            emulated_driver_set_order(round);
            uint32_t n = 1 + random_below(MAX_ROWS);
            for (uint32_t i = 0; i != n; i++)
                random_row(&f.rows[i], f.vocab,
                           random_below(3) ? (enum kind)random_below(2)
                                           : (enum kind)random_below(N_KINDS));
            check_rows(&f, n, round % 2 ? cases[c].n_parts : 1, "random rows");
        }
        emulated_driver_set_order(0);
        fixture_close(&f);
    }
}

/* GLM-130B's vocabulary, with the distribution of a model's logits. */
static void test_real_vocabulary(void **state)
{
    (void)state;
    struct fixture f;
    fixture_open(&f, 150528);
    for (uint32_t i = 0; i != 5; i++) {
        struct row *r = &f.rows[i];
        random_row(r, f.vocab, SMOOTH);
        for (uint32_t t = 0; t != f.vocab; t++) {
            float u = ((float)random_below(1 << 20) + 0.5f) * 0x1p-20f;
            r->logits[t] =
                4.0f * sqrtf(-2.0f * logf(u)) * cosf((float)random_below(6283) / 1000.0f);
        }
        r->score = i == 4;
    }
    f.rows[0].p = (struct plan_sampling){.temperature = 1, .top_p = 0.7f, .seed = 7};
    f.rows[1].p = (struct plan_sampling){
        .temperature = 0.8f, .top_k = 40, .top_p = 0.9f, .seed = 8, .n_top_logprobs = 20};
    f.rows[2].p = (struct plan_sampling){.temperature = 3, .seed = 9, .min_p = 1e-3f};
    check_rows(&f, 5, 4, "150528");
    fixture_close(&f);
}

/* The draws of one row follow its distribution; every one is the host's. */
static void test_draws(void **state)
{
    (void)state;
    enum { VOCAB = 37, N = 3000 };
    struct fixture f;
    fixture_open(&f, VOCAB);
    float *row = alloc_array(VOCAB, sizeof *row), *probs = alloc_array(VOCAB, sizeof *probs);
    for (uint32_t t = 0; t != VOCAB; t++)
        f.rows[0].logits[t] = random_logit(SMOOTH) / 4.0f;
    for (uint32_t i = 1; i != MAX_ROWS; i++)
        memcpy(f.rows[i].logits, f.rows[0].logits, VOCAB * sizeof(float));
    uint32_t counts[VOCAB] = {0};
    for (uint32_t at = 0; at < N; at += MAX_ROWS) {
        struct k_sample_result found[MAX_ROWS], want = {.chosen = {0}};
        for (uint32_t i = 0; i != MAX_ROWS; i++) {
            f.rows[i].p = (struct plan_sampling){
                .temperature = 0.9f, .top_p = 0.95f, .seed = 3, .output_index = at + i};
            f.rows[i].previous = -1;
        }
        on_device(&f, 0, MAX_ROWS, 1, found);
        for (uint32_t i = 0; i != MAX_ROWS; i++) {
            on_host(f.host, &f.rows[i], VOCAB, &want);
            compare(&f.rows[i], &found[i], &want, "draws");
            counts[found[i].chosen.token]++;
        }
    }
    memcpy(row, f.rows[0].logits, VOCAB * sizeof *row);
    sampler_distribution(f.host, row, &f.rows[0].p, -1, probs);
    const uint32_t n_drawn = N / MAX_ROWS * MAX_ROWS + MAX_ROWS;
    for (uint32_t t = 0; t != VOCAB; t++) {
        double expected = (double)probs[t] * n_drawn;
        if (fabs(counts[t] - expected) > 4.5 * sqrt(expected) + 1e-9)
            fail_msg("token %u: drawn %u times, expected %g", t, counts[t], expected);
    }
    free(row);
    free(probs);
    fixture_close(&f);
}

/* ---- several ranks ---- */

enum { MAX_RANKS = 4 };

/* Ranks as threads, a sampler each. */
struct shards {
    uint32_t size, n; /* ranks; rows of the call */
    struct fixture *f;
    pthread_barrier_t met;
    struct shard {
        struct shards *all;
        uint32_t rank;
        struct k_ctx *ctx;
        struct k_sampler *device;
        const void *told; /* in the exchange that runs */
        size_t told_bytes, n_bytes;
        struct k_sample_result results[MAX_ROWS];
    } shards[MAX_RANKS];
};

static void shards_open(struct shards *g, struct fixture *f, uint32_t size)
{
    memset(g, 0, sizeof *g);
    g->size = size;
    g->f = f;
    assert_int_equal(pthread_barrier_init(&g->met, NULL, size), 0);
    for (uint32_t i = 0; i != size; i++) {
        struct shard *s = &g->shards[i];
        s->all = g;
        s->rank = i;
        s->device = open_device(f->vocab, size, &s->ctx);
    }
}

static void shards_close(struct shards *g)
{
    char message[256];
    for (uint32_t i = 0; i != g->size; i++) {
        assert_int_equal(cuda_sync(g->shards[i].ctx, message, sizeof message), 0);
        cuda_sample_ops.destroy(g->shards[i].ctx, g->shards[i].device);
        cuda_close(g->shards[i].ctx);
    }
    pthread_barrier_destroy(&g->met);
}

/* What was launched has run, on the emulated device. */
static void meet(void *context, const void *own, size_t bytes, void *all)
{
    struct shard *s = context;
    s->told = own;
    s->told_bytes = bytes;
    s->n_bytes += bytes;
    pthread_barrier_wait(&s->all->met);
    for (uint32_t i = 0; i != s->all->size; i++) {
        const struct shard *peer = &s->all->shards[i];
        if (peer->told_bytes != bytes || bytes % 16)
            abort();
        memcpy((char *)all + i * bytes, peer->told, bytes);
    }
    pthread_barrier_wait(&s->all->met);
}

static void *run_shard(void *context)
{
    struct shard *s = context;
    const struct fixture *f = s->all->f;
    const uint32_t cols = f->vocab / s->all->size, n = s->all->n;
    struct k_sample_row rows[MAX_ROWS];
    s->n_bytes = 0;
    for (uint32_t i = 0; i != n; i++) {
        const struct row *r = &f->rows[i];
        rows[i] = outputs_sample_row(&r->p, r->previous);
        rows[i].score = r->score;
        rows[i].target = r->target;
        cuda_sample_ops.put(s->ctx, s->device, (size_t)i * cols, r->logits + (size_t)s->rank * cols,
                            cols);
    }
    const struct k_sample_ranks ranks = {s->rank, s->all->size, meet, s};
    cuda_sample_ops.begin_shard(s->ctx, s->device, &ranks, cuda_sample_ops.buffer(s->device), rows,
                                n);
    cuda_sample_ops.end(s->ctx, s->device, s->results);
    return NULL;
}

/* Rows that no cut needs candidates for. */
static bool never_wide(const struct row *r, uint32_t vocab)
{
    const struct plan_sampling *p = &r->p;
    bool by_rank = p->top_k && p->top_k<vocab, by_mass = p->top_p> 0.0f && p->top_p < 1.0f;
    return r->score || p->top_k == 1 || (!by_rank && !by_mass);
}

/* All ranks have the host's results, or all of them say that the row is too wide; how many are. */
static uint32_t check_shards(struct shards *g, uint32_t n, const char *what)
{
    const struct fixture *f = g->f;
    pthread_t threads[MAX_RANKS];
    g->n = n;
    for (uint32_t i = 0; i != g->size; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_shard, &g->shards[i]), 0);
    for (uint32_t i = 0; i != g->size; i++)
        pthread_join(threads[i], NULL);
    uint32_t n_wide = 0;
    for (uint32_t i = 0; i != n; i++) {
        struct k_sample_result want = {.chosen = {0}};
        const bool wide = g->shards[0].results[i].chosen.token == -1;
        on_host(f->host, &f->rows[i], f->vocab, &want);
        if (wide && never_wide(&f->rows[i], f->vocab))
            fail_msg("%s: row %u is not cut, and too wide", what, i);
        for (uint32_t rank = 0; rank != g->size; rank++) {
            const struct k_sample_result *found = &g->shards[rank].results[i];
            if (wide)
                assert_int_equal(found->chosen.token, -1);
            else
                compare(&f->rows[i], found, &want, what);
        }
        n_wide += wide;
    }
    return n_wide;
}

static void test_shards(void **state)
{
    (void)state;
    static const struct {
        uint32_t vocab, n_rounds, n_ranks;
    } cases[] = {{2, 20, 2},    {4, 20, 4},    {74, 60, 2},   {1406, 40, 2}, {1407, 30, 3},
                 {2812, 30, 4}, {8196, 10, 4}, {20480, 4, 2}, {8192, 8, 2}};
    uint32_t n_rows = 0, n_wide = 0;
    for (size_t c = 0; c != ARRAY_LEN(cases); c++) {
        struct fixture f;
        struct shards g;
        fixture_open(&f, cases[c].vocab);
        shards_open(&g, &f, cases[c].n_ranks);
        for (uint32_t round = 0; round != cases[c].n_rounds; round++) {
            emulated_driver_set_order(round);
            uint32_t n = 1 + random_below(MAX_ROWS);
            for (uint32_t i = 0; i != n; i++)
                random_row(&f.rows[i], f.vocab,
                           random_below(3) ? (enum kind)random_below(2)
                                           : (enum kind)random_below(N_KINDS));
            n_wide += check_shards(&g, n, "shards");
            n_rows += n;
        }
        emulated_driver_set_order(0);
        shards_close(&g);
        fixture_close(&f);
    }
    print_message("%u of %u rows were too wide\n", n_wide, n_rows);
    assert_true(n_wide > n_rows / 50 && n_wide < n_rows / 2);
}

/* What stands at the border of two ranks: the best token in two, three times the same value on
 * either side, at the edge of top-k and of the nucleus; a padded end that would win. */
static void test_borders(void **state)
{
    (void)state;
    enum { VOCAB = 4 * 703, BORDER = 2 * 703 };
    struct fixture f;
    struct shards g;
    fixture_open(&f, VOCAB);
    shards_open(&g, &f, 4);
    for (uint32_t round = 0; round != 12; round++) {
        for (uint32_t i = 0; i != MAX_ROWS; i++) {
            struct row *r = &f.rows[i];
            for (uint32_t t = 0; t != VOCAB; t++)
                r->logits[t] = -20.0f - (float)(t % 97);
            for (int32_t d = -3; d != 3; d++)
                r->logits[BORDER + d] = 4.0f;
            r->logits[10] = 5.0f;
            r->logits[VOCAB - 1] = r->logits[VOCAB - 2] = 50.0f;
            r->forbidden[0] = (struct plan_range){VOCAB - 40, VOCAB};
            r->score = i == 8;
            r->target = BORDER;
            r->previous = -1;
            r->p = (struct plan_sampling){.temperature = 1,
                                          .seed = round,
                                          .output_index = i,
                                          .forbidden = r->forbidden,
                                          .n_forbidden = 1,
                                          .n_top_logprobs = 1 + (round + i) % 20};
            static const uint32_t top_k[] = {1, 3, 0, 2, 6, 0, 7, 0, 0};
            static const float top_p[] = {0, 0, 0.6f, 0.5f, 0.9f, 0.3f, 0, 0.999f, 0};
            static const float min_p[] = {0, 0, 0, 0.2f, 0, 0.5f, 0, 0, 0.1f};
            r->p.top_k = top_k[i];
            r->p.top_p = top_p[i];
            r->p.min_p = min_p[i];
        }
        f.rows[0].logits[10] = 4.0f; /* the first of seven */
        assert_int_equal(check_shards(&g, MAX_ROWS, "borders"), 0);
    }
    shards_close(&g);
    fixture_close(&f);
}

/* What four ranks of GLM-130B tell each other: hundreds of times less than the logits. */
static void test_shards_of_the_real_vocabulary(void **state)
{
    (void)state;
    enum { N = 4 };
    struct fixture f;
    struct shards g;
    fixture_open(&f, 150528);
    shards_open(&g, &f, 4);
    for (uint32_t i = 0; i != N; i++) {
        struct row *r = &f.rows[i];
        for (uint32_t t = 0; t != f.vocab; t++) {
            float u = ((float)random_below(1 << 20) + 0.5f) * 0x1p-20f;
            r->logits[t] =
                3.0f * sqrtf(-2.0f * logf(u)) * cosf((float)random_below(6283) / 1000.0f);
        }
        for (uint32_t t = 0; t != 60; t++)
            r->logits[random_below(f.vocab)] = 14.0f + (float)random_below(500) / 100.0f;
        r->score = false;
        r->previous = -1;
    }
    f.rows[0].p = (struct plan_sampling){.temperature = 1, .top_p = 0.7f, .seed = 7};
    f.rows[1].p = (struct plan_sampling){
        .temperature = 0.8f, .top_k = 40, .top_p = 0.9f, .seed = 8, .n_top_logprobs = 20};
    f.rows[2].p = (struct plan_sampling){.temperature = 3, .seed = 9, .min_p = 1e-3f};
    f.rows[3].p = (struct plan_sampling){.temperature = 1, .top_k = 1};
    assert_int_equal(check_shards(&g, N, "150528 by four"), 0);
    const size_t logits = N * (f.vocab / 4) * sizeof(float);
    print_message("a rank tells %zu bytes of %zu\n", g.shards[0].n_bytes, logits);
    assert_true(g.shards[0].n_bytes * 100 < logits);
    shards_close(&g);
    fixture_close(&f);
}

/* Memory short at any allocation: nothing is there, nothing leaks, and the next try works. */
static void test_out_of_memory(void **state)
{
    (void)state;
    const struct k_open_params p = {
        .device = "cuda:0", .mode = K_MODE_FP16, .max_rows = 8, .max_cols = 8, .max_seq = 8};
    const struct k_sampler_params sp = {.vocab = 300, .max_rows = 3, .max_history = 10};
    struct k_ctx *ctx;
    char message[256];
    assert_int_equal(cuda_open(&p, &ctx, message, sizeof message), 0);
    const size_t memory_bytes = emulated_driver_state()->memory_bytes;
    const uint64_t held = emulated_driver_state()->allocated;
    emulated_driver_state()->memory_bytes = (size_t)held + sample_bytes(&sp) / 2;
    assert_null(cuda_sample_ops.create(ctx, &sp));
    assert_int_equal(emulated_driver_state()->allocated, held);
    emulated_driver_state()->memory_bytes = memory_bytes;
    struct k_sampler *s = cuda_sample_ops.create(ctx, &sp);
    assert_non_null(s);
    cuda_sample_ops.destroy(ctx, s);
    assert_int_equal(cuda_sync(ctx, message, sizeof message), 0);
    cuda_close(ctx);
    assert_int_equal(emulated_driver_state()->allocated, 0);
    assert_int_equal(emulated_driver_state()->host_allocated, 0);
}

int main(void)
{
    if (!emulated_driver_works())
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_rows),   cmocka_unit_test(test_real_vocabulary),
        cmocka_unit_test(test_draws),         cmocka_unit_test(test_shards),
        cmocka_unit_test(test_borders),       cmocka_unit_test(test_shards_of_the_real_vocabulary),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
