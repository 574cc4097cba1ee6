/* sample.cuh: the kernels of sampling on the device. Rules and arithmetic: kernels/sampling.h; all
 * that CTAs add up are integers, so that neither their number nor their order can be seen in a
 * result. Included by sample.cu and by tests.
 *
 *            grid            reads           makes
 *   prepare  tiles, rows     logits          bias in place; values = logits under the strategy;
 *                                            both maxima
 *   weigh    tiles, rows     both            sum of weights, first maximum, bins of digit 0
 *   select   tiles, rows     values          bins of the next digit, for the rank (top-k), then for
 *                                            the mass (top-p)
 *   sums     tiles, rows     values          the edge of the last cut; what every tile has behind
 * it tops     tiles, rows     logits          best tokens of every tile draw     rows tiles the
 * tile, then the token; log-probabilities
 *
 * A CTA is a tile of a row: 2048 logits, of one part of it. Tiles are in the order of the ids. What
 * a kernel leaves (state, bins), the next one reads: nothing waits for another CTA. The bins of a
 * digit are searched by every CTA of the kernel that follows, which costs less than a launch
 * between them.
 */
#ifndef GLMD_KERNELS_CUDA_SAMPLE_CUH
#define GLMD_KERNELS_CUDA_SAMPLE_CUH

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
    uint32_t first_id; /* of the tile */
    uint32_t n;        /* of its logits */
    float *logits, *values;
};

DEV_FN float *sample_logits(const sample_params &p, uint32_t row, uint32_t id)
{
    const uint32_t part = id / p.cols;
    return p.logits + ((size_t)part * p.part_rows + row) * p.cols + (id - part * p.cols);
}

DEV_FN sample_place place_of(const sample_params &p, uint32_t row, uint32_t tile)
{
    const uint32_t part = tile / p.part_tiles;
    const uint32_t first = (tile - part * p.part_tiles) * SAMPLE_TILE;
    sample_place t;
    t.first_id = part * p.cols + first;
    t.n = p.cols - first < SAMPLE_TILE ? p.cols - first : (uint32_t)SAMPLE_TILE;
    t.logits = sample_logits(p, row, t.first_id);
    t.values = p.values + (size_t)row * p.vocab + t.first_id;
    return t;
}

/* Item i of a thread within its tile: neighbours are neighbours in memory. */
DEV_FN uint32_t item_of(uint32_t i)
{
    return i * SAMPLE_THREADS + dev_thread();
}

/* ---- sums within a CTA ---- */

DEV_FN uint64_t warp_sum(uint64_t v)
{
    DEV_UNROLL
    for (unsigned d = DEV_WARP / 2; d; d /= 2)
        v += dev_shfl_xor(v, d);
    return v;
}

DEV_FN uint32_t warp_max(uint32_t v)
{
    DEV_UNROLL
    for (unsigned d = DEV_WARP / 2; d; d /= 2) {
        const uint32_t other = dev_shfl_xor(v, d);
        v = v < other ? other : v;
    }
    return v;
}

