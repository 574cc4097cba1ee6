/* gpu-speed.c: how fast the products of a backend are, beside what the device can do at the same
 * moment.
 *
 * On a GPU it prints the ceilings of this run (copying and reading memory, dense FP16 through
 * cuBLASLt), then for each GLM-130B matrix, tensor-parallel degree and batch: which kernel, the
 * time, the weights' bytes per second, the share of the nearer ceiling (what memory and tensor
 * cores allow for that row), and the time of cuBLASLt on FP16 weights and of the published way
 * (expand to FP16, then cuBLASLt) as multiples of ours. Weights are random; as many copies are used
 * in turn as the L2 cache cannot hold; a measurement is a recorded graph, several milliseconds of
 * it, and what is printed is the median with the spread of the middle half.
 *
 * --backend cpu runs the same table on the CPU backend (its ceilings: cpu-speed). Without a device,
 * --backend cuda ends with the reason and exit code 1; nothing falls back.
 */
#include "kernels/cuda/bench.h"
#include "kernels/kernels.h"

#include <assert.h>
#include <dlfcn.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    MAX_LIST = 16,
    CEILING_BYTES = 1 << 30,
    TURN_BYTES = 512 << 20, /* of weights, more than any L2 */
    MAX_COPIES = 64,
    DENSE = 8192, /* rows, columns and tokens of the dense ceiling */
};

struct settings {
    const char *backend, *device;
    enum k_weight weight;
    uint32_t group_cols; /* 0: one group per row */
    uint32_t n_samples;
    uint32_t divide; /* rows and columns by this: quick looks */
    uint32_t tp[MAX_LIST], batch[MAX_LIST];
    bool compare;
};

struct bench {
    struct settings s;
    const struct k_ops *ops;
    const struct cuda_bench *gpu; /* NULL: CPU backend */
    struct k_ctx *c;
    struct linear_library *library;         /* or NULL */
    void *x, *y, *dense;                    /* dense: FP16 weights for the library */
    double copy_bps, read_bps, dense_flops; /* 0: not measured */
};

/* --- options --- */

static void usage(FILE *f)
{
    fputs("gpu-speed [--backend cuda|cpu] [--device cuda:N] [--weight int4|int8|fp16]\n"
          "          [--group COLS] [--tp 1,4,8] [--batch 1,2,...] [--samples N] [--divide N]\n"
          "          [--no-compare]\n"
          "Products of GLM-130B's matrices as shares of this run's ceilings.\n",
          f);
}

static bool parse_number(const char *text, uint32_t most, uint32_t *ret)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);
    *ret = (uint32_t)n;
    return text[0] >= '0' && text[0] <= '9' && !*end && n >= 1 && n <= most;
}

/* "1,4,8" -> {1, 4, 8, 0} */
static bool parse_list(char *text, uint32_t most, uint32_t *ret)
{
    uint32_t n = 0;
    char *rest = text;
    for (char *item; (item = strsep(&rest, ","));)
        if (n == MAX_LIST - 1 || !parse_number(item, most, &ret[n++]))
            return false;
    ret[n] = 0;
    return n > 0;
}

static bool parse_weight(const char *text, enum k_weight *ret)
{
    static const char *const names[] = {"fp16", "int8", "int4"};
    for (int i = 0; i < 3; i++)
        if (!strcmp(text, names[i])) {
            *ret = (enum k_weight)i;
            return true;
        }
    return false;
}

