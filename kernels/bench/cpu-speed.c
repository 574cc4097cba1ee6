/* cpu-speed.c: how fast the CPU products are, beside what this machine can do at the same moment.
 *
 * For each matrix of a model, tensor-parallel degree and batch: the time, the weight bytes and
 * operations per second, the same of the ceilings (reading memory; multiplying in registers with
 * the instruction set's own instructions), and the share of the nearer ceiling: what memory and
 * arithmetic allow for that row. Before and after each product both ceilings are measured for a
 * moment with the same threads, and the share is the median over these groups: whatever else the
 * machine does meets all of them. Weights are random; several copies are used in turn so that none
 * stays in the cache. With --order the product is measured by turns with one that is free to add
 * up in any order, instead.
 */
#include "cpu-ceilings.h"
#include "cpu-order.h"
#include "cpu-svg.h"
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    COPY_BYTES = 320 << 20,
    MAX_SAMPLES = 1000,
    MAX_LIST = 16,
    MAX_POINTS = 1024,
};

/* Whole matrices, out x in. A rank has a part of the rows, or of the columns. */
struct matrix {
    const char *name; /* NULL behind the last */
    uint32_t rows, cols;
    bool split_cols;
    bool asked_only; /* left out unless --only names it */
};

struct model {
    const char *name;
    struct matrix matrices[8];
};

static const struct model models[] = {
    {"glm-130b",
     {{"qkv", 36864, 12288, false, false},
      {"dense", 12288, 12288, true, false},
      {"h4h", 65536, 12288, false, false},
      {"4hh", 12288, 32768, true, false},
      {"head", 150528, 12288, false, true}}},
    {"glm-1.6b",
     {{"qkv", 6144, 2048, false, false},
      {"dense", 2048, 2048, true, false},
      {"h4h", 11008, 2048, false, false},
      {"4hh", 2048, 5504, true, false},
      {"head", 32000, 2048, false, true}}},
};
enum { N_MODELS = sizeof models / sizeof *models };

struct settings {
    enum k_mode mode;
    enum k_weight weight;
    const char *isa, *only; /* only: one matrix, or NULL */
    const char *svg;        /* file, or NULL */
    bool order;             /* against products in any order, not against ceilings */
    const struct model *model;
    uint32_t n_threads, group_cols; /* group_cols 0: one group per row */
    double seconds;                 /* per row of the table */
    uint32_t tp[MAX_LIST], batch[MAX_LIST];
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

/* --- products --- */

static bool uses_fma(const struct settings *s)
{
    return s->weight == K_WEIGHT_F16 || s->mode == K_MODE_FP32;
}

/* What arithmetic may reach at the moment: 16-bit dots have half the rate of 8-bit ones. */
static double probe_arithmetic(struct probes *p, const struct settings *s)
{
    if (uses_fma(s))
        return probe_fma(p);
    return s->mode == K_MODE_FP16 ? probe_dot8(p) / 2 : probe_dot8(p);
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
    struct probes *probes;
    const struct k_ops *ops;
    struct k_ctx *c;
    struct k_linear *copies[64];
    uint32_t n_copies, rows, cols, n_groups, n_threads;
    float *x, *y;
    struct cpu_kernels free_order;
    struct svg_point *points; /* [MAX_POINTS] */
    uint32_t n_points;
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

static double median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, compare);
    return values[n / 2];
}

/* Products and ceilings take turns: the share of a row is the median over neighbours. With
 * `best`, the least time is held against the highest ceilings of the row. */
static int measure_batch(struct bench *b, const char *name, uint32_t tp, uint32_t batch)
{
    static double times[MAX_SAMPLES], shares[MAX_SAMPLES], read[MAX_SAMPLES], peak[MAX_SAMPLES];
    const uint32_t threads = b->n_threads;
    int n = 0, by_memory = 0;
    double start = now();
    double bytes = (double)b->rows * b->cols * bits_of(b->s->weight) / 8 +
                   (b->s->weight == K_WEIGHT_F16 ? 0 : 2.0 * b->rows * b->n_groups);
    double operations = 2.0 * batch * b->rows * b->cols;
    assert(b->n_copies);
    b->ops->linear(b->c, b->copies[0], b->x, batch, b->y); /* code and activations are warm */
    double last_read = probe_read(b->probes), last_peak = probe_arithmetic(b->probes, b->s);
    while ((now() - start < b->s->seconds || n < 5) && n < MAX_SAMPLES) {
        double t = bench_now(threads);
        b->ops->linear(b->c, b->copies[(uint32_t)n % b->n_copies], b->x, batch, b->y);
        times[n] = bench_now(threads) - t;
        read[n] = probe_read(b->probes);
        peak[n] = probe_arithmetic(b->probes, b->s);
        double memory_s = bytes / ((read[n] + last_read) / 2 * 1e9);
        double arithmetic_s = peak[n] > 0 ? operations / ((peak[n] + last_peak) / 2 * 1e9) : 0;
        last_read = read[n];
        last_peak = peak[n];
        by_memory += memory_s > arithmetic_s;
        shares[n] = (memory_s > arithmetic_s ? memory_s : arithmetic_s) / times[n];
        n++;
    }
    double typical = median(times, n), share = median(shares, n);
    double typical_read = median(read, n), typical_peak = median(peak, n);
    double memory_s = bytes / (read[n - 1] * 1e9);
    double arithmetic_s = peak[n - 1] > 0 ? operations / (peak[n - 1] * 1e9) : 0;
    double best = (memory_s > arithmetic_s ? memory_s : arithmetic_s) / times[0];
    printf("%-6s %3u %6u x %-6u %5u %10.3f %10.3f %8.1f %9.1f %8.1f %9.1f %7.2f %6.2f %s\n", name,
           tp, b->rows, b->cols, batch, times[0] * 1e3, typical * 1e3, bytes / typical / 1e9,
           operations / typical / 1e9, typical_read, typical_peak, share, best,
           by_memory * 2 > n ? "memory" : "arithmetic");
    fflush(stdout);
    if (b->n_points < MAX_POINTS)
        b->points[b->n_points++] = (struct svg_point){
            name, tp, b->rows, b->cols, batch, share, by_memory * 2 > n,
        };
    return 0;
}

