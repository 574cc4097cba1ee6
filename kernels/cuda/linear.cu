/* linear.cu: the host's side of the products (linear.h): packing, launching, what is kept for them.
 */
#include "linear.h"

#include "library.h"
#include "rows.cuh"
#include "variants.cuh"

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace
{

/* One table for each kind of weights, in files of their own (variants_*.cu): they compile side by
 * side. */
const struct variant *const tables[] = {variants_i4, variants_i8, variants_f16};

const struct variant *find_variant(const struct packed_shape *s, enum linear_kernel kernel,
                                   uint32_t tokens)
{
    for (const struct variant *v : tables)
        for (; v->function; v++)
            if (v->bits == s->bits && v->short_groups == s->short_groups && v->kernel == kernel &&
                v->tokens == tokens)
                return v;
    return nullptr;
}

void note(struct cuda_products *p, int error)
{
    if (!p->error)
        p->error = error;
}

void *memory_new(struct cuda_products *p, size_t bytes)
{
    return p->device.memory.alloc(p->device.memory.arg, bytes);
}

void memory_free(struct cuda_products *p, void *memory)
{
    if (memory)
        p->device.memory.free(p->device.memory.arg, memory);
}

void upload(struct cuda_products *p, void *dst, const void *src, size_t bytes)
{
    p->device.memory.upload(p->device.memory.arg, dst, src, bytes);
}

struct dev_launch launch_of(const struct cuda_products *p, uint64_t ctas, unsigned threads)
{
    struct dev_launch at = {};
    at.grid = {(unsigned)ctas, 1, 1};
    at.threads = threads;
    at.stream = p->device.stream;
    return at;
}

struct product_params params_of(const struct cuda_products *p, const struct k_linear *l,
                                const void *x, uint32_t n_rows, const struct linear_end *end)
{
    const struct packed_shape *s = &l->shape;
    const unsigned char *memory = static_cast<const unsigned char *>(l->memory);
    struct product_params q = {};
    q.s = *s;
    q.w = memory;
    q.scale = reinterpret_cast<const uint16_t *>(memory + s->scale_at);
    q.bias = reinterpret_cast<const uint16_t *>(memory + s->bias_at);
    q.x = static_cast<const uint16_t *>(x);
    q.y = end->y;
    q.end = end->kind;
    q.glu = end->glu;
    q.rope = end->rope;
    q.partials = static_cast<float *>(p->partials);
    q.counters = p->counters;
    q.n_tokens = n_rows;
    q.dense = packed_dense(s) && (uintptr_t)x % 16 == 0;
    q.staged = end->kind != LINEAR_FLOATS &&
               (end->kind != LINEAR_HALVES || (s->rows % 8 == 0 && (uintptr_t)end->y % 16 == 0));
    return q;
}

struct dev_launch rows_launch(uint64_t units, struct CUstream_st *stream)
{
    struct dev_launch at = {};
    at.grid = {(unsigned)((units + ROWS_THREADS - 1) / ROWS_THREADS), 1, 1};
    at.threads = ROWS_THREADS;
    at.stream = stream;
    return at;
}

/* Rows of the source from 128 * first on to the device, and from there into their panels. */
void pack_rows(struct cuda_products *p, struct k_linear *l, const struct k_linear_src *src,
               uint32_t first, uint32_t n)
{
    const struct packed_shape *s = &l->shape;
    size_t row_bytes = (size_t)s->cols * s->bits / 8;
    uint32_t row0 = first * PACKED_ROWS, end = row0 + n * PACKED_ROWS;
    uint32_t rows = (end < s->rows ? end : s->rows) - row0;
    upload(p, p->staging, static_cast<const char *>(src->data) + row0 * row_bytes,
           rows * row_bytes);
    note(p, linear_pack_rows(l, p->staging, row0, rows, p->device.stream));
}

void pack_scales(struct cuda_products *p, struct k_linear *l, const struct k_linear_src *src)
{
    const struct packed_shape *s = &l->shape;
    uint32_t at_once = (uint32_t)(p->staging_bytes / ((size_t)s->n_groups * 2));
    for (uint32_t row = 0; row < s->rows; row += at_once) {
        uint32_t n = s->rows - row < at_once ? s->rows - row : at_once;
        upload(p, p->staging, src->scale + (size_t)row * s->n_groups, (size_t)n * s->n_groups * 2);
        note(p, linear_pack_scales(l, static_cast<const uint16_t *>(p->staging), row, n,
                                   p->device.stream));
    }
}

/* Grows a buffer; its contents are lost. The device is idle with it: freeing waits. */
bool reserve(struct cuda_products *p, void **buffer, size_t *have, size_t bytes)
{
    if (bytes <= *have)
        return true;
    memory_free(p, *buffer);
    *have = 0;
    *buffer = memory_new(p, bytes);
    if (!*buffer)
        return false;
    *have = bytes;
    return true;
}

[[maybe_unused]] size_t shared_of(const struct variant *v) /* asserted */
{
    return v->kernel < LINEAR_WIDE_SLICE ? linear_gemm_shared(v->bits, v->tokens)
                                         : linear_wide_shared(v->bits, v->kernel, v->tokens);
}

/* What the question whether warpgroups sum as warps do is asked with: two slices, values whose
 * exponents lie far apart, so that what is lost where steps are added up shows. */
enum { ASKED_ROWS = 128, ASKED_COLS = 512, ASKED_TOKENS = 64 };
struct question {
    uint8_t weights[ASKED_ROWS * ASKED_COLS / 2];
    uint16_t scale[ASKED_ROWS];
    uint16_t x[ASKED_TOKENS * ASKED_COLS];
    float answer[2][ASKED_TOKENS * ASKED_ROWS];
};

void fill(struct question *q)
{
    uint32_t random = 1;
    auto next = [&random] {
        random = random * 1664525 + 1013904223;
        return random >> 8;
    };
    for (uint8_t &w : q->weights)
        w = (uint8_t)next();
    for (uint16_t &v : q->scale)
        v = 0x2c00;          /* 2^-4 */
    for (uint16_t &v : q->x) /* 2^-10 to 2^5 */
        v = (uint16_t)((next() & 0x83ff) | (5 + next() % 16) << 10);
}

bool ask(struct cuda_products *p, struct question *q)
{
    struct k_linear_src src = {};
    src.type = K_WEIGHT_I4;
    src.rows = ASKED_ROWS;
    src.cols = src.group_cols = ASKED_COLS;
    src.n_groups = 1;
    src.data = q->weights;
    src.scale = q->scale;
    struct k_linear *l = linear_new(p, &src);
    void *x = memory_new(p, sizeof q->x), *y = memory_new(p, sizeof q->answer[0]);
    bool same = false;
    if (l && x && y) {
        static const enum linear_kernel kernels[] = {LINEAR_WHOLE, LINEAR_WIDE};
        upload(p, x, q->x, sizeof q->x);
        same = true;
        for (int i = 0; i < 2 && same; i++) {
            struct linear_end end = {};
            end.kind = LINEAR_FLOATS;
            end.y = y;
            same = linear_run(p, l, x, ASKED_TOKENS, &end, kernels[i], 64) == 0;
            p->device.memory.download(p->device.memory.arg, q->answer[i], y, sizeof q->answer[i]);
        }
        same = same && memcmp(q->answer[0], q->answer[1], sizeof q->answer[0]) == 0;
    }
    linear_free(p, l);
    memory_free(p, x);
    memory_free(p, y);
    return same;
}

/* Whether this device's warpgroups give the bits of its warps; false where there is no telling. */
bool same_bits(struct cuda_products *p)
{
    struct question *q = static_cast<struct question *>(calloc(1, sizeof *q));
    if (!q)
        return false;
    fill(q);
    bool same = p->device.max_rows >= ASKED_TOKENS && p->device.max_cols >= ASKED_COLS && ask(p, q);
    free(q);
    memory_free(p, p->partials); /* as if nothing had been */
    memory_free(p, p->staging);
    p->partials = p->staging = nullptr;
    p->partial_bytes = p->staging_bytes = 0;
    return same;
}

} // namespace

