/* sample_draw.cuh: the token of a row, and the best ones beside it. */
#ifndef GLMD_KERNELS_CUDA_SAMPLE_DRAW_CUH
#define GLMD_KERNELS_CUDA_SAMPLE_DRAW_CUH

#include "kernels/cuda/sample_cut.cuh"

namespace
{

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

/* ---- choose ---- */

/* How many of `n_equal`, of which `before` are in front of them, the cut leaves. */
DEV_FN uint64_t equal_left(const sample_state *state, uint64_t before, uint64_t n_equal)
{
    const uint64_t most = state->n_equal;
    const uint64_t left = before < most ? most - before : 0;
    return n_equal < left ? n_equal : left;
}

/* In front of a part of a row, of what the cut leaves. */
struct sample_before {
    uint64_t weight, n_equal;
};

/* The weight of a row; when `target` is below it, the rank whose part holds it, and what is in
 * front of that. */
DEV_FN uint64_t over_ranks(const sample_params &p, const sample_state *state, uint32_t row_idx,
                           uint64_t target, uint32_t *ret_rank, sample_before *ret_before)
{
    sample_before at = {0, 0};
    for (uint32_t r = 0; r < p.n_ranks; r++) {
        const sample_share &share = *told_of<sample_share>(p, SAMPLE_SHARES, r, row_idx);
        const uint64_t own =
            share.sum + equal_left(state, at.n_equal, share.n_equal) * state->edge_weight;
        if (at.weight <= target && at.weight + own > target) {
            *ret_rank = r;
            *ret_before = at;
        }
        at.weight += own;
        at.n_equal += share.n_equal;
    }
    return at.weight;
}

/* The tile of this rank that holds `target`: found[0], with what is in front of it, found[1] weight
 * and found[2] equal keys. */
DEV_FN void over_tiles(const sample_params &p, const sample_share *tiles, const sample_state *state,
                       uint64_t target, sample_before at, dev_shared<uint64_t> totals,
                       dev_shared<uint64_t> found)
{
    if (dev_thread() == 0)
        found[0] = 0; /* sums of ranks that have failed may lead to none */
    for (uint32_t first = 0; first < p.n_tiles; first += SAMPLE_THREADS) {
        const uint32_t i = first + dev_thread();
        sample_share tile = {0, 0};
        if (i < p.n_tiles)
            tile = tiles[i];
        uint64_t total;
        const uint64_t equal_before = at.n_equal + scan_before(totals, tile.n_equal, &total);
        at.n_equal += total;
        const uint64_t own =
            tile.sum + equal_left(state, equal_before, tile.n_equal) * state->edge_weight;
        const uint64_t before = at.weight + scan_before(totals, own, &total);
        at.weight += total;
        if (before <= target && before + own > target) {
            found[0] = i;
            found[1] = before;
            found[2] = equal_before;
        }
    }
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
    const float max = row_max(p, row_idx);
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

/* The best of n entries, entry(i), in the first lanes: the i-th in lane i. */
template <class ENTRY>
DEV_FN uint64_t best_of(uint32_t n, uint32_t n_top, const ENTRY &entry, dev_shared<uint64_t> all)
{
    uint64_t kept = 0;
    for (uint32_t first = 0; first < n; first += SAMPLE_THREADS * (SAMPLE_ITEMS - 1)) {
        uint64_t v[SAMPLE_ITEMS];
        v[SAMPLE_ITEMS - 1] = kept;
        DEV_UNROLL
        for (uint32_t i = 0; i < SAMPLE_ITEMS - 1; i++) {
            const uint32_t at = first + item_of(i);
            v[i] = at < n ? entry(at) : 0;
        }
        kept = warp_tops(v, n_top);
    }
    return cta_tops(kept, n_top, all);
}

/* A row's best tokens of `rank`, behind the choices. */
DEV_FN const sample_top *tops_told(const sample_params &p, uint32_t rank, uint32_t row)
{
    const sample_choice *choices = told_of<sample_choice>(p, SAMPLE_CHOICES, rank, 0);
    return (const sample_top *)(choices + p.n_rows) + (size_t)row * K_SAMPLE_MAX_TOP;
}

/* This rank's best tokens, from those of its tiles. */
DEV_FN void choose_tops(const sample_params &p, uint32_t row_idx, uint32_t n_top,
                        dev_shared<uint64_t> all)
{
    const uint64_t *entries = p.tops + (size_t)row_idx * p.n_tiles * K_SAMPLE_MAX_TOP;
    const uint64_t kept = best_of(
        p.n_tiles * K_SAMPLE_MAX_TOP, n_top, [entries](uint32_t i) { return entries[i]; }, all);
    if (dev_thread() >= n_top)
        return;
    sample_choice *choices = own_of<sample_choice>(p, SAMPLE_CHOICES, 0);
    sample_top *to = (sample_top *)(choices + p.n_rows) + (size_t)row_idx * K_SAMPLE_MAX_TOP;
    to[dev_thread()].entry = kept;
    to[dev_thread()].logit = kept ? *sample_logits(p, row_idx, ~(uint32_t)kept) : 0.0f;
}

/* ---- results ---- */

DEV_FN void finish_tops(const sample_params &p, uint32_t row_idx, uint32_t n_top, double log_sum,
                        dev_shared<uint64_t> all)
{
    const auto at = [&p, row_idx](uint32_t i) {
        return tops_told(p, i / K_SAMPLE_MAX_TOP, row_idx) + i % K_SAMPLE_MAX_TOP;
    };
    const uint32_t n = p.n_ranks * K_SAMPLE_MAX_TOP;
    const uint64_t kept = best_of(
        n, n_top, [at](uint32_t i) { return at(i)->entry; }, all);
    if (dev_thread() >= n_top)
        return;
    float logit = 0.0f;
    for (uint32_t i = 0; i < n; i++)
        logit = at(i)->entry == kept ? at(i)->logit : logit;
    k_sample_token *to = p.results[row_idx].top + dev_thread();
    to->token = (int32_t) ~(uint32_t)kept;
    to->logprob = sampling_logprob(logit, log_sum);
}

/* From what all ranks have told. */
DEV_FN void finish_row(const sample_params &p, uint32_t row_idx, dev_shared<uint64_t> all)
{
    const double log_sum = sampling_log_sum(sampling_key_value(row_peak(p, row_idx).max_key),
                                            row_mass(p, row_idx).sum);
    if (dev_thread() == 0) {
        k_sample_token chosen = {-1, 0.0f};
        for (uint32_t r = 0; r < p.n_ranks; r++) {
            const sample_choice &c = *told_of<sample_choice>(p, SAMPLE_CHOICES, r, row_idx);
            if (c.token && !c.wide)
                chosen = {(int32_t)(c.token - 1), sampling_logprob(c.logit, log_sum)};
        }
        p.results[row_idx].chosen = chosen;
    }
    const uint32_t n_top = p.rows[row_idx].n_top;
    if (n_top)
        finish_tops(p, row_idx, n_top, log_sum, all);
}

/* The token of a row where it is this rank's; a rank alone goes on to the result. */
DEV_KERNEL(SAMPLE_THREADS, 4) void sample_choose_kernel(DEV_PARAMS(sample_params) p)
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
    if (dev_thread() == 0)
        token[0] = row.kind == SAMPLE_SCORE ? (uint32_t)row.target : ~row_mass(p, row_idx).first;
    if (row.kind == SAMPLE_DRAW && !state->wide) {
        uint32_t rank = p.rank;
        sample_before before = {0, 0};
        const uint64_t sum = over_ranks(p, state, row_idx, ~(uint64_t)0, &rank, &before);
        if (sum) { /* else a row without order: the first maximum */
            struct philox counter = {
                {row.counter[0], row.counter[1], row.counter[2], row.counter[3]}};
            const uint64_t target = sampling_target(philox4x32(row.seed, counter), sum);
            over_ranks(p, state, row_idx, target, &rank, &before);
            dev_barrier();
            if (dev_thread() == 0)
                token[0] = ~0u;
            if (rank == p.rank) {
                over_tiles(p, p.tiles + (size_t)row_idx * p.n_tiles, state, target, before, totals,
                           found);
                over_items(p, row, state, row_idx, target, totals, found, token);
            }
        }
    }
    dev_barrier();
    if (dev_thread() == 0) {
        sample_choice *to = own_of<sample_choice>(p, SAMPLE_CHOICES, row_idx);
        const uint32_t id = token[0];
        to->wide = state->wide;
        if (id - p.first_id < p.n_ids) {
            to->token = id + 1;
            to->logit = *sample_logits(p, row_idx, id);
        }
    }
    if (row.n_top)
        choose_tops(p, row_idx, row.n_top, all);
    if (p.n_ranks > 1)
        return;
    dev_barrier();
    finish_row(p, row_idx, all);
}

DEV_KERNEL(SAMPLE_THREADS, 4) void sample_finish_kernel(DEV_PARAMS(sample_params) p)
{
    DEV_SHARED(uint64_t, all, SAMPLE_THREADS);
    if (p.rows[dev_cta_x()].kind != SAMPLE_NONE)
        finish_row(p, dev_cta_x(), all);
}

} // namespace

#endif
