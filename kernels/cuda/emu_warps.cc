/* emu_warps.cc: what threads of the emulated GPU (emu.h) do together: barriers and warp operations.
 */
#include "emu_state.h"

using namespace emulation;

/* ---- waiting ---- */

void emu_barrier(int line)
{
    struct fiber *f = emu.current;
    struct cta *c = f->cta;
    emu.spins = 0;
    if (c->n_at_barrier && c->barrier_line != line)
        emu_fail("the barrier of line %d, while other threads wait at the one of line %d", line,
                 c->barrier_line);
    c->barrier_line = line;
    f->op = "a barrier";
    if (++c->n_at_barrier < c->n_threads) {
        f->state = AT_BARRIER;
        schedule();
        return;
    }
    c->n_at_barrier = 0;
    c->barriers++;
    for (unsigned i = 0; i < c->n_threads; i++)
        emu.pool[c->first_fiber + i]->state = READY;
}

void emu_warp_op(const char *name, void (*op)(struct emu_slots *s), void *slot, size_t bytes)
{
    struct fiber *f = emu.current;
    unsigned lane = f->where.thread % DEV_WARP, first = f->where.thread - lane;
    struct warp *w = &f->cta->warps[first / DEV_WARP];
    emu.spins = 0;
    if (w->arrived && strcmp(w->op, name) != 0)
        emu_fail("%s, while other lanes of the warp wait at %s", name, w->op);
    w->op = f->op = name;
    if (bytes)
        memcpy(w->slots.lane[lane], slot, bytes);
    if (++w->arrived < DEV_WARP) {
        f->state = AT_WARP;
        schedule();
    } else {
        w->arrived = 0;
        if (op)
            op(&w->slots);
        else
            w->order++; /* warp_sync */
        for (unsigned i = 0; i < DEV_WARP; i++)
            emu.pool[f->cta->first_fiber + first + i]->state = READY;
    }
    if (bytes)
        memcpy(slot, w->slots.lane[lane], bytes);
}

void emu_spin(void)
{
    if (++emu.spins > SPINS)
        emu_fail("waits for something that does not happen (dev_spin)");
    schedule();
}

/* ---- warp operations ---- */

namespace
{

void ballot_op(struct emu_slots *s)
{
    uint32_t all = 0;
    for (unsigned i = 0; i < DEV_WARP; i++)
        all |= (uint32_t)(s->lane[i][0] != 0) << i;
    for (unsigned i = 0; i < DEV_WARP; i++)
        memcpy(s->lane[i], &all, sizeof all);
}

/* In: 16 bytes. Out: columns 2t, 2t + 1 of row g of the four matrices. */
template <bool TRANSPOSED> void ldmatrix_op(struct emu_slots *s)
{
    uint16_t m[4][8][8];
    for (unsigned i = 0; i < DEV_WARP; i++)
        memcpy(m[i / 8][i % 8], s->lane[i], 16);
    for (unsigned i = 0; i < DEV_WARP; i++)
        for (unsigned j = 0; j < 4; j++) {
            unsigned row = i / 4, col = i % 4 * 2;
            uint16_t pair[2] = {m[j][row][col], m[j][row][col + 1]};
            if (TRANSPOSED) {
                pair[0] = m[j][col][row];
                pair[1] = m[j][col + 1][row];
            }
            memcpy(s->lane[i] + 4 * j, pair, 4);
        }
}

} // namespace

uint32_t emu_ballot(bool b)
{
    uint32_t v = b;
    emu_warp_op("ballot", ballot_op, &v, sizeof v);
    return v;
}

void emu_ldmatrix4(uint32_t *r, dev_shared<uint4> row, bool transposed)
{
    memcpy(r, row.access(16, false), 16);
    emu_warp_op("ldmatrix", transposed ? ldmatrix_op<true> : ldmatrix_op<false>, r, 16);
}
