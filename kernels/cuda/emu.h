/* emu.h: dev.h for the host's C++ compiler: kernels run on an emulated GPU, one fiber per thread.
 * Included by dev.h (and by tests, which look at what the emulation found).
 *
 * A fiber runs until a warp operation, a barrier or dev_spin(); the last lane of a warp to arrive
 * executes the operation for all. CTAs run one after another, in an order that a seed shuffles, or
 * several at once where kernels wait for each other.
 *
 * What ends a launch with a message that names kernel, CTA and thread:
 * - a warp operation or barrier that not all threads reach, or different ones;
 * - shared memory out of bounds, misaligned, or touched by two threads without a barrier (inside a
 *   warp: dev_warp_sync) between a write and the other access;
 * - misaligned 128-bit accesses of global memory; more shared memory or threads than there are;
 *   more than 48 KiB of shared memory, static and dynamic together, without dev_allow_shared.
 * Shared memory starts as NaNs (all bits set), and so does memory from emu_alloc, which ends at a
 * page that must not be touched. The target of an asynchronous copy stays NaNs until it is waited
 * for.
 *
 * Tensor cores: products are exact, the sum of a k-step and the accumulator is rounded once, toward
 * zero, which is no better than what devices do. exp, erf & co. are the host's.
 *
 * One launch runs at a time in the process (a lock).
 */
#ifndef GLMD_KERNELS_CUDA_EMU_H
#define GLMD_KERNELS_CUDA_EMU_H

#include "base/half.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#ifndef EMU_ARCH
#define EMU_ARCH 800
#endif
#define DEV_ARCH EMU_ARCH

#define DEV_FN                           [[maybe_unused]] static inline
#define DEV_INLINE                       inline
#define DEV_MEMBER                       inline
#define DEV_HOST_FN                      [[maybe_unused]] static inline
#define DEV_KERNEL(threads, ctas_per_sm) [[maybe_unused]] static
#define DEV_PARAMS(type)                 const type
#define DEV_UNROLL
#define DEV_NO_UNROLL
#define DEV_SHARED(T, name, n) dev_shared<T> name = emu_static_shared<T>(n, __LINE__)

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline uint2 make_uint2(unsigned x, unsigned y)
{
    return {x, y};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}