static bool parse_options(int argc, char **argv, struct settings *s)
{
    static const struct option options[] = {
        {"backend", required_argument, NULL, 'b'},
        {"device", required_argument, NULL, 'd'},
        {"weight", required_argument, NULL, 'w'},
        {"group", required_argument, NULL, 'g'},
        {"tp", required_argument, NULL, 't'},
        {"batch", required_argument, NULL, 'n'},
        {"samples", required_argument, NULL, 's'},
        {"divide", required_argument, NULL, 'v'},
        {"no-compare", no_argument, NULL, 'c'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    *s = (struct settings){
        .backend = "cuda",
        .weight = K_WEIGHT_I4,
        .n_samples = 30,
        .divide = 1,
        .tp = {1, 4, 8},
        .batch = {1, 2, 4, 8, 16, 32, 64, 128, 256},
        .compare = true,
    };
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        bool ok = true;
        if (o == 'b')
            s->backend = optarg;
        else if (o == 'd')
            s->device = optarg;
        else if (o == 'w')
            ok = parse_weight(optarg, &s->weight);
        else if (o == 'g')
            ok = parse_number(optarg, 32768, &s->group_cols);
        else if (o == 't')
            ok = parse_list(optarg, 8, s->tp);
        else if (o == 'n')
            ok = parse_list(optarg, 4096, s->batch);
        else if (o == 's')
            ok = parse_number(optarg, 1000, &s->n_samples);
        else if (o == 'v')
            ok = parse_number(optarg, 64, &s->divide);
        else if (o == 'c')
            s->compare = false;
        else
            return false;
        if (!ok) {
            fprintf(stderr, "gpu-speed: \"%s\" is not a value for this option\n", optarg);
            return false;
        }
    }
    if (!s->device)
        s->device = s->backend;
    return optind == argc;
}

/* --- the device --- */

/* Bytes for --divide: a look at N-th rows and columns takes N^2 less. */
static size_t divided(const struct bench *b, size_t bytes)
{
    return bytes / b->s.divide / b->s.divide / 16 * 16;
}

/* There in a program that the backend is linked into; without an address elsewhere. */
#pragma weak glmd_cuda_bench

/* The bench table of the library that holds the backend's operations. */
static const struct cuda_bench *find_bench(const struct k_ops *ops)
{
    if (&glmd_cuda_bench)
        return &glmd_cuda_bench;
    Dl_info info;
    if (!dladdr(ops, &info) || !info.dli_fname)
        return NULL;
    void *library = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    return library ? dlsym(library, "glmd_cuda_bench") : NULL;
}

static uint32_t largest(const uint32_t *list)
{
    uint32_t most = 0;
    for (; *list; list++)
        most = *list > most ? *list : most;
    return most;
}

static bool open_device(struct bench *b)
{
    char message[512] = "";
    b->ops = k_backend(b->s.backend, message, sizeof message);
    if (!b->ops) {
        fprintf(stderr, "gpu-speed: %s\n", message);
        return false;
    }
    struct k_open_params p = {
        .device = b->s.device,
        .mode = K_MODE_FP16,
        .max_rows = largest(b->s.batch),
        .max_cols = 32768,
        .max_seq = 64,
    };
    if (b->ops->open(&p, &b->c, message, sizeof message) != 0) {
        fprintf(stderr, "gpu-speed: %s\n", message);
        return false;
    }
    if (strcmp(b->s.backend, "cuda") == 0 && !(b->gpu = find_bench(b->ops))) {
        fprintf(stderr, "gpu-speed: libglmd_cuda.so has no glmd_cuda_bench; install the library of "
                        "the same glmd version\n");
        return false;
    }
    printf("%s\n", b->ops->describe(b->c));
    return true;
}

/* The first error of the device, if there was one. */
static bool healthy(struct bench *b)
{
    char message[512] = "";
    if (b->ops->sync(b->c, message, sizeof message) == 0)
        return true;
    fprintf(stderr, "gpu-speed: %s\n", message);
    return false;
}

/* --- measuring --- */

struct spread {
    double median, low, high; /* seconds; quartiles */
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of one of the `n` things that f does. */
static struct spread measure(struct bench *b, void (*f)(void *arg), void *arg, uint32_t n)
{
    double *t = calloc(b->s.n_samples, sizeof *t);
    assert(t);
    if (b->gpu) {
        if (b->gpu->time(b->c, f, arg, b->s.n_samples, t) != 0) {
            healthy(b);
            exit(1);
        }
    } else {
        f(arg);
        for (uint32_t i = 0; i < b->s.n_samples; i++) {
            double start = now();
            f(arg);
            t[i] = now() - start;
        }
        qsort(t, b->s.n_samples, sizeof *t, ascending);
    }
    uint32_t samples = b->s.n_samples;
    struct spread r = {t[samples / 2] / n, t[samples / 4] / n, t[samples * 3 / 4] / n};
    free(t);
    return r;
}

struct ceiling_job {
    struct bench *b;
    void *from, *to;
};

static void do_copy(void *arg)
{
    struct ceiling_job *j = arg;
    j->b->gpu->copy(j->b->c, j->to, j->from, divided(j->b, CEILING_BYTES));
}

static void do_read(void *arg)
{
    struct ceiling_job *j = arg;
    j->b->gpu->read(j->b->c, j->from, divided(j->b, CEILING_BYTES), j->to);
}

static uint32_t dense_side(const struct bench *b)
{
    return DENSE / b->s.divide;
}

static void do_dense(void *arg)
{
    struct ceiling_job *j = arg;
    struct bench *b = j->b;
    const uint32_t side = dense_side(b);
    for (int i = 0; i < 4; i++)
        b->gpu->dense(b->c, b->library, j->from, side, side, j->from, side, j->to);
}

static bool measure_ceilings(struct bench *b)
{
    const size_t bytes = divided(b, CEILING_BYTES);
    struct ceiling_job j = {b, b->ops->alloc(b->c, bytes), b->ops->alloc(b->c, bytes)};
    if (!j.from || !j.to) {
        fprintf(stderr, "gpu-speed: no room for 2 GiB to measure ceilings with\n");
        return false;
    }
    b->gpu->noise(b->c, j.from, bytes, 1, true);
    struct spread t = measure(b, do_copy, &j, 1);
    b->copy_bps = 2.0 * (double)bytes / t.median;
    printf("copy   %7.0f GB/s (read and written)\n", b->copy_bps * 1e-9);
    t = measure(b, do_read, &j, 1);
    b->read_bps = (double)bytes / t.median;
    printf("read   %7.0f GB/s\n", b->read_bps * 1e-9);
    if (b->library) {
        t = measure(b, do_dense, &j, 4);
        const double side = dense_side(b);
        b->dense_flops = 2.0 * side * side * side / t.median;
        printf("dense  %7.0f TFLOP/s (cuBLASLt, %.0f^3, random halves)\n", b->dense_flops * 1e-12,
               side);
    } else {
        printf("dense  not measured: cuBLASLt cannot be opened\n");
    }
    b->ops->free(b->c, j.from);
    b->ops->free(b->c, j.to);
    return healthy(b);
}

/* --- products --- */

struct product_job {
    struct bench *b;
    struct k_linear *copies[MAX_COPIES];
    uint32_t n_copies, turns; /* products of a measurement: copies * turns */
    uint32_t rows, cols, n_rows;
};

static void do_product(void *arg)
{
    struct product_job *j = arg;
    struct bench *b = j->b;
    for (uint32_t turn = 0; turn < j->turns; turn++)
        for (uint32_t i = 0; i < j->n_copies; i++)
            b->ops->linear(b->c, j->copies[i], b->x, j->n_rows, b->y);
}

static void do_library(void *arg)
{
    struct product_job *j = arg;
    struct bench *b = j->b;
    for (uint32_t i = 0; i < j->turns * j->n_copies; i++)
        b->gpu->dense(b->c, b->library, b->dense, j->rows, j->cols, b->x, j->n_rows, b->y);
}

static void do_expanded(void *arg)
{
    struct product_job *j = arg;
    struct bench *b = j->b;
    for (uint32_t turn = 0; turn < j->turns; turn++)
        for (uint32_t i = 0; i < j->n_copies; i++)
            b->gpu->expanded(b->c, b->library, j->copies[i], b->x, j->n_rows, b->y);
}

static size_t weight_bytes(enum k_weight type, uint32_t rows, uint32_t cols)
{
    return (size_t)rows * cols * (type == K_WEIGHT_F16 ? 4 : type == K_WEIGHT_I8 ? 2 : 1) / 2;
}

/* A matrix of the CPU backend: all weights equal, which takes it no less time. */
static struct k_linear *host_matrix(struct bench *b, uint32_t rows, uint32_t cols)
{
    uint32_t group = b->s.group_cols ? b->s.group_cols : cols;
    uint32_t n_groups = b->s.weight == K_WEIGHT_F16 ? 1 : (cols + group - 1) / group;
    uint8_t *data = malloc(weight_bytes(b->s.weight, rows, cols));
    uint16_t *scale = calloc((size_t)rows * n_groups, sizeof *scale);
    assert(data && scale);
    memset(data, 0x11, weight_bytes(b->s.weight, rows, cols));
    struct k_linear_src src = {
        .type = b->s.weight,
        .rows = rows,
        .cols = cols,
        .n_groups = n_groups,
        .group_cols = b->s.weight == K_WEIGHT_F16 ? cols : group,
        .data = data,
        .scale = b->s.weight == K_WEIGHT_F16 ? NULL : scale,
    };
    struct k_linear *l = b->ops->linear_new(b->c, &src);
    free(data);
    free(scale);
    return l;
}

static void print_row(struct bench *b, const struct product_job *j, const char *kernel,
                      struct spread t)
{
    double bytes = (double)weight_bytes(b->s.weight, j->rows, j->cols);
    double flops = 2.0 * j->rows * j->cols * j->n_rows;
    printf(" %5u %-8s %9.1f us %5.1f %% %7.0f GB/s %7.2f TF", j->n_rows, kernel, t.median * 1e6,
           100 * (t.high - t.low) / t.median, bytes / t.median * 1e-9, flops / t.median * 1e-12);
    if (!b->gpu) {
        putchar('\n');
        return;
    }
    double memory = bytes / b->copy_bps;
    double compute = b->dense_flops > 0 ? flops / b->dense_flops : 0;
    printf("  %5.3f of %s", (memory > compute ? memory : compute) / t.median,
           memory > compute ? "copy " : "dense");
}

static void compare_row(struct bench *b, struct product_job *j, double ours)
{
    if (b->library && b->s.compare && b->dense) {
        struct spread fp16 = measure(b, do_library, j, j->turns * j->n_copies);
        struct spread expanded = measure(b, do_expanded, j, j->turns * j->n_copies);
        printf("  fp16 %5.2fx  expanded %5.2fx", fp16.median / ours, expanded.median / ours);
    }
    putchar('\n');
    fflush(stdout);
}

static bool measure_matrix(struct bench *b, const char *name, uint32_t tp, uint32_t rows,
                           uint32_t cols)
{
    struct product_job j = {.b = b, .rows = rows, .cols = cols};
    size_t bytes = weight_bytes(b->s.weight, rows, cols);
    uint32_t wanted = b->gpu ? (uint32_t)(divided(b, TURN_BYTES) / bytes) + 1 : 1;
    wanted = wanted < MAX_COPIES ? wanted : MAX_COPIES;
    for (; j.n_copies < wanted; j.n_copies++) {
        struct k_linear *l =
            b->gpu ? b->gpu->matrix(b->c, b->s.weight, rows, cols, b->s.group_cols, j.n_copies)
                   : host_matrix(b, rows, cols);
        if (!l)
            break;
        j.copies[j.n_copies] = l;
    }
    if (!j.n_copies) {
        fprintf(stderr, "gpu-speed: no memory for %s\n", name);
        return false;
    }
    if (b->gpu && b->s.compare && b->library) {
        b->dense = b->ops->alloc(b->c, (size_t)rows * cols * 2);
        if (b->dense)
            b->gpu->noise(b->c, b->dense, (size_t)rows * cols * 2, 9, true);
    }
    printf("%s TP %u: %u x %u, %u in turn\n", name, tp, rows, cols, j.n_copies);
    for (const uint32_t *batch = b->s.batch; *batch; batch++) {
        j.n_rows = *batch;
        j.turns = b->gpu ? (uint32_t)(8 * divided(b, TURN_BYTES) / (bytes * j.n_copies)) + 1 : 1;
        const char *kernel = "";
        if (b->gpu)
            kernel = linear_kernel_name(b->gpu->plan(b->c, j.copies[0], j.n_rows).kernel);
        struct spread t = measure(b, do_product, &j, j.turns * j.n_copies);
        print_row(b, &j, kernel, t);
        if (b->gpu)
            compare_row(b, &j, t.median);
    }
    for (uint32_t i = 0; i < j.n_copies; i++)
        b->ops->linear_free(b->c, j.copies[i]);
    b->ops->free(b->c, b->dense);
    b->dense = NULL;
    return healthy(b);
}

static bool measure_all(struct bench *b)
{
    /* rows, columns; what tensor parallelism divides */
    static const struct {
        const char *name;
        uint32_t rows, cols;
        bool by_rows;
    } matrices[] = {
        {"query_key_value", 36864, 12288, true},
        {"attention dense", 12288, 12288, false},
        {"dense_h_to_4h  ", 65536, 12288, true},
        {"dense_4h_to_h  ", 12288, 32768, false},
    };
    for (const uint32_t *tp = b->s.tp; *tp; tp++)
        for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
            uint32_t rows = matrices[i].rows / b->s.divide / (matrices[i].by_rows ? *tp : 1);
            uint32_t cols = matrices[i].cols / b->s.divide / (matrices[i].by_rows ? 1 : *tp);
            if (!measure_matrix(b, matrices[i].name, *tp, rows, cols))
                return false;
        }
    return true;
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    if (!parse_options(argc, argv, &b.s)) {
        usage(stderr);
        return 2;
    }
    if (!open_device(&b))
        return 1;
    size_t rows = largest(b.s.batch), bytes = b.ops->act_bytes(b.c);
    size_t widest = 65536 / b.s.divide; /* of a row of x or y */
    b.x = b.ops->alloc(b.c, rows * widest * bytes);
    b.y = b.ops->alloc(b.c, rows * widest * bytes);
    bool ok = b.x && b.y;
    if (!ok)
        fprintf(stderr, "gpu-speed: no memory for activations\n");
    if (ok && b.gpu) {
        b.gpu->noise(b.c, b.x, rows * widest * bytes, 5, true);
        b.library = b.gpu->library_new(b.c);
        ok = measure_ceilings(&b);
    }
    ok = ok && measure_all(&b);
    if (b.gpu)
        b.gpu->library_free(b.library);
    if (b.x)
        b.ops->free(b.c, b.x);
    if (b.y)
        b.ops->free(b.c, b.y);
    b.ops->close(b.c);
    return ok ? 0 : 1;
}
