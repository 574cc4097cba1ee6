/* dev_nvcc.h: dev.h for nvcc. Included by dev.h only. */
#ifndef GLMD_KERNELS_CUDA_DEV_NVCC_H
#define GLMD_KERNELS_CUDA_DEV_NVCC_H

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#ifdef __CUDA_ARCH__
#define DEV_ARCH __CUDA_ARCH__
#else
#define DEV_ARCH 0 /* the host pass: nothing below is executed there */
#endif

#define DEV_FN                           static __device__ __forceinline__
#define DEV_INLINE                       __device__ __forceinline__
#define DEV_MEMBER                       __device__ __forceinline__
#define DEV_HOST_FN                      static inline __host__ __device__
#define DEV_KERNEL(threads, ctas_per_sm) static __global__ __launch_bounds__(threads, ctas_per_sm)
#define DEV_PARAMS(type)                 const __grid_constant__ type
#define DEV_UNROLL                       _Pragma("unroll")
#define DEV_NO_UNROLL                    _Pragma("unroll 1")
#define DEV_SHARED(T, name, n)           __shared__ T name[n]

template <class T> using dev_shared = T *;

extern __shared__ uint4 dev_dynamic_memory[];

/* `n` elements at byte `offset` of the launch's dynamic shared memory. */
template <class T> static __device__ __forceinline__ T *dev_dynamic(unsigned offset, unsigned)
{
    return reinterpret_cast<T *>(reinterpret_cast<char *>(dev_dynamic_memory) + offset);
}

/* The same shared memory as elements of another type. */
template <class T, class S> static __device__ __forceinline__ T *dev_shared_as(S *p)
{
    return reinterpret_cast<T *>(p);
}

DEV_FN unsigned dev_thread()
{
    return threadIdx.x;
}
DEV_FN unsigned dev_threads()
{
    return blockDim.x;
}
DEV_FN unsigned dev_cta_x()
{
    return blockIdx.x;
}
DEV_FN unsigned dev_cta_y()
{
    return blockIdx.y;
}
DEV_FN unsigned dev_cta_z()
{
    return blockIdx.z;
}
DEV_FN unsigned dev_grid_x()
{
    return gridDim.x;
}
DEV_FN unsigned dev_grid_y()
{
    return gridDim.y;
}
DEV_FN unsigned dev_grid_z()
{
    return gridDim.z;
}

/* ---- order ---- */

DEV_FN void dev_barrier()
{
    __syncthreads();
}
DEV_FN void dev_warp_sync()
{
    __syncwarp();
}
/* What this thread wrote is seen by the device before what it writes next. */
DEV_FN void dev_fence()
{
    __threadfence();
}
/* The same for other devices and the host. */
DEV_FN void dev_fence_system()
{
    __threadfence_system();
}
/* In a loop that waits for another CTA. */
DEV_FN void dev_spin()
{
    __nanosleep(64);
}

/* v, of which the compiler does not know that it is v: what follows from it is computed where it is
 * used and not kept in registers through a loop. */
DEV_FN uint32_t dev_anew(uint32_t v)
{
    asm volatile("" : "+r"(v));
    return v;
}

