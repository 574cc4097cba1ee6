/* half.h: IEEE 754 binary16, rounding to nearest even, without hardware support.
 *
 * FP16 is the stored type of every published weight, so that the converter, the quantizer and the
 * kernels' reference all need the same exact conversions. Headers only: kernels/ may include it.
 */
#ifndef GLMD_BASE_HALF_H
#define GLMD_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = (h >> 10) & 0x1f;
    uint32_t mantissa = h & 0x3ff;
    uint32_t bits;
    if (exponent == 0x1f) {
        bits = sign | 0x7f800000 | mantissa << 13;
    } else if (exponent) {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {
        /* zero or subnormal: mantissa * 2^-24, exact in binary32 */
        float value = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &value, sizeof bits);
        bits |= sign;
    }
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint16_t half_from_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000)
        return sign | 0x7e00; /* NaN */
    if (bits >= 0x477ff000)
        return sign | 0x7c00; /* 65520 and above round to infinity */
    if (bits < 0x38800000) {
        /* below 2^-14: the result is subnormal. Adding 0.5 leaves the mantissa, rounded to nearest
         * even by the addition itself, in the low bits. */
        float magnitude;
        memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5f;
        uint32_t sum;
        memcpy(&sum, &magnitude, sizeof sum);
        return sign | (uint16_t)(sum - 0x3f000000);
    }
    uint32_t odd = bits >> 13 & 1;
    bits += 0xc8000fff + odd; /* exponent bias 127 -> 15, round half to even */
    return sign | (uint16_t)(bits >> 13);
}

/* The nearest binary16 value, as a float. */
static inline float half_round(float f)
{
    return half_to_float(half_from_float(f));
}

#endif
