/* gpu-check-rows.c: norms, GeGLU, gather, products and the embedding. */
#include "gpu-check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_RUNS = 2 };

/* Half precision in, half precision out: half a step of 2^-11, and sums. */
static const double rounding = 1e-3, product = 2e-3;

static bool same(const float *a, const float *b, size_t n)
{
    return memcmp(a, b, n * sizeof *a) == 0;
}

/* ---- norms ---- */

static void one_norm(enum k_norm_kind kind, uint32_t rows, uint32_t cols, bool residual)
{
    const size_t n = (size_t)rows * cols;
    const float alpha = 11.832160f, eps = 1e-5f;
    float *a = check_random(n, 0.1f, 1), *x = check_random(n, -0.3f, 2);
    uint16_t *weight = check_halves(cols, 1, 0.2f), *bias = check_halves(cols, 0, 0.2f);
    uint16_t *sum_bias = check_halves(cols, 0, 1);
    struct k_norm *norm = check_ops->norm_new(check_c, kind, weight, bias, cols);
    struct k_norm *norm_ref = check_cpu->norm_new(check_ref, kind, weight, bias, cols);
    struct k_bias *b = check_ops->bias_new(check_c, sum_bias, cols);
    struct k_bias *b_ref = check_cpu->bias_new(check_ref, sum_bias, cols);
    void *da = check_device(a, n);
    float *want = check_malloc(n * sizeof *want), *sum = check_malloc(n * sizeof *sum);
    memcpy(sum, x, n * sizeof *x);
    if (residual)
        check_cpu->residual_norm(check_ref, norm_ref, eps, alpha, a, sum, b_ref, rows, want);
    else
        check_cpu->norm(check_ref, norm_ref, eps, x, rows, want);
    float *first = NULL;
    double error = 0;
    bool equal = true;
    for (int run = 0; run <= N_RUNS; run++) { /* the last one: the first row alone */
        const uint32_t some = run == N_RUNS ? 1 : rows;
        const size_t m = (size_t)some * cols;
        void *dx = check_device(x, n), *dy = check_device(NULL, n);
        if (residual)
            check_ops->residual_norm(check_c, norm, eps, alpha, da, dx, b, some, dy);
        else
            check_ops->norm(check_c, norm, eps, dx, some, dy);
        float *got = check_fetch(dy, m);
        if (!first) {
            first = got;
            error = check_error(got, want, m);
            float *got_sum = check_fetch(dx, m);
            double sum_error = residual ? check_error(got_sum, sum, m) : 0;
            error = sum_error > error ? sum_error : error;
            free(got_sum);
        } else {
            equal &= same(first, got, m);
            free(got);
        }
        check_drop(dx);
        check_drop(dy);
    }
    char what[96];
    snprintf(what, sizeof what, "%s%s %u x %u", residual ? "residual + " : "",
             kind == K_NORM_RMS ? "RMS norm" : "norm", rows, cols);
    check_report(what, error, rounding, equal);
    check_drop(da);
    check_ops->norm_free(check_c, norm);
    check_ops->bias_free(check_c, b);
    check_cpu->norm_free(check_ref, norm_ref);
    check_cpu->bias_free(check_ref, b_ref);
    void *host[] = {a, x, weight, bias, sum_bias, want, sum, first};
    for (size_t i = 0; i < sizeof host / sizeof *host; i++)
        free(host[i]);
}

static void one_glu(enum k_glu glu, uint32_t rows, uint32_t inner)
{
    const size_t n = (size_t)rows * inner;
    float *u = check_random(2 * n, 0, 2), *want = check_malloc(n * sizeof *want);
    check_cpu->glu(check_ref, glu, u, rows, inner, want);
    void *du = check_device(u, 2 * n), *dg = check_device(NULL, n);
    check_ops->glu(check_c, glu, du, rows, inner, dg);
    float *got = check_fetch(dg, n);
    check_ops->glu(check_c, glu, du, 1, inner, dg);
    float *again = check_fetch(dg, inner);
    char what[96];
    snprintf(what, sizeof what, "%s %u x %u", glu == K_GLU_SWIGLU ? "swiglu" : "geglu", rows,
             inner);
    check_report(what, check_error(got, want, n), rounding, same(got, again, inner));
    check_drop(du);
    check_drop(dg);
    free(u);
    free(want);
    free(got);
    free(again);
}

