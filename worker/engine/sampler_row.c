/* sampler_row.c: loops over a row of logits (see sampler_impl.h), written so that compilers make
 * vectors of them: those of a block begin at a pointer of their own, because `at + i` in 32 bits
 * might wrap and each value would be fetched by itself. Their results are integers, or maxima: the
 * same in any order. */
#include "worker/engine/sampler_impl.h"

#include <assert.h>

#include "base/util.h"

enum { LANES = 16, BLOCK = 64, WIDE_BLOCK = 256 };

/* Once more for AVX2 and for AVX-512, chosen when the program is loaded; the bits are the same. */
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) &&           \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define ROW_FN __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define ROW_FN
#endif

ROW_FN float sampler_maximum(const float *row, uint32_t n)
{
    float lane[LANES];
    for (uint32_t j = 0; j != LANES; j++)
        lane[j] = -__builtin_inff();
    for (; n >= LANES; n -= LANES, row += LANES) {
        for (uint32_t j = 0; j != LANES; j++)
            lane[j] = row[j] > lane[j] ? row[j] : lane[j];
    }
    for (uint32_t j = 0; j < n; j++)
        lane[j] = row[j] > lane[j] ? row[j] : lane[j];
    float max = lane[0];
    for (uint32_t j = 1; j != LANES; j++)
        max = lane[j] > max ? lane[j] : max;
    return max;
}

ROW_FN uint32_t sampler_first(const float *row, uint32_t n, float max)
{
    uint32_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        const float *block = row + i;
        uint32_t found = 0;
        for (uint32_t j = 0; j != BLOCK; j++)
            found |= (uint32_t)(block[j] == max);
        if (found)
            break;
    }
    for (; i < n; i++) {
        if (row[i] == max)
            return i;
    }
    return 0;
}

ROW_FN uint64_t sampler_weigh(const float *restrict row, uint32_t n, float max,
                              uint64_t *restrict ret_weights)
{
    uint64_t sum = 0;
    float e[BLOCK];
    uint64_t w[BLOCK];
    for (uint32_t at = 0; at < n; at += BLOCK) {
        const float *from = row + at;
        uint32_t count = MIN(n - at, (uint32_t)BLOCK);
        uint64_t *to = ret_weights ? ret_weights + at : w;
        if (count == BLOCK) {
            for (uint32_t i = 0; i != BLOCK; i++)
                e[i] = det_expf(from[i] - max);
            for (uint32_t i = 0; i != BLOCK; i++)
                to[i] = sampling_fixed(e[i]);
            for (uint32_t i = 0; i != BLOCK; i++)
                sum += to[i];
        } else {
            for (uint32_t i = 0; i != count; i++) {
                to[i] = sampling_weight(from[i], max);
                sum += to[i];
            }
        }
    }
    return sum;
}

/* Keys of up to BLOCK values; whether one of them is in [low, high]. */
static inline bool keys_of(const float *restrict row, uint32_t n, uint32_t low, uint32_t high,
                           uint32_t *restrict ret)
{
    uint32_t nearest = UINT32_MAX; /* to `low`, from above */
    if (n == BLOCK) {
        for (uint32_t i = 0; i != BLOCK; i++) {
            ret[i] = sampling_key(row[i]);
            nearest = ret[i] - low < nearest ? ret[i] - low : nearest;
        }
        return nearest <= high - low;
    }
    for (uint32_t i = 0; i != n; i++) {
        ret[i] = sampling_key(row[i]);
        nearest = ret[i] - low < nearest ? ret[i] - low : nearest;
    }
    return nearest <= high - low;
}

ROW_FN void sampler_count(const float *row, const uint64_t *weights, uint32_t n, uint32_t low,
                          uint32_t high, int digit, uint64_t *bins)
{
    const uint32_t shift = sampling_shift(digit), mask = sampling_bins(digit) - 1;
    uint32_t keys[BLOCK];
    for (uint32_t at = 0; at < n; at += BLOCK) {
        uint32_t count = MIN(n - at, (uint32_t)BLOCK);
        if (!keys_of(row + at, count, low, high, keys))
            continue;
        for (uint32_t i = 0; i != count; i++) {
            if (keys[i] >= low && keys[i] <= high)
                bins[keys[i] >> shift & mask] += weights ? weights[at + i] : 1;
        }
    }
}

ROW_FN uint32_t sampler_above(const float *row, uint32_t n, uint32_t low, uint32_t *ret_indices)
{
    uint32_t n_found = 0;
    uint32_t keys[BLOCK];
    for (uint32_t at = 0; at < n; at += BLOCK) {
        uint32_t count = MIN(n - at, (uint32_t)BLOCK);
        if (!keys_of(row + at, count, low, UINT32_MAX, keys))
            continue;
        for (uint32_t i = 0; i != count; i++) {
            ret_indices[n_found] = at + i; /* n_found <= at + i */
            n_found += keys[i] >= low;
        }
    }
    return n_found;
}

ROW_FN uint32_t sampler_find(const uint64_t *weights, uint32_t n, uint64_t target)
{
    uint64_t cumulative = 0;
    uint32_t at = 0;
    for (; at + WIDE_BLOCK <= n; at += WIDE_BLOCK) {
        const uint64_t *block = weights + at;
        uint64_t sum = 0;
        for (uint32_t i = 0; i != WIDE_BLOCK; i++)
            sum += block[i];
        if (cumulative + sum > target)
            break;
        cumulative += sum;
    }
    for (; at < n; at++) {
        cumulative += weights[at];
        if (cumulative > target)
            return at;
    }
    while (at && !weights[at - 1])
        at--;
    return at ? at - 1 : 0;
}
