/* linear.c: weight matrices and their products: packing, scratch, the cut into tiles and threads.
 * The arithmetic is in multiply_*.c. */
#include "base/half.h"
#include "cpu.h"
#include "mem.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static uint32_t bits_of(enum k_weight type)
{
    return type == K_WEIGHT_F16 ? 16 : type == K_WEIGHT_I8 ? 8 : 4;
}

static enum cpu_format format_of(const struct k_ctx *c, enum k_weight type)
{
    if (type == K_WEIGHT_F16 || c->mode == K_MODE_FP32)
        return CPU_F32;
    return c->mode == K_MODE_FP16 ? CPU_I16 : CPU_I8;
}

static uint32_t pass_rows(uint32_t max_rows)
{
    return max_rows < CPU_PASS_ROWS ? max_rows : CPU_PASS_ROWS;
}

/* Bytes of scratch for n rows: values, scales, starts of the sums, each 64-byte aligned. */
static size_t scratch_bytes(const struct pack_shape *s, uint32_t n, size_t *ret_scale_at,
                            size_t *ret_start_at)
{
    size_t values = (size_t)n * s->k_pad * sizeof(float);
    size_t factors = (size_t)n * s->n_blocks * sizeof(float);
    size_t scale_at = (values + 63) / 64 * 64;
    size_t start_at = scale_at + (factors + 63) / 64 * 64;
    *ret_scale_at = scale_at;
    *ret_start_at = start_at;
    return start_at + factors;
}

static struct pack_shape shape_of(enum k_weight type, uint32_t rows, uint32_t cols,
                                  uint32_t n_groups, uint32_t group_cols)
{
    if (type == K_WEIGHT_F16)
        return pack_shape(16, rows, cols, 1, cols);
    return pack_shape(bits_of(type), rows, cols, n_groups, group_cols);
}

static struct pack_shape even_groups(enum k_weight type, uint32_t rows, uint32_t cols,
                                     uint32_t n_groups)
{
    uint32_t group_cols = n_groups ? (cols + n_groups - 1) / n_groups : cols;
    return shape_of(type, rows, cols, n_groups, group_cols);
}

size_t cpu_sizes_linear(enum k_weight type, uint32_t rows, uint32_t cols, uint32_t n_groups)
{
    struct pack_shape s = even_groups(type, rows, cols, n_groups);
    return sizeof(struct k_linear) + s.matrix_bytes +
           (size_t)s.n_panels * PACK_LANES * sizeof(float);
}

size_t cpu_sizes_product(uint32_t max_rows, enum k_weight type, uint32_t rows, uint32_t cols,
                         uint32_t n_groups)
{
    struct pack_shape s = even_groups(type, rows, cols, n_groups);
    size_t scale_at, start_at;
    return scratch_bytes(&s, pass_rows(max_rows), &scale_at, &start_at);
}

size_t cpu_linear_bytes(struct k_ctx *c, enum k_weight type, uint32_t rows, uint32_t cols,
                        uint32_t n_groups)
{
    (void)c;
    return cpu_sizes_linear(type, rows, cols, n_groups);
}

size_t cpu_product_bytes(struct k_ctx *c)
{
    return c->activation_bytes;
}

/* Pages come from the node of the thread that will read them: the share of the panels that products
 * give it. With one node whoever writes first makes them, while the cache has them. */
static void touch_share(void *arg, uint32_t thread, uint32_t n_threads)
{
    const struct k_linear *l = arg;
    uint64_t first, end;
    pool_share(l->shape.n_panels, thread, n_threads, &first, &end);
    if (first != end)
        mem_touch(l->panels, first * l->shape.panel_bytes, end * l->shape.panel_bytes);
}

