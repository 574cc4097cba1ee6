/* vec_avx512.h: vec.h with AVX-512 F, BW, DQ, VL; with VNNI in the avx512vnni build and GFNI in
 * the avx512gfni one. */
#ifndef GLMD_KERNELS_CPU_VEC_AVX512_H
#define GLMD_KERNELS_CPU_VEC_AVX512_H

#include <immintrin.h>

typedef __m512 vf;
typedef __m512i vi;

#define vf_zero()          _mm512_setzero_ps()
#define vf_set1(x)         _mm512_set1_ps(x)
#define vi_zero()          _mm512_setzero_si512()
#define vi_set1(x)         _mm512_set1_epi32(x)
#define vf_load(p)         _mm512_loadu_ps(p)
#define vf_store(p, a)     _mm512_storeu_ps(p, a)
#define vi_load(p)         _mm512_loadu_si512(p)
#define vi_store(p, a)     _mm512_storeu_si512(p, a)
#define vf_add(a, b)       _mm512_add_ps(a, b)
#define vf_sub(a, b)       _mm512_sub_ps(a, b)
#define vf_mul(a, b)       _mm512_mul_ps(a, b)
#define vf_div(a, b)       _mm512_div_ps(a, b)
#define vf_max(a, b)       _mm512_max_ps(a, b)
#define vf_min(a, b)       _mm512_min_ps(a, b)
#define vf_fma(a, b, c)    _mm512_fmadd_ps(a, b, c)
#define vf_rint(a)         _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT)
#define vf_fraction(a)     _mm512_reduce_ps(a, _MM_FROUND_TO_NEAREST_INT)
#define vf_scale_2(a, x)   _mm512_scalef_ps(a, x)
#define vi_from_float(a)   _mm512_cvtps_epi32(a)
#define vf_from_int(a)     _mm512_cvtepi32_ps(a)
#define vf_from_bits(a)    _mm512_castsi512_ps(a)
#define vi_bits(a)         _mm512_castps_si512(a)
#define vi_add(a, b)       _mm512_add_epi32(a, b)
#define vi_sub(a, b)       _mm512_sub_epi32(a, b)
#define vi_and(a, b)       _mm512_and_si512(a, b)
#define vi_max(a, b)       _mm512_max_epi32(a, b)
#define vi_sll(a, n)       _mm512_slli_epi32(a, n)
#define vi_srl(a, n)       _mm512_srli_epi32(a, n)
#define vi_srl16(a, n)     _mm512_srli_epi16(a, n)
#define VEC_PREFETCH(p)    _mm_prefetch((const char *)(p), _MM_HINT_T0)
#define VEC_PREFETCH_L2(p) _mm_prefetch((const char *)(p), _MM_HINT_T1)

VEC_FN __mmask16 vec_mask(int n)
{
    return (__mmask16)((1u << n) - 1);
}

VEC_FN vf vf_load_n(const float *p, int n)
{
    watch_bytes(p, (size_t)n * sizeof *p);
    return _mm512_maskz_loadu_ps(vec_mask(n), p);
}

VEC_FN void vf_store_n(float *p, vf a, int n)
{
    watch_bytes(p, (size_t)n * sizeof *p);
    _mm512_mask_storeu_ps(p, vec_mask(n), a);
}

VEC_FN vi vi_bcast(const void *p)
{
    int32_t x;
    memcpy(&x, p, sizeof x);
    return _mm512_set1_epi32(x);
}

VEC_FN vf vf_select_lt(vf a, vf b, vf x, vf y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}

VEC_FN vf vf_select_n(int n, vf x, vf y)
{
    return _mm512_mask_blend_ps(vec_mask(n), y, x);
}

VEC_FN vf vf_load_half(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

VEC_FN void vf_store_half(uint16_t *p, vf a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

VEC_FN vf vf_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

VEC_FN void vi_store_i8(int8_t *p, vi a)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a));
}

VEC_FN void vi_store_bytes(uint8_t *p, vi a)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a));
}

VEC_FN void vi_store_i16(int16_t *p, vi a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(a));
}

#define VEC_HAVE_MAX_LANES

VEC_FN int32_t vi_max_lanes(vi a)
{
    return _mm512_reduce_max_epi32(a);
}

VEC_FN vf vf_lookup(const float *table, vi idx)
{
    return _mm512_permutexvar_ps(idx, _mm512_loadu_ps(table));
}