int products_init(struct cuda_products *p, const struct linear_device *device)
{
    *p = {};
    p->device = *device;
    p->counters = static_cast<uint32_t *>(memory_new(p, LINEAR_MAX_TILES * sizeof(uint32_t)));
    if (!p->counters)
        return -ENOMEM;
    note(p, dev_zero(p->counters, LINEAR_MAX_TILES * sizeof(uint32_t), device->stream));
    for (const struct variant *v : tables)
        for (; v->function; v++) {
            assert(!v->shared || v->shared == shared_of(v));
            /* what a kernel has of static memory counts, too: 48 KiB are too much already */
            if (v->shared + 1024 > 48 << 10 && v->shared + 1024 <= device->shared_bytes)
                note(p, dev_allow_shared(v->function, v->shared));
        }
    if (device->library_rows) {
        p->library = linear_library_new(device);
        if (!p->library)
            return -ENOSYS;
    }
    p->device.warpgroups = device->warpgroups && device->arch == 900 && same_bits(p);
    return p->error ? -EIO : 0;
}

void products_deinit(struct cuda_products *p)
{
    linear_library_free(p->library);
    memory_free(p, p->partials);
    memory_free(p, p->counters);
    memory_free(p, p->staging);
    *p = {};
}

size_t products_bytes(const struct cuda_products *p)
{
    return p->partial_bytes + p->staging_bytes + LINEAR_MAX_TILES * sizeof(uint32_t) +
           linear_library_bytes(p->library);
}

