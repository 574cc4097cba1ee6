/* emu_math.h: arithmetic and atomics of dev.h on the emulated GPU. Included by emu.h only. */
#ifndef GLMD_KERNELS_CUDA_EMU_MATH_H
#define GLMD_KERNELS_CUDA_EMU_MATH_H

/* ---- arithmetic ---- */

DEV_FN uint16_t dev_to_half(float f)
{
    return half_from_float(f);
}
DEV_FN float dev_from_half(uint16_t h)
{
    return half_to_float(h);
}

/* Two halves at once; each result is rounded once (sums and products of halves are exact in
 * double). */
template <class F> static inline uint32_t emu_half2(uint32_t a, uint32_t b, F f)
{
    uint32_t r = 0;
    for (unsigned i = 0; i < 32; i += 16) {
        double v =
            f((double)half_to_float((uint16_t)(a >> i)), (double)half_to_float((uint16_t)(b >> i)));
        r |= (uint32_t)half_from_float((float)v) << i;
    }
    return r;
}
DEV_FN uint32_t dev_half2_sub(uint32_t a, uint32_t b)
{
    return emu_half2(a, b, [](double x, double y) { return x - y; });
}
DEV_FN uint32_t dev_half2_add(uint32_t a, uint32_t b)
{
    return emu_half2(a, b, [](double x, double y) { return x + y; });
}
DEV_FN uint32_t dev_half2_mul(uint32_t a, uint32_t b)
{
    return emu_half2(a, b, [](double x, double y) { return x * y; });
}
DEV_FN uint32_t dev_and_or(uint32_t q, uint32_t mask, uint32_t set)
{
    return (q & mask) | set;
}
DEV_FN uint32_t dev_byte_perm(uint32_t a, uint32_t b, uint32_t select)
{
    uint64_t both = a | (uint64_t)b << 32;
    uint32_t r = 0;
    for (unsigned i = 0; i < 4; i++)
        r |= (uint32_t)(both >> 8 * (select >> 4 * i & 7) & 0xff) << 8 * i;
    return r;
}
DEV_FN float dev_fma(float a, float b, float c)
{
    return fmaf(a, b, c);
}
DEV_FN float dev_sqrt(float v)
{
    return sqrtf(v);
}
DEV_FN float dev_rsqrt(float v)
{
    return 1.0f / sqrtf(v);
}
DEV_FN float dev_div(float a, float b)
{
    return a / b;
}
DEV_FN uint32_t dev_float_bits(float v)
{
    uint32_t b;
    memcpy(&b, &v, sizeof b);
    return b;
}
DEV_FN float dev_bits_float(uint32_t b)
{
    float v;
    memcpy(&v, &b, sizeof v);
    return v;
}
DEV_FN uint32_t dev_mul_hi(uint32_t a, uint32_t b)
{
    return (uint32_t)((uint64_t)a * b >> 32);
}
DEV_FN unsigned dev_popcount(uint32_t v)
{
    return (unsigned)__builtin_popcount(v);
}
DEV_FN unsigned dev_first_bit(uint32_t v)
{
    return (unsigned)__builtin_ffs((int)v);
}

/* ---- atomics: fibers change places at operations only ---- */

template <class F> static inline uint32_t emu_atomic(uint32_t *p, F f)
{
    emu_check_aligned(p, 4);
    uint32_t before = *p;
    *p = f(before);
    return before;
}
DEV_FN uint32_t dev_atomic_add(uint32_t *p, uint32_t v)
{
    return emu_atomic(p, [v](uint32_t x) { return x + v; });
}
DEV_FN uint32_t dev_atomic_max(uint32_t *p, uint32_t v)
{
    return emu_atomic(p, [v](uint32_t x) { return x < v ? v : x; });
}
DEV_FN uint32_t dev_atomic_min(uint32_t *p, uint32_t v)
{
    return emu_atomic(p, [v](uint32_t x) { return v < x ? v : x; });
}
DEV_FN uint32_t dev_atomic_or(uint32_t *p, uint32_t v)
{
    return emu_atomic(p, [v](uint32_t x) { return x | v; });
}
DEV_FN uint32_t dev_atomic_exchange(uint32_t *p, uint32_t v)
{
    return emu_atomic(p, [v](uint32_t) { return v; });
}
DEV_FN uint32_t dev_atomic_cas(uint32_t *p, uint32_t want, uint32_t v)
{
    return emu_atomic(p, [want, v](uint32_t x) { return x == want ? v : x; });
}
DEV_FN void dev_atomic_add64(uint64_t *p, uint64_t v)
{
    emu_check_aligned(p, 8);
    *p += v;
}
DEV_FN uint32_t dev_shared_atomic_add(dev_shared<uint32_t> p, uint32_t v)
{
    return dev_atomic_add((uint32_t *)p.atomic(), v);
}
DEV_FN uint32_t dev_shared_atomic_max(dev_shared<uint32_t> p, uint32_t v)
{
    return dev_atomic_max((uint32_t *)p.atomic(), v);
}
DEV_FN uint32_t dev_shared_atomic_min(dev_shared<uint32_t> p, uint32_t v)
{
    return dev_atomic_min((uint32_t *)p.atomic(), v);
}

#endif
