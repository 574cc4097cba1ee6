/* plan.c: which kernel multiplies what, and what that takes (linear.h). Arithmetic on shapes: the
 * planner of the cluster asks it without a device. */
#include "linear.h"

enum {
    GEMV_TOKENS_MAX = 8,
    WIDE_ABOVE = 32, /* tokens: more than half of a tile of 64 */
    THREADS = 128,   /* of a GEMM's CTA with one column of warps */
};

const char *linear_kernel_name(enum linear_kernel k)
{
    static const char *const names[] = {"gemv", "slice", "whole",  "wide-slice",
                                        "wide", "wide2", "library"};
    return names[k];
}

static uint32_t bits_of(enum k_weight type)
{
    return type == K_WEIGHT_F16 ? 16 : type == K_WEIGHT_I8 ? 8 : 4;
}

struct packed_shape linear_shape(enum k_weight type, uint32_t rows, uint32_t cols,
                                 uint32_t n_groups, uint32_t group_cols)
{
    if (type == K_WEIGHT_F16 || n_groups <= 1)
        return packed_shape_of(bits_of(type), rows, cols, 1, cols);
    return packed_shape_of(bits_of(type), rows, cols, n_groups,
                           group_cols ? group_cols : packed_div_up(cols, n_groups));
}

size_t linear_bytes(enum k_weight type, uint32_t rows, uint32_t cols, uint32_t n_groups)
{
    return linear_shape(type, rows, cols, n_groups, 0).bytes;
}

static uint32_t stages(uint32_t bits)
{
    return bits == 16 ? 3 : 4;
}

size_t linear_gemm_shared(uint32_t bits, uint32_t tokens)
{
    size_t stage = packed_block_bytes(bits) + (size_t)tokens * PACKED_COLS * 2;
    size_t ring = stage * stages(bits);
    size_t out = (size_t)tokens * (PACKED_ROWS + 8) * 2;
    return ring < out ? out : ring;
}

/* The ring of blocks, sums over slices, a flag, and alignment. */
size_t linear_wide_shared(uint32_t bits, enum linear_kernel kernel, uint32_t tokens)
{
    uint32_t panels = kernel == LINEAR_WIDE2 ? 2 : 1, n_stages = bits == 8 && panels == 2 ? 3 : 4;
    size_t stage = panels * packed_block_bytes(bits) + (size_t)tokens * PACKED_COLS * 2;
    size_t sums = (size_t)panels * PACKED_ROWS * tokens * 4;
    return stage * n_stages + sums + 16 + 1024;
}

static size_t gemv_shared(const struct packed_shape *s)
{
    size_t x = (size_t)GEMV_TOKENS_MAX * (s->slice_blocks * (PACKED_COLS / 2) + 4) * 4;
    size_t out = (size_t)GEMV_TOKENS_MAX * (PACKED_ROWS + 8) * 2;
    return x < out ? out : x;
}

/* FP32 sums of all slices of `tiles` tiles of 128 rows and `tokens` tokens. */
static size_t partial_bytes(const struct packed_shape *s, uint32_t tiles, uint32_t tokens)
{
    return s->n_slices == 1 ? 0 : (size_t)tiles * s->n_slices * PACKED_ROWS * tokens * 4;
}

static struct linear_plan gemv_plan(const struct packed_shape *s)
{
    struct linear_plan p = {
        .kernel = LINEAR_GEMV,
        .tokens = GEMV_TOKENS_MAX,
        .n_ctas = s->n_panels * s->n_slices,
        .n_threads = 256,
        .shared_bytes = gemv_shared(s),
        .partial_bytes = partial_bytes(s, s->n_panels, GEMV_TOKENS_MAX),
    };
    return p;
}

/* Columns of warps of a CTA (gemm.cuh: WN). */
static uint32_t token_warps(const struct packed_shape *s, uint32_t tokens)
{
    return tokens == 128 || (s->short_groups && tokens == 64) ? 2 : 1;
}

static struct linear_plan gemm_plan(const struct packed_shape *s, enum linear_kernel kernel,
                                    uint32_t tokens, uint32_t n_rows)
{
    uint32_t tiles = s->n_panels * packed_div_up(n_rows, tokens);
    bool slices = kernel == LINEAR_SLICE;
    struct linear_plan p = {
        .kernel = kernel,
        .tokens = tokens,
        .n_ctas = tiles * (slices ? s->n_slices : 1),
        .n_threads = THREADS * token_warps(s, tokens),
        .shared_bytes = linear_gemm_shared(s->bits, tokens),
        .partial_bytes = slices ? partial_bytes(s, tiles, tokens) : 0,
    };
    return p;
}

/* Slices in parallel: for few tokens (one tile of them), while their sums stay small. */
static bool can_slice(const struct packed_shape *s, uint32_t tokens, uint32_t n_rows)
{
    return n_rows <= tokens && s->n_panels <= LINEAR_MAX_TILES &&
           partial_bytes(s, s->n_panels, tokens) <= LINEAR_MAX_PARTIALS;
}

