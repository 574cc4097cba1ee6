/* sums.cu: see sums.h. */
#include "kernels/cuda/sums.h"

#include <cassert>

#include "kernels/cuda/dev_clock.h"
#include "kernels/cuda/norm.cuh"

namespace
{

enum { PARTS_THREADS = 256, SPINS_BETWEEN_LOOKS = 64, PREFETCH_BYTES = 128 };

#ifdef __CUDACC__
const uint32_t spins_cap = ~0u;
#else
const uint32_t spins_cap = 4096; /* all fibers have had their turn so often */
#endif

/* ---- times ---- */

/* One thread of the device at a time: sums come one behind the other. */
DEV_FN void count_one(sums_control *control, sums_signals *signals, uint32_t kind, uint32_t began)
{
    const uint64_t n = control->times.n[kind] + 1;
    const uint64_t ticks = control->times.ticks[kind] + (uint32_t)(dev_ticks() - began);
    control->times.n[kind] = n;
    control->times.ticks[kind] = ticks;
    *(volatile uint64_t *)&signals->times.n[kind] = n; /* the host looks at it now and then */
    *(volatile uint64_t *)&signals->times.ticks[kind] = ticks;
}

struct mark_params {
    struct sums_control *control;
    struct sums_signals *signals;
    uint32_t kind, ends;
};

DEV_KERNEL(DEV_WARP, 1) void mark_kernel(DEV_PARAMS(mark_params) p)
{
    if (dev_thread())
        return;
    if (p.ends)
        count_one(p.control, p.signals, p.kind, p.control->began);
    else
        p.control->began = dev_ticks();
}

/* ---- parts ---- */

DEV_KERNEL(PARTS_THREADS, 2) void parts_kernel(DEV_PARAMS(sums_parts) p)
{
    const size_t i = ((size_t)dev_cta_x() * PARTS_THREADS + dev_thread()) * SUMS_PIECE;
    if (i == 0) { /* the transfer in front of this kernel has ended */
        uint32_t number = p.control->number + 1;
        p.control->number = number;
        if (p.ends)
            count_one(p.control, p.signals, SUMS_SUM, p.control->began);
        dev_store_release(&p.signals->number, number);
    }
    if (i >= p.n)
        return;
    float sum[SUMS_PIECE];
    norm_unpack(sum, dev_load16(p.rank == 0 ? p.x + i : p.parts + i));
    for (uint32_t r = 1; r < p.size; r++) {
        float v[SUMS_PIECE];
        norm_unpack(v, dev_load16(r == p.rank ? p.x + i : p.parts + r * p.stride + i));
        DEV_UNROLL
        for (int j = 0; j < SUMS_PIECE; j++)
            sum[j] += v[j];
    }
    dev_store16(p.x + i, norm_pack(sum));
}

/* ---- peers ---- */

struct peers_params {
    struct norm_params norm; /* x: what is summed, in place; y NULL: no norm */
    struct sums_mailboxes m;
    uint32_t n_rows;
    uint32_t n_ctas; /* that add up; those behind them prefetch */
};

/* Whether the flag has come. */
DEV_FN bool wait_for_flag(const sums_mailboxes &m, const uint32_t *flag, uint32_t number)
{
    for (uint32_t spins = 1;; spins++) {
        if (dev_load_acquire(flag) == number)
            return true;
        bool look = spins % SPINS_BETWEEN_LOOKS == 0;
        if (spins >= m.max_spins ||
            (look && (dev_load_acquire(&m.control->failed) || dev_load_acquire(&m.signals->stop))))
            break;
        dev_spin();
    }
    dev_store_release(&m.control->failed, 1);
    dev_store_release(&m.signals->failed, 1);
    return false;
}

/* What the next product reads first comes into the L2 cache while the sum waits for its peers. */
DEV_FN void prefetch_next(const peers_params &p)
{
    const uint32_t n_ctas = dev_grid_x() - p.n_ctas, cta = dev_cta_x() - p.n_ctas;
    for (size_t at = ((size_t)cta * NORM_THREADS + dev_thread()) * PREFETCH_BYTES;
         at < p.m.next_bytes; at += (size_t)n_ctas * NORM_THREADS * PREFETCH_BYTES)
        dev_prefetch_l2(p.m.next + at);
}

/* Rows [cta, n_rows) of x, its first n elements, in steps of n_ctas, to all mailboxes. */
DEV_FN void send_rows(const sums_mailboxes &m, const uint16_t *x, uint32_t n_rows, size_t n,
                      uint32_t n_ctas, uint32_t number, size_t parity)
{
    for (uint32_t row = dev_cta_x(); row < n_rows; row += n_ctas)
        for (uint32_t col = dev_thread() * NORM_PIECE; col < m.cols;
             col += NORM_THREADS * NORM_PIECE) {
            const size_t at = (size_t)row * m.cols + col;
            if (at >= n)
                break;
            uint4 v = dev_load16(x + at);
            for (uint32_t t = 0; t < m.n_targets; t++)
                dev_store16(m.target[t] + parity * m.size * m.row_cap * m.cols + at, v);
        }
    dev_fence_system();
    dev_barrier();
    for (uint32_t row = dev_cta_x(); row < n_rows; row += n_ctas)
        if (dev_thread() < m.n_targets)
            dev_store_release(m.target_flags[dev_thread()] + parity * m.size * m.row_cap + row,
                              number);
}

DEV_FN uint4 load_part(const peers_params &p, uint32_t rank, size_t own, size_t there)
{
    return rank == p.m.rank ? dev_load16(p.norm.x + own)
                            : dev_load16_system(p.m.source[rank] + there);
}

/* A row, summed and rounded, in registers. */
template <int ITEMS>
DEV_INLINE void add_row(const peers_params &p, uint32_t row, size_t parity,
                        float (&x)[ITEMS][NORM_PIECE])
{
    const sums_mailboxes &m = p.m;
    const size_t own = (size_t)row * m.cols;
    const size_t there = parity * m.size * m.row_cap * m.cols + own;
    DEV_UNROLL
    for (int i = 0; i < ITEMS; i++) {
        const uint32_t col = norm_col(i);
        if (col >= m.cols)
            continue;
        norm_unpack(x[i], load_part(p, 0, own + col, there + col));
        for (uint32_t r = 1; r < m.size; r++) {
            float v[NORM_PIECE];
            norm_unpack(v, load_part(p, r, own + col, there + col));
            DEV_UNROLL
            for (int j = 0; j < NORM_PIECE; j++)
                x[i][j] += v[j];
        }
        uint4 rounded = norm_pack(x[i]);
        norm_unpack(x[i], rounded);
        if (!p.norm.y)
            dev_store16(p.norm.residual + own + col, rounded);
    }
}

/* Whether all flags of a row that this CTA waits for have come: `waits`, this thread for the one of
 * rank `from`. The same in all threads. */
DEV_FN bool have_come(const sums_mailboxes &m, bool waits, uint32_t from, size_t flag,
                      uint32_t number, dev_shared<uint32_t> failed)
{
    if (waits && !wait_for_flag(m, m.source_flags[from] + flag, number))
        dev_shared_atomic_max(failed, 1);
    dev_barrier();
    const uint32_t give_up = failed[0];
    dev_barrier(); /* all have seen the same before the next row's waits */
    return !give_up;
}

/* The last CTA ends the sum. All of them began at about the same time: `began` is its own. */
DEV_FN void end_sum(const sums_mailboxes &m, uint32_t n_ctas, uint32_t number, uint32_t kind,
                    dev_shared<uint32_t> began)
{
    if (dev_thread() == 0 && dev_atomic_add(&m.control->n_ended, 1) + 1 == n_ctas) {
        m.control->n_ended = 0;
        const uint32_t ticks = began[0];
        count_one(m.control, m.signals, kind, ticks);
        dev_store_release(&m.control->number, number);
        dev_store_release(&m.signals->number, number);
    }
}

template <int ITEMS> DEV_KERNEL(NORM_THREADS, 1) void peers_kernel(DEV_PARAMS(peers_params) p)
{
    DEV_SHARED(float, parts, 2 * NORM_WARPS);
    DEV_SHARED(uint32_t, failed, 1);
    DEV_SHARED(uint32_t, began, 1);
    const sums_mailboxes &m = p.m;
    if (dev_cta_x() >= p.n_ctas) {
        prefetch_next(p);
        return; /* the whole CTA */
    }
    const uint32_t number = dev_load_acquire(&m.control->number) + 1;
    const size_t parity = number & 1;
    if (dev_thread() == 0) {
        failed[0] = 0;
        began[0] = dev_ticks();
    }
    send_rows(m, p.norm.x, p.n_rows, (size_t)p.n_rows * m.cols, p.n_ctas, number, parity);
    for (uint32_t row = dev_cta_x(); row < p.n_rows; row += p.n_ctas) {
        const uint32_t from = dev_thread();
        if (!have_come(m, from < m.size && from != m.rank, from, parity * m.size * m.row_cap + row,
                       number, failed + 0))
            break;
        float x[ITEMS][NORM_PIECE];
        add_row<ITEMS>(p, row, parity, x);
        if (p.norm.y)
            norm_row<ITEMS>(p.norm, (size_t)row * m.cols, x, parts);
    }
    end_sum(m, p.n_ctas, number, SUMS_SUM, began + 0);
}

/* ---- two shots: a row is added up by one rank, which sends the sum to the others ---- */

DEV_FN uint32_t owner_of(const peers_params &p, uint32_t row)
{
    return row % p.m.size;
}

/* Where in the targets the mailbox of `rank` is: there is one for every other rank, or one for all.
 */
DEV_FN uint32_t target_of(const sums_mailboxes &m, uint32_t rank)
{
    return m.n_targets == 1 ? 0 : rank < m.rank ? rank : rank - 1;
}

/* This rank's rows to those who add them up. */
DEV_FN void send_to_owners(const peers_params &p, uint32_t number, size_t parity)
{
    const sums_mailboxes &m = p.m;
    for (uint32_t row = dev_cta_x(); row < p.n_rows; row += p.n_ctas) {
        if (owner_of(p, row) == m.rank)
            continue;
        uint16_t *to = m.target[target_of(m, owner_of(p, row))] +
                       parity * m.size * m.row_cap * m.cols + (size_t)row * m.cols;
        for (uint32_t col = dev_thread() * NORM_PIECE; col < m.cols;
             col += NORM_THREADS * NORM_PIECE)
            dev_store16(to + col, dev_load16(p.norm.x + (size_t)row * m.cols + col));
    }
    dev_fence_system();
    dev_barrier();
    for (uint32_t row = dev_cta_x(); row < p.n_rows; row += p.n_ctas)
        if (dev_thread() == 0 && owner_of(p, row) != m.rank)
            dev_store_release(m.target_flags[target_of(m, owner_of(p, row))] +
                                  parity * m.size * m.row_cap + row,
                              number);
}

/* A sum from the registers of its owner to all others. */
template <int ITEMS>
DEV_INLINE void send_sum(const peers_params &p, uint32_t row, uint32_t number, size_t parity,
                         const float (&x)[ITEMS][NORM_PIECE])
{
    const sums_mailboxes &m = p.m;
    DEV_UNROLL
    for (int i = 0; i < ITEMS; i++) {
        const uint32_t col = norm_col(i);
        if (col >= m.cols)
            continue;
        const uint4 v = norm_pack(x[i]);
        for (uint32_t t = 0; t < m.n_targets; t++)
            dev_store16(
                m.target[t] + parity * m.size * m.row_cap * m.cols + (size_t)row * m.cols + col, v);
    }
    dev_fence_system();
    dev_barrier();
    if (dev_thread() < m.n_targets)
        dev_store_release(m.target_flags[dev_thread()] + parity * m.size * m.row_cap + row, number);
}

/* A sum that its owner has sent, into registers, and to where it belongs. */
template <int ITEMS>
DEV_INLINE void take_sum(const peers_params &p, uint32_t row, size_t parity,
                         float (&x)[ITEMS][NORM_PIECE])
{
    const sums_mailboxes &m = p.m;
    const uint16_t *from =
        m.source[owner_of(p, row)] + parity * m.size * m.row_cap * m.cols + (size_t)row * m.cols;
    DEV_UNROLL
    for (int i = 0; i < ITEMS; i++) {
        const uint32_t col = norm_col(i);
        if (col >= m.cols)
            continue;
        const uint4 v = dev_load16_system(from + col);
        norm_unpack(x[i], v);
        if (!p.norm.y)
            dev_store16(p.norm.residual + (size_t)row * m.cols + col, v);
    }
}

/* First the rows that this rank adds up, which need what all ranks have sent without waiting; then
 * those of the others: nobody waits for one who waits for him. */
template <int ITEMS> DEV_KERNEL(NORM_THREADS, 1) void peers_twice_kernel(DEV_PARAMS(peers_params) p)
{
    DEV_SHARED(float, parts, 2 * NORM_WARPS);
    DEV_SHARED(uint32_t, failed, 1);
    DEV_SHARED(uint32_t, began, 1);
    const sums_mailboxes &m = p.m;
    const uint32_t number = dev_load_acquire(&m.control->number) + 1;
    const size_t parity = number & 1, flags = parity * m.size * m.row_cap;
    const uint32_t thread = dev_thread();
    if (thread == 0) {
        failed[0] = 0;
        began[0] = dev_ticks();
    }
    send_to_owners(p, number, parity);
    bool go = true;
    for (int own = 1; own >= 0; own--)
        for (uint32_t row = dev_cta_x(); go && row < p.n_rows; row += p.n_ctas) {
            const uint32_t owner = owner_of(p, row);
            if ((owner == m.rank) != (own == 1))
                continue;
            const bool waits = own ? thread < m.size && thread != m.rank : thread == 0;
            go = have_come(m, waits, own ? thread : owner, flags + row, number, failed + 0);
            if (!go)
                break;
            float x[ITEMS][NORM_PIECE];
            if (own) {
                add_row<ITEMS>(p, row, parity, x);
                send_sum<ITEMS>(p, row, number, parity, x);
            } else {
                take_sum<ITEMS>(p, row, parity, x);
            }
            if (p.norm.y)
                norm_row<ITEMS>(p.norm, (size_t)row * m.cols, x, parts);
        }
    end_sum(m, p.n_ctas, number, SUMS_SUM, began + 0);
}

/* ---- what all ranks have, one behind the other ---- */

struct gather_params {
    struct sums_gather g;
    struct sums_mailboxes m;
    uint32_t n_rows; /* of a mailbox, the last one maybe not whole */
};

DEV_KERNEL(NORM_THREADS, 1) void gather_peers_kernel(DEV_PARAMS(gather_params) p)
{
    DEV_SHARED(uint32_t, failed, 1);
    DEV_SHARED(uint32_t, began, 1);
    const sums_mailboxes &m = p.m;
    const sums_gather &g = p.g;
    const uint32_t number = dev_load_acquire(&m.control->number) + 1;
    const size_t parity = number & 1;
    if (dev_thread() == 0) {
        failed[0] = 0;
        began[0] = dev_ticks();
    }
    send_rows(m, g.own, p.n_rows, g.n, dev_grid_x(), number, parity);
    for (uint32_t row = dev_cta_x(); row < p.n_rows; row += dev_grid_x()) {
        const uint32_t from = dev_thread();
        if (!have_come(m, from < m.size && from != m.rank, from, parity * m.size * m.row_cap + row,
                       number, failed + 0))
            break;
        for (uint32_t col = dev_thread() * NORM_PIECE; col < m.cols;
             col += NORM_THREADS * NORM_PIECE) {
            const size_t at = (size_t)row * m.cols + col;
            const size_t there = parity * m.size * m.row_cap * m.cols + at;
            for (uint32_t r = 0; r < m.size && at < g.n; r++)
                dev_store16(g.all + r * g.stride + at,
                            r == m.rank ? dev_load16(g.own + at)
                                        : dev_load16_system(m.source[r] + there));
        }
    }
    end_sum(m, dev_grid_x(), number, SUMS_GATHER, began + 0);
}

int run_peers(peers_params p, struct CUstream_st *stream)
{
    p.m.max_spins = p.m.max_spins < spins_cap ? p.m.max_spins : spins_cap;
    const sums_mailboxes &m = p.m;
    assert(p.n_rows && p.n_rows <= m.row_cap && m.cols % NORM_PIECE == 0 &&
           m.cols <= SUMS_MAX_COLS && m.size <= SUMS_MAX_PEERS);
    const bool twice = m.size > 2 && p.n_rows > SUMS_ONE_SHOT_ROWS;
    struct dev_launch at = {};
    p.n_ctas = p.n_rows < m.max_ctas ? p.n_rows : m.max_ctas;
    const bool prefetch = !twice && m.next && m.n_free_sms > p.n_ctas;
    at.grid = {prefetch ? m.n_free_sms : p.n_ctas, 1, 1};
    at.threads = NORM_THREADS;
    at.stream = stream;
    const uint32_t pieces = (m.cols / NORM_PIECE + NORM_THREADS - 1) / NORM_THREADS;
    if (pieces == 1)
        return dev_run_together(m.key, m.size, at, twice ? peers_twice_kernel<1> : peers_kernel<1>,
                                p);
    if (pieces <= 3)
        return dev_run_together(m.key, m.size, at, twice ? peers_twice_kernel<3> : peers_kernel<3>,
                                p);
    return dev_run_together(m.key, m.size, at, twice ? peers_twice_kernel<8> : peers_kernel<8>, p);
}

} // namespace