static void one_gather(uint32_t rows, uint32_t cols, uint32_t n)
{
    float *x = check_random((size_t)rows * cols, 0, 1);
    float *want = check_malloc((size_t)n * cols * sizeof *want);
    uint32_t *which = check_malloc(n * sizeof *which);
    for (uint32_t i = 0; i < n; i++)
        which[i] = check_below(rows);
    check_cpu->gather(check_ref, x, cols, which, n, want);
    void *dx = check_device(x, (size_t)rows * cols), *dy = check_device(NULL, (size_t)n * cols);
    check_ops->gather(check_c, dx, cols, which, n, dy);
    float *got = check_fetch(dy, (size_t)n * cols);
    char what[96];
    snprintf(what, sizeof what, "gather %u of %u rows of %u", n, rows, cols);
    check_report(what, check_error(got, want, (size_t)n * cols), 0, true);
    check_drop(dx);
    check_drop(dy);
    free(x);
    free(want);
    free(which);
    free(got);
}

void check_rowwise(const struct check_limits *l)
{
    static const uint32_t shapes[][2] = {{1, 8}, {3, 64}, {17, 200}, {2, 1024}, {5, 1016}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        one_norm(K_NORM_LAYER, shapes[i][0], shapes[i][1], false);
        one_norm(K_NORM_LAYER, shapes[i][0], shapes[i][1], true);
        one_norm(K_NORM_RMS, shapes[i][0], shapes[i][1], true);
        one_glu(K_GLU_GEGLU, shapes[i][0], shapes[i][1]);
        one_glu(K_GLU_SWIGLU, shapes[i][0], shapes[i][1]);
        one_gather(shapes[i][0] + 2, shapes[i][1], 2 * shapes[i][0] + 1);
    }
    if (!l->full)
        return;
    one_norm(K_NORM_LAYER, 1, 12288, true);
    one_norm(K_NORM_LAYER, 64, 12288, true);
    one_norm(K_NORM_LAYER, 2048, 12288, true);
    one_glu(K_GLU_GEGLU, 33, 4096);
    one_glu(K_GLU_GEGLU, 2047, 4096);
}

/* ---- products ---- */

/* A random matrix as it lies on disk. */
static struct k_linear_src matrix(enum k_weight type, uint32_t rows, uint32_t cols, uint32_t group)
{
    const size_t n = (size_t)rows * cols;
    struct k_linear_src s = {
        .type = type, .rows = rows, .cols = cols, .n_groups = 1, .group_cols = cols};
    s.bias = check_halves(rows, 0, 1);
    if (type == K_WEIGHT_F16) {
        s.data = check_halves(n, 0, 0.05f);
        return s;
    }
    s.group_cols = group ? group : cols;
    s.n_groups = (cols + s.group_cols - 1) / s.group_cols;
    uint8_t *data = check_malloc(n);
    for (size_t i = 0; i < (type == K_WEIGHT_I4 ? n / 2 : n); i++)
        data[i] = (uint8_t)check_below(256);
    if (type == K_WEIGHT_I8)
        for (size_t i = 0; i < n; i++)
            data[i] = data[i] == 0x80 ? 0 : data[i];
    s.data = data;
    uint16_t *scale = check_halves((size_t)rows * s.n_groups, 0, 1e-3f);
    for (size_t i = 0; i < (size_t)rows * s.n_groups; i++)
        scale[i] = (uint16_t)((scale[i] & 0x7fff) + 0x1000); /* positive */
    s.scale = scale;
    return s;
}

