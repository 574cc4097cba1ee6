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

struct rope_product {
    struct cpu_product job;
    struct cpu_rope_job rope;
    const struct cpu_kernels *kernels;
    size_t row_bytes; /* of a row of job.data */
    uint32_t head_columns;
    pthread_t driver;
    uint64_t rope_ns; /* of the driving thread */
};

/* Of a head: its columns of a tile's rows stay in the first two caches, and its panels, and the
 * next head's on their way, in the second. */
enum { HEAD_COLUMNS = 512, HEAD_TILE_ROWS = 24, HEAD_BYTES = 512 << 10 };

/* The rows of the matrix that make one head, as a matrix. */
static struct k_linear head_of(const struct rope_product *p, uint64_t head)
{
    struct k_linear l = *p->job.l;
    l.shape.rows = p->head_columns;
    l.shape.n_panels = p->head_columns / PACK_LANES;
    l.panels += head * l.shape.n_panels * l.shape.panel_bytes;
    l.bias += head * l.shape.rows;
    return l;
}

/* One tile of a product as a product, to `y`. */
static struct cpu_product tile_of(const struct rope_product *p, uint32_t tile,
                                  const struct k_linear *l, float *y)
{
    const uint32_t row = cpu_tile_row(&p->job, tile);
    struct cpu_product j = p->job;
    j.l = l;
    j.y = y;
    j.n_rows = cpu_tile_row(&p->job, tile + 1) - row;
    j.n_tiles = 1;
    j.data = (uint8_t *)j.data + row * p->row_bytes;
    j.scale += (size_t)row * l->shape.n_blocks;
    j.start += (size_t)row * l->shape.n_blocks;
    return j;
}

/* Brings in part `i` of `n` of what follows the head's panels. */
static void look_ahead(const struct k_linear *head, uint32_t i, uint32_t n)
{
    const size_t bytes = head->shape.n_panels * head->shape.panel_bytes;
    const uint8_t *next = head->panels + bytes;
    for (size_t at = bytes * i / n / 64 * 64; at < bytes * (i + 1) / n; at += 64)
        __builtin_prefetch(next + at, 0, 2);
}

static void bring_in(const void *p, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 64)
        __builtin_prefetch((const uint8_t *)p + at, 1, 2);
}

/* Brings in where a row of a head goes: its q, key and value. */
static void bring_in_places(const struct cpu_rope_job *j, uint32_t head, uint32_t row)
{
    const uint32_t shared = j->p.n_heads / j->p.n_kv_heads, dim = j->p.head_dim;
    bring_in(j->q + ((size_t)row * j->p.n_heads + (size_t)head * shared) * dim,
             (size_t)shared * dim * sizeof *j->q);
    const struct k_seq *seq = j->seqs;
    while (row >= seq->row0 + seq->n_rows)
        seq++;
    const struct k_kv *kv = j->kv;
    const uint32_t token = seq->start + row - seq->row0, slot = token % kv->p.block_tokens;
    const size_t bytes = kv->dim_pad * kv->value_bytes;
    const uint8_t *at =
        cpu_kv_head(kv, j->p.layer, seq->blocks[token / kv->p.block_tokens], head) + slot * bytes;
    bring_in(at + kv->keys_at, bytes); /* of the group, as many as the token has */
    bring_in(at + kv->values_at, bytes);
}

/* Items: key-value heads. What a tile's rows get of a head is rotated and filed while it is near:
 * of a long batch it would be written and read through memory. */