DEV_FN uint64_t warp_max(uint64_t v)
{
    DEV_UNROLL
    for (unsigned d = DEV_WARP / 2; d; d /= 2) {
        const uint64_t other = dev_shfl_xor(v, d);
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

/* ---- bins ---- */

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
DEV_FN sample_edge descend(const uint64_t *bins, int digit, sample_edge e, float top_p,
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
    sample_edge e = {0, 1, 0, selection == SAMPLE_BY_RANK ? row.top_k - 1 : (uint64_t)0};
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
    sample_state *state = p.states + row_idx;
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
        dev_atomic_max(&state->max_key, max_key);
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
        dev_atomic_max(&state->value_max_key, max_key);
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
    const float max = sampling_key_value(state->max_key);
    uint64_t sum = 0;
    DEV_UNROLL
    for (uint32_t i = 0; i < SAMPLE_ITEMS; i++) {
        const uint32_t at = item_of(i);
        sum += at < t.n ? sample_weight(t.logits[at], max) : 0;
    }
    sum = warp_sum(sum);
    if (dev_lane() == 0)
        dev_atomic_add64(&state->sum, sum);
    if (row.kind == SAMPLE_SCORE)
        return;

    const bool by_rank = row.top_k != 0;
    const bool by_mass = !by_rank && row.top_p != 0.0f;
    if (by_rank || by_mass) {
        bins_clear(low, high);
        dev_barrier();
    }
    const uint32_t max_key = state->value_max_key;
    const float value_max = sampling_key_value(max_key);
    uint32_t first = 0;
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
        if (by_mass) {
            const uint64_t weight = sample_weight(value, value_max);
            if (weight)
                bins_add(low, high, key >> sampling_shift(0), weight);
        }
    }
    first = warp_max(first);
    if (dev_lane() == 0 && first)
        dev_atomic_max(&state->first, first);
    if (by_rank || by_mass) {
        dev_barrier();
        bins_flush(low, high, state->bins[by_rank ? SAMPLE_BY_RANK : SAMPLE_BY_MASS][0]);
    }
}

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
    if (SELECTION == SAMPLE_BY_RANK || first_mass ? row.top_k == 0 : row.top_p == 0.0f)
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
    const float max = sampling_key_value(state->value_max_key);
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

DEV_KERNEL(SAMPLE_THREADS, 4) void sample_sums_kernel(DEV_PARAMS(sample_params) p)
{
    DEV_SHARED(uint64_t, totals, SAMPLE_WARPS);
    DEV_SHARED(uint64_t, picked, 2);
    const uint32_t row_idx = dev_cta_y();
    const sample_row &row = p.rows[row_idx];
    if (row.kind != SAMPLE_DRAW)
        return;
    sample_state *state = p.states + row_idx;
    const sample_place t = place_of(p, row_idx, dev_cta_x());
    const float max = sampling_key_value(state->value_max_key);
    const sample_cut cut = last_cut(row, state, max, totals, picked);
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
    sample_tile tile;
    scan_before(totals, sum, &tile.sum);
    scan_before(totals, n_equal, &tile.n_equal);
    if (dev_thread() == 0)
        p.tiles[(size_t)row_idx * p.n_tiles + dev_cta_x()] = tile;
    if (dev_thread() == 0 && dev_cta_x() == 0) {
        state->edge_key = cut.key;
        state->n_equal = cut.n_equal;
        state->edge_weight = cut.edge_weight;
    }
}

/* ---- tops ---- */

/* Best first: the larger key, then the lower id. Never 0. */
DEV_FN uint64_t top_entry(uint32_t key, uint32_t id)
{
    return (uint64_t)key << 32 | (uint32_t)~id;
}

/* The `n` best of the warp's entries, the i-th in lane i; all of them different, or 0. */
template <int N> DEV_FN uint64_t warp_tops(uint64_t (&v)[N], uint32_t n)
{
    uint64_t kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t best = 0;
        DEV_UNROLL
        for (int j = 0; j < N; j++)
            best = best < v[j] ? v[j] : best;
        best = warp_max(best);
        DEV_UNROLL
        for (int j = 0; j < N; j++)
            v[j] = v[j] == best ? 0 : v[j];
        kept = dev_lane() == i ? best : kept;
    }
    return kept;
}

/* The best of all warps' in the first one's lanes, from `kept` of each; `all`: room for them. */
DEV_FN uint64_t cta_tops(uint64_t kept, uint32_t n, dev_shared<uint64_t> all)
{
    all[dev_thread()] = kept;
    dev_barrier();
    if (dev_warp() != 0)
        return 0;
    uint64_t v[SAMPLE_WARPS];
    DEV_UNROLL
    for (int j = 0; j < SAMPLE_WARPS; j++)
        v[j] = all[j * DEV_WARP + dev_lane()];
    return warp_tops(v, n);
}

DEV_KERNEL(SAMPLE_THREADS, 4) void sample_tops_kernel(DEV_PARAMS(sample_params) p)
{
    DEV_SHARED(uint64_t, all, SAMPLE_THREADS);
    const uint32_t row_idx = dev_cta_y();
    const uint32_t n_top = p.rows[row_idx].n_top;
    if (n_top == 0)
        return;
    const sample_place t = place_of(p, row_idx, dev_cta_x());
    uint64_t v[SAMPLE_ITEMS];
    DEV_UNROLL
    for (uint32_t i = 0; i < SAMPLE_ITEMS; i++) {
        const uint32_t at = item_of(i);
        v[i] = at < t.n ? top_entry(sampling_key(t.logits[at]), t.first_id + at) : 0;
    }
    const uint64_t kept = cta_tops(warp_tops(v, n_top), n_top, all);
    if (dev_thread() < K_SAMPLE_MAX_TOP)
        p.tops[((size_t)row_idx * p.n_tiles + dev_cta_x()) * K_SAMPLE_MAX_TOP + dev_thread()] =
            kept;
}

/* ---- draw ---- */

/* How many of `n_equal`, of which `before` are in front of them, the cut leaves. */
DEV_FN uint64_t equal_left(const sample_state *state, uint64_t before, uint64_t n_equal)
{
    const uint64_t most = state->n_equal;
    const uint64_t left = before < most ? most - before : 0;
    return n_equal < left ? n_equal : left;
}

/* Goes over the tiles' weights; total of them, and, when `target` is below it, the tile (found[0])
 * with what is in front of it (found[1] weight, found[2] equal keys). */
DEV_FN uint64_t over_tiles(const sample_params &p, const sample_tile *tiles,
                           const sample_state *state, uint64_t target, dev_shared<uint64_t> totals,
                           dev_shared<uint64_t> found)
{
    uint64_t weight = 0, n_equal = 0; /* of the tiles so far */
    for (uint32_t first = 0; first < p.n_tiles; first += SAMPLE_THREADS) {
        const uint32_t i = first + dev_thread();
        sample_tile tile = {0, 0};
        if (i < p.n_tiles)
            tile = tiles[i];
        uint64_t total;
        const uint64_t equal_before = n_equal + scan_before(totals, tile.n_equal, &total);
        n_equal += total;
        const uint64_t own =
            tile.sum + equal_left(state, equal_before, tile.n_equal) * state->edge_weight;
        const uint64_t before = weight + scan_before(totals, own, &total);
        weight += total;
        if (before <= target && before + own > target) {
            found[0] = i;
            found[1] = before;
            found[2] = equal_before;
        }
    }
    return weight;
}