/* Seconds of one product with these kernels. */
static double time_product(struct bench *b, const struct cpu_kernels *kernels, int copy,
                           uint32_t batch)
{
    const struct cpu_kernels *own = b->c->kernels;
    b->c->kernels = kernels;
    double t = bench_now(b->n_threads);
    b->ops->linear(b->c, b->copies[(uint32_t)copy % b->n_copies], b->x, batch, b->y);
    t = bench_now(b->n_threads) - t;
    b->c->kernels = own;
    return t;
}

/* Sum of the last product, and of its magnitudes. */
static double sum_of(const struct bench *b, uint32_t batch, double *ret_magnitude)
{
    double sum = 0;
    *ret_magnitude = 0;
    for (size_t i = 0; i < (size_t)batch * b->rows; i++) {
        sum += (double)b->y[i];
        *ret_magnitude += fabs((double)b->y[i]);
    }
    return sum;
}

/* Both orders by turns, each first every other time; the cost is the median over such pairs. */
static int measure_order(struct bench *b, const char *name, uint32_t tp, uint32_t batch)
{
    static double fixed[MAX_SAMPLES], any[MAX_SAMPLES], ratios[MAX_SAMPLES];
    const struct cpu_kernels *own = b->c->kernels;
    double start = now();
    int n = 0;
    double magnitude;
    time_product(b, own, 0, batch);
    double difference = sum_of(b, batch, &magnitude);
    time_product(b, &b->free_order, 0, batch);
    difference -= sum_of(b, batch, &magnitude);
    if (!(fabs(difference) <= 1e-5 * magnitude)) {
        fprintf(stderr, "cpu-speed: sums of %s differ by %g of %g\n", name, difference, magnitude);
        return -1;
    }
    while ((now() - start < b->s->seconds || n < 8) && n < MAX_SAMPLES) {
        double first = time_product(b, n % 2 ? own : &b->free_order, 2 * n, batch);
        double second = time_product(b, n % 2 ? &b->free_order : own, 2 * n + 1, batch);
        fixed[n] = n % 2 ? first : second;
        any[n] = n % 2 ? second : first;
        ratios[n] = fixed[n] / any[n];
        n++;
    }
    double ratio = median(ratios, n), typical = median(fixed, n), typical_any = median(any, n);
    printf("%-6s %3u %6u x %-6u %5u %10.3f %10.3f %10.3f %10.3f %+7.1f %+7.1f %6d\n", name, tp,
           b->rows, b->cols, batch, fixed[0] * 1e3, typical * 1e3, any[0] * 1e3, typical_any * 1e3,
           (ratio - 1) * 100, (fixed[0] / any[0] - 1) * 100, n);
    fflush(stdout);
    return 0;
}

static int measure_shape(struct bench *b, const char *name, uint32_t tp, uint32_t rows,
                         uint32_t cols)
{
    b->rows = rows;
    b->cols = cols;
    int e = make_copies(b);
    if (e)
        fprintf(stderr, "cpu-speed: not enough memory for %u x %u: use a larger --tp\n", rows,
                cols);
    for (int i = 0; !e && b->s->batch[i]; i++)
        e = (b->s->order ? measure_order : measure_batch)(b, name, tp, b->s->batch[i]);
    while (b->n_copies)
        b->ops->linear_free(b->c, b->copies[--b->n_copies]);
    return e;
}

