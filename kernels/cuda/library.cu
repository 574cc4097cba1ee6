/* library.cu: see library.h. */
#include "library.h"

#include "blas.h"
#include "expand.cuh"

#include <cerrno>
#include <cstdlib>

int linear_expand(const struct k_linear *w, uint32_t panel, uint32_t n_panels, void *to,
                  struct CUstream_st *stream)
{
    const struct packed_shape *s = &w->shape;
    const unsigned char *memory = static_cast<const unsigned char *>(w->memory);
    struct expand_params q = {};
    q.s = *s;
    q.w = memory;
    q.scale = reinterpret_cast<const uint16_t *>(memory + s->scale_at);
    q.to = static_cast<uint16_t *>(to);
    q.first_panel = panel;
    q.n_panels = n_panels;
    q.dense = packed_dense(s) && (uintptr_t)to % 16 == 0;
    uint64_t pieces = (uint64_t)n_panels * PACKED_ROWS * s->n_blocks * (PACKED_COLS / 8);
    struct dev_launch at = {};
    at.grid = {(unsigned)((pieces + EXPAND_THREADS - 1) / EXPAND_THREADS), 1, 1};
    at.threads = EXPAND_THREADS;
    at.stream = stream;
    return dev_run(at, expand_kernel, q);
}

namespace
{

enum {
    SLAB_BYTES = 96 << 20, /* of expanded rows: several waves of tiles, and still in an L2 or two */
};

} // namespace

struct linear_library {
    struct linear_device device;
    struct blas *blas;
    void *slab;
};

struct linear_library *linear_library_new(const struct linear_device *d)
{
    struct linear_library *l = static_cast<struct linear_library *>(calloc(1, sizeof *l));
    if (!l)
        return nullptr;
    l->device = *d;
    l->slab = d->memory.alloc(d->memory.arg, SLAB_BYTES);
    l->blas = l->slab ? blas_open(d) : nullptr;
    if (!l->blas) {
        linear_library_free(l);
        return nullptr;
    }
    return l;
}

void linear_library_free(struct linear_library *l)
{
    if (!l)
        return;
    blas_close(l->blas);
    if (l->slab)
        l->device.memory.free(l->device.memory.arg, l->slab);
    free(l);
}

size_t linear_library_bytes(const struct linear_library *l)
{
    return l ? (size_t)SLAB_BYTES + BLAS_WORKSPACE_BYTES : 0;
}

int linear_library_multiply(struct linear_library *l, const void *w, uint32_t rows, uint32_t cols,
                            const void *x, uint32_t n, const void *bias, void *y, uint32_t y_stride)
{
    return blas_multiply(l->blas, w, rows, cols, x, n, bias, y, y_stride);
}

/* Rows [row, row + n) of the matrix, which are rows `at` and following of the slab. */
static int multiply_rows(struct linear_library *l, const struct k_linear *w, const void *x,
                         uint32_t n_tokens, void *y, uint32_t row, uint32_t n, uint32_t at)
{
    const struct packed_shape *s = &w->shape;
    const uint16_t *slab = static_cast<const uint16_t *>(l->slab) + (size_t)at * s->cols;
    const uint16_t *bias =
        reinterpret_cast<const uint16_t *>(static_cast<const char *>(w->memory) + s->bias_at);
    return blas_multiply(l->blas, slab, n, s->cols, x, n_tokens, bias + row,
                         static_cast<uint16_t *>(y) + row, s->rows);
}

int linear_library_product(struct linear_library *l, const struct k_linear *w, const void *x,
                           uint32_t n_rows, void *y)
{
    const struct packed_shape *s = &w->shape;
    uint32_t at_once = (uint32_t)(SLAB_BYTES / ((size_t)PACKED_ROWS * s->cols * 2));
    if (!at_once)
        return -ENOTSUP;
    int error = 0;
    for (uint32_t panel = 0; panel < s->n_panels && !error; panel += at_once) {
        uint32_t n = s->n_panels - panel < at_once ? s->n_panels - panel : at_once;
        uint32_t row = panel * PACKED_ROWS, end = row + n * PACKED_ROWS;
        error = linear_expand(w, panel, n, l->slab, l->device.stream);
        if (!error && !s->pair_rows) {
            error =
                multiply_rows(l, w, x, n_rows, y, row, (end < s->rows ? end : s->rows) - row, 0);
        } else if (!error) { /* rows of the first half, then those of the second */
            const uint32_t first = panel * PACKED_HALF, half = n * PACKED_HALF;
            error = multiply_rows(l, w, x, n_rows, y, first, half, 0);
            if (!error)
                error = multiply_rows(l, w, x, n_rows, y, s->pair_rows + first, half, half);
        }
    }
    return error;
}