struct k_linear *cpu_linear_begin(struct k_ctx *c, const struct k_linear_src *src)
{
    assert(src->rows && src->cols && src->cols <= c->max_cols);
    assert(src->type != K_WEIGHT_I4 || src->cols % 2 == 0);
    struct k_linear *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->type = src->type;
    l->shape = shape_of(src->type, src->rows, src->cols, src->n_groups, src->group_cols);
    l->panels = mem_alloc(l->shape.matrix_bytes);
    l->bias = mem_alloc((size_t)l->shape.n_panels * PACK_LANES * sizeof *l->bias);
    size_t scale_at, start_at;
    size_t scratch = scratch_bytes(&l->shape, pass_rows(c->max_rows), &scale_at, &start_at);
    if (!l->panels || !l->bias ||
        mem_reserve(&c->activations, &c->activation_bytes, scratch) != 0) {
        cpu_linear_free(c, l);
        return NULL;
    }
    if (mem_has_nodes())
        pool_run(c->pool, touch_share, l);
    for (uint32_t i = 0; src->bias && i < src->rows; i++)
        l->bias[i] = half_to_float(src->bias[i]);
    return l;
}

struct pack_job {
    const struct k_linear *l;
    const struct k_linear_src *src;
};

static void pack_share(void *arg, uint32_t thread, uint32_t n_threads)
{
    const struct pack_job *j = arg;
    const struct pack_shape *s = &j->l->shape;
    uint64_t first, end;
    pool_share(s->n_panels, thread, n_threads, &first, &end);
    if (first == end)
        return;
    uint32_t row = (uint32_t)first * PACK_LANES, row_end = (uint32_t)end * PACK_LANES;
    uint32_t n = (row_end < s->rows ? row_end : s->rows) - row;
    cpu_pack_rows(j->l, row, n,
                  (const uint8_t *)j->src->data + (size_t)row * s->cols * s->bits / 8);
    if (j->src->scale)
        cpu_pack_scales(j->l, row, n, j->src->scale + (size_t)row * s->n_groups);
}

struct k_linear *cpu_linear_new(struct k_ctx *c, const struct k_linear_src *src)
{
    assert(src->data);
    assert((src->type == K_WEIGHT_F16) == !src->scale);
    struct k_linear *l = cpu_linear_begin(c, src);
    if (!l)
        return NULL;
    struct pack_job j = {l, src};
    pool_run(c->pool, pack_share, &j);
    return l;
}

void cpu_linear_free(struct k_ctx *c, struct k_linear *l)
{
    (void)c;
    if (!l)
        return;
    mem_free(l->panels);
    mem_free(l->bias);
    free(l);
}

static void pack_activations(void *arg, uint64_t first, uint64_t end, uint64_t more)
{
    const struct cpu_product *j = arg;
    (void)more;
    j->pack(j, first, end);
}

/* Panels that a thread takes at least: some microseconds' worth, and whole groups of them. */
enum { MULTIPLY_PIECE = 4 };

static void multiply(void *arg, uint64_t first, uint64_t end, uint64_t more)
{
    const struct cpu_product *j = arg;
    j->multiply(j, first, end, more);
}

/* Rows [row, row + n) of a product, and the scratch that they take. */
static struct cpu_product product_of(struct k_ctx *c, const struct k_linear *l, const float *x,
                                     uint32_t row, uint32_t n)
{
    const enum cpu_format format = format_of(c, l->type);
    const uint32_t tile_rows = c->kernels->tile_rows[format];
    size_t scale_at, start_at;
    size_t bytes = scratch_bytes(&l->shape, n, &scale_at, &start_at);
    assert(bytes <= c->activation_bytes);
    uint8_t *scratch = c->activations;
    return (struct cpu_product){
        .l = l,
        .x = x + (size_t)row * l->shape.cols,
        .n_rows = n,
        .n_tiles = (n + tile_rows - 1) / tile_rows,
        .data = scratch,
        .scale = (float *)(scratch + scale_at),
        .start = (int32_t *)(scratch + start_at),
        .pack = c->kernels->pack[format],
        .multiply = c->kernels->multiply[format][l->type],
    };
}

static void pack(struct k_ctx *c, struct cpu_product *j)
{
    const uint32_t tile_rows = (j->n_rows + j->n_tiles - 1) / j->n_tiles;
    cpu_run_items(c, K_PART_ACTIVATIONS, (uint64_t)j->n_tiles * j->l->shape.n_blocks,
                  cpu_piece((uint64_t)tile_rows * PACK_BLOCK), pack_activations, j);
}