/* 16 rows of 16 become their columns. */
VEC_FN void vf_transpose(vf v[VEC])
{
    vf a[VEC], b[VEC];
#pragma GCC unroll 16
    for (int i = 0; i < VEC; i += 2) {
        a[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < VEC; i += 4) {
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            __m512d low = _mm512_castps_pd(a[i + k]), high = _mm512_castps_pd(a[i + k + 2]);
            b[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            b[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    /* quarter q of b[4 i + k]: column 4 q + k of rows 4 i .. 4 i + 3 */
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        vf even_low = _mm512_shuffle_f32x4(b[k], b[4 + k], 0x88),
           even_high = _mm512_shuffle_f32x4(b[8 + k], b[12 + k], 0x88),
           odd_low = _mm512_shuffle_f32x4(b[k], b[4 + k], 0xdd),
           odd_high = _mm512_shuffle_f32x4(b[8 + k], b[12 + k], 0xdd);
        v[k] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
        v[4 + k] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
        v[8 + k] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
        v[12 + k] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
    }
}

/* a * *x + c, *x the same for all lanes. As text, because the compiler copies sums around until
 * those of a large tile no longer fit. */
VEC_FN vf vf_fma_word(vf a, const float *x, vf c)
{
    watch_word(x);
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(a), "m"(*x));
    return c;
}

#define VEC_HAVE_SUM

VEC_FN int32_t vi_sum(vi a)
{
    return _mm512_reduce_add_epi32(a);
}

VEC_FN vf vf_round_half(vf a)
{
    return _mm512_cvtph_ps(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

#ifdef CPU_ISA_avx512vnni

/* As text, because the compiler copies sums around until those of a large tile no longer fit. */
VEC_FN vi vi_dot8(vi acc, vi u, vi s)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
    return acc;
}

VEC_FN vi vi_dot16(vi acc, vi w, vi x)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
}

VEC_FN vi vi_dot8_small(vi acc, vi u, vi s)
{
    return vi_dot8(acc, u, s);
}

/* Dots with one word of activations for all lanes, which the compiler would broadcast into a
 * register. They stay in the order in which they are written, and behind vi_made. */
#define VEC_HAVE_DOT_WORD

VEC_FN vi vi_dot16_word(vi acc, vi w, const uint32_t *x)
{
    watch_word(x);
    __asm__ volatile("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*x));
    return acc;
}

VEC_FN vi vi_dot8_word(vi acc, vi u, const uint32_t *x)
{
    watch_word(x);
    __asm__ volatile("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(u), "m"(*x));
    return acc;
}

/* a, which is in its register from here on. */
VEC_FN vi vi_made(vi a)
{
    __asm__ volatile("" : "+v"(a));
    return a;
}

#ifdef CPU_ISA_avx512gfni
/* The high nibble of each byte, or of each even one with the odd ones zero, in one instruction: bit
 * i of it is bit i + 4. */
#define VEC_HAVE_HIGH_NIBBLES
#define VEC_NIBBLE_BITS    _mm512_set1_epi64(INT64_C(0x1020408000000000))
#define vi_high_nibbles(a) _mm512_gf2p8affine_epi64_epi8(a, VEC_NIBBLE_BITS, 0)
#define vi_even_high_nibbles(a)                                                                    \
    _mm512_maskz_gf2p8affine_epi64_epi8(0x5555555555555555, a, VEC_NIBBLE_BITS, 0)
#endif

#else

#define vi_dot16(acc, w, x) _mm512_add_epi32(acc, _mm512_madd_epi16(w, x))

/* Pairs of products of bytes, u <= 15, added in 16 bits; and such sums added up in 32. The compiler
 * must not add products among themselves first: it runs out of registers. */
#define VEC_HAVE_PAIRS

VEC_FN vi vi_add_pairs(vi acc, vi u, vi s)
{
    acc = _mm512_add_epi16(acc, _mm512_maddubs_epi16(u, s));
    __asm__("" : "+v"(acc));
    return acc;
}

VEC_FN vi vi_widen(vi acc, vi pairs)
{
    return vi_dot16(acc, pairs, _mm512_set1_epi16(1));
}

VEC_FN vi vi_dot8_small(vi acc, vi u, vi s)
{
    return vi_widen(acc, vi_add_pairs(vi_zero(), u, s));
}

VEC_FN vi vi_dot8(vi acc, vi u, vi s)
{
    const __m512i low = _mm512_set1_epi16(0xff);
    acc = vi_dot16(acc, _mm512_and_si512(u, low), _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
    return vi_dot16(acc, _mm512_srli_epi16(u, 8), _mm512_srai_epi16(s, 8));
}

#endif

#endif
