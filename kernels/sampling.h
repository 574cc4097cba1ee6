/* sampling.h: the arithmetic of choosing a token from a row of logits: what the CPU's sampler and
 * the GPU's kernels have in common, in C and in CUDA.
 *
 * Order-free. Probabilities are integers: the weight of a logit x in a row with the maximum m is
 * exp(x - m) in units of 2^-40, rounded to nearest. Integers add up to the same sum in any order:
 * masses, cumulative sums and the normalization have the same bits whatever is vectorised, cut into
 * tiles or added by atomics, on any number of threads. A weight below 2^-41 of the best is 0: less
 * than a part in 10^12 of a row, and less than what a draw of 53 bits tells apart in a vocabulary.
 * The sum over SAMPLING_MAX_VOCAB weights fits 64 bits.
 *
 * Order. A key is an unsigned integer in the order of the floats; both zeros are one value, NaNs
 * stand below everything and weigh nothing. A row whose maximum is not finite has no weights: its
 * sum is 0, the first maximum is chosen.
 */
#ifndef GLMD_KERNELS_SAMPLING_H
#define GLMD_KERNELS_SAMPLING_H

#include <stdint.h>
#include <string.h>

#include "kernels/detmath.h"
#include "kernels/philox.h"

/* What a forbidden token's logit becomes: the smallest finite FP16 value, as published. */
#define SAMPLING_FORBIDDEN (-65504.0f)

enum {
    SAMPLING_WEIGHT_BITS = 40,
    SAMPLING_MAX_VOCAB = 1 << 23,
    SAMPLING_DIGITS = 3, /* of a key: 11, 11 and 10 bits from the top */
    SAMPLING_BINS = 1 << 11,
};

/* ---- order ---- */

DET_FN uint32_t sampling_key(float value)
{
    float positive_zero = value + 0.0f;
    uint32_t bits, flip = 0x80000000u, keep = 0u - (uint32_t)(value == value);
    memcpy(&bits, &positive_zero, sizeof bits);
    flip |= (uint32_t)((int32_t)bits >> 31);
    return (bits ^ flip) & keep;
}

/* The value of a key; minus infinity for that of NaNs. */
DET_FN float sampling_key_value(uint32_t key)
{
    uint32_t bits = key & 0x80000000u ? key ^ 0x80000000u : ~key;
    float value;
    bits = key ? bits : 0xff800000u;
    memcpy(&value, &bits, sizeof value);
    return value;
}

DET_FN uint32_t sampling_shift(int digit)
{
    return digit == 0 ? 21 : digit == 1 ? 10 : 0;
}

DET_FN uint32_t sampling_bins(int digit)
{
    return digit == 2 ? SAMPLING_BINS / 2 : SAMPLING_BINS;
}

/* The bits of a key that the digits in front of `digit` hold. */
DET_FN uint32_t sampling_decided(int digit)
{
    return digit == 0 ? 0 : digit == 1 ? 0xffe00000u : 0xfffffc00u;
}

/* ---- weights ---- */

/* w in [0, 1] (or a little above) in units of 2^-40, to nearest, halves to even: adding 2^12 leaves
 * the integer in the low mantissa bits of a double. */
DET_FN uint64_t sampling_fixed(float w)
{
    double shifted = (double)w + 0x1p12;
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return bits - UINT64_C(0x40b0000000000000);
}

DET_FN uint64_t sampling_weight(float logit, float max)
{
    return sampling_fixed(det_expf(logit - max));
}

/* The logarithm of the sum of exp over a row, from its maximum and the sum of its weights. */
DET_FN double sampling_log_sum(float max, uint64_t sum)
{
    return sum ? (double)max + det_log((double)sum * 0x1p-40) : (double)max;
}

/* NaNs have one pattern. */
DET_FN float sampling_logprob(float logit, double log_sum)
{
    float v = (float)((double)logit - log_sum);
    const uint32_t nan_bits = 0x7fc00000u;
    if (v != v)
        memcpy(&v, &nan_bits, sizeof v);
    return v;
}

/* ---- the strategy ---- */

/* A token of the history: its logit, given how often it stands in the output. */
DET_FN float sampling_penalize(float logit, float repetition, float frequency, float presence,
                               uint32_t n_output)
{
    if (repetition > 0.0f && repetition != 1.0f)
        logit = logit > 0.0f ? logit / repetition : logit * repetition;
    if (n_output) {
        logit -= frequency * (float)n_output;
        logit -= presence;
    }
    return logit;
}

/* A nucleus holds the best tokens up to the one with which their weights exceed this. */
DET_FN uint64_t sampling_limit(float top_p, uint64_t sum)
{
    return (uint64_t)((double)top_p * (double)sum);
}

/* A draw is the first token, by id, with which the cumulative weight exceeds this; below `sum`
 * where that is not 0. */
DET_FN uint64_t sampling_target(struct philox p, uint64_t sum)
{
    uint64_t target = (uint64_t)(philox_uniform(p) * (double)sum);
    return target < sum ? target : sum ? sum - 1 : 0;
}

#endif
