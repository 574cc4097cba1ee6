/* sample_shard.cuh: top-k and top-p of a row whose vocabulary several ranks share. Every rank finds
 * a key, its floor, that few enough of its values reach, and tells the others the keys from there
 * on: its candidates. From the largest floor on all keys of the row are known, and the edge of a
 * cut is looked for among them, by all ranks alike. Where it lies below, the row is too wide. */
#ifndef GLMD_KERNELS_CUDA_SAMPLE_SHARD_CUH
#define GLMD_KERNELS_CUDA_SAMPLE_SHARD_CUH

#include "kernels/cuda/sample_cut.cuh"

namespace
{

/* The keys of a rank's candidates of a row, behind the masses. */
DEV_FN uint32_t *candidates_of(const sample_params &p, const sample_mass *masses, uint32_t row)
{
    return (uint32_t *)(masses + p.n_rows) + (size_t)row * p.n_candidates;
}

/* ---- collect ---- */

/* Two digits are searched: the floor is the next multiple of 2^10 above the bin of the edge. In
 * any order: they are only counted and added up. */
DEV_KERNEL(SAMPLE_THREADS, 4) void sample_collect_kernel(DEV_PARAMS(sample_params) p)
{
    DEV_SHARED(uint64_t, totals, SAMPLE_WARPS);
    DEV_SHARED(uint64_t, picked, 2);
    const uint32_t row_idx = dev_cta_y();
    const sample_row &row = p.rows[row_idx];
    if (row.n_best == 0)
        return;
    const sample_edge e = edge_before(row, p.states + row_idx, SAMPLE_BY_RANK, 2, totals, picked);
    const uint32_t floor = e.found ? (e.key | ~sampling_decided(2)) + 1 : 0;
    const sample_place t = place_of(p, row_idx, dev_cta_x());
    sample_mass *masses = own_of<sample_mass>(p, SAMPLE_MASSES, 0);
    uint32_t *to = candidates_of(p, masses, row_idx);
    DEV_UNROLL
    for (uint32_t i = 0; i < SAMPLE_ITEMS; i++) {
        const uint32_t at = item_of(i);
        const uint32_t key = at < t.n ? sampling_key(t.values[at]) : 0;
        if (at >= t.n || key < floor)
            continue;
        const uint32_t place = dev_atomic_add(&masses[row_idx].n_candidates, 1);
        if (place < p.n_candidates)
            to[place] = key;
    }
    if (dev_cta_x() == 0 && dev_thread() == 0)
        masses[row_idx].floor = floor;
}

/* ---- the cut ---- */

/* 64-bit bins in shared memory, to be searched. */
struct shared_bins {
    dev_shared<uint32_t> low, high;
    DEV_MEMBER uint64_t operator[](uint32_t i) const
    {
        const uint32_t l = low[i], h = high[i];
        return (uint64_t)h << 32 | l;
    }
};

/* Bins of `digit` of the candidates' keys from `from` on: by count, or by weight under `max`. */
template <bool WEIGHED>
DEV_FN void bin_candidates(const sample_params &p, uint32_t row_idx, const sample_edge &e,
                           int digit, uint32_t from, float max, const shared_bins &bins)
{
    const uint32_t least = e.key < from ? from : e.key, most = e.key | ~sampling_decided(digit);
    bins_clear(bins.low, bins.high);
    dev_barrier();
    for (uint32_t r = 0; r < p.n_ranks; r++) {
        const sample_mass *masses = told_of<sample_mass>(p, SAMPLE_MASSES, r, 0);
        const uint32_t *keys = candidates_of(p, masses, row_idx);
        const uint32_t told = masses[row_idx].n_candidates;
        const uint32_t n = told < p.n_candidates ? told : p.n_candidates;
        for (uint32_t i = dev_thread(); i < n; i += SAMPLE_THREADS) {
            const uint32_t key = keys[i];
            if (key < least || key > most)
                continue;
            const uint32_t bin = key >> sampling_shift(digit) & (sampling_bins(digit) - 1);
            bins_add(bins.low, bins.high, bin,
                     WEIGHED ? sample_weight(sampling_key_value(key), max) : 1);
        }
    }
    dev_barrier();
}

/* Where they exceed e.limit; with top_p, that part of all of them. */
template <bool WEIGHED>
DEV_FN sample_edge edge_of(const sample_params &p, uint32_t row_idx, sample_edge e, uint32_t from,
                           float max, float top_p, const shared_bins &bins,
                           dev_shared<uint64_t> totals, dev_shared<uint64_t> picked)
{
    for (int digit = 0; digit < SAMPLING_DIGITS && e.found; digit++) {
        bin_candidates<WEIGHED>(p, row_idx, e, digit, from, max, bins);
        e = descend(bins, digit, e, top_p, totals, picked);
    }
    return e;
}

/* Rows that draw; those that are not cut, too. */
DEV_KERNEL(SAMPLE_THREADS, 4) void sample_shard_cut_kernel(DEV_PARAMS(sample_params) p)
{
    DEV_SHARED(uint32_t, low, SAMPLING_BINS);
    DEV_SHARED(uint32_t, high, SAMPLING_BINS);
    DEV_SHARED(uint64_t, totals, SAMPLE_WARPS);
    DEV_SHARED(uint64_t, picked, 2);
    const uint32_t row_idx = dev_cta_x();
    const sample_row &row = p.rows[row_idx];
    if (row.kind != SAMPLE_DRAW)
        return;
    const shared_bins bins = {low + 0, high + 0};
    const sample_mass mass = row_mass(p, row_idx);
    const float max = row_max(p, row_idx);
    sample_cut cut = {0, ~0u, 0};
    uint32_t from = mass.floor;
    bool wide = false;
    if (row.top_k) {
        const sample_edge by_rank = {0, 1, 0, row.top_k - 1};
        const sample_edge e =
            edge_of<false>(p, row_idx, by_rank, from, max, 0.0f, bins, totals, picked);
        wide = !e.found;
        cut.key = from = e.key;
    }
    if (row.top_p != 0.0f && !wide) {
        const sample_edge by_mass = {
            0, 1, 0, row.top_k ? (uint64_t)0 : sampling_limit(row.top_p, mass.value_sum)};
        const sample_edge e = edge_of<true>(p, row_idx, by_mass, from, max,
                                            row.top_k ? row.top_p : 0.0f, bins, totals, picked);
        if (e.found) {
            cut.key = e.key;
            cut.n_equal =
                (uint32_t)((e.limit - e.above) / sample_weight(sampling_key_value(e.key), max)) + 1;
        } else { /* further down; or a row without weights, of which nothing is cut */
            wide = row.top_k == 0 && mass.value_sum != 0;
        }
    }
    cut.edge_weight = kept_weight(sample_weight(sampling_key_value(cut.key), max), row);
    if (dev_thread() == 0) {
        keep_cut(cut, p.states + row_idx);
        p.states[row_idx].wide = wide;
    }
}

} // namespace

#endif
