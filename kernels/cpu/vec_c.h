/* vec_c.h: vec.h in plain C, for every processor; it defines what the other versions must do. */
#ifndef GLMD_KERNELS_CPU_VEC_C_H
#define GLMD_KERNELS_CPU_VEC_C_H

#include "base/half.h"

#include <math.h>

typedef struct {
    float v[VEC];
} vf;
typedef struct {
    int32_t v[VEC];
} vi;

#define VEC_LANES(expression)                                                                      \
    for (int i = 0; i < VEC; i++)                                                                  \
    r.v[i] = (expression)

#define VEC_F2(name, expression)                                                                   \
    VEC_FN vf name(vf a, vf b)                                                                     \
    {                                                                                              \
        vf r;                                                                                      \
        VEC_LANES(expression);                                                                     \
        return r;                                                                                  \
    }
#define VEC_I2(name, expression)                                                                   \
    VEC_FN vi name(vi a, vi b)                                                                     \
    {                                                                                              \
        vi r;                                                                                      \
        VEC_LANES((int32_t)(expression));                                                          \
        return r;                                                                                  \
    }

VEC_F2(vf_add, a.v[i] + b.v[i])
VEC_F2(vf_sub, a.v[i] - b.v[i])
VEC_F2(vf_mul, a.v[i] * b.v[i])
VEC_F2(vf_div, a.v[i] / b.v[i])
VEC_F2(vf_max, a.v[i] > b.v[i] ? a.v[i] : b.v[i]) /* b where either is NaN */
VEC_F2(vf_min, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
VEC_I2(vi_add, (uint32_t)a.v[i] + (uint32_t)b.v[i])
VEC_I2(vi_sub, (uint32_t)a.v[i] - (uint32_t)b.v[i])
VEC_I2(vi_and, a.v[i] & b.v[i])
VEC_I2(vi_max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])

VEC_FN vf vf_set1(float x)
{
    vf r;
    VEC_LANES(x);
    return r;
}

VEC_FN vf vf_zero(void)
{
    return vf_set1(0.0f);
}

VEC_FN vi vi_set1(int32_t x)
{
    vi r;
    VEC_LANES(x);
    return r;
}

VEC_FN vi vi_zero(void)
{
    return vi_set1(0);
}

/* Unaligned. */
VEC_FN vf vf_load(const float *p)
{
    vf r;
    memcpy(&r, p, sizeof r);
    return r;
}

VEC_FN void vf_store(float *p, vf a)
{
    memcpy(p, &a, sizeof a);
}

/* The first n lanes (0 <= n <= 16) and zeros; nothing behind p[n - 1] is touched. */
VEC_FN vf vf_load_n(const float *p, int n)
{
    vf r = vf_zero();
    memcpy(&r, p, (size_t)n * sizeof *p);
    return r;
}

VEC_FN void vf_store_n(float *p, vf a, int n)
{
    memcpy(p, &a, (size_t)n * sizeof *p);
}

VEC_FN vi vi_load(const void *p)
{
    vi r;
    memcpy(&r, p, sizeof r);
    return r;
}

VEC_FN void vi_store(void *p, vi a)
{
    memcpy(p, &a, sizeof a);
}

/* One 32-bit word to all lanes. */
VEC_FN vi vi_bcast(const void *p)
{
    int32_t x;
    memcpy(&x, p, sizeof x);
    return vi_set1(x);
}

VEC_FN vf vf_fma(vf a, vf b, vf c)
{
    vf r;
    VEC_LANES(fmaf(a.v[i], b.v[i], c.v[i]));
    return r;
}

/* To the nearest integer, ties to even. */
VEC_FN vf vf_rint(vf a)
{
    vf r;
    VEC_LANES(rintf(a.v[i]));
    return r;
}

/* Of an integral value; any integer where the lane is NaN. */
VEC_FN vi vi_from_float(vf a)
{
    vi r;
    VEC_LANES(a.v[i] >= -0x1p31f && a.v[i] < 0x1p31f ? (int32_t)rintf(a.v[i]) : INT32_MIN);
    return r;
}

VEC_FN vf vf_from_int(vi a)
{
    vf r;
    VEC_LANES((float)a.v[i]);
    return r;
}

/* a less the nearest integer. */
VEC_FN vf vf_fraction(vf a)
{
    vf r;
    VEC_LANES(a.v[i] - rintf(a.v[i]));
    return r;
}

VEC_FN vf vf_from_bits(vi a)
{
    vf r;
    memcpy(&r, &a, sizeof r);
    return r;
}

VEC_FN vi vi_bits(vf a)
{
    vi r;
    memcpy(&r, &a, sizeof r);
    return r;
}

