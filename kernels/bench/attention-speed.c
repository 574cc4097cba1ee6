/* attention-speed.c: attention over an FP16 and over an INT8 cache, in turn, so that whatever else
 * the machine does meets both alike.
 *
 * A row of the table is a batch of sequences of one length: decode (one row each, all of the
 * sequence visible) or prefill (all rows of one sequence). Every sequence has blocks of its own.
 * Times are medians per token of the batch; "ratio" is the median over the pairs INT8 / FP16.
 * "share" is what the nearer ceiling (reading keys and values once, or FP32 multiply-adds, measured
 * beside it) allows by the time of FP16, the median; keys that fit the processor's cache are read
 * faster than that, unless several layers take turns (--layers).
 */
#include "cpu-ceilings.h"
#include "kernels/cpu/cpu.h"
#include "kernels/kernels.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIM = 128, BLOCK_TOKENS = 16, MAX_BATCH = 64, MAX_SAMPLES = 4000 };
static const enum k_kv_type types[] = {K_KV_F16, K_KV_I8};
enum { N_TYPES = sizeof types / sizeof *types };

struct bench {
    const struct k_ops *ops;
    struct k_ctx *c;
    struct k_rope *rope;
    struct k_kv *kv[N_TYPES];
    uint32_t n_layers, max_seq, max_tokens;
    float *qkv, *q, *out;
    int32_t *positions;
    uint32_t *blocks; /* [max_tokens / BLOCK_TOKENS] 0, 1, 2, ... */
    double seconds;
    struct k_attn_params params;
    uint32_t n_threads;
    struct pool *pool;     /* of the ceilings */
    struct probes *probes; /* NULL = none */
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, uint32_t n)
{
    qsort(values, n, sizeof *values, compare);
    return values[n / 2];
}

static bool make(struct bench *b, const struct k_open_params *open)
{
    const struct k_ops *ops = b->ops;
    char message[256];
    if (ops->open(open, &b->c, message, sizeof message) < 0) {
        fprintf(stderr, "attention-speed: %s\n", message);
        return false;
    }
    size_t row = (size_t)(b->params.n_heads + 2 * b->params.n_kv_heads) * DIM,
           half = (size_t)b->max_seq * DIM / 2;
    float *cos_table = malloc(half * sizeof(float)), *sin_table = malloc(half * sizeof(float));
    b->qkv = ops->alloc(b->c, b->max_seq * row * sizeof(float));
    b->q = ops->alloc(b->c, b->max_seq * row * sizeof(float));
    b->out = ops->alloc(b->c, b->max_seq * row * sizeof(float));
    b->positions = calloc(b->max_seq, sizeof *b->positions);
    b->blocks = calloc(b->max_tokens / BLOCK_TOKENS, sizeof *b->blocks);
    bool ok = cos_table && sin_table && b->qkv && b->q && b->out && b->positions && b->blocks;
    for (size_t i = 0; ok && i < half; i++) {
        cos_table[i] = cosf((float)i);
        sin_table[i] = sinf((float)i);
    }
    for (size_t i = 0; ok && i < b->max_seq * row; i++)
        b->qkv[i] = (float)(i * 7919 % 2003) / 1001.0f - 1.0f;
    for (uint32_t i = 0; ok && i < b->max_seq; i++)
        b->positions[i] = (int32_t)i;
    for (uint32_t i = 0; ok && i < b->max_tokens / BLOCK_TOKENS; i++)
        b->blocks[i] = i;
    if (ok)
        b->rope = ops->rope_new(b->c, cos_table, sin_table, b->max_seq, DIM / 2);
    free(cos_table);
    free(sin_table);
    for (int i = 0; ok && i < N_TYPES; i++) {
        struct k_kv_params p = {b->n_layers,  b->params.n_kv_heads,
                                DIM,          b->max_tokens / BLOCK_TOKENS,
                                BLOCK_TOKENS, types[i]};
        b->kv[i] = ops->kv_new(b->c, &p);
        ok = b->kv[i] != NULL;
        const uint32_t n_tokens = ok && b->rope ? b->n_layers * b->max_tokens : 0;
        for (uint32_t at = 0; at < n_tokens; at += b->max_seq) {
            uint32_t t = at % b->max_tokens;
            b->params.layer = at / b->max_tokens;
            struct k_seq s = {0, b->max_seq, 0, 0, b->blocks + t / BLOCK_TOKENS};
            ops->rope_kv(b->c, &b->params, b->rope, b->qkv, b->positions, &s, 1, b->kv[i], b->q);
        }
    }
    if (!ok || !b->rope)
        fprintf(stderr, "attention-speed: out of memory\n");
    return ok && b->rope;
}

