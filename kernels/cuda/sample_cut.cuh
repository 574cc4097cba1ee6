/* sample_cut.cuh: what top-k, top-p and min-p leave of a row. */
#ifndef GLMD_KERNELS_CUDA_SAMPLE_CUT_CUH
#define GLMD_KERNELS_CUDA_SAMPLE_CUT_CUH

#include "kernels/cuda/sample_bins.cuh"

namespace
{

/* ---- select ---- */

template <int SELECTION, int DIGIT>
DEV_KERNEL(SAMPLE_THREADS, 4)
void sample_select_kernel(DEV_PARAMS(sample_params) p)
{
    DEV_SHARED(uint32_t, low, SAMPLING_BINS);
    DEV_SHARED(uint32_t, high, SAMPLING_BINS);
    DEV_SHARED(uint64_t, totals, SAMPLE_WARPS);
    DEV_SHARED(uint64_t, picked, 2);
    const uint32_t row_idx = dev_cta_y();
    const sample_row &row = p.rows[row_idx];
    sample_state *state = p.states + row_idx;
    /* The first digit of a mass was binned by weigh, unless a rank comes before it. */
    const bool first_mass = SELECTION == SAMPLE_BY_MASS && DIGIT == 0;
    if (SELECTION == SAMPLE_BY_RANK || first_mass ? row.n_best == 0 : row.top_p == 0.0f)
        return;
    uint32_t least = 0;
    if (first_mass) { /* the rank's last digit is known now */
        const sample_edge e =
            edge_before(row, state, SAMPLE_BY_RANK, SAMPLING_DIGITS, totals, picked);
        if (row.top_p == 0.0f)
            return;
        least = e.key;
    } else if (SELECTION == SAMPLE_BY_MASS) {
        least = rank_key(row, state);
    }
    const sample_edge e = edge_before(row, state, SELECTION, DIGIT, totals, picked);
    if (!e.found)
        return;
    const uint32_t from = e.key > least ? e.key : least;
    const uint32_t to = e.key | ~sampling_decided(DIGIT);
    const uint32_t mask = sampling_bins(DIGIT) - 1;
    const sample_place t = place_of(p, row_idx, dev_cta_x());
    const float max = row_max(p, row_idx);
    bins_clear(low, high);
    dev_barrier();
    DEV_UNROLL
    for (uint32_t i = 0; i < SAMPLE_ITEMS; i++) {
        const uint32_t at = item_of(i);
        if (at >= t.n)
            continue;
        const float value = t.values[at];
        const uint32_t key = sampling_key(value);
        if (key < from || key > to)
            continue;
        const uint32_t bin = key >> sampling_shift(DIGIT) & mask;
        if (SELECTION == SAMPLE_BY_RANK)
            dev_shared_atomic_add(low + bin, 1);
        else
            bins_add(low, high, bin, sample_weight(value, max));
    }
    dev_barrier();
    bins_flush(low, high, state->bins[SELECTION][DIGIT]);
}

/* ---- sums ---- */

/* Keys above `key` stay, and the first n_equal of those equal to it. */
struct sample_cut {
    uint32_t key, n_equal;
    uint64_t edge_weight; /* of those equal to it, 0 where min-p cuts them */
};

DEV_FN uint64_t kept_weight(uint64_t weight, const sample_row &row)
{
    return weight < row.least ? 0 : weight;
}

DEV_FN sample_cut last_cut(const sample_row &row, sample_state *state, float max,
                           dev_shared<uint64_t> totals, dev_shared<uint64_t> picked)
{
    sample_cut cut = {rank_key(row, state), ~0u, 0};
    sample_edge e = {0, 0, 0, 0};
    if (row.top_p != 0.0f)
        e = edge_before(row, state, SAMPLE_BY_MASS, SAMPLING_DIGITS, totals, picked);
    if (e.found) /* else a row without weights: nothing is cut */
        cut.key = e.key;
    const uint64_t weight = sample_weight(sampling_key_value(cut.key), max);
    if (e.found)
        cut.n_equal = (uint32_t)((e.limit - e.above) / weight) + 1;
    cut.edge_weight = kept_weight(weight, row);
    return cut;
}

/* A row whose cut was found by sample_shard_cut_kernel. */
DEV_FN sample_cut known_cut(const sample_state *state)
{
    return {state->edge_key, state->n_equal, state->edge_weight};
}

DEV_FN void keep_cut(const sample_cut &cut, sample_state *state)
{
    state->edge_key = cut.key;
    state->n_equal = cut.n_equal;
    state->edge_weight = cut.edge_weight;
}

DEV_KERNEL(SAMPLE_THREADS, 4) void sample_sums_kernel(DEV_PARAMS(sample_params) p)
{
    DEV_SHARED(uint64_t, totals, SAMPLE_WARPS);
    DEV_SHARED(uint64_t, picked, 2);
    const uint32_t row_idx = dev_cta_y();
    const sample_row &row = p.rows[row_idx];
    sample_state *state = p.states + row_idx;
    if (row.kind != SAMPLE_DRAW || state->wide)
        return;
    const sample_place t = place_of(p, row_idx, dev_cta_x());
    const float max = row_max(p, row_idx);
    const sample_cut cut =
        p.n_ranks > 1 ? known_cut(state) : last_cut(row, state, max, totals, picked);
    uint64_t sum = 0, n_equal = 0;
    DEV_UNROLL
    for (uint32_t i = 0; i < SAMPLE_ITEMS; i++) {
        const uint32_t at = item_of(i);
        if (at >= t.n)
            continue;
        const float value = t.values[at];
        const uint32_t key = sampling_key(value);
        if (key > cut.key)
            sum += kept_weight(sample_weight(value, max), row);
        n_equal += key == cut.key;
    }
    sample_share tile;
    scan_before(totals, sum, &tile.sum);
    scan_before(totals, n_equal, &tile.n_equal);
    if (dev_thread() != 0)
        return;
    p.tiles[(size_t)row_idx * p.n_tiles + dev_cta_x()] = tile;
    sample_share *share = own_of<sample_share>(p, SAMPLE_SHARES, row_idx);
    dev_atomic_add64(&share->sum, tile.sum);
    dev_atomic_add64(&share->n_equal, tile.n_equal);
    if (dev_cta_x() == 0 && p.n_ranks == 1)
        keep_cut(cut, state);
}

} // namespace

#endif
