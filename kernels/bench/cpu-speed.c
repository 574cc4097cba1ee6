/* cpu-speed.c: how fast the CPU products are, beside what this machine can do at the same moment.
 *
 * Prints the ceilings of this run (reading memory, float multiply-adds, 8-bit dots), then for each
 * GLM-130B matrix, tensor-parallel degree and batch the time, the weight bytes and operations per
 * second, and the share of the nearer ceiling: what memory and arithmetic allow for that row.
 * Weights are random; several copies are used in turn so that none stays in the cache. Times are
 * best and median. Ceilings and rows are measured with the same threads.
 */
#include "kernels/cpu/mem.h"
#include "kernels/cpu/pool.h"
#include "kernels/kernels.h"

#include <assert.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

enum {
    COPY_BYTES = 160 << 20,
    READ_BYTES = 512 << 20,
    MAX_SAMPLES = 1000,
    MAX_LIST = 16,
    READ_ROUNDS = 20
};

struct settings {
    enum k_mode mode;
    enum k_weight weight;
    const char *isa;
    uint32_t n_threads, group_cols; /* group_cols 0: one group per row */
    double seconds;                 /* per row of the table */
    uint32_t tp[MAX_LIST], batch[MAX_LIST];
};

struct ceilings {
    double read_gbs, fma_gops, dot8_gops; /* multiply and add count as 2; 0 = not measured */
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* --- ceilings --- */

struct read_job {
    const uint64_t *data;
    bool wide; /* AVX-512 */
    uint64_t sums[1024];
};

static uint64_t read_plain(const uint64_t *data, uint64_t first, uint64_t end)
{
    uint64_t sum[8] = {0};
    for (uint64_t i = first; i < end; i++) {
        __builtin_prefetch(data + i * 8 + 512);
        for (uint64_t k = 0; k < 8; k++)
            sum[k] += data[i * 8 + k];
    }
    return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

#ifdef __x86_64__
__attribute__((target("avx512f"))) static uint64_t read_512(const uint64_t *data, uint64_t first,
                                                            uint64_t end)
{
    __m512i sum[4] = {{0}, {0}, {0}, {0}};
    for (uint64_t i = first; i + 4 <= end; i += 4) {
#pragma GCC unroll 4
        for (uint64_t k = 0; k < 4; k++) {
            __builtin_prefetch(data + (i + k) * 8 + 512);
            sum[k] = _mm512_add_epi64(sum[k], _mm512_load_si512(data + (i + k) * 8));
        }
    }
    sum[0] = _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3]));
    return (uint64_t)_mm512_reduce_add_epi64(sum[0]);
}
#else
#define read_512 read_plain
#endif

static void read_share(void *arg, uint32_t thread, uint32_t n_threads)
{
    struct read_job *j = arg;
    uint64_t first, end; /* cache lines */
    pool_share(READ_BYTES / 64, thread, n_threads, &first, &end);
    j->sums[thread] = (j->wide ? read_512 : read_plain)(j->data, first, end);
}

enum { PEAK_LOOPS = 1 << 21, PEAK_SUMS = 12 };

/* Multiply-adds in registers; returns the operations of one call. Results go to *sink, so that
 * nothing is left out. */
typedef double (*peak_fn)(float *sink);

#ifdef __x86_64__
__attribute__((target("avx512f"))) static double peak_fma_512(float *sink)
{
    __m512 sum[PEAK_SUMS], a = _mm512_set1_ps(*sink), b = _mm512_set1_ps(0.5f);
    for (int i = 0; i < PEAK_SUMS; i++)
        sum[i] = _mm512_set1_ps((float)i);
    for (int n = 0; n < PEAK_LOOPS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++)
            sum[i] = _mm512_fmadd_ps(sum[i], b, a);
    for (int i = 1; i < PEAK_SUMS; i++)
        sum[0] = _mm512_add_ps(sum[0], sum[i]);
    *sink = _mm512_reduce_add_ps(sum[0]);
    return 32.0 * PEAK_SUMS * PEAK_LOOPS;
}