void cpu_linear(struct k_ctx *c, const struct k_linear *l, const void *x, uint32_t n_rows, void *y)
{
    assert(n_rows <= c->max_rows);
    for (uint32_t row = 0; row < n_rows; row += CPU_PASS_ROWS) {
        uint32_t n = n_rows - row < CPU_PASS_ROWS ? n_rows - row : CPU_PASS_ROWS;
        struct cpu_product j = product_of(c, l, x, row, n);
        j.y = (float *)y + (size_t)row * l->shape.rows;
        pack(c, &j);
        cpu_run_items(c, l->type == K_WEIGHT_F16 ? K_PART_HEAD : K_PART_PRODUCTS, l->shape.n_panels,
                      MULTIPLY_PIECE, multiply, &j);
    }
}

struct glu_product {
    struct cpu_product job;
    pthread_t driver;
    uint64_t glu_ns; /* of the driving thread */
};

static void multiply_glu(void *arg, uint64_t first, uint64_t end, uint64_t more)
{
    struct glu_product *p = arg;
    struct cpu_product j = p->job;
    j.glu_ns = pthread_equal(p->driver, pthread_self()) ? &p->glu_ns : NULL;
    j.multiply(&j, first, end, more);
}

void cpu_linear_glu(struct k_ctx *c, const struct k_linear *l, enum k_glu glu, const void *x,
                    uint32_t n_rows, void *u, void *g)
{
    assert(n_rows <= c->max_rows && l->shape.rows % 2 == 0);
    const enum cpu_format format = format_of(c, l->type);
    const uint32_t inner = l->shape.rows / 2;
    /* of one tile u stays in the caches */
    if (!c->kernels->multiply_glu[format][l->type] || inner % PACK_LANES ||
        n_rows <= c->kernels->tile_rows[format]) {
        cpu_linear(c, l, x, n_rows, u);
        cpu_glu(c, glu, u, n_rows, inner, g);
        return;
    }
    for (uint32_t row = 0; row < n_rows; row += CPU_PASS_ROWS) {
        uint32_t n = n_rows - row < CPU_PASS_ROWS ? n_rows - row : CPU_PASS_ROWS;
        struct glu_product p = {.job = product_of(c, l, x, row, n), .driver = pthread_self()};
        p.job.g = (float *)g + (size_t)row * inner;
        p.job.glu = glu;
        p.job.multiply = c->kernels->multiply_glu[format][l->type];
        pack(c, &p.job);
        cpu_run_items(c, K_PART_PRODUCTS, l->shape.n_panels / 2, MULTIPLY_PIECE, multiply_glu, &p);
        c->profile.ns[K_PART_PRODUCTS] -= p.glu_ns;
        c->profile.ns[K_PART_GLU] += p.glu_ns;
    }
}

struct embed_job {
    const struct cpu_kernels *kernels;
    const struct k_linear *table;
    uint32_t first_row, n_rows;
    const int32_t *ids;
    float *y;
};

static void embed_share(void *arg, uint32_t thread, uint32_t n_threads)
{
    const struct embed_job *j = arg;
    uint32_t cols = j->table->shape.cols;
    uint64_t first, end;
    pool_share(j->n_rows, thread, n_threads, &first, &end);
    for (uint64_t i = first; i < end; i++) {
        float *y = j->y + i * cols;
        int64_t row = (int64_t)j->ids[i] - j->first_row;
        if (row >= 0 && row < j->table->shape.rows)
            j->kernels->embed(j->table, (uint32_t)row, y);
        else
            memset(y, 0, cols * sizeof *y);
    }
}

void cpu_embed(struct k_ctx *c, const struct k_linear *table, uint32_t first_row,
               const int32_t *ids, uint32_t n_rows, void *y)
{
    assert(table->type == K_WEIGHT_F16);
    struct embed_job j = {c->kernels, table, first_row, n_rows, ids, y};
    cpu_run(c, K_PART_EMBED, embed_share, &j);
}
