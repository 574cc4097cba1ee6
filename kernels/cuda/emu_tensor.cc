/* emu_tensor.cc: the tensor cores of the emulated GPU (emu.h). Products are exact; the sum of a
 * step and the accumulator is rounded once, toward zero. */
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