static int measure_all(struct bench *b)
{
    int e = 0;
    printf(b->s->order
               ? "matrix  tp     out x in     batch    best ms  median ms   any: best    median  "
                 "cost, %%    best  pairs\n"
               : "matrix  tp     out x in     batch    best ms  median ms     GB/s     Gop/s  of "
                 "GB/s  of Gop/s   share   best of the nearer ceiling\n");
    for (int i = 0; !e && b->s->tp[i]; i++) {
        uint32_t tp = b->s->tp[i];
        for (const struct matrix *m = b->s->model->matrices; !e && m->name; m++)
            if (b->s->only ? !strcmp(b->s->only, m->name) : !m->asked_only)
                e = measure_shape(b, m->name, tp, m->split_cols ? m->rows : m->rows / tp,
                                  m->split_cols ? m->cols / tp : m->cols);
    }
    return e;
}

/* --- options --- */

static void usage(void)
{
    printf("usage: cpu-speed [options]\n"
           "  --model NAME          glm-130b or glm-1.6b (glm-130b)\n"
           "  --only MATRIX         qkv, dense, h4h, 4hh or head (all but the head)\n"
           "  --mode fp32|fp16|a8   activations (fp16)\n"
           "  --weights i4|i8|f16   (i4)\n"
           "  --group N             columns of a scale group, 0 = the row (0)\n"
           "  --isa NAME            another name lists those of this CPU (the best)\n"
           "  --threads N           0 = the CPUs this process may use (0)\n"
           "  --tp N[,N...]         tensor-parallel degrees (1,4,8)\n"
           "  --batch N[,N...]      rows of x (1,2,4,8,16,64)\n"
           "  --seconds S           per row of the table (0.3)\n"
           "  --svg FILE            plot of the shares\n"
           "  --order               what batch invariance costs: by turns with products whose\n"
           "                        blocks are added up in any order (avx512gfni)\n");
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
        {"model", 1, NULL, 'M'}, {"only", 1, NULL, 'o'},    {"svg", 1, NULL, 'S'},
        {"order", 0, NULL, 'O'}, {NULL, 0, NULL, 0},
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
        case 'o':
            s->only = optarg;
            break;
        case 'S':
            s->svg = optarg;
            break;
        case 'O':
            s->order = true;
            break;
        case 'M':
            s->model = NULL;
            for (int i = 0; i < N_MODELS; i++)
                if (!strcmp(optarg, models[i].name))
                    s->model = &models[i];
            bad |= !s->model;
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

static int write_plot(const struct bench *b)
{
    char title[192];
    snprintf(title, sizeof title, "%s: share of the nearer ceiling", b->ops->describe(b->c));
    int e = svg_write(b->s->svg, title, b->points, b->n_points);
    if (e)
        fprintf(stderr, "cpu-speed: %s: %s\n", b->s->svg, strerror(-e));
    return e;
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
    if (!order_free(b.c->kernels, &b.free_order) && s->order) {
        fprintf(stderr, "cpu-speed: --order is for avx512gfni, not for %s\n", b.c->kernels->name);
        ops->close(b.c);
        return 1;
    }
    int e = pool_new(s->n_threads, K_PIN_AUTO, &pool);
    b.points = calloc(MAX_POINTS, sizeof *b.points);
    if (!e) {
        b.n_threads = pool_threads(pool);
        b.probes = probes_new(pool, cpu_kernels_find(s->isa)->name);
    }
    b.x = ops->alloc(b.c, (size_t)max_rows * 32768 * sizeof(float));
    b.y = ops->alloc(b.c, (size_t)max_rows * (s->only ? 150528 : 65536) * sizeof(float));
    if (!e && b.probes && b.x && b.y && b.points) {
        for (size_t i = 0; i < (size_t)max_rows * 32768; i++)
            b.x[i] = (float)((i * 7919) % 2001) / 1000.0f - 1.0f;
        printf("%s, %u-bit weights, group %u (0 = row)\n", ops->describe(b.c), bits_of(s->weight),
               s->group_cols);
        printf("times: %s; ceilings: reading memory, %s in registers, both beside each product\n",
               b.n_threads == 1 ? "processor time" : "wall time",
               uses_fma(s)              ? "FP32 multiply-add"
               : s->mode == K_MODE_FP16 ? "16-bit dots"
                                        : "8-bit dots");
        e = measure_all(&b);
        if (!e && s->svg && !s->order)
            e = write_plot(&b);
    } else {
        fprintf(stderr, "cpu-speed: out of memory\n");
        e = -1;
    }
    ops->free(b.c, b.x);
    ops->free(b.c, b.y);
    free(b.points);
    ops->close(b.c);
    probes_free(b.probes);
    pool_free(pool);
    return e ? 1 : 0;
}

int main(int argc, char **argv)
{
    struct settings s = {
        .mode = K_MODE_FP16,
        .weight = K_WEIGHT_I4,
        .seconds = 0.3,
        .model = &models[0],
        .tp = {1, 4, 8},
        .batch = {1, 2, 4, 8, 16, 64},
    };
    int e = parse_options(argc, argv, &s);
    return e ? (e > 0 ? 0 : 2) : run(&s);
}