__attribute__((target("avx512f,avx512vnni"))) static double peak_dot_512(float *sink)
{
    __m512i sum[PEAK_SUMS], a = _mm512_set1_epi32((int)*sink);
    for (int i = 0; i < PEAK_SUMS; i++)
        sum[i] = _mm512_set1_epi32(i);
    for (int n = 0; n < PEAK_LOOPS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++)
            sum[i] = _mm512_dpbusd_epi32(sum[i], a, a);
    for (int i = 1; i < PEAK_SUMS; i++)
        sum[0] = _mm512_add_epi32(sum[0], sum[i]);
    *sink = (float)_mm512_reduce_add_epi32(sum[0]);
    return 128.0 * PEAK_SUMS * PEAK_LOOPS;
}

__attribute__((target("avx2,fma"))) static double peak_fma_256(float *sink)
{
    __m256 sum[PEAK_SUMS], a = _mm256_set1_ps(*sink), b = _mm256_set1_ps(0.5f);
    for (int i = 0; i < PEAK_SUMS; i++)
        sum[i] = _mm256_set1_ps((float)i);
    for (int n = 0; n < PEAK_LOOPS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++)
            sum[i] = _mm256_fmadd_ps(sum[i], b, a);
    for (int i = 1; i < PEAK_SUMS; i++)
        sum[0] = _mm256_add_ps(sum[0], sum[i]);
    float lanes[8];
    _mm256_storeu_ps(lanes, sum[0]);
    *sink = lanes[0] + lanes[7];
    return 16.0 * PEAK_SUMS * PEAK_LOOPS;
}

__attribute__((target("avx2"))) static double peak_dot_256(float *sink)
{
    __m256i sum[PEAK_SUMS], a = _mm256_set1_epi8((char)*sink), one = _mm256_set1_epi16(1);
    for (int i = 0; i < PEAK_SUMS; i++)
        sum[i] = _mm256_set1_epi32(i);
    for (int n = 0; n < PEAK_LOOPS; n++) {
        __asm__ volatile("" : "+x"(a)); /* not the same product every time */
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++) {
            __m256i pairs = _mm256_maddubs_epi16(_mm256_xor_si256(a, sum[i]), a);
            sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(pairs, one));
        }
    }
    for (int i = 1; i < PEAK_SUMS; i++)
        sum[0] = _mm256_add_epi32(sum[0], sum[i]);
    *sink = (float)_mm256_extract_epi32(sum[0], 3);
    return 64.0 * PEAK_SUMS * PEAK_LOOPS;
}
#endif

struct peak_job {
    peak_fn fn;
    float sinks[1024 * 16]; /* a cache line per thread */
    double operations;
};

static void peak_share(void *arg, uint32_t thread, uint32_t n_threads)
{
    struct peak_job *j = arg;
    double operations = j->fn(&j->sinks[(size_t)thread * 16]);
    if (!thread)
        j->operations = operations * n_threads;
}

static double measure_peak(struct pool *pool, peak_fn fn)
{
    struct peak_job *j = calloc(1, sizeof *j);
    double best = 0;
    for (int i = 0; j && fn && i < 5; i++) {
        double start = now();
        j->fn = fn;
        pool_run(pool, peak_share, j);
        double rate = j->operations / (now() - start) / 1e9;
        best = rate > best ? rate : best;
    }
    free(j);
    return best;
}

static double measure_read(struct pool *pool)
{
    struct read_job *j = calloc(1, sizeof *j);
    uint64_t *data = mem_alloc(READ_BYTES);
    double best = 0;
    if (j && data) {
        memset(data, 1, READ_BYTES);
        j->data = data;
#ifdef __x86_64__
        j->wide = __builtin_cpu_supports("avx512f");
#endif
        for (int i = 0; i < READ_ROUNDS; i++) {
            double start = now();
            pool_run(pool, read_share, j);
            double rate = READ_BYTES / (now() - start) / 1e9;
            best = rate > best ? rate : best;
        }
    }
    mem_free(data);
    free(j);
    return best;
}