static struct k_linear *blank(struct cuda_products *p, const struct packed_shape &shape)
{
    struct k_linear *l = static_cast<struct k_linear *>(calloc(1, sizeof *l));
    if (!l)
        return nullptr;
    l->shape = shape;
    l->memory = memory_new(p, l->shape.bytes);
    if (!l->memory || l->shape.n_panels > LINEAR_MAX_TILES ||
        !reserve(p, &p->partials, &p->partial_bytes,
                 linear_partial_bound(&l->shape, p->device.max_rows))) {
        linear_free(p, l);
        return nullptr;
    }
    return l;
}

struct k_linear *linear_blank(struct cuda_products *p, enum k_weight type, uint32_t rows,
                              uint32_t cols, uint32_t n_groups, uint32_t group_cols)
{
    return blank(p, linear_shape(type, rows, cols, n_groups, group_cols));
}

int linear_pack_rows(struct k_linear *l, const void *from, uint32_t first_row, uint32_t n_rows,
                     struct CUstream_st *stream)
{
    const struct packed_shape *s = &l->shape;
    assert(first_row % PACKED_ROWS == 0 && n_rows && first_row + n_rows <= s->rows);
    assert(n_rows % PACKED_ROWS == 0 || first_row + n_rows == s->rows);
    struct repack_params q = {};
    q.s = *s;
    q.from = static_cast<const unsigned char *>(from);
    q.to = static_cast<unsigned char *>(l->memory);
    q.first = first_row / PACKED_ROWS;
    q.n = packed_div_up(n_rows, PACKED_ROWS);
    uint64_t units = (uint64_t)q.n * s->n_blocks * (packed_block_bytes(s->bits) / 16);
    return dev_run(rows_launch(units, stream), repack_kernel, q);
}

int linear_pack_scales(struct k_linear *l, const uint16_t *from, uint32_t first_row,
                       uint32_t n_rows, struct CUstream_st *stream)
{
    const struct packed_shape *s = &l->shape;
    assert(n_rows && first_row + n_rows <= s->rows && s->bits != 16);
    struct rescale_params q = {};
    q.s = *s;
    q.from = from;
    q.to = reinterpret_cast<uint16_t *>(static_cast<char *>(l->memory) + s->scale_at);
    q.first_row = first_row;
    q.n = n_rows;
    q.n_groups = s->n_groups;
    return dev_run(rows_launch((uint64_t)n_rows * s->n_groups, stream), rescale_kernel, q);
}

struct k_linear *linear_begin(struct cuda_products *p, const struct k_linear_src *src)
{
    assert(src->rows && src->cols && src->cols <= p->device.max_cols);
    assert(src->type != K_WEIGHT_I4 || src->cols % 2 == 0);
    struct packed_shape shape =
        linear_shape(src->type, src->rows, src->cols, src->n_groups, src->group_cols);
    if (src->glu)
        packed_pair(&shape);
    struct k_linear *l = blank(p, shape);
    if (!l)
        return nullptr;
    const struct packed_shape *s = &l->shape;
    char *memory = static_cast<char *>(l->memory);
    note(p, dev_zero(memory + s->scale_at, s->bytes - s->scale_at, p->device.stream));
    if (src->bias)
        upload(p, memory + s->bias_at, src->bias, (size_t)s->rows * 2);
    return l;
}

struct k_linear *linear_new(struct cuda_products *p, const struct k_linear_src *src)
{
    assert(src->data && (src->type == K_WEIGHT_F16) == !src->scale);
    struct k_linear *l = linear_begin(p, src);
    if (!l)
        return nullptr;
    const struct packed_shape *s = &l->shape;
    if (!reserve(p, &p->staging, &p->staging_bytes, linear_staging_bytes(s))) {
        linear_free(p, l);
        return nullptr;
    }
    size_t panel = (size_t)PACKED_ROWS * s->cols * s->bits / 8;
    uint32_t at_once = (uint32_t)(p->staging_bytes / panel);
    at_once = at_once ? at_once : 1; /* the only panel, with fewer rows */
    for (uint32_t first = 0; first < s->n_panels; first += at_once)
        pack_rows(p, l, src, first, s->n_panels - first < at_once ? s->n_panels - first : at_once);
    if (src->scale)
        pack_scales(p, l, src);
    return l;
}

