/* bench_kernels.cu: what ceilings are measured with (bench.h). */
#include "bench.h"

#include "dev.h"

namespace
{

enum { BENCH_THREADS = 256, BENCH_CTAS = 4, BENCH_RESIDENT = 6, BENCH_UNROLL = 4 };

struct stream_params {
    const unsigned char *src;
    unsigned char *dst;
    uint64_t units; /* of 16 bytes */
    uint32_t *word;
};

/* Grid: any. */
DEV_KERNEL(BENCH_THREADS, BENCH_CTAS) void copy_kernel(DEV_PARAMS(stream_params) p)
{
    const uint64_t step = (uint64_t)dev_grid_x() * BENCH_THREADS;
    uint64_t i = (uint64_t)dev_cta_x() * BENCH_THREADS + dev_thread();
    for (; i + (BENCH_UNROLL - 1) * step < p.units; i += BENCH_UNROLL * step) {
        uint4 v[BENCH_UNROLL];
        DEV_UNROLL
        for (int j = 0; j < BENCH_UNROLL; j++)
            v[j] = dev_stream16(p.src + (i + (uint64_t)j * step) * 16);
        DEV_UNROLL
        for (int j = 0; j < BENCH_UNROLL; j++)
            dev_store16(p.dst + (i + (uint64_t)j * step) * 16, v[j]);
    }
    for (; i < p.units; i += step)
        dev_store16(p.dst + i * 16, dev_stream16(p.src + i * 16));
}

DEV_FN uint32_t mix(uint4 v)
{
    return v.x ^ v.y ^ v.z ^ v.w;
}

/* Every thread's sum would have to be zero or not for the store: the loads stay. */
DEV_KERNEL(BENCH_THREADS, BENCH_CTAS) void read_kernel(DEV_PARAMS(stream_params) p)
{
    const uint64_t step = (uint64_t)dev_grid_x() * BENCH_THREADS;
    uint64_t i = (uint64_t)dev_cta_x() * BENCH_THREADS + dev_thread();
    uint32_t sum = 0;
    for (; i + (BENCH_UNROLL - 1) * step < p.units; i += BENCH_UNROLL * step) {
        uint4 v[BENCH_UNROLL];
        DEV_UNROLL
        for (int j = 0; j < BENCH_UNROLL; j++)
            v[j] = dev_stream16(p.src + (i + (uint64_t)j * step) * 16);
        DEV_UNROLL
        for (int j = 0; j < BENCH_UNROLL; j++)
            sum += mix(v[j]);
    }
    for (; i < p.units; i += step)
        sum += mix(dev_stream16(p.src + i * 16));
    if (sum)
        dev_atomic_add(p.word, sum);
}

struct noise_params {
    uint32_t *dst;
    uint64_t words;
    uint32_t seed, halves;
};

DEV_KERNEL(BENCH_THREADS, BENCH_CTAS) void noise_kernel(DEV_PARAMS(noise_params) p)
{
    const uint64_t i = (uint64_t)dev_cta_x() * BENCH_THREADS + dev_thread();
    if (i >= p.words)
        return;
    uint32_t h = (uint32_t)i * 0x9e3779b9u + (uint32_t)(i >> 32) * 0x7feb352du + p.seed;
    h = (h ^ h >> 16) * 0x85ebca6bu;
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    h ^= h >> 16;
    p.dst[i] = p.halves ? (h & 0x83ff83ffu) | 0x2c002c00u : h;
}

struct fill_params {
    uint16_t *dst;
    uint64_t n;
    uint16_t half;
};

DEV_KERNEL(BENCH_THREADS, BENCH_CTAS) void fill_kernel(DEV_PARAMS(fill_params) p)
{
    const uint64_t i = (uint64_t)dev_cta_x() * BENCH_THREADS + dev_thread();
    if (i < p.n)
        p.dst[i] = p.half;
}

struct dev_launch launch_over(uint64_t items, struct CUstream_st *stream)
{
    struct dev_launch at = {};
    at.grid = {(unsigned)((items + BENCH_THREADS - 1) / BENCH_THREADS), 1, 1};
    at.threads = BENCH_THREADS;
    at.stream = stream;
    return at;
}

struct dev_launch launch_resident(uint32_t n_sms, struct CUstream_st *stream)
{
    return launch_over((uint64_t)n_sms * BENCH_RESIDENT * BENCH_THREADS, stream);
}

} // namespace

int bench_copy(void *dst, const void *src, size_t bytes, uint32_t n_sms, struct CUstream_st *stream)
{
    struct stream_params q = {static_cast<const unsigned char *>(src),
                              static_cast<unsigned char *>(dst), bytes / 16, nullptr};
    return dev_run(launch_resident(n_sms, stream), copy_kernel, q);
}

int bench_read(const void *src, size_t bytes, uint32_t *word, uint32_t n_sms,
               struct CUstream_st *stream)
{
    struct stream_params q = {static_cast<const unsigned char *>(src), nullptr, bytes / 16, word};
    return dev_run(launch_resident(n_sms, stream), read_kernel, q);
}

int bench_noise(void *dst, size_t bytes, uint32_t seed, bool halves, struct CUstream_st *stream)
{
    struct noise_params q = {static_cast<uint32_t *>(dst), bytes / 4, seed, halves};
    return dev_run(launch_over(q.words, stream), noise_kernel, q);
}

int bench_fill(void *dst, size_t n, uint16_t half, struct CUstream_st *stream)
{
    struct fill_params q = {static_cast<uint16_t *>(dst), n, half};
    return dev_run(launch_over(n, stream), fill_kernel, q);
}
