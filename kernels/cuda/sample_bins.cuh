/* sample_bins.cuh: selection by the digits of the keys: bins, and the edge where their sums exceed
 * a limit. */
#ifndef GLMD_KERNELS_CUDA_SAMPLE_BINS_CUH
#define GLMD_KERNELS_CUDA_SAMPLE_BINS_CUH

#include "kernels/cuda/sample_sums.cuh"

namespace
{

/* 64-bit sums in shared memory, in two halves: whoever makes the lower one wrap carries. */
DEV_FN void bins_add(dev_shared<uint32_t> low, dev_shared<uint32_t> high, uint32_t bin, uint64_t v)
{
    const uint32_t v_low = (uint32_t)v;
    const uint32_t before = dev_shared_atomic_add(low + bin, v_low);
    const uint32_t v_high = (uint32_t)(v >> 32) + (before + v_low < before);
    if (v_high)
        dev_shared_atomic_add(high + bin, v_high);
}

DEV_FN void bins_clear(dev_shared<uint32_t> low, dev_shared<uint32_t> high)
{
    for (uint32_t i = dev_thread(); i < SAMPLING_BINS; i += SAMPLE_THREADS) {
        low[i] = 0;
        high[i] = 0;
    }
}

DEV_FN void bins_flush(dev_shared<uint32_t> low, dev_shared<uint32_t> high, uint64_t *to)
{
    for (uint32_t i = dev_thread(); i < SAMPLING_BINS; i += SAMPLE_THREADS) {
        const uint32_t l = low[i], h = high[i];
        if (l | h)
            dev_atomic_add64(to + i, (uint64_t)h << 32 | l);
    }
}

/* The digit where e.above and the bins from the top exceed e.limit, added to the edge. `picked`:
 * two words of shared memory. The limit of a mass is known when its first bins are. */
template <class BINS>
DEV_FN sample_edge descend(const BINS &bins, int digit, sample_edge e, float top_p,
                           dev_shared<uint64_t> totals, dev_shared<uint64_t> picked)
{
    const uint32_t per_thread = sampling_bins(digit) / SAMPLE_THREADS;
    const uint32_t top = sampling_bins(digit) - per_thread * dev_thread();
    const uint64_t none = ~(uint64_t)0;
    uint64_t sum = 0, total;
    for (uint32_t i = 1; i <= per_thread; i++)
        sum += bins[top - i];
    if (dev_thread() == 0)
        picked[0] = none;
    uint64_t before = e.above + scan_before(totals, sum, &total);
    if (digit == 0 && top_p > 0.0f)
        e.limit = sampling_limit(top_p, total);
    if (before <= e.limit && before + sum > e.limit) {
        uint32_t bin = top;
        while (before + bins[--bin] <= e.limit)
            before += bins[bin];
        picked[0] = bin;
        picked[1] = before;
    }
    dev_barrier();
    const uint64_t bin = picked[0];
    e.found = bin != none;
    if (e.found) {
        e.key |= (uint32_t)bin << sampling_shift(digit);
        e.above = picked[1];
    }
    return e;
}

/* The edge in front of `digit`, from the bins of the digit before it; kept for the kernels behind.
 */
DEV_FN sample_edge edge_before(const sample_row &row, sample_state *state, int selection, int digit,
                               dev_shared<uint64_t> totals, dev_shared<uint64_t> picked)
{
    sample_edge e = {0, 1, 0, selection == SAMPLE_BY_RANK ? row.n_best - 1 : (uint64_t)0};
    if (digit == 0)
        return e;
    if (digit > 1)
        e = state->edges[selection][digit - 2];
    if (!e.found)
        return e;
    e = descend(state->bins[selection][digit - 1], digit - 1, e,
                selection == SAMPLE_BY_MASS ? row.top_p : 0.0f, totals, picked);
    if (dev_cta_x() == 0 && dev_thread() == 0)
        state->edges[selection][digit - 1] = e;
    return e;
}

/* The lowest key that top-k leaves. */
DEV_FN uint32_t rank_key(const sample_row &row, const sample_state *state)
{
    return row.top_k ? state->edges[SAMPLE_BY_RANK][SAMPLING_DIGITS - 1].key : 0;
}

} // namespace

#endif