void linear_free(struct cuda_products *p, struct k_linear *l)
{
    if (!l)
        return;
    memory_free(p, l->memory);
    free(l);
}

int linear_run(struct cuda_products *p, const struct k_linear *l, const void *x, uint32_t n_rows,
               const struct linear_end *end, enum linear_kernel kernel, uint32_t tokens)
{
    const struct packed_shape *s = &l->shape;
    const struct variant *v = find_variant(s, kernel, tokens);
    if (!v || (kernel == LINEAR_GEMV && n_rows > GEMV_TOKENS) ||
        (kernel >= LINEAR_WIDE_SLICE && p->device.arch != 900) ||
        v->shared + 1024 > p->device.shared_bytes || !linear_can_end(s, end))
        return -EINVAL;
    struct product_params q = params_of(p, l, x, n_rows, end);
    if (kernel == LINEAR_GEMV && end->kind == LINEAR_HALVES)
        q.staged = 0; /* two bytes at a time: few of them, and no barriers */
    q.n_token_tiles = packed_div_up(n_rows, tokens);
    const bool slices = kernel < LINEAR_WHOLE || kernel == LINEAR_WIDE_SLICE;
    uint64_t tiles = (uint64_t)s->n_panels * q.n_token_tiles;
    uint64_t ctas = tiles * (slices ? s->n_slices : 1);
    if (kernel == LINEAR_WIDE2)
        ctas = (uint64_t)packed_div_up(s->n_panels, 2) * q.n_token_tiles;
    if (slices && s->n_slices > 1 &&
        (tiles > LINEAR_MAX_TILES ||
         tiles * s->n_slices * PACKED_ROWS * tokens * 4 > p->partial_bytes))
        return -EINVAL;
    struct dev_launch at = launch_of(p, ctas, v->threads);
    at.shared = kernel == LINEAR_GEMV ? gemv_shared_bytes(s) : v->shared;
    note(p, dev_run(at, v->function, q));
    return 0;
}

int linear_multiply(struct cuda_products *p, const struct k_linear *l, const void *x,
                    uint32_t n_rows, const struct linear_end *end)
{
    assert(n_rows && n_rows <= p->device.max_rows);
    if (!linear_can_end(&l->shape, end))
        return -ENOTSUP;
    struct linear_plan plan = linear_plan_for(&p->device, &l->shape, n_rows);
    if (plan.kernel == LINEAR_LIBRARY) {
        if (end->kind == LINEAR_GLU || end->kind == LINEAR_ROPE)
            return -ENOTSUP;
        int error = end->kind == LINEAR_HALVES
                        ? linear_library_product(p->library, l, x, n_rows, end->y)
                        : -ENOTSUP;
        if (error != -ENOTSUP) {
            note(p, error);
            return 0;
        }
        struct linear_device own = p->device;
        own.library_rows = 0;
        plan = linear_plan_for(&own, &l->shape, n_rows);
    }
    int rc = linear_run(p, l, x, n_rows, end, plan.kernel, plan.tokens);
    assert(rc == 0 && "linear_plan names kernels that exist");
    return rc;
}

void linear_embed(struct cuda_products *p, const struct k_linear *table, uint32_t first_row,
                  const int32_t *ids, uint32_t n_rows, void *y)
{
    assert(table->shape.bits == 16 && !table->shape.pair_rows);
    struct lookup_params q = {};
    q.s = table->shape;
    q.table = static_cast<const unsigned char *>(table->memory);
    q.ids = ids;
    q.y = static_cast<uint16_t *>(y);
    q.first_row = first_row;
    q.n = n_rows;
    struct dev_launch at = launch_of(p, packed_div_up(q.s.cols, 2 * ROWS_THREADS), ROWS_THREADS);
    at.grid.y = n_rows;
    note(p, dev_run(at, lookup_kernel, q));
}

void linear_gather(struct cuda_products *p, const void *x, uint32_t cols, const uint32_t *rows,
                   uint32_t n, void *y)
{
    struct gather_params q = {};
    q.x = static_cast<const uint16_t *>(x);
    q.rows = rows;
    q.y = static_cast<uint16_t *>(y);
    q.cols = cols;
    q.vector = cols % 8 == 0 && (uintptr_t)x % 16 == 0 && (uintptr_t)y % 16 == 0;
    struct dev_launch at = launch_of(p, packed_div_up(cols, 8 * ROWS_THREADS), ROWS_THREADS);
    at.grid.y = n;
    note(p, dev_run(at, gather_kernel, q));
}