static_assert((int)DEV_TICK_NS == (int)SUMS_TICK_NS, "one unit of times");
static_assert((int)SUMS_MAX_COLS == (int)NORM_MAX_COLS && (int)SUMS_PIECE == (int)NORM_PIECE,
              "one layout of a row");

int sums_of_parts(const struct sums_parts *p, struct CUstream_st *stream)
{
    assert(p->n % SUMS_PIECE == 0 && p->stride % SUMS_PIECE == 0 && p->size <= SUMS_MAX_PARTS);
    size_t pieces = p->n / SUMS_PIECE;
    struct dev_launch at = {};
    at.grid = {(unsigned)((pieces + PARTS_THREADS - 1) / PARTS_THREADS), 1, 1};
    at.threads = PARTS_THREADS;
    at.stream = stream;
    return dev_run(at, parts_kernel, *p);
}

int sums_mark(struct sums_control *control, struct sums_signals *signals, enum sums_kind kind,
              bool ends, struct CUstream_st *stream)
{
    struct dev_launch at = {};
    at.grid = {1, 1, 1};
    at.threads = DEV_WARP;
    at.stream = stream;
    return dev_run(at, mark_kernel, mark_params{control, signals, (uint32_t)kind, ends});
}

int sums_gather_peers(const struct sums_mailboxes *m, const struct sums_gather *g,
                      struct CUstream_st *stream)
{
    gather_params p = {*g, *m, (uint32_t)((g->n + m->cols - 1) / m->cols)};
    p.m.max_spins = p.m.max_spins < spins_cap ? p.m.max_spins : spins_cap;
    assert(g->n && g->n % SUMS_PIECE == 0 && g->stride % SUMS_PIECE == 0 &&
           p.n_rows <= m->row_cap && m->cols % NORM_PIECE == 0 && m->size <= SUMS_MAX_PEERS);
    struct dev_launch at = {};
    at.grid = {p.n_rows < m->max_ctas ? p.n_rows : m->max_ctas, 1, 1};
    at.threads = NORM_THREADS;
    at.stream = stream;
    return dev_run_together(m->key, m->size, at, gather_peers_kernel, p);
}

