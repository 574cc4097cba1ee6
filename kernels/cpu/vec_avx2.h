/* vec_avx2.h: vec.h with AVX2, FMA and F16C: two 256-bit halves; with AVX-VNNI in the
 * avxvnni build. */
#ifndef GLMD_KERNELS_CPU_VEC_AVX2_H
#define GLMD_KERNELS_CPU_VEC_AVX2_H

#include <immintrin.h>

typedef struct {
    __m256 a, b; /* lanes 0..7, 8..15 */
} vf;
typedef struct {
    __m256i a, b;
} vi;

#define VEC_F1(name, op)                                                                           \
    VEC_FN vf name(vf x)                                                                           \
    {                                                                                              \
        return (vf){op(x.a), op(x.b)};                                                             \
    }
#define VEC_F2(name, op)                                                                           \
    VEC_FN vf name(vf x, vf y)                                                                     \
    {                                                                                              \
        return (vf){op(x.a, y.a), op(x.b, y.b)};                                                   \
    }
#define VEC_I2(name, op)                                                                           \
    VEC_FN vi name(vi x, vi y)                                                                     \
    {                                                                                              \
        return (vi){op(x.a, y.a), op(x.b, y.b)};                                                   \
    }

VEC_F2(vf_add, _mm256_add_ps)
VEC_F2(vf_sub, _mm256_sub_ps)
VEC_F2(vf_mul, _mm256_mul_ps)
VEC_F2(vf_div, _mm256_div_ps)
VEC_F2(vf_max, _mm256_max_ps)
VEC_F2(vf_min, _mm256_min_ps)
VEC_I2(vi_add, _mm256_add_epi32)
VEC_I2(vi_sub, _mm256_sub_epi32)
VEC_I2(vi_and, _mm256_and_si256)
VEC_I2(vi_max, _mm256_max_epi32)

#define vi_sll(x, n)       ((vi){_mm256_slli_epi32((x).a, n), _mm256_slli_epi32((x).b, n)})
#define vi_srl(x, n)       ((vi){_mm256_srli_epi32((x).a, n), _mm256_srli_epi32((x).b, n)})
#define vi_srl16(x, n)     ((vi){_mm256_srli_epi16((x).a, n), _mm256_srli_epi16((x).b, n)})
#define VEC_PREFETCH(p)    _mm_prefetch((const char *)(p), _MM_HINT_T0)
#define VEC_PREFETCH_L2(p) _mm_prefetch((const char *)(p), _MM_HINT_T1)

VEC_FN vf vf_zero(void)
{
    return (vf){_mm256_setzero_ps(), _mm256_setzero_ps()};
}

VEC_FN vf vf_set1(float x)
{
    __m256 v = _mm256_set1_ps(x);
    return (vf){v, v};
}

VEC_FN vi vi_zero(void)
{
    return (vi){_mm256_setzero_si256(), _mm256_setzero_si256()};
}

VEC_FN vi vi_set1(int32_t x)
{
    __m256i v = _mm256_set1_epi32(x);
    return (vi){v, v};
}

VEC_FN vf vf_load(const float *p)
{
    return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

VEC_FN void vf_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}

VEC_FN vi vi_load(const void *p)
{
    return (vi){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)p + 1)};
}

VEC_FN void vi_store(void *p, vi x)
{
    _mm256_storeu_si256((__m256i *)p, x.a);
    _mm256_storeu_si256((__m256i *)p + 1, x.b);
}

/* All ones in the lanes below n. */
VEC_FN vi vec_mask(int n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (vi){_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane),
                _mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane)};
}

VEC_FN vf vf_load_n(const float *p, int n)
{
    vi m = vec_mask(n);
    watch_bytes(p, (size_t)n * sizeof *p);
    /* an address behind the array is not formed */
    const float *upper = n > 8 ? p + 8 : p;
    return (vf){_mm256_maskload_ps(p, m.a), _mm256_maskload_ps(upper, m.b)};
}

VEC_FN void vf_store_n(float *p, vf x, int n)
{
    vi m = vec_mask(n);
    watch_bytes(p, (size_t)n * sizeof *p);
    _mm256_maskstore_ps(p, m.a, x.a);
    if (n > 8)
        _mm256_maskstore_ps(p + 8, m.b, x.b);
}

VEC_FN vi vi_bcast(const void *p)
{
    int32_t x;
    memcpy(&x, p, sizeof x);
    return vi_set1(x);
}

VEC_FN vf vf_fma(vf x, vf y, vf z)
{
    return (vf){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}

VEC_FN vf vf_rint(vf x)
{
    return (vf){_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

VEC_FN vf vf_fraction(vf x)
{
    return vf_sub(x, vf_rint(x));
}

VEC_FN vf vf_scale_2(vf x, vf n)
{
    return (vf){_mm256_castsi256_ps(_mm256_add_epi32(
                    _mm256_castps_si256(x.a), _mm256_slli_epi32(_mm256_cvtps_epi32(n.a), 23))),
                _mm256_castsi256_ps(_mm256_add_epi32(
                    _mm256_castps_si256(x.b), _mm256_slli_epi32(_mm256_cvtps_epi32(n.b), 23)))};
}

VEC_FN vi vi_from_float(vf x)
{
    return (vi){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)};
}

VEC_FN vf vf_from_int(vi x)
{
    return (vf){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}

VEC_FN vf vf_from_bits(vi x)
{
    return (vf){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)};
}

VEC_FN vi vi_bits(vf x)
{
    return (vi){_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)};
}

VEC_FN vf vf_select_lt(vf a, vf b, vf x, vf y)
{
    return (vf){_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
                _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ))};
}

VEC_FN vf vf_select_n(int n, vf x, vf y)
{
    vf m = vf_from_bits(vec_mask(n));
    return (vf){_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)};
}

