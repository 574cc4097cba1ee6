/* convert.cu: activations between FP32 on the host's side and binary16, rows picked from them, and
 * the probe. */
#include <cassert>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/dev.h"

namespace
{

enum { THREADS = 256, PER_THREAD = 4 };

struct convert_params {
    uint16_t *halves;
    float *floats;
    size_t n;
};

DEV_KERNEL(THREADS, 1) void halves_from_floats(DEV_PARAMS(convert_params) p)
{
    size_t first = (size_t)dev_cta_x() * THREADS * PER_THREAD + dev_thread();
    DEV_UNROLL
    for (int i = 0; i < PER_THREAD; i++) {
        size_t at = first + (size_t)i * THREADS;
        if (at < p.n)
            p.halves[at] = dev_to_half(p.floats[at]);
    }
}

DEV_KERNEL(THREADS, 1) void floats_from_halves(DEV_PARAMS(convert_params) p)
{
    size_t first = (size_t)dev_cta_x() * THREADS * PER_THREAD + dev_thread();
    DEV_UNROLL
    for (int i = 0; i < PER_THREAD; i++) {
        size_t at = first + (size_t)i * THREADS;
        if (at < p.n)
            p.floats[at] = dev_from_half(p.halves[at]);
    }
}

/* Which rows: few enough to go with the launch. */
struct gather_params {
    const uint16_t *x; /* [.., cols] */
    uint16_t *y;       /* [n, cols] */
    uint32_t cols;     /* a multiple of 8 */
    uint32_t rows[64];
};
enum { GATHER_ROWS = sizeof(gather_params::rows) / sizeof(uint32_t) };

/* Grid: pieces of a row, rows. */
DEV_KERNEL(THREADS, 1) void gather_kernel(DEV_PARAMS(gather_params) p)
{
    uint32_t col = (dev_cta_x() * THREADS + dev_thread()) * 8;
    if (col < p.cols)
        dev_store16(p.y + (size_t)dev_cta_y() * p.cols + col,
                    dev_load16(p.x + (size_t)p.rows[dev_cta_y()] * p.cols + col));
}

DEV_KERNEL(DEV_WARP, 1) void probe(DEV_PARAMS(convert_params) p)
{
    if (dev_thread() == 0)
        p.floats[0] = 1.0f;
}

struct dev_launch launch_of(struct k_ctx *c, size_t n)
{
    struct dev_launch at = {};
    at.grid.x = (unsigned)((n + THREADS * PER_THREAD - 1) / (THREADS * PER_THREAD));
    at.grid.y = at.grid.z = 1;
    at.threads = THREADS;
    at.stream = c->stream;
    return at;
}

} // namespace

void cuda_halves_from_floats(struct k_ctx *c, uint16_t *dst, const float *src, size_t n)
{
    convert_params p = {dst, const_cast<float *>(src), n};
    cuda_check(c, dev_run(launch_of(c, n), halves_from_floats, p), "upload");
}

void cuda_floats_from_halves(struct k_ctx *c, float *dst, const uint16_t *src, size_t n)
{
    convert_params p = {const_cast<uint16_t *>(src), dst, n};
    cuda_check(c, dev_run(launch_of(c, n), floats_from_halves, p), "download");
}

void cuda_gather(struct k_ctx *c, const void *x, uint32_t cols, const uint32_t *rows, uint32_t n,
                 void *y)
{
    assert(cols % 8 == 0);
    for (uint32_t done = 0; done < n;) {
        const uint32_t some = n - done < GATHER_ROWS ? n - done : (uint32_t)GATHER_ROWS;
        gather_params p = {};
        p.x = (const uint16_t *)x;
        p.y = (uint16_t *)y + (size_t)done * cols;
        p.cols = cols;
        for (uint32_t i = 0; i < some; i++)
            p.rows[i] = rows[done + i];
        struct dev_launch at = launch_of(c, 1);
        at.grid.x = (cols / 8 + THREADS - 1) / THREADS;
        at.grid.y = some;
        cuda_check(c, dev_run(at, gather_kernel, p), "gather");
        done += some;
    }
}

int cuda_probe(struct k_ctx *c, uint32_t *device_word)
{
    convert_params p = {nullptr, reinterpret_cast<float *>(device_word), 1};
    struct dev_launch at = launch_of(c, 1);
    at.threads = DEV_WARP;
    return (int)dev_run(at, probe, p);
}