static void unmake(struct bench *b)
{
    free(b->positions);
    free(b->blocks);
    if (!b->ops || !b->c)
        return;
    for (int i = 0; i < N_TYPES; i++)
        b->ops->kv_free(b->c, b->kv[i]);
    b->ops->rope_free(b->c, b->rope);
    b->ops->free(b->c, b->qkv);
    b->ops->free(b->c, b->q);
    b->ops->free(b->c, b->out);
    b->ops->close(b->c);
}

/* The least seconds that `read` GB/s and `fma` Gop/s allow. */
static double least_seconds(double gbytes, double read, double gops, double fma)
{
    double by_memory = read > 0 ? gbytes / read : 0, by_arithmetic = fma > 0 ? gops / fma : 0;
    return by_memory > by_arithmetic ? by_memory : by_arithmetic;
}

static void measure(struct bench *b, const char *what, const struct k_seq *seqs, uint32_t n)
{
    static double samples[N_TYPES][MAX_SAMPLES], ratio[MAX_SAMPLES], share[MAX_SAMPLES];
    const uint32_t seen = seqs[0].start + seqs[0].n_rows; /* by every row */
    uint32_t count = 0, rows = 0;
    for (uint32_t i = 0; i < n; i++)
        rows += seqs[i].n_rows;
    const double gops = 4.0 * rows * seen * DIM * b->params.n_heads * 1e-9;
    const double gbytes = 4.0 * n * seen * DIM * b->params.n_kv_heads * 1e-9;
    double end = bench_now(b->n_threads) + b->seconds, read = 0, fma = 0;
    do {
        b->params.layer = count % b->n_layers;
        for (int i = 0; i < N_TYPES; i++) {
            double start = bench_now(b->n_threads);
            b->ops->attention(b->c, &b->params, b->q, seqs, n, b->kv[i], b->out);
            samples[i][count] = bench_now(b->n_threads) - start;
        }
        if (b->probes && count % 4 == 0) {
            read = probe_read(b->probes);
            fma = probe_fma(b->probes);
        }
        ratio[count] = samples[1][count] / samples[0][count];
        share[count] = least_seconds(gbytes, read, gops, fma) / samples[0][count];
        count++;
    } while (count < MAX_SAMPLES && bench_now(b->n_threads) < end);
    double us[N_TYPES];
    for (int i = 0; i < N_TYPES; i++)
        us[i] = median(samples[i], count) / rows * 1e6;
    printf("%-8s %6u %6u %12.2f %12.2f %8.3f %8.1f %8.1f %7.2f\n", what, n, seen, us[0], us[1],
           median(ratio, count), gops / rows / us[0] * 1e6, gbytes / rows / us[0] * 1e6,
           median(share, count));
}

