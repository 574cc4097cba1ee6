/* quantize.c: the arithmetic of quant.h. Written as plain loops over arrays that the compiler turns
 * into vector code: no branches inside, conversions by bit operations. Any thread.
 *
 * A finite binary16 value h is float((h & 0x7fff) << 13) * 2^112: the shift moves exponent and
 * mantissa into binary32's place, the multiplication corrects the bias and is exact, subnormals
 * included. */
#include "model/quant.h"

#include <assert.h>
#include <string.h>

#include "base/half.h"
#include "base/util.h"

enum {
    HALF_INFINITY = 0x7c00,
    BLOCK = 1024,    /* columns that go through one buffer on the stack */
    MAX_GROUP = 128, /* columns of QUANT_GROUP_COLS */
};

/* Infinity and NaN count as 0. */
static inline float finite_half(uint16_t h)
{
    uint32_t magnitude = h & 0x7fff;
    magnitude &= ((magnitude - HALF_INFINITY) >> 31) * 0x7fff; /* no branch, or no vector code */
    uint32_t bits = magnitude << 13;
    float f;
    memcpy(&f, &bits, sizeof f);
    f *= 0x1p112f;
    memcpy(&bits, &f, sizeof bits);
    bits |= (uint32_t)(h & 0x8000) << 16;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* The largest finite magnitude as binary16 bits: they order like the values. */
static uint16_t max_magnitude(const uint16_t *w, size_t n)
{
    int16_t max = 0; /* signed: what the baseline instruction set has a vector maximum for */
    for (size_t i = 0; i < n; i++) {
        int16_t magnitude = (int16_t)(w[i] & 0x7fff);
        magnitude = magnitude < HALF_INFINITY ? magnitude : 0;
        max = MAX(max, magnitude);
    }
    return (uint16_t)max;
}

/* The published quotient: x rounded to 11 significant bits, then to an integer, both to nearest
 * even. Values below 2^-14, where binary16 has fewer bits, become 0 either way. Adding 1.5 * 2^23
 * leaves the integer in the low mantissa bits. |x| < 2^15. */
static inline int32_t round_published(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits += 0xfff + (bits >> 13 & 1);
    bits &= ~(uint32_t)0x1fff;
    memcpy(&x, &bits, sizeof x);
    x += 0x1.8p23f;
    memcpy(&bits, &x, sizeof bits);
    return (int32_t)(bits - 0x4b400000);
}

static inline float round_to_integer(float x)
{
    return (x + 0x1.8p23f) - 0x1.8p23f;
}

static void quotients_published(const uint16_t *w, size_t n, float scale, int8_t *ret_q)
{
    for (size_t i = 0; i < n; i++)
        ret_q[i] = (int8_t)(uint8_t)round_published(finite_half(w[i]) / scale);
}

static void quotients_clamped(const uint16_t *w, size_t n, float scale, float low, float high,
                              int8_t *ret_q)
{
    for (size_t i = 0; i < n; i++) {
        float q = round_to_integer(finite_half(w[i]) / scale);
        q = q < low ? low : q;
        q = q > high ? high : q;
        ret_q[i] = (int8_t)q;
    }
}

static void pack_int4(const int8_t *q, size_t n, uint8_t *ret_bytes)
{
    for (size_t i = 0; i < n / 2; i++)
        ret_bytes[i] = (uint8_t)((uint32_t)q[2 * i] << 4 | ((uint32_t)q[2 * i + 1] & 15));
}

/* Sum of squared errors of one group of float weights when quantized to [-8, 7] with this scale.
 * Eight partial sums, so that the order is the same for every compiler and the loop is vector
 * code. n is a multiple of 8. */
static float squared_error(const float *w, size_t n, float scale)
{
    float inverse = 1 / scale;
    float sums[8] = {0};
    for (size_t i = 0; i < n; i += 8) {
        for (size_t j = 0; j < 8; j++) {
            float q = round_to_integer(w[i + j] * inverse);
            q = q < -8 ? -8 : q;
            q = q > 7 ? 7 : q;
            float d = w[i + j] - q * scale;
            sums[j] += d * d;
        }
    }
    float total = 0;
    for (size_t j = 0; j < 8; j++)
        total += sums[j];
    return total;
}

/* The scale of one group of 32..128 columns with the smallest squared error among max / d: d = 7
 * wastes nothing at the ends, larger d clip the largest weights for a finer grid. */
static uint16_t best_int4_scale(const uint16_t *w, size_t n, uint16_t max)
{
    static const float divisors[] = {7, 7.5f, 8, 8.5f, 9, 9.5f};
    float values[MAX_GROUP];
    assert(n <= MAX_GROUP && n % 8 == 0);
    for (size_t i = 0; i < n; i++)
        values[i] = finite_half(w[i]);
    uint16_t best = 0;
    float best_error = 0;
    for (size_t i = 0; i < ARRAY_LEN(divisors); i++) {
        uint16_t scale = half_from_float(half_to_float(max) / divisors[i]);
        if (scale == 0)
            continue;
        float error = squared_error(values, n, half_to_float(scale));
        if (best == 0 || error < best_error) {
            best = scale;
            best_error = error;
        }
    }
    return best;
}

static float largest_value(const struct quant_scheme *s)
{
    return s->weights == QUANT_INT4 ? 7 : 127;
}

/* One group of any length by the published rules. */
static uint16_t quantize_published(const struct quant_scheme *s, const uint16_t *w, size_t n,
                                   uint8_t *ret_bytes)
{
    uint16_t scale = half_from_float(half_to_float(max_magnitude(w, n)) / largest_value(s));
    if (scale == 0) {
        memset(ret_bytes, 0, (size_t)quant_row_bytes(s->weights, n));
        return scale;
    }
    float divisor = half_to_float(scale);
    if (s->weights == QUANT_INT8) {
        quotients_published(w, n, divisor, (int8_t *)ret_bytes);
        return scale;
    }
    int8_t q[BLOCK];
    for (size_t i = 0; i < n; i += BLOCK) {
        size_t length = MIN((size_t)BLOCK, n - i);
        quotients_published(w + i, length, divisor, q);
        pack_int4(q, length, ret_bytes + i / 2);
    }
    return scale;
}

/* One group of 32..128 columns, scale chosen for the error, clamped. */
static uint16_t quantize_clamped(const struct quant_scheme *s, const uint16_t *w, size_t n,
                                 uint8_t *ret_bytes)
{
    uint16_t max = max_magnitude(w, n);
    float limit = largest_value(s);
    uint16_t scale = s->weights == QUANT_INT4 ? best_int4_scale(w, n, max)
                                              : half_from_float(half_to_float(max) / limit);
    int8_t q[MAX_GROUP] = {0};
    assert(n <= MAX_GROUP);
    if (scale != 0)
        quotients_clamped(w, n, half_to_float(scale), -limit - 1, limit, q);
    if (s->weights == QUANT_INT4)
        pack_int4(q, n, ret_bytes);
    else
        memcpy(ret_bytes, q, n);
    return scale;
}

/* n groups, one behind the other in the input and in both outputs. Everything above is inlined
 * here, once for each instruction set. */
static inline __attribute__((always_inline)) void quantize_groups(const struct quant_scheme *s,
                                                                  const uint16_t *w, uint64_t n,
                                                                  size_t width, uint8_t *ret_q,
                                                                  uint16_t *ret_scale)
{
    size_t width_bytes = (size_t)quant_row_bytes(s->weights, width);
    for (uint64_t i = 0; i < n; i++) {
        const uint16_t *in = w + i * width;
        uint8_t *out = ret_q + i * width_bytes;
        ret_scale[i] = s->group == QUANT_GROUP_COLS ? quantize_clamped(s, in, width, out)
                                                    : quantize_published(s, in, width, out);
    }
}

#ifdef __x86_64__
/* Without fused multiply-add, so that the bits are the same as anywhere else. */
static __attribute__((target("avx2"), flatten)) void
quantize_groups_avx2(const struct quant_scheme *s, const uint16_t *w, uint64_t n, size_t width,
                     uint8_t *ret_q, uint16_t *ret_scale)
{
    quantize_groups(s, w, n, width, ret_q, ret_scale);
}
#endif

void quant_rows(const struct quant_scheme *s, const uint16_t *w, uint64_t n_rows, uint64_t cols,
                uint32_t n_groups, uint8_t *ret_q, uint16_t *ret_scale)
{
    assert(s->weights != QUANT_FP16);
    assert(n_groups > 0 && cols % n_groups == 0);
    size_t width = cols / n_groups;
    assert(s->group != QUANT_GROUP_COLS || width == s->group_n);
    assert(s->weights != QUANT_INT4 || width % 2 == 0);
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2")) {
        quantize_groups_avx2(s, w, n_rows * n_groups, width, ret_q, ret_scale);
        return;
    }
#endif
    quantize_groups(s, w, n_rows * n_groups, width, ret_q, ret_scale);
}

static inline int32_t stored_value(enum quant_weights weights, const uint8_t *row, uint64_t col)
{
    if (weights == QUANT_INT8)
        return (int8_t)row[col];
    uint8_t byte = row[col / 2];
    int32_t nibble = col % 2 ? byte & 15 : byte >> 4;
    return (nibble ^ 8) - 8;
}

void quant_dequantize_rows(enum quant_weights weights, const uint8_t *q, const uint16_t *scale,
                           uint64_t n_rows, uint64_t cols, uint32_t n_groups, uint16_t *ret_w)
{
    assert(weights != QUANT_FP16 && n_groups > 0 && cols % n_groups == 0);
    uint64_t row_bytes = quant_row_bytes(weights, cols), width = cols / n_groups;
    for (uint64_t i = 0; i < n_rows; i++) {
        for (uint32_t g = 0; g < n_groups; g++) {
            float s = half_to_float(scale[i * n_groups + g]);
            for (uint64_t j = g * width; j < (g + 1) * width; j++)
                ret_w[i * cols + j] =
                    half_from_float((float)stored_value(weights, q + i * row_bytes, j) * s);
        }
    }
}