static void one_linear(enum k_weight type, uint32_t rows, uint32_t cols, uint32_t group,
                       const uint32_t *tokens, size_t n_tokens)
{
    struct k_linear_src src = matrix(type, rows, cols, group);
    struct k_linear *w = check_ops->linear_new(check_c, &src);
    struct k_linear *w_ref = check_cpu->linear_new(check_ref, &src);
    if (!w || !w_ref) {
        check_report("linear: out of memory", 1, 0, true);
        return;
    }
    static const char *const names[] = {"fp16", "int8", "int4"};
    float *first_row = NULL;
    for (size_t i = 0; i < n_tokens; i++) {
        const uint32_t t = tokens[i];
        const size_t n = (size_t)t * rows;
        check_seed(rows + cols); /* the same first rows for every number of tokens */
        float *x = check_random((size_t)t * cols, 0.2f, 1), *want = check_malloc(n * sizeof *want);
        check_cpu->linear(check_ref, w_ref, x, t, want);
        void *dx = check_device(x, (size_t)t * cols), *dy = check_device(NULL, n);
        check_ops->linear(check_c, w, dx, t, dy);
        float *got = check_fetch(dy, n);
        check_ops->linear(check_c, w, dx, t, dy);
        float *again = check_fetch(dy, n);
        bool equal = same(got, again, n);
        if (first_row)
            equal &= same(first_row, got, rows);
        char what[96];
        snprintf(what, sizeof what, "linear %s %u x %u, groups of %u, %u tokens", names[type], rows,
                 cols, src.group_cols, t);
        check_report(what, check_error(got, want, n), product, equal);
        if (!first_row) {
            first_row = check_malloc(rows * sizeof *first_row);
            memcpy(first_row, got, rows * sizeof *first_row);
        }
        check_drop(dx);
        check_drop(dy);
        free(x);
        free(want);
        free(got);
        free(again);
    }
    free(first_row);
    check_ops->linear_free(check_c, w);
    check_cpu->linear_free(check_ref, w_ref);
    free((void *)(uintptr_t)src.data);
    free((void *)(uintptr_t)src.scale);
    free((void *)(uintptr_t)src.bias);
}

/* The fused operation has the bits of the separate ones. */
static void one_linear_glu(enum k_weight type, uint32_t inner, uint32_t cols, uint32_t tokens)
{
    const uint32_t rows = 2 * inner;
    struct k_linear_src src = matrix(type, rows, cols, 0);
    struct k_linear *plain = check_ops->linear_new(check_c, &src);
    src.glu = true;
    struct k_linear *paired = check_ops->linear_new(check_c, &src);
    const size_t n = (size_t)tokens * inner;
    float *x = check_random((size_t)tokens * cols, 0.2f, 1);
    void *dx = check_device(x, (size_t)tokens * cols), *du = check_device(NULL, 2 * n);
    void *dg = check_device(NULL, n), *dfused = check_device(NULL, n);
    check_ops->linear(check_c, plain, dx, tokens, du);
    check_ops->glu(check_c, K_GLU_GEGLU, du, tokens, inner, dg);
    check_ops->linear_glu(check_c, paired, K_GLU_GEGLU, dx, tokens, du, dfused);
    float *want = check_fetch(dg, n), *got = check_fetch(dfused, n);
    char what[96];
    snprintf(what, sizeof what, "linear + geglu %u x %u, %u tokens", rows, cols, tokens);
    check_report(what, check_error(got, want, n), 0, same(got, want, n));
    check_drop(dx);
    check_drop(du);
    check_drop(dg);
    check_drop(dfused);
    check_ops->linear_free(check_c, plain);
    check_ops->linear_free(check_c, paired);
    void *host[] = {(void *)(uintptr_t)src.data,
                    (void *)(uintptr_t)src.scale,
                    (void *)(uintptr_t)src.bias,
                    x,
                    want,
                    got};
    for (size_t i = 0; i < sizeof host / sizeof *host; i++)
        free(host[i]);
}

/* Not rounded to half precision on the way. */
static void one_logits(uint32_t rows, uint32_t cols, uint32_t tokens)
{
    struct k_linear_src src = matrix(K_WEIGHT_F16, rows, cols, 0);
    free((void *)(uintptr_t)src.bias);
    src.bias = NULL;
    struct k_linear *w = check_ops->linear_new(check_c, &src);
    struct k_linear *w_ref = check_cpu->linear_new(check_ref, &src);
    const size_t n = (size_t)tokens * rows;
    float *x = check_random((size_t)tokens * cols, 0, 1), *want = check_malloc(n * sizeof *want);
    float *got = check_malloc(n * sizeof *got), *alone = check_malloc(rows * sizeof *alone);
    check_cpu->linear(check_ref, w_ref, x, tokens, want);
    void *dx = check_device(x, (size_t)tokens * cols), *scratch = check_device(NULL, 2 * n);
    memset(got, 0xff, n * sizeof *got);
    check_ops->logits(check_c, w, dx, tokens, scratch, got);
    check_ops->logits(check_c, w, dx, 1, scratch, alone);
    char what[96];
    snprintf(what, sizeof what, "logits %u x %u, %u tokens", rows, cols, tokens);
    check_report(what, check_error(got, want, n), 1e-5, same(got, alone, rows));
    check_drop(dx);
    check_drop(scratch);
    check_ops->linear_free(check_c, w);
    check_cpu->linear_free(check_ref, w_ref);
    void *host[] = {(void *)(uintptr_t)src.data, x, want, got, alone};
    for (size_t i = 0; i < sizeof host / sizeof *host; i++)
        free(host[i]);
}