VEC_FN vf vf_load_half(const uint16_t *p)
{
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + 1))};
}

VEC_FN void vf_store_half(uint16_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)p + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}

VEC_FN vf vf_load_i8(const int8_t *p)
{
    return (vf){
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))))};
}

VEC_FN void vi_store_i8(int8_t *p, vi x)
{
    /* packing goes by 128-bit halves: 0..3, 8..11, 4..7, 12..15 */
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(words),
                                                   _mm256_extracti128_si256(words, 1)));
}

VEC_FN void vi_store_bytes(uint8_t *p, vi x)
{
    const __m256i low = _mm256_set1_epi32(0xff);
    __m256i words = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi16(_mm256_castsi256_si128(words),
                                                    _mm256_extracti128_si256(words, 1)));
}

VEC_FN void vi_store_i16(int16_t *p, vi x)
{
    const __m256i low = _mm256_set1_epi32(0xffff);
    __m256i words = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(words, 0xd8));
}

#define VEC_HAVE_MAX_LANES

VEC_FN int32_t vi_max_lanes(vi x)
{
    __m256i a = _mm256_max_epi32(x.a, x.b);
    __m128i b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}

VEC_FN vf vf_round_half(vf x)
{
    return (vf){_mm256_cvtph_ps(_mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT)),
                _mm256_cvtph_ps(_mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT))};
}

VEC_FN __m256 vec_lookup_8(const float *table, __m256i idx)
{
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), idx),
           high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), idx);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(idx, 28)));
}

VEC_FN vf vf_lookup(const float *table, vi idx)
{
    return (vf){vec_lookup_8(table, idx.a), vec_lookup_8(table, idx.b)};
}

/* 8 rows of 8 become their columns. */
VEC_FN void vec_transpose_8(__m256 v[8])
{
    __m256 a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            b[i + 2 * k] = _mm256_shuffle_ps(a[i + k], a[i + k + 2], 0x44);
            b[i + 2 * k + 1] = _mm256_shuffle_ps(a[i + k], a[i + k + 2], 0xee);
        }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        v[k] = _mm256_permute2f128_ps(b[k], b[4 + k], 0x20);
        v[4 + k] = _mm256_permute2f128_ps(b[k], b[4 + k], 0x31);
    }
}

/* 16 rows of 16 become their columns. */
VEC_FN void vf_transpose(vf v[VEC])
{
    __m256 part[4][8]; /* (rows, columns) (0, 0) (8, 0) (0, 8) (8, 8) */
    for (int i = 0; i < 8; i++) {
        part[0][i] = v[i].a;
        part[1][i] = v[8 + i].a;
        part[2][i] = v[i].b;
        part[3][i] = v[8 + i].b;
    }
    for (int k = 0; k < 4; k++)
        vec_transpose_8(part[k]);
    for (int i = 0; i < 8; i++) {
        v[i] = (vf){part[0][i], part[1][i]};
        v[8 + i] = (vf){part[2][i], part[3][i]};
    }
}

#ifdef CPU_ISA_avxvnni

VEC_FN vi vi_dot16(vi acc, vi w, vi x)
{
    return (vi){_mm256_dpwssd_avx_epi32(acc.a, w.a, x.a), _mm256_dpwssd_avx_epi32(acc.b, w.b, x.b)};
}

VEC_FN vi vi_dot8(vi acc, vi u, vi s)
{
    return (vi){_mm256_dpbusd_avx_epi32(acc.a, u.a, s.a), _mm256_dpbusd_avx_epi32(acc.b, u.b, s.b)};
}

VEC_FN vi vi_dot8_small(vi acc, vi u, vi s)
{
    return vi_dot8(acc, u, s);
}

#else

VEC_FN vi vi_dot16(vi acc, vi w, vi x)
{
    return (vi){_mm256_add_epi32(acc.a, _mm256_madd_epi16(w.a, x.a)),
                _mm256_add_epi32(acc.b, _mm256_madd_epi16(w.b, x.b))};
}

/* Pairs of products of bytes, u <= 15, added in 16 bits; and such sums added up in 32. The compiler
 * must not add products among themselves first: it runs out of registers. */
#define VEC_HAVE_PAIRS

VEC_FN vi vi_add_pairs(vi acc, vi u, vi s)
{
    vi sum = {_mm256_add_epi16(acc.a, _mm256_maddubs_epi16(u.a, s.a)),
              _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(u.b, s.b))};
    __asm__("" : "+x"(sum.a), "+x"(sum.b));
    return sum;
}

VEC_FN vi vi_widen(vi acc, vi pairs)
{
    return vi_dot16(acc, pairs, (vi){_mm256_set1_epi16(1), _mm256_set1_epi16(1)});
}

VEC_FN vi vi_dot8_small(vi acc, vi u, vi s)
{
    return vi_widen(acc, vi_add_pairs(vi_zero(), u, s));
}

VEC_FN vi vi_dot8(vi acc, vi u, vi s)
{
    const __m256i low = _mm256_set1_epi16(0xff);
    vi u0 = {_mm256_and_si256(u.a, low), _mm256_and_si256(u.b, low)};
    vi u1 = {_mm256_srli_epi16(u.a, 8), _mm256_srli_epi16(u.b, 8)};
    vi s0 = {_mm256_srai_epi16(_mm256_slli_epi16(s.a, 8), 8),
             _mm256_srai_epi16(_mm256_slli_epi16(s.b, 8), 8)};
    vi s1 = {_mm256_srai_epi16(s.a, 8), _mm256_srai_epi16(s.b, 8)};
    return vi_dot16(vi_dot16(acc, u0, s0), u1, s1);
}

#endif

#endif