/* a * 2^n, n an integer; a and the result are normal numbers. NaN where both are. */
VEC_FN vf vf_scale_2(vf a, vf n)
{
    vf r;
    for (int i = 0; i < VEC; i++) {
        uint32_t bits, exponent = n.v[i] == n.v[i] ? (uint32_t)(int32_t)n.v[i] : 0;
        memcpy(&bits, &a.v[i], sizeof bits);
        bits += exponent << 23;
        memcpy(&r.v[i], &bits, sizeof bits);
    }
    return r;
}

/* a < b ? x : y */
VEC_FN vf vf_select_lt(vf a, vf b, vf x, vf y)
{
    vf r;
    VEC_LANES(a.v[i] < b.v[i] ? x.v[i] : y.v[i]);
    return r;
}

/* lane < n ? x : y */
VEC_FN vf vf_select_n(int n, vf x, vf y)
{
    vf r;
    VEC_LANES(i < n ? x.v[i] : y.v[i]);
    return r;
}

VEC_FN vf vf_load_half(const uint16_t *p)
{
    vf r;
    VEC_LANES(half_to_float(p[i]));
    return r;
}

VEC_FN void vf_store_half(uint16_t *p, vf a)
{
    for (int i = 0; i < VEC; i++)
        p[i] = half_from_float(a.v[i]);
}

/* 16 signed bytes. */
VEC_FN vf vf_load_i8(const int8_t *p)
{
    vf r;
    VEC_LANES((float)p[i]);
    return r;
}

/* Values in [-128, 127]. */
VEC_FN void vi_store_i8(int8_t *p, vi a)
{
    for (int i = 0; i < VEC; i++)
        p[i] = (int8_t)a.v[i];
}

/* The low 8 bits. */
VEC_FN void vi_store_bytes(uint8_t *p, vi a)
{
    for (int i = 0; i < VEC; i++)
        p[i] = (uint8_t)a.v[i];
}

/* The low 16 bits. */
VEC_FN void vi_store_i16(int16_t *p, vi a)
{
    for (int i = 0; i < VEC; i++)
        p[i] = (int16_t)(uint16_t)a.v[i];
}

/* 16 rows of 16 become their columns. */
VEC_FN void vf_transpose(vf v[VEC])
{
    for (int i = 0; i < VEC; i++)
        for (int k = 0; k < i; k++) {
            float x = v[i].v[k];
            v[i].v[k] = v[k].v[i];
            v[k].v[i] = x;
        }
}

/* The nearest binary16 value. */
VEC_FN vf vf_round_half(vf a)
{
    vf r;
    VEC_LANES(half_round(a.v[i]));
    return r;
}

/* table[the low four bits of idx] */
VEC_FN vf vf_lookup(const float *table, vi idx)
{
    vf r;
    VEC_LANES(table[idx.v[i] & (VEC - 1)]);
    return r;
}

#define vi_sll(a, n) vi_shift_left(a, n)
#define vi_srl(a, n) vi_shift_right(a, n)
/* The same in each 16 bits. */
#define vi_srl16(a, n) vi_shift_halves_right(a, n)

VEC_FN vi vi_shift_left(vi a, int n)
{
    vi r;
    VEC_LANES((int32_t)((uint32_t)a.v[i] << n));
    return r;
}

VEC_FN vi vi_shift_right(vi a, int n)
{
    vi r;
    VEC_LANES((int32_t)((uint32_t)a.v[i] >> n));
    return r;
}

VEC_FN vi vi_shift_halves_right(vi a, int n)
{
    vi r;
    VEC_LANES((int32_t)(((uint32_t)a.v[i] >> 16 >> n << 16) | ((uint32_t)a.v[i] & 0xffff) >> n));
    return r;
}

/* Each lane: acc + w.lo16 * x.lo16 + w.hi16 * x.hi16, signed. */
VEC_FN vi vi_dot16(vi acc, vi w, vi x)
{
    vi r;
    VEC_LANES((int32_t)((uint32_t)acc.v[i] + (uint32_t)((int16_t)w.v[i] * (int16_t)x.v[i]) +
                        (uint32_t)((w.v[i] >> 16) * (x.v[i] >> 16))));
    return r;
}

/* Each lane: acc + the sum over its four bytes of u (unsigned) * s (signed). vi_dot8_small asks for
 * u <= 15. */
VEC_FN vi vi_dot8(vi acc, vi u, vi s)
{
    vi r;
    for (int i = 0; i < VEC; i++) {
        int32_t sum = acc.v[i];
        for (int j = 0; j < 32; j += 8)
            sum += (int32_t)(uint8_t)((uint32_t)u.v[i] >> j) * (int8_t)((uint32_t)s.v[i] >> j);
        r.v[i] = sum;
    }
    return r;
}

VEC_FN vi vi_dot8_small(vi acc, vi u, vi s)
{
    return vi_dot8(acc, u, s);
}

#define VEC_PREFETCH(p)    ((void)(p))
#define VEC_PREFETCH_L2(p) ((void)(p))

#endif