static struct ceilings measure_ceilings(struct pool *pool)
{
    struct ceilings c = {.read_gbs = measure_read(pool)};
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f"))
        c.fma_gops = measure_peak(pool, peak_fma_512);
    else if (__builtin_cpu_supports("fma"))
        c.fma_gops = measure_peak(pool, peak_fma_256);
    if (__builtin_cpu_supports("avx512vnni"))
        c.dot8_gops = measure_peak(pool, peak_dot_512);
    else if (__builtin_cpu_supports("avx2"))
        c.dot8_gops = measure_peak(pool, peak_dot_256);
#else
    (void)measure_peak;
#endif
    return c;
}

/* --- products --- */

/* What the arithmetic of a row may reach: 16-bit dots have half the rate of 8-bit ones. */
static double arithmetic_ceiling(const struct ceilings *c, const struct settings *s)
{
    if (s->weight == K_WEIGHT_F16 || s->mode == K_MODE_FP32)
        return c->fma_gops;
    return s->mode == K_MODE_FP16 ? c->dot8_gops / 2 : c->dot8_gops;
}

static uint32_t bits_of(enum k_weight type)
{
    return type == K_WEIGHT_F16 ? 16 : type == K_WEIGHT_I8 ? 8 : 4;
}

static void fill_random(uint8_t *p, size_t n, enum k_weight type)
{
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i + 8 <= n; i += 8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        /* binary16: exponents that keep sums finite */
        uint64_t v = type == K_WEIGHT_F16
                         ? (state & UINT64_C(0x83ff83ff83ff83ff)) | UINT64_C(0x2000200020002000)
                         : state;
        memcpy(p + i, &v, 8);
    }
}

struct bench {
    const struct settings *s;
    const struct ceilings *ceil;
    const struct k_ops *ops;
    struct k_ctx *c;
    struct k_linear *copies[64];
    uint32_t n_copies, rows, cols, n_groups;
    float *x, *y;
};

static int make_copies(struct bench *b)
{
    const struct settings *s = b->s;
    size_t bytes = (size_t)b->rows * b->cols * bits_of(s->weight) / 8;
    uint32_t group = s->group_cols && s->weight != K_WEIGHT_F16 ? s->group_cols : b->cols;
    b->n_groups = (b->cols + group - 1) / group;
    size_t n_scales = (size_t)b->rows * b->n_groups;
    uint8_t *data = malloc(bytes);
    uint16_t *scale = malloc(n_scales * sizeof *scale);
    b->n_copies = 0;
    uint32_t wanted = (uint32_t)(COPY_BYTES / bytes) + 1;
    if (data && scale) {
        fill_random(data, bytes, s->weight);
        for (size_t i = 0; i < n_scales; i++)
            scale[i] = 0x1c00; /* 2^-8 */
        struct k_linear_src src = {s->weight,
                                   b->rows,
                                   b->cols,
                                   b->n_groups,
                                   group,
                                   data,
                                   s->weight == K_WEIGHT_F16 ? NULL : scale,
                                   NULL};
        while (b->n_copies < wanted && b->n_copies < 64) {
            b->copies[b->n_copies] = b->ops->linear_new(b->c, &src);
            if (!b->copies[b->n_copies])
                break;
            b->n_copies++;
        }
    }
    free(data);
    free(scale);
    return b->n_copies == wanted || b->n_copies == 64 ? 0 : -1;
}

