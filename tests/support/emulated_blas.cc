/* emulated_blas.cc: see emulated_blas.h. */
#include "tests/support/emulated_blas.h"

#include <cerrno>

#include "base/half.h"
#include "kernels/cuda/blas.h"

struct blas {
    struct linear_device device;
    void *workspace;
};

static struct emulated_blas state;

struct emulated_blas *emulated_blas_state(void)
{
    return &state;
}

struct blas *blas_open(const struct linear_device *d)
{
    if (state.missing)
        return nullptr;
    void *workspace = d->memory.alloc(d->memory.arg, BLAS_WORKSPACE_BYTES);
    return workspace ? new blas{*d, workspace} : nullptr;
}

void blas_close(struct blas *b)
{
    if (!b)
        return;
    b->device.memory.free(b->device.memory.arg, b->workspace);
    delete b;
}

int blas_multiply(struct blas *, const void *w, uint32_t rows, uint32_t cols, const void *x,
                  uint32_t n, const void *bias, void *y, uint32_t y_stride)
{
    if (state.refuses)
        return -ENOTSUP;
    state.n_products++;
    const uint16_t *left = static_cast<const uint16_t *>(w);
    const uint16_t *right = static_cast<const uint16_t *>(x);
    const uint16_t *add = static_cast<const uint16_t *>(bias);
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t row = 0; row < rows; row++) {
            double sum = add ? (double)half_to_float(add[row]) : 0;
            for (uint32_t k = 0; k < cols; k++)
                sum += (double)half_to_float(left[(size_t)row * cols + k]) *
                       (double)half_to_float(right[(size_t)t * cols + k]);
            static_cast<uint16_t *>(y)[(size_t)t * y_stride + row] = half_from_float((float)sum);
        }
    return 0;
}
