/* glu.c: g = first half * gelu(second half), or silu(first half) * second half. Items are pieces of
 * GLU_PIECE columns of a row. */
#include "isa.h"
#include "vmath.h"

CPU_RANGE_FN(glu, cpu_glu_job)
{
    uint32_t pieces = cpu_glu_pieces(j->inner);
    for (uint64_t item = first; item < end; item++) {
        uint64_t row = item / pieces;
        uint32_t i = (uint32_t)(item % pieces) * CPU_GLU_PIECE;
        uint32_t stop = j->inner - i < CPU_GLU_PIECE ? j->inner : i + CPU_GLU_PIECE;
        const float *u = j->u + row * 2 * j->inner;
        float *g = j->g + row * j->inner;
        for (; i + VEC <= stop; i += VEC)
            vf_store(g + i, vf_gated(j->kind, vf_load(u + i), vf_load(u + j->inner + i)));
        if (i < stop) {
            int n = (int)(stop - i);
            vf_store_n(g + i,
                       vf_gated(j->kind, vf_load_n(u + i, n), vf_load_n(u + j->inner + i, n)), n);
        }
    }
}