static void one_embedding(uint32_t rows, uint32_t cols, uint32_t first_row, uint32_t n)
{
    struct k_linear_src src = matrix(K_WEIGHT_F16, rows, cols, 0);
    free((void *)(uintptr_t)src.bias);
    src.bias = NULL;
    struct k_linear *w = check_ops->linear_new(check_c, &src);
    struct k_linear *w_ref = check_cpu->linear_new(check_ref, &src);
    int32_t *ids = check_malloc(n * sizeof *ids), *positions = check_malloc(n * sizeof *positions);
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = (int32_t)check_below(2 * rows + first_row); /* some are other ranks' */
        positions[i] = 0;
    }
    float *want = check_malloc((size_t)n * cols * sizeof *want);
    check_cpu->embed(check_ref, w_ref, first_row, ids, n, want);
    void *dy = check_device(NULL, (size_t)n * cols);
    const struct k_kv_params kp = {1, 1, 64, 1, 16, K_KV_AUTO}; /* steps need a cache */
    struct k_kv *kv = check_ops->kv_new(check_c, &kp);
    const struct k_step step = {ids, positions, n, NULL, 0, 16};
    if (check_ops->begin_step)
        check_ops->begin_step(check_c, &step);
    check_ops->embed(check_c, w, first_row, ids, n, dy);
    float *got = check_fetch(dy, (size_t)n * cols);
    char what[96];
    snprintf(what, sizeof what, "embedding %u of %u x %u from %u", n, rows, cols, first_row);
    check_report(what, check_error(got, want, (size_t)n * cols), 0, true);
    check_drop(dy);
    check_ops->kv_free(check_c, kv);
    check_ops->linear_free(check_c, w);
    check_cpu->linear_free(check_ref, w_ref);
    free((void *)(uintptr_t)src.data);
    free(ids);
    free(positions);
    free(want);
    free(got);
}

void check_linears(const struct check_limits *l)
{
    static const uint32_t some[] = {1, 2, 8, 9, 17, 70};
    enum { N_SOME = sizeof some / sizeof *some };
    for (enum k_weight type = K_WEIGHT_F16; type <= K_WEIGHT_I4; type++) {
        one_linear(type, 128, 64, 0, some, N_SOME);
        one_linear(type, 200, 96, 0, some, N_SOME);
        one_linear(type, 64, 1024, 0, some, N_SOME);
        if (type != K_WEIGHT_F16) {
            one_linear(type, 72, 256, 64, some, N_SOME);
            one_linear(type, 320, 384, 128, some, N_SOME);
            one_linear(type, 136, 96, 48, some, 3);
        }
    }
    for (size_t i = 0; check_ops->linear_glu && i < N_SOME; i++) {
        one_linear_glu(K_WEIGHT_I4, 128, 384, some[i]);
        one_linear_glu(K_WEIGHT_I4, 72, 128, some[i]); /* its halves are not in whole panels */
    }
    if (check_ops->logits) {
        one_logits(320, 64, 1);
        one_logits(640, 1024, 33);
    }
    one_embedding(320, 64, 0, 33);
    one_embedding(100, 192, 100, 7);
    if (!l->full)
        return;
    if (check_ops->logits)
        one_logits(18816, 12288, 32);
    static const uint32_t many[] = {1, 3, 8, 17, 64, 128, 512, 2047};
    enum { N_MANY = sizeof many / sizeof *many };
    one_linear(K_WEIGHT_I4, 4608, 12288, 0, many, N_MANY); /* qkv */
    one_linear(K_WEIGHT_I4, 12288, 1536, 0, many, N_MANY); /* dense */
    one_linear(K_WEIGHT_I4, 8192, 12288, 0, many, N_MANY); /* h to 4h */
    one_linear(K_WEIGHT_I4, 12288, 4096, 0, many, N_MANY); /* 4h to h */
    one_linear(K_WEIGHT_F16, 18816, 12288, 0, many, 4);    /* head */
    one_linear(K_WEIGHT_I8, 4608, 12288, 0, many, N_MANY);
    one_linear(K_WEIGHT_I4, 4608, 12288, 128, many, N_MANY);
    one_embedding(18816, 12288, 37632, 300);
}
