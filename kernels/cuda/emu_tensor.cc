/* emu_tensor.cc: the tensor cores of the emulated GPU (emu.h), for warps and for warpgroups.
 * Products are exact; the sum of a step and the accumulator is rounded once, toward zero. */
#include "dev_wgmma.h"
#include "emu_state.h"

using namespace emulation;

namespace
{

struct mma_slot {
    float c[4];
    uint32_t a[4], b[2];
};
static_assert(sizeof(mma_slot) <= EMU_SLOT, "a slot holds it");

float toward_zero(double v)
{
    float f = (float)v;
    return fabs((double)f) > fabs(v) ? nextafterf(f, 0.0f) : f;
}

template <unsigned K> void mma_op(struct emu_slots *s)
{
    mma_slot lane[DEV_WARP];
    double a[16][K], b[8][K];
    for (unsigned i = 0; i < DEV_WARP; i++) {
        memcpy(&lane[i], s->lane[i], sizeof lane[i]);
        unsigned g = i / 4, t = i % 4;
        for (unsigned half = 0; half < K / 8; half++)
            for (unsigned e = 0; e < 2; e++) {
                unsigned k = 2 * t + e + 8 * half, shift = 16 * e;
                a[g][k] = (double)half_values[lane[i].a[2 * half] >> shift & 0xffff];
                a[g + 8][k] = (double)half_values[lane[i].a[2 * half + 1] >> shift & 0xffff];
                b[g][k] = (double)half_values[lane[i].b[half] >> shift & 0xffff];
            }
    }
    for (unsigned i = 0; i < DEV_WARP; i++) {
        for (unsigned j = 0; j < 4; j++) {
            unsigned row = i / 4 + (j < 2 ? 0 : 8), col = i % 4 * 2 + j % 2;
            double sum = 0;
            for (unsigned k = 0; k < K; k++)
                sum += a[row][k] * b[col][k];
            lane[i].c[j] = toward_zero((double)lane[i].c[j] + sum);
        }
        memcpy(s->lane[i], lane[i].c, sizeof lane[i].c);
    }
}

} // namespace

void emu_mma(unsigned k, float *c, const uint32_t *a, const uint32_t *b)
{
    mma_slot slot = {};
    memcpy(slot.c, c, sizeof slot.c);
    memcpy(slot.a, a, k / 4 * sizeof *a);
    memcpy(slot.b, b, k / 8 * sizeof *b);
    emu_warp_op(k == 16 ? "mma.k16" : "mma.k8", k == 16 ? mma_op<16> : mma_op<8>, &slot,
                sizeof slot);
    memcpy(c, slot.c, sizeof slot.c);
}

/* ---- warpgroups ---- */

