/* isa.c: the table of one instruction set. */
#include "isa.h"

#define CPU_TEXT_(x) #x
#define CPU_TEXT(x)  CPU_TEXT_(x)

const struct cpu_kernels CPU_FN(cpu_kernels) = {
    .name = CPU_TEXT(CPU_ISA),
    .tile_rows = {[CPU_F32] = TILE_F32_ROWS, [CPU_I16] = TILE_INT_ROWS, [CPU_I8] = TILE_INT_ROWS},
    .attention_rows = ATTENTION_ROWS,
    .pack =
        {
            [CPU_F32] = CPU_FN(pack_f32),
            [CPU_I16] = CPU_FN(pack_i16),
            [CPU_I8] = CPU_FN(pack_i8),
        },
    .multiply =
        {
            [CPU_F32] =
                {
                    [K_WEIGHT_F16] = CPU_FN(multiply_f32_f16),
                    [K_WEIGHT_I8] = CPU_FN(multiply_f32_i8),
                    [K_WEIGHT_I4] = CPU_FN(multiply_f32_i4),
                },
            [CPU_I16] =
                {
                    [K_WEIGHT_I8] = CPU_FN(multiply_i16_i8),
                    [K_WEIGHT_I4] = CPU_FN(multiply_i16_i4),
                },
            [CPU_I8] =
                {
                    [K_WEIGHT_I8] = CPU_FN(multiply_i8_i8),
                    [K_WEIGHT_I4] = CPU_FN(multiply_i8_i4),
                },
        },
    .multiply_glu =
        {
            [CPU_I16] =
                {
                    [K_WEIGHT_I8] = MULTIPLY_GLU_FN(multiply_glu_i16_i8),
                    [K_WEIGHT_I4] = MULTIPLY_GLU_FN(multiply_glu_i16_i4),
                },
            [CPU_I8] =
                {
                    [K_WEIGHT_I8] = MULTIPLY_GLU_FN(multiply_glu_i8_i8),
                    [K_WEIGHT_I4] = MULTIPLY_GLU_FN(multiply_glu_i8_i4),
                },
        },
    .norm = CPU_FN(norm),
    .glu = CPU_FN(glu),
    .rope = CPU_FN(rope),
    .rope_rows = CPU_FN(rope_rows),
    .attention = CPU_FN(attention),
    .attention_context = CPU_FN(attention_context),
    .embed = CPU_FN(embed),
};