static inline float2 make_float2(float x, float y)
{
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

/* ---- what tests use ---- */

/* The order of CTAs and warps, and how many CTAs are in flight at once (0: all of them). */
struct emu_options {
    uint64_t seed; /* 0: in order */
    unsigned resident_ctas;
};
void emu_set_options(const struct emu_options *o);
/* Device memory: NaNs, and a guard page behind its last 16 bytes. */
void *emu_alloc(size_t bytes);
void emu_free(void *p);
/* Whether this process can run fibers (not under ThreadSanitizer). */
bool emu_works(void);

/* ---- recording ---- */

/* What is enqueued in a stream between begin and end is kept and not run, as in a CUDA graph. */
struct emu_record;
void emu_record_begin(struct CUstream_st *stream);
struct emu_record *emu_record_end(struct CUstream_st *stream); /* NULL: there was no begin */
bool emu_recording(const struct CUstream_st *stream);
/* 0, or what emu_set_record_hook's function returns. */
int emu_record_add(struct CUstream_st *stream, std::function<int()> what);
int emu_record_run(const struct emu_record *r); /* the first error */
void emu_record_free(struct emu_record *r);
/* Asked for every addition; NULL: there is nothing to ask. */
void emu_set_record_hook(int (*hook)(void));

/* ---- running kernels ---- */

struct emu_call {
    struct dev_launch at;
    void (*run)(const void *kernel, const void *params);
    const void *kernel, *params;
    size_t allowed; /* bytes of dynamic shared memory; 0: what there is without asking */
};

/* Launches that were not run from a record; what dev_run and dev_run_together count. */
uint64_t emu_n_launches(void);
void emu_count_launch(void);
/* All calls at once, in one schedule: 0, or -1 with what went wrong in emu_message(). */
int emu_run(const struct emu_call *calls, unsigned n);
/* dev_allow_shared, and what it allowed `function`; 0: it was never asked. */
int emu_allow_shared(const void *function, size_t bytes);
size_t emu_allowed_shared(const void *function);
const char *emu_message(void);
[[noreturn]] void emu_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Prints emu_message() and aborts. */
[[noreturn]] void emu_die(void);

template <class P> struct emu_kernel {
    void (*function)(P);
    static void run(const void *kernel, const void *params)
    {
        static_cast<const emu_kernel *>(kernel)->function(*static_cast<const P *>(params));
    }
};

/* As dev_run, but a fault is returned, not fatal. */
template <class P, class Q>
static inline int emu_try_launch(const struct dev_launch &at, void (*kernel)(P), const Q &params)
{
    emu_kernel<P> k = {kernel};
    struct emu_call call = {at, emu_kernel<P>::run, &k, &params,
                            emu_allowed_shared(reinterpret_cast<const void *>(kernel))};
    return emu_run(&call, 1);
}

#ifndef EMU_RUNTIME /* the stub of the runtime (where there is one) says what an error is */
typedef int cudaError_t;
enum { cudaSuccess = 0 };
#endif

template <class P, class Q>
static inline cudaError_t dev_run(const struct dev_launch &at, void (*kernel)(P), const Q &params)
{
    if (emu_recording(at.stream))
        return (cudaError_t)emu_record_add(at.stream,
                                           [=] { return (int)dev_run(at, kernel, params); });
    emu_count_launch();
    if (emu_try_launch(at, kernel, params) != 0)
        emu_die();
    return cudaSuccess;
}

/* A kernel that waits for those of `size - 1` other ranks, which threads of this process launch
 * with the same key: all in one schedule. Ranks that have not come in time are left out, and the
 * kernels have to find out. */
int emu_run_together(uint64_t key, unsigned size, const struct emu_call *call);
/* How long a launch waits for the others; 10 s at the start. */
void emu_set_together_ms(int64_t ms);

template <class P, class Q>
static inline cudaError_t dev_run_together(uint64_t key, unsigned size, const struct dev_launch &at,
                                           void (*kernel)(P), const Q &params)
{
    if (emu_recording(at.stream))
        return (cudaError_t)emu_record_add(
            at.stream, [=] { return (int)dev_run_together(key, size, at, kernel, params); });
    emu_count_launch();
    emu_kernel<P> k = {kernel};
    struct emu_call call = {at, emu_kernel<P>::run, &k, &params,
                            emu_allowed_shared(reinterpret_cast<const void *>(kernel))};
    if (emu_run_together(key, size, &call) != 0)
        emu_die();
    return cudaSuccess;
}

template <class P> static inline cudaError_t dev_allow_shared(void (*kernel)(P), size_t bytes)
{
    return emu_allow_shared(reinterpret_cast<const void *>(kernel), bytes);
}

/* ---- where a thread is ---- */

struct emu_thread {
    unsigned thread, threads;
    unsigned cta[3], grid[3];
};
extern struct emu_thread emu_now; /* of the running fiber */

DEV_FN unsigned dev_thread()
{
    return emu_now.thread;
}
DEV_FN unsigned dev_threads()
{
    return emu_now.threads;
}
DEV_FN unsigned dev_cta_x()
{
    return emu_now.cta[0];
}
DEV_FN unsigned dev_cta_y()
{
    return emu_now.cta[1];
}
DEV_FN unsigned dev_cta_z()
{
    return emu_now.cta[2];
}
DEV_FN unsigned dev_grid_x()
{
    return emu_now.grid[0];
}
DEV_FN unsigned dev_grid_y()
{
    return emu_now.grid[1];
}
DEV_FN unsigned dev_grid_z()
{
    return emu_now.grid[2];
}

/* ---- shared memory ---- */

/* Checks bounds, alignment and races of [offset, offset + bytes) of the CTA's shared memory and
 * returns its address. */
unsigned char *emu_shared_access(long offset, size_t bytes, long low, long high, bool write);
/* An access of this thread with the race check left out: what atomics do. */
unsigned char *emu_shared_atomic(long offset, size_t bytes, long low, long high);
long emu_static_offset(size_t bytes, size_t align, int line);
long emu_dynamic_offset(size_t offset, size_t bytes);

template <class T> class emu_ref
{
  public:
    emu_ref(long at, long low, long high) : at_(at), low_(low), high_(high) {}
    operator T() const
    {
        T v;
        memcpy(&v, emu_shared_access(at_, sizeof v, low_, high_, false), sizeof v);
        return v;
    }
    const emu_ref &operator=(const T &v) const
    {
        memcpy(emu_shared_access(at_, sizeof v, low_, high_, true), &v, sizeof v);
        return *this;
    }
    const emu_ref &operator=(const emu_ref &r) const
    {
        return *this = (T)r;
    }
    const emu_ref &operator+=(const T &v) const
    {
        return *this = (T)((T) * this + v);
    }
    emu_ref(const emu_ref &) = default;

  private:
    long at_, low_, high_;
};

template <class T> class dev_shared
{
  public:
    dev_shared() = default;
    dev_shared(long at, long low, long high) : at_(at), low_(low), high_(high) {}
    emu_ref<T> operator[](long i) const
    {
        return emu_ref<T>(at_ + i * (long)sizeof(T), low_, high_);
    }
    emu_ref<T> operator*() const
    {
        return (*this)[0];
    }
    dev_shared operator+(long n) const
    {
        return dev_shared(at_ + n * (long)sizeof(T), low_, high_);
    }
    dev_shared operator-(long n) const
    {
        return *this + -n;
    }
    dev_shared &operator+=(long n)
    {
        return *this = *this + n;
    }
    template <class S> dev_shared<S> as() const
    {
        return dev_shared<S>(at_, low_, high_);
    }
    unsigned char *access(size_t bytes, bool write) const
    {
        return emu_shared_access(at_, bytes, low_, high_, write);
    }
    unsigned char *atomic() const
    {
        return emu_shared_atomic(at_, sizeof(T), low_, high_);
    }
    long at_ = -1, low_ = 0, high_ = 0; /* bytes within the CTA's shared memory */
};

template <class T> static inline dev_shared<T> emu_static_shared(size_t n, int line)
{
    long at = emu_static_offset(n * sizeof(T), alignof(T), line);
    return dev_shared<T>(at, at, at + (long)(n * sizeof(T)));
}

template <class T> static inline dev_shared<T> dev_dynamic(unsigned offset, unsigned n)
{
    long at = emu_dynamic_offset(offset, n * sizeof(T));
    return dev_shared<T>(at, at, at + (long)(n * sizeof(T)));
}

template <class T, class S> static inline dev_shared<T> dev_shared_as(dev_shared<S> p)
{
    return p.template as<T>();
}

/* ---- order ---- */

void emu_barrier(int line);
void emu_spin(void);

/* A warp operation: `slot` (at most EMU_SLOT bytes) of every lane, then `op` once over all of them,
 * then the own slot back. Without an `op` it orders the warp's memory. */
enum { EMU_SLOT = 64 };
struct emu_slots {
    alignas(16) unsigned char lane[DEV_WARP][EMU_SLOT];
};
void emu_warp_op(const char *name, void (*op)(struct emu_slots *s), void *slot, size_t bytes);

DEV_FN void dev_barrier(int line = __builtin_LINE())
{
    emu_barrier(line);
}
DEV_FN void dev_warp_sync()
{
    emu_warp_op("warp_sync", nullptr, nullptr, 0);
}
DEV_FN void dev_fence() {}
DEV_FN void dev_fence_system() {}
DEV_FN void dev_spin()
{
    emu_spin();
}
DEV_FN uint32_t dev_anew(uint32_t v)
{
    return v;
}
DEV_FN void dev_grid_wait() {}
DEV_FN void dev_grid_release() {}

/* ---- global memory ---- */

static inline void emu_check_aligned(const void *p, size_t n)
{
    if ((uintptr_t)p % n)
        emu_fail("global address %p is not a multiple of %zu", p, n);
}
template <class T> static inline T emu_load(const void *p)
{
    emu_check_aligned(p, sizeof(T));
    T v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class T> static inline void emu_store(void *p, T v)
{
    emu_check_aligned(p, sizeof(T));
    memcpy(p, &v, sizeof v);
}
DEV_FN uint4 dev_load16(const void *p)
{
    return emu_load<uint4>(p);
}
DEV_FN uint2 dev_load8(const void *p)
{
    return emu_load<uint2>(p);
}
DEV_FN void dev_store16(void *p, uint4 v)
{
    emu_store(p, v);
}
DEV_FN void dev_store8(void *p, uint2 v)
{
    emu_store(p, v);
}
DEV_FN uint4 dev_stream16(const void *p)
{
    return emu_load<uint4>(p);
}
DEV_FN void dev_prefetch_l2(const void *p)
{
    (void)*(const volatile unsigned char *)p; /* memory that is there */
}
DEV_FN uint4 dev_load16_l2(const void *p)
{
    return emu_load<uint4>(p);
}
DEV_FN uint4 dev_load16_system(const void *p)
{
    return emu_load<uint4>(p);
}
DEV_FN uint32_t dev_load_acquire(const uint32_t *p)
{
    return *(const volatile uint32_t *)p;
}
DEV_FN void dev_store_release(uint32_t *p, uint32_t v)
{
    *(volatile uint32_t *)p = v;
}

/* ---- asynchronous copies ---- */

void emu_copy16(dev_shared<uint4> dst, const void *src, bool valid);
void emu_copy_commit(void);
void emu_copy_wait(unsigned groups);

DEV_FN void dev_copy16(dev_shared<uint4> dst, const void *src, bool valid)
{
    emu_copy16(dst, src, valid);
}
DEV_FN void dev_copy16_stream(dev_shared<uint4> dst, const void *src)
{
    emu_copy16(dst, src, true);
}
DEV_FN void dev_copy_commit()
{
    emu_copy_commit();
}
template <int N> static inline void dev_copy_wait()
{
    emu_copy_wait(N);
}

/* ---- warps ---- */

template <class T> struct emu_shuffle {
    T v;
    unsigned from; /* beyond the warp: keep the own one */
};

template <class T> static inline void emu_shuffle_op(struct emu_slots *s)
{
    emu_shuffle<T> all[DEV_WARP];
    for (unsigned i = 0; i < DEV_WARP; i++)
        memcpy(&all[i], s->lane[i], sizeof all[i]);
    for (unsigned i = 0; i < DEV_WARP; i++)
        if (all[i].from < DEV_WARP)
            memcpy(s->lane[i], &all[all[i].from].v, sizeof(T));
}

template <class T> static inline T emu_shfl(const char *name, T v, unsigned from)
{
    static_assert(sizeof(emu_shuffle<T>) <= EMU_SLOT, "a slot holds it");
    emu_shuffle<T> slot = {v, from};
    emu_warp_op(name, emu_shuffle_op<T>, &slot, sizeof slot);
    return slot.v;
}

template <class T> static inline T dev_shfl(T v, unsigned lane)
{
    return emu_shfl("shfl", v, lane % DEV_WARP);
}
template <class T> static inline T dev_shfl_xor(T v, unsigned mask)
{
    return emu_shfl("shfl_xor", v, (emu_now.thread % DEV_WARP) ^ mask);
}
template <class T> static inline T dev_shfl_up(T v, unsigned delta)
{
    return emu_shfl("shfl_up", v, emu_now.thread % DEV_WARP - delta); /* wraps: its own */
}
template <class T> static inline T dev_shfl_down(T v, unsigned delta)
{
    return emu_shfl("shfl_down", v, emu_now.thread % DEV_WARP + delta);
}

uint32_t emu_ballot(bool b);
DEV_FN uint32_t dev_ballot(bool b)
{
    return emu_ballot(b);
}
DEV_FN bool dev_any(bool b)
{
    return emu_ballot(b) != 0;
}
DEV_FN bool dev_all(bool b)
{
    return emu_ballot(b) == ~0u;
}

void emu_ldmatrix4(uint32_t *r, dev_shared<uint4> row, bool transposed);
DEV_FN void dev_ldmatrix4(uint32_t (&r)[4], dev_shared<uint4> row)
{
    emu_ldmatrix4(r, row, false);
}
DEV_FN void dev_ldmatrix4_t(uint32_t (&r)[4], dev_shared<uint4> row)
{
    emu_ldmatrix4(r, row, true);
}

/* k: 16 or 8 columns; a holds k / 4 registers, b k / 8. */
void emu_mma(unsigned k, float *c, const uint32_t *a, const uint32_t *b);
DEV_FN void dev_mma_k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    uint32_t b[2] = {b0, b1};
    emu_mma(16, c, a, b);
}
DEV_FN void dev_mma_k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0)
{
    uint32_t a[2] = {a0, a1};
    emu_mma(8, c, a, &b0);
}

#include "emu_math.h" // IWYU pragma: export

/* ---- memory, from the host ---- */

static inline void *dev_memory_new(size_t bytes)
{
    return emu_alloc(bytes);
}
static inline void dev_memory_free(void *p)
{
    emu_free(p);
}
static inline cudaError_t dev_upload(void *dst, const void *src, size_t bytes,
                                     struct CUstream_st *stream)
{
    if (emu_recording(stream))
        emu_fail("an upload while launches are recorded");
    memcpy(dst, src, bytes);
    return cudaSuccess;
}
static inline cudaError_t dev_zero(void *dst, size_t bytes, struct CUstream_st *stream)
{
    if (emu_recording(stream))
        return (cudaError_t)emu_record_add(stream, [=] {
            memset(dst, 0, bytes);
            return 0;
        });
    memset(dst, 0, bytes);
    return cudaSuccess;
}

#endif