/* Warpgroups take 64 or 128 tokens. False: the matrix or the number of tokens is not for them. */
static bool wide_plan(const struct linear_device *d, const struct packed_shape *s, uint32_t n_rows,
                      struct linear_plan *ret)
{
    if (!d->warpgroups || s->short_groups || n_rows <= WIDE_ABOVE)
        return false;
    uint32_t tokens =
        n_rows <= 64 || s->n_panels * packed_div_up(n_rows, 128) < d->n_sms ? 64 : 128;
    uint32_t tiles = packed_div_up(n_rows, tokens), ctas = s->n_panels * tiles;
    enum linear_kernel kernel = LINEAR_WIDE;
    if (ctas < d->n_sms && can_slice(s, tokens, n_rows)) {
        if (s->bits == 16)
            return false;
        kernel = LINEAR_WIDE_SLICE;
        ctas *= s->n_slices;
    } else if (tokens == 128 && s->bits != 16 &&
               packed_div_up(s->n_panels, 2) * tiles >= d->n_sms) {
        kernel = LINEAR_WIDE2;
        ctas = packed_div_up(s->n_panels, 2) * tiles;
    }
    *ret = (struct linear_plan){
        .kernel = kernel,
        .tokens = tokens,
        .n_ctas = ctas,
        .n_threads = 256,
        .shared_bytes = linear_wide_shared(s->bits, kernel, tokens),
        .partial_bytes =
            kernel == LINEAR_WIDE_SLICE ? partial_bytes(s, s->n_panels * tiles, tokens) : 0,
    };
    return ret->shared_bytes + 1024 <= d->shared_bytes;
}

struct linear_plan linear_plan_for(const struct linear_device *d, const struct packed_shape *s,
                                   uint32_t n_rows)
{
    if (n_rows <= GEMV_TOKENS_MAX)
        return gemv_plan(s);
    if (d->library_rows && n_rows >= d->library_rows) {
        struct linear_plan p = {.kernel = LINEAR_LIBRARY, .tokens = n_rows};
        return p;
    }
    struct linear_plan wide;
    if (wide_plan(d, s, n_rows, &wide))
        return wide;
    /* The widest tile that the tokens fill half of, and that the device has the memory for. */
    uint32_t tokens = n_rows <= 16 ? 16 : n_rows <= 32 ? 32 : n_rows <= 64 ? 64 : 128;
    if (tokens == 128 && (s->short_groups || /* they need the registers */
                          s->n_panels * packed_div_up(n_rows, 128) < d->n_sms * 3 / 2))
        tokens = 64;
    while (tokens > 16 && linear_gemm_shared(s->bits, tokens) + 1024 > d->shared_bytes)
        tokens /= 2;
    /* All slices in one CTA saves the traffic of their sums, but needs enough CTAs: two per SM
     * where reading weights is what takes the time. */
    uint32_t wanted = d->n_sms * (n_rows <= 32 ? 2 : 1);
    bool enough = s->n_panels * packed_div_up(n_rows, tokens) >= wanted;
    if (can_slice(s, tokens, n_rows) && !enough)
        return gemm_plan(s, LINEAR_SLICE, tokens, n_rows);
    return gemm_plan(s, LINEAR_WHOLE, tokens < 32 ? 32 : tokens, n_rows);
}

size_t linear_partial_bound(const struct packed_shape *s, uint32_t max_rows)
{
    size_t most = gemv_plan(s).partial_bytes;
    for (uint32_t tokens = 16; tokens <= 64; tokens *= 2) {
        if (max_rows <= (tokens == 16 ? GEMV_TOKENS_MAX : tokens / 2))
            break; /* this tile is for more */
        size_t bytes = partial_bytes(s, s->n_panels, tokens);
        if (can_slice(s, tokens, tokens) && bytes > most)
            most = bytes;
    }
    return most;
}

bool linear_can_end(const struct packed_shape *s, const struct linear_end *end)
{
    const struct rope_view *r = &end->rope;
    if (end->kind == LINEAR_GLU)
        return s->pair_rows && (uintptr_t)end->y % 16 == 0;
    if (end->kind == LINEAR_ROPE)
        return PACKED_ROWS % r->dim == 0 && s->rows == r->kv.n_kv_heads * (r->group + 2) * r->dim;
    return true;
}

size_t linear_staging_bytes(const struct packed_shape *s)
{
    size_t panel = (size_t)PACKED_ROWS * s->cols * s->bits / 8;
    size_t all = panel * s->n_panels;
    size_t scales = s->bits == 16 ? 0 : (size_t)s->n_groups * s->rows * 2;
    size_t most = all < scales ? scales : all;
    size_t usual = panel < LINEAR_STAGING ? LINEAR_STAGING : panel;
    return usual < most ? usual : most;
}

size_t linear_product_bytes(const struct packed_shape *s, uint32_t max_rows)
{
    return linear_partial_bound(s, max_rows) + LINEAR_MAX_TILES * sizeof(uint32_t);
}
