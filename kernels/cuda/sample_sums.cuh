/* sample_sums.cuh: where the CTAs of sampling are, the weights of their logits, and sums and maxima
 * within a CTA. */
#ifndef GLMD_KERNELS_CUDA_SAMPLE_SUMS_CUH
#define GLMD_KERNELS_CUDA_SAMPLE_SUMS_CUH

#include "kernels/cuda/dev.h"
#include "kernels/cuda/sample.h"

namespace
{

enum { SAMPLE_WARPS = SAMPLE_THREADS / DEV_WARP };

static_assert(SAMPLING_BINS / 2 % SAMPLE_THREADS == 0, "as many bins for every thread");
static_assert((int)K_SAMPLE_MAX_TOP <= (int)DEV_WARP, "a lane for each of the best");

/* ---- weights ---- */

/* sampling_fixed in 32-bit integers: doubles are slow on many GPUs. */
DEV_FN uint64_t sample_fixed(float w)
{
    const uint32_t bits = dev_float_bits(w);
    const uint32_t mantissa = (bits & 0x7fffffu) | 0x800000u; /* in units of 2^(exponent - 150) */
    const int up = (int)(bits >> 23) - (150 - SAMPLING_WEIGHT_BITS);
    if (up >= 0)
        return (uint64_t)mantissa << up;
    const uint32_t down = up < -25 ? 25 : (uint32_t)-up;
    /* to nearest, halves to even */
    return (mantissa + (1u << (down - 1)) - 1 + (mantissa >> down & 1)) >> down;
}

DEV_FN uint64_t sample_weight(float logit, float max)
{
    return sample_fixed(det_expf(logit - max));
}

/* ---- where a CTA is ---- */

struct sample_place {
    uint32_t first_id; /* of the tile, in the whole vocabulary */
    uint32_t n;        /* of its logits */
    float *logits, *values;
};

DEV_FN float *sample_logits(const sample_params &p, uint32_t row, uint32_t id)
{
    const uint32_t own = id - p.first_id, part = own / p.cols;
    return p.logits + ((size_t)part * p.part_rows + row) * p.cols + (own - part * p.cols);
}

DEV_FN sample_place place_of(const sample_params &p, uint32_t row, uint32_t tile)
{
    const uint32_t part = tile / p.part_tiles;
    const uint32_t first = (tile - part * p.part_tiles) * SAMPLE_TILE;
    sample_place t;
    t.first_id = p.first_id + part * p.cols + first;
    t.n = p.cols - first < SAMPLE_TILE ? p.cols - first : (uint32_t)SAMPLE_TILE;
    t.logits = sample_logits(p, row, t.first_id);
    t.values = p.values + (size_t)row * p.n_ids + (t.first_id - p.first_id);
    return t;
}

/* Item i of a thread within its tile: neighbours are neighbours in memory. */
DEV_FN uint32_t item_of(uint32_t i)
{
    return i * SAMPLE_THREADS + dev_thread();
}

/* ---- what ranks tell each other ---- */

/* Of every row, this rank's: what kernels fill. */
template <class T> DEV_FN T *own_of(const sample_params &p, int exchange, uint32_t row)
{
    return (T *)p.own[exchange] + row;
}

/* Of every row, what `rank` has told. */
template <class T>
DEV_FN const T *told_of(const sample_params &p, int exchange, uint32_t rank, uint32_t row)
{
    return (const T *)(p.all[exchange] + rank * p.bytes[exchange]) + row;
}

/* Over all ranks. */
DEV_FN sample_peak row_peak(const sample_params &p, uint32_t row)
{
    sample_peak all = {0, 0};
    for (uint32_t r = 0; r < p.n_ranks; r++) {
        const sample_peak &one = *told_of<sample_peak>(p, SAMPLE_PEAKS, r, row);
        all.max_key = all.max_key < one.max_key ? one.max_key : all.max_key;
        if (all.value_max_key < one.value_max_key)
            all.value_max_key = one.value_max_key;
    }
    return all;
}

/* The largest value of the row. */
DEV_FN float row_max(const sample_params &p, uint32_t row)
{
    return sampling_key_value(row_peak(p, row).value_max_key);
}

/* Over all ranks: sums, the first maximum, and from where on the candidates of all are all keys. */
DEV_FN sample_mass row_mass(const sample_params &p, uint32_t row)
{
    sample_mass all = {0, 0, 0, 0, 0, 0};
    for (uint32_t r = 0; r < p.n_ranks; r++) {
        const sample_mass &one = *told_of<sample_mass>(p, SAMPLE_MASSES, r, row);
        all.sum += one.sum;
        all.value_sum += one.value_sum;
        all.first = all.first < one.first ? one.first : all.first;
        all.floor = all.floor < one.floor ? one.floor : all.floor;
    }
    return all;
}

/* ---- sums within a CTA ---- */

DEV_FN uint64_t warp_sum(uint64_t v)
{
    DEV_UNROLL
    for (unsigned d = DEV_WARP / 2; d; d /= 2)
        v += dev_shfl_xor(v, d);
    return v;
}

template <class T> DEV_FN T warp_max(T v)
{
    DEV_UNROLL
    for (unsigned d = DEV_WARP / 2; d; d /= 2) {
        const T other = dev_shfl_xor(v, d);
        v = v < other ? other : v;
    }
    return v;
}

/* The sum of v over the threads in front of this one, and over all. */
DEV_FN uint64_t scan_before(dev_shared<uint64_t> totals, uint64_t v, uint64_t *ret_total)
{
    uint64_t inclusive = v;
    DEV_UNROLL
    for (unsigned d = 1; d < DEV_WARP; d *= 2) {
        const uint64_t other = dev_shfl_up(inclusive, d);
        if (dev_lane() >= d)
            inclusive += other;
    }
    dev_barrier(); /* the totals of the scan before have been read */
    if (dev_lane() == DEV_WARP - 1)
        totals[dev_warp()] = inclusive;
    dev_barrier();
    uint64_t before = 0, total = 0;
    DEV_UNROLL
    for (unsigned w = 0; w < SAMPLE_WARPS; w++) {
        const uint64_t t = totals[w];
        before += w < dev_warp() ? t : 0;
        total += t;
    }
    *ret_total = total;
    return before + inclusive - v;
}

} // namespace

#endif
