/* dev_wgmma_nvcc.h: dev_wgmma.h for nvcc. Included by dev_wgmma.h only. */
#ifndef GLMD_KERNELS_CUDA_DEV_WGMMA_NVCC_H
#define GLMD_KERNELS_CUDA_DEV_WGMMA_NVCC_H

/* Whether this pass of the compiler may use it: sm_90a, not sm_90. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DEV_WGMMA 1
#else
#define DEV_WGMMA 0
#endif

/* Accumulators of N columns. */
template <int N> struct dev_accum {
    float v[N / 2];

    DEV_MEMBER void clear()
    {
        DEV_UNROLL
        for (int i = 0; i < N / 2; i++)
            v[i] = 0.0f;
    }
    DEV_MEMBER float get(int i) const
    {
        return v[i];
    }
    /* Behind a wait: keeps the compiler from using the values in front of it. */
    DEV_MEMBER void arrived()
    {
        DEV_UNROLL
        for (int i = 0; i < N / 2; i++)
            asm volatile("" : "+f"(v[i])::"memory");
    }
};

/* A fragment of a: 16 rows of a warp, 16 columns. */
struct dev_fragment {
    uint32_t v[4];

    DEV_MEMBER void set(const uint32_t (&a)[4])
    {
        DEV_UNROLL
        for (int i = 0; i < 4; i++)
            v[i] = a[i];
    }
};

/* The next address that is a multiple of DEV_WGMMA_ALIGN. */
static __device__ __forceinline__ uint4 *dev_wgmma_aligned(uint4 *p)
{
    const unsigned at = (unsigned)__cvta_generic_to_shared(p);
    return p + (DEV_WGMMA_ALIGN - at % DEV_WGMMA_ALIGN) % DEV_WGMMA_ALIGN / 16;
}

DEV_FN uint64_t dev_wgmma_descriptor(uint32_t shared_address);
DEV_FN uint64_t dev_wgmma_rows(const uint4 *b)
{
    return dev_wgmma_descriptor((uint32_t)__cvta_generic_to_shared(b));
}

#if DEV_WGMMA

DEV_FN void dev_async_fence()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
DEV_FN void dev_wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
DEV_FN void dev_wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* All but the last N groups of this warpgroup have ended. */
template <int N> static __device__ __forceinline__ void dev_wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

DEV_FN void dev_wgmma(dev_accum<64> &d, const dev_fragment &a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
                 : "+f"(d.v[0]), "+f"(d.v[1]), "+f"(d.v[2]), "+f"(d.v[3]), "+f"(d.v[4]),
                   "+f"(d.v[5]), "+f"(d.v[6]), "+f"(d.v[7]), "+f"(d.v[8]), "+f"(d.v[9]),
                   "+f"(d.v[10]), "+f"(d.v[11]), "+f"(d.v[12]), "+f"(d.v[13]), "+f"(d.v[14]),
                   "+f"(d.v[15]), "+f"(d.v[16]), "+f"(d.v[17]), "+f"(d.v[18]), "+f"(d.v[19]),
                   "+f"(d.v[20]), "+f"(d.v[21]), "+f"(d.v[22]), "+f"(d.v[23]), "+f"(d.v[24]),
                   "+f"(d.v[25]), "+f"(d.v[26]), "+f"(d.v[27]), "+f"(d.v[28]), "+f"(d.v[29]),
                   "+f"(d.v[30]), "+f"(d.v[31])
                 : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "l"(b));
}

DEV_FN void dev_wgmma(dev_accum<128> &d, const dev_fragment &a, uint64_t b)
{
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
        : "+f"(d.v[0]), "+f"(d.v[1]), "+f"(d.v[2]), "+f"(d.v[3]), "+f"(d.v[4]), "+f"(d.v[5]),
          "+f"(d.v[6]), "+f"(d.v[7]), "+f"(d.v[8]), "+f"(d.v[9]), "+f"(d.v[10]), "+f"(d.v[11]),
          "+f"(d.v[12]), "+f"(d.v[13]), "+f"(d.v[14]), "+f"(d.v[15]), "+f"(d.v[16]), "+f"(d.v[17]),
          "+f"(d.v[18]), "+f"(d.v[19]), "+f"(d.v[20]), "+f"(d.v[21]), "+f"(d.v[22]), "+f"(d.v[23]),
          "+f"(d.v[24]), "+f"(d.v[25]), "+f"(d.v[26]), "+f"(d.v[27]), "+f"(d.v[28]), "+f"(d.v[29]),
          "+f"(d.v[30]), "+f"(d.v[31]), "+f"(d.v[32]), "+f"(d.v[33]), "+f"(d.v[34]), "+f"(d.v[35]),
          "+f"(d.v[36]), "+f"(d.v[37]), "+f"(d.v[38]), "+f"(d.v[39]), "+f"(d.v[40]), "+f"(d.v[41]),
          "+f"(d.v[42]), "+f"(d.v[43]), "+f"(d.v[44]), "+f"(d.v[45]), "+f"(d.v[46]), "+f"(d.v[47]),
          "+f"(d.v[48]), "+f"(d.v[49]), "+f"(d.v[50]), "+f"(d.v[51]), "+f"(d.v[52]), "+f"(d.v[53]),
          "+f"(d.v[54]), "+f"(d.v[55]), "+f"(d.v[56]), "+f"(d.v[57]), "+f"(d.v[58]), "+f"(d.v[59]),
          "+f"(d.v[60]), "+f"(d.v[61]), "+f"(d.v[62]), "+f"(d.v[63])
        : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "l"(b));
}

#endif
#endif
