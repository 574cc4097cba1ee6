/* rowwise.c: norms, GLU and gather: their parameters and the cut into threads. */
#include "base/half.h"
#include "cpu.h"
#include "mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* NULL: zeros. */
static float *floats_from_half(const uint16_t *half, uint32_t n)
{
    float *values = mem_alloc((size_t)n * sizeof *values);
    for (uint32_t i = 0; values && i < n; i++)
        values[i] = half ? half_to_float(half[i]) : 0.0f;
    return values;
}

struct k_norm *cpu_norm_new(struct k_ctx *c, enum k_norm_kind kind, const uint16_t *weight,
                            const uint16_t *bias, uint32_t cols)
{
    struct k_norm *n = calloc(1, sizeof *n);
    if (!n)
        return NULL;
    n->kind = kind;
    n->cols = cols;
    n->weight = floats_from_half(weight, cols);
    n->bias = floats_from_half(bias, cols);
    if (!n->weight || !n->bias) {
        cpu_norm_free(c, n);
        return NULL;
    }
    return n;
}

void cpu_norm_free(struct k_ctx *c, struct k_norm *n)
{
    (void)c;
    if (!n)
        return;
    mem_free(n->weight);
    mem_free(n->bias);
    free(n);
}

struct k_bias *cpu_bias_new(struct k_ctx *c, const uint16_t *bias, uint32_t cols)
{
    struct k_bias *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    b->cols = cols;
    b->values = floats_from_half(bias, cols);
    if (!b->values) {
        cpu_bias_free(c, b);
        return NULL;
    }
    return b;
}

void cpu_bias_free(struct k_ctx *c, struct k_bias *b)
{
    (void)c;
    if (!b)
        return;
    mem_free(b->values);
    free(b);
}

struct norm_section {
    const struct cpu_kernels *kernels;
    struct cpu_norm_job job;
};

static void norm_rows(void *arg, uint64_t first, uint64_t end, uint64_t more)
{
    const struct norm_section *s = arg;
    (void)more;
    s->kernels->norm(&s->job, first, end);
}

static void run_norm(struct k_ctx *c, struct norm_section *s, uint32_t n_rows)
{
    cpu_run_items(c, K_PART_NORM, n_rows, cpu_piece(s->job.norm->cols), norm_rows, s);
}

void cpu_norm(struct k_ctx *c, const struct k_norm *n, float eps, const void *x, uint32_t n_rows,
              void *y)
{
    struct norm_section s = {c->kernels, {.norm = n, .eps = eps, .x = x, .y = y}};
    run_norm(c, &s, n_rows);
}

void cpu_residual_norm(struct k_ctx *c, const struct k_norm *n, float eps, float alpha,
                       const void *a, void *r, const struct k_bias *bias, uint32_t n_rows, void *y)
{
    assert(!bias || bias->cols == n->cols);
    struct norm_section s = {
        c->kernels,
        {.norm = n,
         .bias = bias,
         .x = r,
         .a = a,
         .alpha = alpha,
         .eps = eps,
         .sum = y == a ? y : r,
         .y = y},
    };
    run_norm(c, &s, n_rows);
}

struct glu_section {
    const struct cpu_kernels *kernels;
    struct cpu_glu_job job;
};

static void glu_pieces(void *arg, uint64_t first, uint64_t end, uint64_t more)
{
    const struct glu_section *s = arg;
    (void)more;
    s->kernels->glu(&s->job, first, end);
}

void cpu_glu(struct k_ctx *c, enum k_glu glu, const void *u, uint32_t n_rows, uint32_t inner,
             void *g)
{
    struct glu_section s = {c->kernels, {.kind = glu, .u = u, .g = g, .inner = inner}};
    cpu_run_items(c, K_PART_GLU, (uint64_t)n_rows * cpu_glu_pieces(inner), cpu_piece(CPU_GLU_PIECE),
                  glu_pieces, &s);
}

void cpu_gather(struct k_ctx *c, const void *x, uint32_t cols, const uint32_t *rows, uint32_t n,
                void *y)
{
    (void)c;
    for (uint32_t i = 0; i < n; i++)
        memcpy((float *)y + (size_t)i * cols, (const float *)x + (size_t)rows[i] * cols,
               cols * sizeof(float));
}