int sums_of_peers(const struct sums_mailboxes *m, uint16_t *x, uint32_t n_rows,
                  struct CUstream_st *stream)
{
    peers_params p = {};
    p.m = *m;
    p.norm.x = x;
    p.norm.residual = x;
    p.norm.cols = m->cols;
    p.n_rows = n_rows;
    return run_peers(p, stream);
}

int sums_of_peers_norm(const struct sums_mailboxes *m, const struct k_norm *n, float eps,
                       float alpha, const void *a, void *r, const struct k_bias *bias,
                       uint32_t n_rows, void *y, struct CUstream_st *stream)
{
    assert(n->cols == m->cols && (!bias || bias->cols == n->cols) && a && y);
    peers_params p = {};
    p.m = *m;
    p.norm.a = static_cast<const uint16_t *>(a);
    p.norm.x = static_cast<const uint16_t *>(r);
    p.norm.residual = static_cast<uint16_t *>(r);
    p.norm.y = static_cast<uint16_t *>(y);
    p.norm.residual_bias = bias ? bias->values : nullptr;
    p.norm.weight = n->weight;
    p.norm.bias = n->bias;
    p.norm.alpha = alpha;
    p.norm.eps = eps;
    p.norm.cols = n->cols;
    p.norm.kind = n->kind;
    p.n_rows = n_rows;
    return run_peers(p, stream);
}