static void multiply_rope(void *arg, uint64_t first, uint64_t end, uint64_t more)
{
    struct rope_product *p = arg;
    const bool timed = pthread_equal(p->driver, pthread_self());
    float y[HEAD_TILE_ROWS * HEAD_COLUMNS] __attribute__((aligned(64)));
    struct cpu_rope_keys keys;
    for (uint64_t head = first; head < end; head++) {
        const struct k_linear l = head_of(p, head);
        const uint32_t n_panels = l.shape.n_panels, n_visits = p->job.n_tiles * n_panels;
        for (uint32_t tile = 0; tile < p->job.n_tiles; tile++) {
            const struct cpu_product j = tile_of(p, tile, &l, y);
            const uint32_t row = cpu_tile_row(&p->job, tile);
            for (uint32_t panel = 0; panel < n_panels; panel++) {
                if (head + 1 < more)
                    look_ahead(&l, tile * n_panels + panel, n_visits);
                for (uint32_t i = j.n_rows * panel / n_panels;
                     i < j.n_rows * (panel + 1) / n_panels; i++)
                    bring_in_places(&p->rope, (uint32_t)head, row + i);
                j.multiply(&j, panel, panel + 1, panel + 1);
            }
            const uint64_t begin_ns = timed ? cpu_now_ns() : 0;
            p->kernels->rope_rows(&p->rope, (uint32_t)head, row, row + j.n_rows, y, &keys);
            if (timed)
                p->rope_ns += cpu_now_ns() - begin_ns;
        }
    }
}

static uint32_t head_columns(const struct k_attn_params *p)
{
    return (p->n_heads / p->n_kv_heads + 2) * p->head_dim;
}

static uint32_t rows_of(const struct k_seq *seqs, uint32_t n_seqs)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_seqs; i++)
        n += seqs[i].n_rows;
    return n;
}

static bool follow_each_other(const struct k_seq *seqs, uint32_t n_seqs)
{
    for (uint32_t i = 0, n = 0; i < n_seqs; n += seqs[i++].n_rows)
        if (seqs[i].row0 != n)
            return false;
    return true;
}

/* Items for each thread from which on they are shared out evenly enough. */
enum { HEADS_PER_THREAD = 4 };

static bool rope_fits(const struct k_ctx *c, const struct k_linear *l,
                      const struct k_attn_params *p, const struct k_seq *seqs, uint32_t n_seqs)
{
    const enum cpu_format format = format_of(c, l->type);
    const uint32_t tile_rows = c->kernels->tile_rows[format], n_rows = rows_of(seqs, n_seqs);
    const uint32_t columns = head_columns(p), n_panels = columns / PACK_LANES;
    return format != CPU_F32 && tile_rows == HEAD_TILE_ROWS && n_rows > tile_rows &&
           n_rows <= CPU_PASS_ROWS && follow_each_other(seqs, n_seqs) &&
           columns % PACK_LANES == 0 && columns <= HEAD_COLUMNS &&
           columns * p->n_kv_heads == l->shape.rows &&
           n_panels * l->shape.panel_bytes <= HEAD_BYTES &&
           p->n_kv_heads / HEADS_PER_THREAD >= pool_threads(c->pool);
}

void cpu_linear_rope_kv(struct k_ctx *c, const struct k_linear *l, const void *x,
                        const struct k_attn_params *p, const struct k_rope *r,
                        const int32_t *positions, const struct k_seq *seqs, uint32_t n_seqs,
                        struct k_kv *kv, void *qkv, void *q)
{
    const uint32_t n_rows = rows_of(seqs, n_seqs);
    if (!rope_fits(c, l, p, seqs, n_seqs)) {
        cpu_linear(c, l, x, n_rows, qkv);
        cpu_rope_kv(c, p, r, qkv, positions, seqs, n_seqs, kv, q);
        return;
    }
    const size_t value_bytes = format_of(c, l->type) == CPU_I16 ? sizeof(int16_t) : sizeof(int8_t);
    struct rope_product s = {
        .job = product_of(c, l, x, 0, n_rows),
        .rope = cpu_rope_job(p, r, NULL, positions, seqs, n_seqs, kv, q),
        .kernels = c->kernels,
        .row_bytes = l->shape.k_pad * value_bytes,
        .head_columns = head_columns(p),
        .driver = pthread_self(),
    };
    pack(c, &s.job);
    cpu_run_items(c, K_PART_PRODUCTS, p->n_kv_heads, 1, multiply_rope, &s);
    c->profile.ns[K_PART_PRODUCTS] -= s.rope_ns;
    c->profile.ns[K_PART_ROPE] += s.rope_ns;
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