/* The token within the tile that over_tiles has found. */
DEV_FN void over_items(const sample_params &p, const sample_row &row, const sample_state *state,
                       uint32_t row_idx, uint64_t target, dev_shared<uint64_t> totals,
                       dev_shared<uint64_t> found, dev_shared<uint32_t> token)
{
    dev_barrier();
    const uint64_t tile = found[0];
    uint64_t weight = found[1], n_equal = found[2];
    const sample_place t = place_of(p, row_idx, (uint32_t)tile);
    const float max = sampling_key_value(state->value_max_key);
    for (uint32_t i = 0; i < SAMPLE_ITEMS; i++) {
        const uint32_t at = item_of(i);
        const float value = at < t.n ? t.values[at] : 0.0f;
        const uint32_t key = at < t.n ? sampling_key(value) : 0;
        const uint64_t equal = at < t.n && key == state->edge_key;
        uint64_t total;
        const uint64_t equal_before = n_equal + scan_before(totals, equal, &total);
        n_equal += total;
        uint64_t own = equal_left(state, equal_before, equal) * state->edge_weight;
        if (at < t.n && key > state->edge_key)
            own = kept_weight(sample_weight(value, max), row);
        const uint64_t before = weight + scan_before(totals, own, &total);
        weight += total;
        if (before <= target && before + own > target)
            token[0] = t.first_id + at;
    }
    dev_barrier();
}

/* The best tokens of the row, from those of its tiles. */
DEV_FN void write_tops(const sample_params &p, uint32_t row_idx, uint32_t n_top, double log_sum,
                       dev_shared<uint64_t> all)
{
    const uint64_t *entries = p.tops + (size_t)row_idx * p.n_tiles * K_SAMPLE_MAX_TOP;
    const uint32_t n = p.n_tiles * K_SAMPLE_MAX_TOP;
    uint64_t kept = 0;
    for (uint32_t first = 0; first < n; first += SAMPLE_THREADS * (SAMPLE_ITEMS - 1)) {
        uint64_t v[SAMPLE_ITEMS];
        v[SAMPLE_ITEMS - 1] = kept;
        DEV_UNROLL
        for (uint32_t i = 0; i < SAMPLE_ITEMS - 1; i++) {
            const uint32_t at = first + item_of(i);
            v[i] = at < n ? entries[at] : 0;
        }
        kept = warp_tops(v, n_top);
    }
    kept = cta_tops(kept, n_top, all);
    if (dev_thread() >= n_top)
        return;
    const uint32_t id = ~(uint32_t)kept;
    k_sample_token *to = p.results[row_idx].top + dev_thread();
    to->token = (int32_t)id;
    to->logprob = sampling_logprob(*sample_logits(p, row_idx, id), log_sum);
}

DEV_KERNEL(SAMPLE_THREADS, 4) void sample_draw_kernel(DEV_PARAMS(sample_params) p)
{
    DEV_SHARED(uint64_t, totals, SAMPLE_WARPS);
    DEV_SHARED(uint64_t, found, 3);
    DEV_SHARED(uint64_t, all, SAMPLE_THREADS);
    DEV_SHARED(uint32_t, token, 1);
    const uint32_t row_idx = dev_cta_x();
    const sample_row &row = p.rows[row_idx];
    if (row.kind == SAMPLE_NONE)
        return;
    const sample_state *state = p.states + row_idx;
    const double log_sum = sampling_log_sum(sampling_key_value(state->max_key), state->sum);
    if (dev_thread() == 0)
        token[0] = row.kind == SAMPLE_SCORE ? (uint32_t)row.target : ~state->first;
    if (row.kind == SAMPLE_DRAW) {
        const sample_tile *tiles = p.tiles + (size_t)row_idx * p.n_tiles;
        const uint64_t sum = over_tiles(p, tiles, state, ~(uint64_t)0, totals, found);
        if (sum) { /* else a row without order: the first maximum */
            struct philox counter = {
                {row.counter[0], row.counter[1], row.counter[2], row.counter[3]}};
            const uint64_t target = sampling_target(philox4x32(row.seed, counter), sum);
            over_tiles(p, tiles, state, target, totals, found);
            over_items(p, row, state, row_idx, target, totals, found, token);
        }
    }
    dev_barrier();
    if (dev_thread() == 0) {
        const uint32_t id = token[0];
        k_sample_token *to = &p.results[row_idx].chosen;
        to->token = (int32_t)id;
        to->logprob = sampling_logprob(*sample_logits(p, row_idx, id), log_sum);
    }
    if (row.n_top)
        write_tops(p, row_idx, row.n_top, log_sum, all);
}

} // namespace

#endif
