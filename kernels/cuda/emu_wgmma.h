/* emu_wgmma.h: dev_wgmma.h on the emulated GPU (emu_tensor.cc). Included by dev_wgmma.h only.
 *
 * Results are there at once, but nobody may look: accumulators and fragments know in which group
 * they are in flight, and what is touched too early, or used without a fence, ends the launch. Of b
 * the emulation decodes the descriptor, checks that whoever wrote it has fenced, and looks again
 * when the group is waited for: it must not have changed meanwhile. */
#ifndef GLMD_KERNELS_CUDA_EMU_WGMMA_H
#define GLMD_KERNELS_CUDA_EMU_WGMMA_H

#define DEV_WGMMA (EMU_ARCH == 900)

/* Registers that the tensor cores read or write. */
struct emu_async {
    bool used = false;
    unsigned group = 0;   /* where it is in flight, or was */
    unsigned changed = 0; /* fences of the thread when it was last changed */
};
/* Fails while it is in flight. */
void emu_async_touch(const struct emu_async *a, const char *what);
unsigned emu_wgmma_fences(void);

template <int N> struct dev_accum {
    float v[N / 2];
    emu_async async;

    dev_accum()
    {
        for (float &f : v)
            f = NAN;
    }
    void clear()
    {
        emu_async_touch(&async, "accumulators are written");
        for (float &f : v)
            f = 0.0f;
        async.changed = emu_wgmma_fences() + 1;
    }
    float get(int i) const
    {
        emu_async_touch(&async, "accumulators are read");
        return v[i];
    }
    void arrived()
    {
        emu_async_touch(&async, "accumulators are said to have arrived");
    }
};

struct dev_fragment {
    uint32_t v[4];
    emu_async async;

    void set(const uint32_t (&a)[4])
    {
        emu_async_touch(&async, "a fragment is written");
        memcpy(v, a, sizeof v);
        async.changed = emu_wgmma_fences() + 1;
    }
};

void emu_async_fence(void);
void emu_wgmma_fence(void);
void emu_wgmma_commit(void);
void emu_wgmma_wait(unsigned groups);
void emu_wgmma(unsigned n, float *d, struct emu_async *d_async, const uint32_t *a,
               struct emu_async *a_async, uint64_t b);

DEV_FN void dev_async_fence()
{
    emu_async_fence();
}
DEV_FN void dev_wgmma_fence()
{
    emu_wgmma_fence();
}
DEV_FN void dev_wgmma_commit()
{
    emu_wgmma_commit();
}
template <int N> static inline void dev_wgmma_wait()
{
    emu_wgmma_wait(N);
}
template <int N> static inline void dev_wgmma(dev_accum<N> &d, dev_fragment &a, uint64_t b)
{
    static_assert(N % 8 == 0 && N <= 256, "a shape that there is");
    emu_wgmma(N, d.v, &d.async, a.v, &a.async, b);
}

static inline dev_shared<uint4> dev_wgmma_aligned(dev_shared<uint4> p)
{
    return p + (DEV_WGMMA_ALIGN - p.at_ % DEV_WGMMA_ALIGN) % DEV_WGMMA_ALIGN / 16;
}
DEV_FN uint64_t dev_wgmma_descriptor(uint32_t shared_address);
DEV_FN uint64_t dev_wgmma_rows(dev_shared<uint4> b)
{
    return dev_wgmma_descriptor((uint32_t)b.at_);
}

#endif
