/* sample_row.cuh: a row under its strategy, its maxima and the sums of its weights. */
#ifndef GLMD_KERNELS_CUDA_SAMPLE_ROW_CUH
#define GLMD_KERNELS_CUDA_SAMPLE_ROW_CUH

#include "kernels/cuda/sample_bins.cuh"

namespace
{

/* ---- prepare ---- */

/* Entries of one token are side by side: the first one's thread adds all of them. */
DEV_FN void add_bias(const sample_params &p, const sample_row &row, const sample_place &t,
                     dev_shared<float> x)
{
    const uint32_t *list = p.lists + row.bias.at;
    for (uint32_t i = dev_thread(); i < row.bias.n; i += SAMPLE_THREADS) {
        const uint32_t token = list[2 * i], at = token - t.first_id;
        if (at >= t.n || (i && list[2 * i - 2] == token))
            continue;
        float v = x[at];
        for (uint32_t j = i; j < row.bias.n && list[2 * j] == token; j++)
            v = v + dev_bits_float(list[2 * j + 1]);
        x[at] = v;
    }
}

DEV_FN void penalize(const sample_params &p, const sample_row &row, const sample_place &t,
                     dev_shared<float> x)
{
    const uint32_t *list = p.lists + row.penalties.at;
    for (uint32_t i = dev_thread(); i < row.penalties.n; i += SAMPLE_THREADS) {
        const uint32_t at = list[2 * i] - t.first_id;
        if (at >= t.n)
            continue;
        const float v = x[at];
        x[at] = sampling_penalize(v, row.repetition, row.frequency, row.presence, list[2 * i + 1]);
    }
}

DEV_FN bool in_ranges(const uint32_t *list, uint32_t n, uint32_t id)
{
    for (uint32_t i = 0; i < n; i++)
        if (id >= list[2 * i] && id < list[2 * i + 1])
            return true;
    return false;
}

DEV_KERNEL(SAMPLE_THREADS, 4) void sample_prepare_kernel(DEV_PARAMS(sample_params) p)
{
    DEV_SHARED(float, x, SAMPLE_TILE);
    DEV_SHARED(uint32_t, banned, SAMPLE_TILE);
    const uint32_t row_idx = dev_cta_y();
    const sample_row &row = p.rows[row_idx];
    if (row.kind == SAMPLE_NONE)
        return;
    sample_peak *peak = own_of<sample_peak>(p, SAMPLE_PEAKS, row_idx);
    const sample_place t = place_of(p, row_idx, dev_cta_x());
    const bool edits = row.bias.n || row.penalties.n;
    float v[SAMPLE_ITEMS];
    DEV_UNROLL
    for (uint32_t i = 0; i < SAMPLE_ITEMS; i++) {
        const uint32_t at = item_of(i);
        v[i] = at < t.n ? t.logits[at] : 0.0f;
        if (edits)
            x[at] = v[i];
        if (row.banned.n)
            banned[at] = 0;
    }
    if (row.bias.n) {
        dev_barrier();
        add_bias(p, row, t, x);
        dev_barrier();
        DEV_UNROLL
        for (uint32_t i = 0; i < SAMPLE_ITEMS; i++) {
            const uint32_t at = item_of(i);
            v[i] = x[at];
            if (at < t.n)
                t.logits[at] = v[i];
        }
    }
    uint32_t max_key = 0;
    DEV_UNROLL
    for (uint32_t i = 0; i < SAMPLE_ITEMS; i++) {
        const uint32_t key = item_of(i) < t.n ? sampling_key(v[i]) : 0;
        max_key = max_key < key ? key : max_key;
    }
    max_key = warp_max(max_key);
    if (dev_lane() == 0)
        dev_atomic_max(&peak->max_key, max_key);
    if (row.kind == SAMPLE_SCORE)
        return;

    if (row.penalties.n || row.banned.n)
        dev_barrier();
    if (row.penalties.n)
        penalize(p, row, t, x);
    for (uint32_t i = dev_thread(); i < row.banned.n; i += SAMPLE_THREADS) {
        const uint32_t at = p.lists[row.banned.at + i] - t.first_id;
        if (at < t.n)
            dev_shared_atomic_max(banned + at, 1);
    }
    if (row.penalties.n || row.banned.n)
        dev_barrier();
    max_key = 0;
    DEV_UNROLL
    for (uint32_t i = 0; i < SAMPLE_ITEMS; i++) {
        const uint32_t at = item_of(i);
        if (at >= t.n)
            continue;
        if (row.penalties.n)
            v[i] = x[at];
        v[i] = dev_div(v[i], row.temperature);
        if (in_ranges(p.lists + row.forbidden.at, row.forbidden.n, t.first_id + at))
            v[i] = SAMPLING_FORBIDDEN;
        if (row.banned.n) {
            const uint32_t found = banned[at];
            v[i] = found ? SAMPLING_FORBIDDEN : v[i];
        }
        t.values[at] = v[i];
        const uint32_t key = sampling_key(v[i]);
        max_key = max_key < key ? key : max_key;
    }
    max_key = warp_max(max_key);
    if (dev_lane() == 0)
        dev_atomic_max(&peak->value_max_key, max_key);
}

/* ---- weigh ---- */

DEV_KERNEL(SAMPLE_THREADS, 4) void sample_weigh_kernel(DEV_PARAMS(sample_params) p)
{
    DEV_SHARED(uint32_t, low, SAMPLING_BINS);
    DEV_SHARED(uint32_t, high, SAMPLING_BINS);
    const uint32_t row_idx = dev_cta_y();
    const sample_row &row = p.rows[row_idx];
    if (row.kind == SAMPLE_NONE)
        return;
    sample_state *state = p.states + row_idx;
    const sample_place t = place_of(p, row_idx, dev_cta_x());
    sample_mass *mass = own_of<sample_mass>(p, SAMPLE_MASSES, row_idx);
    const sample_peak peak = row_peak(p, row_idx);
    const float max = sampling_key_value(peak.max_key);
    uint64_t sum = 0;
    DEV_UNROLL
    for (uint32_t i = 0; i < SAMPLE_ITEMS; i++) {
        const uint32_t at = item_of(i);
        sum += at < t.n ? sample_weight(t.logits[at], max) : 0;
    }
    sum = warp_sum(sum);
    if (dev_lane() == 0)
        dev_atomic_add64(&mass->sum, sum);
    if (row.kind == SAMPLE_SCORE)
        return;

    const bool by_rank = row.n_best != 0;
    const bool by_mass = !by_rank && row.top_p != 0.0f;
    const bool adds = p.n_ranks > 1 && row.top_p != 0.0f && row.top_k == 0;
    if (by_rank || by_mass) {
        bins_clear(low, high);
        dev_barrier();
    }
    const uint32_t max_key = peak.value_max_key;
    const float value_max = sampling_key_value(max_key);
    uint32_t first = 0;
    sum = 0;
    DEV_UNROLL
    for (uint32_t i = 0; i < SAMPLE_ITEMS; i++) {
        const uint32_t at = item_of(i);
        if (at >= t.n)
            continue;
        const float value = t.values[at];
        const uint32_t key = sampling_key(value);
        const uint32_t place = ~(t.first_id + at);
        first = key == max_key && first < place ? place : first;
        if (by_rank)
            dev_shared_atomic_add(low + (key >> sampling_shift(0)), 1);
        if (by_mass || adds) {
            const uint64_t weight = sample_weight(value, value_max);
            sum += weight;
            if (by_mass && weight)
                bins_add(low, high, key >> sampling_shift(0), weight);
        }
    }
    first = warp_max(first);
    if (dev_lane() == 0 && first)
        dev_atomic_max(&mass->first, first);
    if (adds) {
        sum = warp_sum(sum);
        if (dev_lane() == 0)
            dev_atomic_add64(&mass->value_sum, sum);
    }
    if (by_rank || by_mass) {
        dev_barrier();
        bins_flush(low, high, state->bins[by_rank ? SAMPLE_BY_RANK : SAMPLE_BY_MASS][0]);
    }
}

} // namespace

#endif