static void measure_batch(struct bench *b, const char *name, uint32_t tp, uint32_t batch)
{
    static double samples[MAX_SAMPLES];
    int n = 0;
    double start = now();
    assert(b->n_copies);
    while ((now() - start < b->s->seconds || n < 4) && n < MAX_SAMPLES) {
        double t = now();
        b->ops->linear(b->c, b->copies[(uint32_t)n % b->n_copies], b->x, batch, b->y);
        samples[n++] = now() - t;
    }
    qsort(samples, (size_t)n, sizeof *samples, compare);
    assert(b->ceil->read_gbs > 0);
    double bytes = (double)b->rows * b->cols * bits_of(b->s->weight) / 8 +
                   (b->s->weight == K_WEIGHT_F16 ? 0 : 2.0 * b->rows * b->n_groups);
    double operations = 2.0 * batch * b->rows * b->cols;
    double by_memory = bytes / (b->ceil->read_gbs * 1e9);
    double arithmetic = arithmetic_ceiling(b->ceil, b->s);
    double by_arithmetic = arithmetic > 0 ? operations / (arithmetic * 1e9) : 0;
    double least = by_memory > by_arithmetic ? by_memory : by_arithmetic;
    printf("%-6s %3u %6u x %-6u %5u %10.3f %10.3f %8.1f %9.1f %7.2f %7.2f %s\n", name, tp, b->rows,
           b->cols, batch, samples[0] * 1e3, samples[n / 2] * 1e3, bytes / samples[0] / 1e9,
           operations / samples[0] / 1e9, least / samples[0], least / samples[n / 2],
           by_memory > by_arithmetic ? "memory" : "arithmetic");
    fflush(stdout);
}

static int measure_shape(struct bench *b, const char *name, uint32_t tp, uint32_t rows,
                         uint32_t cols)
{
    b->rows = rows;
    b->cols = cols;
    int e = make_copies(b);
    for (int i = 0; !e && b->s->batch[i]; i++)
        measure_batch(b, name, tp, b->s->batch[i]);
    while (b->n_copies)
        b->ops->linear_free(b->c, b->copies[--b->n_copies]);
    if (e)
        fprintf(stderr, "cpu-speed: not enough memory for %u x %u: use a larger --tp\n", rows,
                cols);
    return e;
}

static int measure_all(struct bench *b)
{
    int e = 0;
    printf("matrix  tp     out x in     batch    best ms  median ms     GB/s   Gop/s    share "
           "(best, median) of the nearer ceiling\n");
    for (int i = 0; !e && b->s->tp[i]; i++) {
        uint32_t tp = b->s->tp[i];
        e = measure_shape(b, "qkv", tp, 36864 / tp, 12288) ||
            measure_shape(b, "dense", tp, 12288, 12288 / tp) ||
            measure_shape(b, "h4h", tp, 65536 / tp, 12288) ||
            measure_shape(b, "4hh", tp, 12288, 32768 / tp);
    }
    return e;
}

/* --- options --- */

static void usage(void)
{
    printf("usage: cpu-speed [options]\n"
           "  --mode fp32|fp16|a8   activations (fp16)\n"
           "  --weights i4|i8|f16   (i4)\n"
           "  --group N             columns of a scale group, 0 = the row (0)\n"
           "  --isa NAME            c, avx2, avx512, avx512vnni (the best of this CPU)\n"
           "  --threads N           0 = the CPUs this process may use (0)\n"
           "  --tp N[,N...]         tensor-parallel degrees (1,4,8)\n"
           "  --batch N[,N...]      rows of x (1,2,4,8,16,64)\n"
           "  --seconds S           per row of the table (0.3)\n");
}

/* Positive numbers; list[MAX_LIST - 1] stays 0. */
static int parse_list(const char *text, uint32_t largest, uint32_t list[MAX_LIST])
{
    int n = 0;
    memset(list, 0, MAX_LIST * sizeof *list);
    for (const char *p = text; *p; p += *p == ',') {
        char *end;
        unsigned long v = strtoul(p, &end, 10);
        if (end == p || (*end && *end != ',') || !v || v > largest || n == MAX_LIST - 1)
            return -1;
        list[n++] = (uint32_t)v;
        p = end;
    }
    return n ? 0 : -1;
}

static int choice(const char *text, const char *const *names)
{
    for (int i = 0; names[i]; i++)
        if (!strcmp(text, names[i]))
            return i;
    return -1;
}

static int parse_number(const char *text, double *ret)
{
    char *end;
    *ret = strtod(text, &end);
    return end == text || *end || !(*ret >= 0) || *ret > 1e6 ? -1 : 0;
}