namespace
{

struct wgmma_lane {
    unsigned n;
    uint64_t b;
    float *d;
    const uint32_t *a;
};

/* Where 16 columns of row `row` lie: two pieces of 16 bytes. Decodes the descriptor. */
void operand_pieces(uint64_t descriptor, unsigned row, long (&at)[2])
{
    const unsigned swizzle = (unsigned)(descriptor >> 62), base = descriptor >> 49 & 7;
    if (swizzle != 1 || base)
        emu_fail("wgmma descriptor %016lx: swizzle %u, base offset %u are not emulated",
                 (unsigned long)descriptor, swizzle, base);
    if (descriptor & 0x38) /* address bits 7-9, of what begins the pattern */
        emu_fail("wgmma descriptor %016lx: its rows do not begin at a multiple of 1024 bytes",
                 (unsigned long)descriptor);
    const long start = (long)(descriptor & 0x3fff) * 16,
               stride = (long)(descriptor >> 32 & 0x3fff) * 16;
    for (unsigned i = 0; i < 2; i++) {
        long linear = start + row / 8 * stride + row % 8 * 128 + i * 16;
        at[i] = linear ^ (linear >> 7 & 7) << 4;
    }
}

/* Reads N rows of 16 columns; returns a sum of their bytes. */
uint64_t read_operand(uint64_t descriptor, unsigned n, uint16_t (*ret)[16])
{
    uint64_t sum = 1469598103934665603u;
    for (unsigned row = 0; row < n; row++) {
        long at[2];
        operand_pieces(descriptor, row, at);
        uint16_t values[16];
        for (unsigned i = 0; i < 2; i++)
            memcpy(values + 8 * i, async_access(at[i]), 16);
        for (uint16_t v : values)
            sum = (sum ^ v) * 1099511628211u;
        if (ret)
            memcpy(ret[row], values, sizeof values);
    }
    return sum;
}

void wgmma_op(struct warpgroup *g)
{
    wgmma_lane *lanes[4 * DEV_WARP];
    for (unsigned i = 0; i < 4 * DEV_WARP; i++) {
        lanes[i] = (wgmma_lane *)g->lane[i];
        if (lanes[i]->b != lanes[0]->b || lanes[i]->n != lanes[0]->n)
            emu_fail("wgmma: threads of a warpgroup have different operands");
    }
    const unsigned n = lanes[0]->n;
    uint16_t rows[256][16];
    double b[256][16];
    const uint64_t sum = read_operand(lanes[0]->b, n, rows);
    for (unsigned row = 0; row < n; row++)
        for (unsigned k = 0; k < 16; k++)
            b[row][k] = (double)half_values[rows[row][k]];
    struct fiber *f = emu.current;
    struct fiber *first =
        emu.pool[f->cta->first_fiber + f->where.thread / DEV_GROUP * DEV_GROUP].get();
    first->operands.push_back({lanes[0]->b, n, first->wgmma_committed, sum});
    for (unsigned w = 0; w < 4; w++) {
        double a[16][16];
        for (unsigned i = 0; i < DEV_WARP; i++)
            for (unsigned j = 0; j < 8; j++) {
                uint32_t word = lanes[w * DEV_WARP + i]->a[j / 2];
                a[i / 4 + j / 2 % 2 * 8][2 * (i % 4) + j % 2 + j / 4 * 8] =
                    (double)half_values[word >> 16 * (j % 2) & 0xffff];
            }
        for (unsigned i = 0; i < DEV_WARP; i++)
            for (unsigned j = 0; j < n / 2; j++) {
                const double *left = a[i / 4 + j / 2 % 2 * 8];
                const double *right = b[j / 4 * 8 + 2 * (i % 4) + j % 2];
                double products = 0;
                for (unsigned k = 0; k < 16; k++)
                    products += left[k] * right[k];
                float *d = &lanes[w * DEV_WARP + i]->d[j];
                *d = toward_zero((double)*d + products);
            }
    }
}

bool in_flight(const struct emu_async *a)
{
    return a->used && a->group >= emu.current->wgmma_done;
}

void use_registers(struct emu_async *a, const char *what)
{
    struct fiber *f = emu.current;
    if (f->wgmma_fences < a->changed)
        emu_fail("wgmma: %s changed and dev_wgmma_fence did not follow", what);
    a->used = true;
    a->group = f->wgmma_committed;
}

} // namespace

void emu_async_touch(const struct emu_async *a, const char *what)
{
    if (in_flight(a))
        emu_fail("%s while wgmma is in flight: its group was not waited for", what);
}

unsigned emu_wgmma_fences(void)
{
    return emu.current->wgmma_fences;
}

void emu_async_fence(void)
{
    emu.current->async_fences++;
}

void emu_wgmma_fence(void)
{
    emu.current->wgmma_fences++;
}

void emu_wgmma_commit(void)
{
    emu.current->wgmma_committed++;
    emu.current->wgmma_open = false;
}

void emu_wgmma_wait(unsigned groups)
{
    struct fiber *f = emu.current;
    unsigned done = f->wgmma_committed < groups ? 0 : f->wgmma_committed - groups;
    f->wgmma_done = done < f->wgmma_done ? f->wgmma_done : done;
    std::vector<struct operand> kept;
    for (const struct operand &o : f->operands) {
        if (o.group >= f->wgmma_done)
            kept.push_back(o);
        else if (read_operand(o.descriptor, o.n, nullptr) != o.sum)
            emu_fail("shared memory changed while wgmma read it");
    }
    f->operands = kept;
}

void emu_wgmma(unsigned n, float *d, struct emu_async *d_async, const uint32_t *a,
               struct emu_async *a_async, uint64_t b)
{
    if (EMU_ARCH != 900)
        emu_fail("wgmma: this architecture has none");
    use_registers(d_async, "accumulators");
    use_registers(a_async, "a fragment");
    struct fiber *f = emu.current;
    struct cta *c = f->cta;
    const unsigned lane = f->where.thread % DEV_GROUP, first = f->where.thread - lane;
    if (first + DEV_GROUP > c->n_threads)
        emu_fail("wgmma: the last warps are not a whole warpgroup");
    f->wgmma_open = true;
    struct warpgroup *g = &c->groups[first / DEV_GROUP];
    wgmma_lane mine = {n, b, d, a};
    g->lane[lane] = &mine;
    emu.spins = 0;
    f->op = "wgmma";
    if (++g->arrived < DEV_GROUP) {
        f->state = AT_GROUP;
        schedule();
        return;
    }
    g->arrived = 0;
    wgmma_op(g);
    for (unsigned i = 0; i < DEV_GROUP; i++)
        emu.pool[c->first_fiber + first + i]->state = READY;
}
