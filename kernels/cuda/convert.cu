/* convert.cu: activations between FP32 on the host's side and binary16, and the probe. */
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

int cuda_probe(struct k_ctx *c, uint32_t *device_word)
{
    convert_params p = {nullptr, reinterpret_cast<float *>(device_word), 1};
    struct dev_launch at = launch_of(c, 1);
    at.threads = DEV_WARP;
    return (int)dev_run(at, probe, p);
}