/* Waits for the kernel in front, of which this one may be an overlapping successor. */
DEV_FN void dev_grid_wait()
{
#if DEV_ARCH >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The successor may start. */
DEV_FN void dev_grid_release()
{
#if DEV_ARCH >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* ---- global memory, 16 bytes at a time, aligned ---- */

DEV_FN uint4 dev_load16(const void *p)
{
    return *static_cast<const uint4 *>(p);
}
DEV_FN uint2 dev_load8(const void *p)
{
    return *static_cast<const uint2 *>(p);
}
DEV_FN void dev_store16(void *p, uint4 v)
{
    *static_cast<uint4 *>(p) = v;
}
DEV_FN void dev_store8(void *p, uint2 v)
{
    *static_cast<uint2 *>(p) = v;
}

/* Read once, by this thread alone, and never written during the kernel: weights. */
DEV_FN uint4 dev_stream16(const void *p)
{
    uint4 v;
#if DEV_ARCH >= 800
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
#else
    v = __ldg(static_cast<const uint4 *>(p));
#endif
    return v;
}

/* Asks for the 128 bytes around `p` in the L2 cache; nobody waits for them. */
DEV_FN void dev_prefetch_l2(const void *p)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

/* What another CTA wrote during this kernel: past the L1 cache. */
DEV_FN uint4 dev_load16_l2(const void *p)
{
    return __ldcg(static_cast<const uint4 *>(p));
}

/* Flags between CTAs, devices and the host. */
DEV_FN uint32_t dev_load_acquire(const uint32_t *p)
{
    uint32_t v;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

DEV_FN void dev_store_release(uint32_t *p, uint32_t v)
{
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

/* What another device or the host wrote before a flag that was acquired: past all caches. */
DEV_FN uint4 dev_load16_system(const void *p)
{
    uint4 v;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

/* ---- global to shared, 16 bytes, without waiting (sm_80 and later) ---- */

/* `valid` false writes zeros and reads nothing. */
DEV_FN void dev_copy16(uint4 *dst, const void *src, bool valid)
{
#if DEV_ARCH >= 800
    unsigned to = (unsigned)__cvta_generic_to_shared(dst);
    unsigned n = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(src), "r"(n)
                 : "memory");
#else
    *dst = valid ? *static_cast<const uint4 *>(src) : make_uint4(0, 0, 0, 0);
#endif
}

/* The same for weights: no other CTA reads them soon. */
DEV_FN void dev_copy16_stream(uint4 *dst, const void *src)
{
#if DEV_ARCH >= 800
    unsigned to = (unsigned)__cvta_generic_to_shared(dst);
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(to), "l"(src)
                 : "memory");
#else
    *dst = __ldg(static_cast<const uint4 *>(src));
#endif
}

/* Ends a group of this thread's copies. */
DEV_FN void dev_copy_commit()
{
#if DEV_ARCH >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/* All but the last N groups of this thread have arrived; others see them after a barrier. */
template <int N> static __device__ __forceinline__ void dev_copy_wait()
{
#if DEV_ARCH >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

/* ---- warps ---- */

template <class T> static __device__ __forceinline__ T dev_shfl(T v, unsigned lane)
{
    return __shfl_sync(~0u, v, (int)lane);
}

template <class T> static __device__ __forceinline__ T dev_shfl_xor(T v, unsigned mask)
{
    return __shfl_xor_sync(~0u, v, (int)mask);
}

/* From the lane `delta` below; the first lanes keep their own. */
template <class T> static __device__ __forceinline__ T dev_shfl_up(T v, unsigned delta)
{
    return __shfl_up_sync(~0u, v, delta);
}

template <class T> static __device__ __forceinline__ T dev_shfl_down(T v, unsigned delta)
{
    return __shfl_down_sync(~0u, v, delta);
}

DEV_FN uint32_t dev_ballot(bool b)
{
    return __ballot_sync(~0u, b);
}
DEV_FN bool dev_any(bool b)
{
    return __any_sync(~0u, b);
}
DEV_FN bool dev_all(bool b)
{
    return __all_sync(~0u, b);
}

/* 8x8 matrices of halves. `row`: lane i gives 16 bytes, row i % 8 of matrix i / 8; lane 4g + t gets
 * columns 2t, 2t + 1 of row g of each matrix. */
DEV_FN void dev_ldmatrix4(uint32_t (&r)[4], const uint4 *row)
{
    unsigned from = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

/* The same, each matrix transposed. */
DEV_FN void dev_ldmatrix4_t(uint32_t (&r)[4], const uint4 *row)
{
    unsigned from = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

#if DEV_ARCH == 0 || DEV_ARCH >= 800
DEV_FN void dev_mma_k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

DEV_FN void dev_mma_k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0)
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(b0));
}

/* ---- arithmetic ---- */

DEV_FN uint16_t dev_to_half(float f)
{
    return __half_as_ushort(__float2half_rn(f));
}
DEV_FN float dev_from_half(uint16_t h)
{
    return __half2float(__ushort_as_half(h));
}

DEV_FN __half2 dev_as_half2(uint32_t v)
{
    return __halves2half2(__ushort_as_half((uint16_t)(v & 0xffff)),
                          __ushort_as_half((uint16_t)(v >> 16)));
}

/* Each is rounded by itself: without .rn ptxas may fuse a product and a sum. */
DEV_FN uint32_t dev_half2_sub(uint32_t a, uint32_t b)
{
    uint32_t r;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

DEV_FN uint32_t dev_half2_add(uint32_t a, uint32_t b)
{
    uint32_t r;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

DEV_FN uint32_t dev_half2_mul(uint32_t a, uint32_t b)
{
    uint32_t r;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

/* (q & mask) | set, one instruction. */
DEV_FN uint32_t dev_and_or(uint32_t q, uint32_t mask, uint32_t set)
{
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(q), "r"(mask), "r"(set));
    return r;
}

/* Bytes of the pair (a low, b high), chosen by the nibbles of `select`. */
DEV_FN uint32_t dev_byte_perm(uint32_t a, uint32_t b, uint32_t select)
{
    return __byte_perm(a, b, select);
}

DEV_FN float dev_fma(float a, float b, float c)
{
    return __fmaf_rn(a, b, c);
}
DEV_FN float dev_sqrt(float v)
{
    return __fsqrt_rn(v);
}
DEV_FN float dev_rsqrt(float v)
{
    return 1.0f / __fsqrt_rn(v);
} /* two roundings, as on hosts */
DEV_FN float dev_div(float a, float b)
{
    return __fdiv_rn(a, b);
}
DEV_FN uint32_t dev_float_bits(float v)
{
    return __float_as_uint(v);
}
DEV_FN float dev_bits_float(uint32_t v)
{
    return __uint_as_float(v);
}
DEV_FN uint32_t dev_mul_hi(uint32_t a, uint32_t b)
{
    return __umulhi(a, b);
}
DEV_FN unsigned dev_popcount(uint32_t v)
{
    return (unsigned)__popc(v);
}
DEV_FN unsigned dev_first_bit(uint32_t v)
{
    return (unsigned)__ffs((int)v);
} /* 0 = none, from 1 */

/* ---- integer atomics, device-wide; they return the value before ---- */

DEV_FN uint32_t dev_atomic_add(uint32_t *p, uint32_t v)
{
    return atomicAdd(p, v);
}
DEV_FN uint32_t dev_atomic_max(uint32_t *p, uint32_t v)
{
    return atomicMax(p, v);
}
DEV_FN uint32_t dev_atomic_min(uint32_t *p, uint32_t v)
{
    return atomicMin(p, v);
}
DEV_FN uint32_t dev_atomic_or(uint32_t *p, uint32_t v)
{
    return atomicOr(p, v);
}
DEV_FN uint32_t dev_atomic_exchange(uint32_t *p, uint32_t v)
{
    return atomicExch(p, v);
}
DEV_FN uint32_t dev_atomic_cas(uint32_t *p, uint32_t want, uint32_t v)
{
    return atomicCAS(p, want, v);
}

DEV_FN void dev_atomic_add64(uint64_t *p, uint64_t v)
{
    static_assert(sizeof(uint64_t) == sizeof(unsigned long long), "what the hardware adds");
    (void)atomicAdd(reinterpret_cast<unsigned long long *>(p), (unsigned long long)v);
}

/* On shared memory. */
DEV_FN uint32_t dev_shared_atomic_add(uint32_t *p, uint32_t v)
{
    return atomicAdd(p, v);
}
DEV_FN uint32_t dev_shared_atomic_max(uint32_t *p, uint32_t v)
{
    return atomicMax(p, v);
}
DEV_FN uint32_t dev_shared_atomic_min(uint32_t *p, uint32_t v)
{
    return atomicMin(p, v);
}

/* ---- launching ---- */

/* Enqueues `kernel`; the error, if any, is also the runtime's last error. */
template <class P>
static inline cudaError_t dev_run(const struct dev_launch &at, void (*kernel)(P), const P &params)
{
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(at.grid.x, at.grid.y, at.grid.z);
    config.blockDim = dim3(at.threads);
    config.dynamicSmemBytes = at.shared;
    config.stream = at.stream;
    config.attrs = &attribute;
    config.numAttrs = at.overlaps ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, params);
}

/* A kernel that waits for those of other ranks, which run elsewhere. */
template <class P>
static inline cudaError_t dev_run_together(uint64_t, unsigned, const struct dev_launch &at,
                                           void (*kernel)(P), const P &params)
{
    return dev_run(at, kernel, params);
}

/* Once per kernel that wants more dynamic shared memory than 48 KiB. */
template <class P> static inline cudaError_t dev_allow_shared(void (*kernel)(P), size_t bytes)
{
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

/* ---- memory, from the host ---- */

/* NULL: there is not enough. */
static inline void *dev_memory_new(size_t bytes)
{
    void *p = nullptr;
    if (cudaMalloc(&p, bytes) == cudaSuccess)
        return p;
    (void)cudaGetLastError(); /* not an error of the kernels that follow */
    return nullptr;
}

static inline void dev_memory_free(void *p)
{
    (void)cudaFree(p);
}

/* In the stream's order; `src` may be changed when the call returns (pageable memory). */
static inline cudaError_t dev_upload(void *dst, const void *src, size_t bytes,
                                     struct CUstream_st *stream)
{
    return cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, stream);
}

static inline cudaError_t dev_zero(void *dst, size_t bytes, struct CUstream_st *stream)
{
    return cudaMemsetAsync(dst, 0, bytes, stream);
}

#endif