static int run(struct bench *b)
{
    static const uint32_t lengths[] = {128, 512, 2048}, batches[] = {1, 16};
    struct k_seq seqs[MAX_BATCH];
    printf("%s\n%u heads of %u, %u of keys and values, tokens of 1 layer, %u in turn\n",
           b->ops->describe(b->c), b->params.n_heads, DIM, b->params.n_kv_heads, b->n_layers);
    for (int i = 0; i < N_TYPES; i++) {
        struct k_kv_params p = {1, b->params.n_kv_heads, DIM, 1, BLOCK_TOKENS, types[i]};
        printf("%s: %zu bytes per block of %d tokens\n", types[i] == K_KV_I8 ? "INT8" : "FP16",
               b->ops->kv_block_bytes(b->c, &p), BLOCK_TOKENS);
    }
    printf("\n%-8s %6s %6s %12s %12s %8s %8s %8s %7s\n", "", "seqs", "tokens", "FP16 us/row",
           "INT8 us/row", "ratio", "Gop/s", "GB/s", "share");
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
        for (size_t n = 0; n < sizeof batches / sizeof *batches; n++) {
            for (uint32_t i = 0; i < batches[n]; i++)
                seqs[i] = (struct k_seq){i, 1, lengths[l] - 1, 0,
                                         b->blocks + (size_t)i * (b->max_seq / BLOCK_TOKENS)};
            measure(b, "decode", seqs, batches[n]);
        }
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
        seqs[0] = (struct k_seq){0, lengths[l], 0, lengths[l], b->blocks};
        measure(b, "prefill", seqs, 1);
    }
    return 0;
}

static bool find_mode(const char *name, enum k_mode *ret)
{
    static const char *const names[] = {
        [K_MODE_FP32] = "fp32", [K_MODE_FP16] = "fp16", [K_MODE_A8] = "a8"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) {
            *ret = (enum k_mode)i;
            return true;
        }
    return false;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"isa", required_argument, NULL, 'i'},      {"threads", required_argument, NULL, 't'},
        {"seconds", required_argument, NULL, 's'},  {"heads", required_argument, NULL, 'h'},
        {"kv-heads", required_argument, NULL, 'k'}, {"layers", required_argument, NULL, 'l'},
        {"mode", required_argument, NULL, 'm'},     {0}};
    struct bench b = {.n_layers = 1,
                      .max_seq = 2048,
                      .max_tokens = 16 * 2048,
                      .seconds = 2,
                      .params = {.n_heads = 12, .head_dim = DIM}};
    struct k_open_params p = {.device = "cpu",
                              .mode = K_MODE_FP16,
                              .n_threads = 1,
                              .max_rows = b.max_seq,
                              .max_cols = 64,
                              .max_seq = b.max_seq};
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'i') {
            p.isa = optarg;
        } else if (c == 't') {
            p.n_threads = (uint32_t)strtoul(optarg, NULL, 10);
        } else if (c == 's') {
            b.seconds = strtod(optarg, NULL);
        } else if (c == 'h') {
            b.params.n_heads = (uint32_t)strtoul(optarg, NULL, 10);
        } else if (c == 'l') {
            b.n_layers = (uint32_t)strtoul(optarg, NULL, 10);
        } else if (c == 'k') {
            b.params.n_kv_heads = (uint32_t)strtoul(optarg, NULL, 10);
        } else if (c == 'm' && find_mode(optarg, &p.mode)) {
            continue;
        } else {
            fprintf(stderr, "usage: attention-speed [--isa NAME] [--threads N] [--seconds S] "
                            "[--heads N] [--kv-heads N] [--layers N] [--mode fp32|fp16|a8]\n");
            return 2;
        }
    }
    if (!b.params.n_kv_heads)
        b.params.n_kv_heads = b.params.n_heads;
    if (!b.params.n_heads || b.params.n_heads > 256 || b.params.n_kv_heads > b.params.n_heads ||
        b.params.n_heads % b.params.n_kv_heads) {
        fprintf(stderr, "attention-speed: expected 1 to 256 heads, a multiple of --kv-heads\n");
        return 2;
    }
    if (!b.n_layers || b.n_layers > 64) {
        fprintf(stderr, "attention-speed: expected 1 to 64 layers\n");
        return 2;
    }
    char message[256];
    b.ops = k_backend("cpu", message, sizeof message);
    b.n_threads = p.n_threads;
    if (cpu_kernels_find(p.isa) && pool_new(p.n_threads, K_PIN_AUTO, &b.pool) == 0)
        b.probes = probes_new(b.pool, cpu_kernels_find(p.isa)->name);
    bool ok = b.ops && make(&b, &p);
    int code = ok ? run(&b) : 1;
    unmake(&b);
    probes_free(b.probes);
    pool_free(b.pool);
    return code;
}
