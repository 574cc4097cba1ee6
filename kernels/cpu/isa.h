/* isa.h: the kernels of one instruction set. The files that include this are compiled once per
 * set, with -DCPU_ISA=<set> and the compiler flags of that set; CPU_FN gives each its own names.
 */
#ifndef GLMD_KERNELS_CPU_ISA_H
#define GLMD_KERNELS_CPU_ISA_H

#include "cpu.h"
#include "vec.h"

#define CPU_JOIN_(a, b) a##_##b
#define CPU_JOIN(a, b)  CPU_JOIN_(a, b)
#define CPU_FN(name)    CPU_JOIN(name, CPU_ISA)

/* Sizes of the register tiles: 32 vector registers of 16 floats, or 16 of 8. Loops over a tile are
 * unrolled, so that its sums are in registers; in plain C they are left to the compiler.
 *
 * Integer products with VNNI take one panel and up to 24 rows: unpacking a weight word costs as
 * much as a dot or two, and 24 rows share it (8 rows times 2 panels: 0.80 of the peak at best, 24
 * times 1: 0.89). */
#if defined CPU_ISA_avx512 || defined CPU_ISA_avx512vnni
enum { TILE_ROWS = 8, TILE_PANELS = 2, ATTENTION_ROWS = 12 };
#define TILE_UNROLL _Pragma("GCC unroll 32")
#elif defined CPU_ISA_avx2
enum { TILE_ROWS = 4, TILE_PANELS = 1, ATTENTION_ROWS = 6 };
#define TILE_UNROLL _Pragma("GCC unroll 16")
#else
enum { TILE_ROWS = 4, TILE_PANELS = 1, ATTENTION_ROWS = 2 };
#define TILE_UNROLL
#endif

/* Float products have tall tiles, too: a weight is made once for up to 24 rows of one panel. */
#if defined CPU_ISA_avx512 || defined CPU_ISA_avx512vnni
#define TILE_F32_TALL 1
enum { TILE_F32_ROWS = 24 };
#else
#define TILE_F32_TALL 0
enum { TILE_F32_ROWS = TILE_ROWS };
#endif

#if defined CPU_ISA_avx512vnni
enum { TILE_INT_ROWS = 24, TILE_INT_PANELS = 1 };
#elif defined CPU_ISA_avxvnni
enum { TILE_INT_ROWS = 6, TILE_INT_PANELS = 1 };
#else
enum { TILE_INT_ROWS = TILE_ROWS, TILE_INT_PANELS = TILE_PANELS };
#endif

#define CPU_PANELS_FN(name)                                                                        \
    void CPU_FN(name)(const struct cpu_product *j, uint64_t first, uint64_t end, uint64_t more)
/* Products with a GLU behind them (struct cpu_kernels). */
#if defined CPU_ISA_avx512vnni
#define MULTIPLY_GLU_FN(name) CPU_FN(name)
#else
#define MULTIPLY_GLU_FN(name) NULL
#endif

#define CPU_RANGE_FN(name, job) void CPU_FN(name)(const struct job *j, uint64_t first, uint64_t end)

CPU_RANGE_FN(pack_f32, cpu_product);
CPU_RANGE_FN(pack_i16, cpu_product);
CPU_RANGE_FN(pack_i8, cpu_product);
CPU_PANELS_FN(multiply_f32_f16);
CPU_PANELS_FN(multiply_f32_i8);
CPU_PANELS_FN(multiply_f32_i4);
CPU_PANELS_FN(multiply_i16_i8);
CPU_PANELS_FN(multiply_i16_i4);
CPU_PANELS_FN(multiply_i8_i8);
CPU_PANELS_FN(multiply_i8_i4);
CPU_PANELS_FN(multiply_glu_i16_i8);
CPU_PANELS_FN(multiply_glu_i16_i4);
CPU_PANELS_FN(multiply_glu_i8_i8);
CPU_PANELS_FN(multiply_glu_i8_i4);
CPU_RANGE_FN(norm, cpu_norm_job);
CPU_RANGE_FN(glu, cpu_glu_job);
CPU_RANGE_FN(rope, cpu_rope_job);
void CPU_FN(rope_rows)(const struct cpu_rope_job *j, uint32_t kv_head, uint32_t row, uint32_t end,
                       const float *x, struct cpu_rope_keys *keys);
void CPU_FN(attention)(const struct cpu_attention_job *j, const struct k_seq *seq, uint32_t kv_head,
                       uint32_t row, uint32_t n, float *scores, const struct k_seq *next,
                       uint32_t next_head);
void CPU_FN(attention_context)(const struct cpu_attention_job *j, const struct k_seq *seq,
                               uint32_t kv_head, uint32_t row, uint32_t n, void *scratch);
void CPU_FN(embed)(const struct k_linear *table, uint32_t row, float *y);

#endif