/* 0, 1 = help was printed, -1 = wrong usage. */
static int parse_options(int argc, char **argv, struct settings *s)
{
    static const struct option options[] = {
        {"mode", 1, NULL, 'm'},  {"weights", 1, NULL, 'w'}, {"group", 1, NULL, 'g'},
        {"isa", 1, NULL, 'i'},   {"threads", 1, NULL, 't'}, {"tp", 1, NULL, 'p'},
        {"batch", 1, NULL, 'b'}, {"seconds", 1, NULL, 's'}, {"help", 0, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    static const char *const modes[] = {"fp32", "fp16", "a8", NULL};
    static const char *const weights[] = {"f16", "i8", "i4", NULL};
    int option, bad = 0, index;
    double number = 0;
    while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (option) {
        case 'm':
            index = choice(optarg, modes);
            s->mode = (enum k_mode)index;
            bad |= index < 0;
            break;
        case 'w':
            index = choice(optarg, weights);
            s->weight = (enum k_weight)index;
            bad |= index < 0;
            break;
        case 'g':
            bad |= parse_number(optarg, &number) != 0;
            s->group_cols = (uint32_t)number;
            break;
        case 't':
            bad |= parse_number(optarg, &number) != 0;
            s->n_threads = (uint32_t)number;
            break;
        case 's':
            bad |= parse_number(optarg, &s->seconds) != 0;
            break;
        case 'i':
            s->isa = optarg;
            break;
        case 'p':
            bad |= parse_list(optarg, 96, s->tp) != 0;
            break;
        case 'b':
            bad |= parse_list(optarg, 4096, s->batch) != 0;
            break;
        case 'h':
            usage();
            return 1;
        default:
            bad = 1;
        }
    }
    if (bad || optind != argc)
        fprintf(stderr, "cpu-speed: wrong usage; see --help\n");
    return bad || optind != argc ? -1 : 0;
}

static int run(const struct settings *s)
{
    char message[512] = "";
    const struct k_ops *ops = k_backend("cpu", message, sizeof message);
    struct bench b = {.s = s, .ops = ops};
    uint32_t max_rows = 0;
    for (int i = 0; s->batch[i]; i++)
        max_rows = s->batch[i] > max_rows ? s->batch[i] : max_rows;
    struct k_open_params p = {"cpu", s->mode, s->n_threads, max_rows, 32768, 1, s->isa};
    struct pool *pool = NULL;
    if (ops->open(&p, &b.c, message, sizeof message)) {
        fprintf(stderr, "cpu-speed: %s\n", message);
        return 1;
    }
    int e = pool_new(s->n_threads, &pool);
    b.x = ops->alloc(b.c, (size_t)max_rows * 32768 * sizeof(float));
    b.y = ops->alloc(b.c, (size_t)max_rows * 65536 * sizeof(float));
    if (!e && b.x && b.y) {
        for (size_t i = 0; i < (size_t)max_rows * 32768; i++)
            b.x[i] = (float)((i * 7919) % 2001) / 1000.0f - 1.0f;
        struct ceilings ceil = measure_ceilings(pool);
        b.ceil = &ceil;
        printf("%s, %u-bit weights, group %u (0 = row)\n", ops->describe(b.c), bits_of(s->weight),
               s->group_cols);
        printf("ceilings: read %.1f GB/s, FP32 multiply-add %.0f Gop/s, 8-bit dot %.0f Gop/s\n",
               ceil.read_gbs, ceil.fma_gops, ceil.dot8_gops);
        e = measure_all(&b);
    } else {
        fprintf(stderr, "cpu-speed: out of memory\n");
        e = -1;
    }
    ops->free(b.c, b.x);
    ops->free(b.c, b.y);
    ops->close(b.c);
    pool_free(pool);
    return e ? 1 : 0;
}

int main(int argc, char **argv)
{
    struct settings s = {
        .mode = K_MODE_FP16,
        .weight = K_WEIGHT_I4,
        .seconds = 0.3,
        .tp = {1, 4, 8},
        .batch = {1, 2, 4, 8, 16, 64},
    };
    int e = parse_options(argc, argv, &s);
    return e ? (e > 0 ? 0 : 2) : run(&s);
}
