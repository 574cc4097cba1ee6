/* cpu-order.h: what batch invariance costs: the products whose sums of blocks are added in
 * ascending order, whatever the batch, beside the same ones free of that order.
 */
#ifndef GLMD_KERNELS_BENCH_CPU_ORDER_H
#define GLMD_KERNELS_BENCH_CPU_ORDER_H

#include "kernels/cpu/cpu.h"

/* `base` with products that add up in any order; false where there are none (they are built for
 * avx512gfni only). */
bool order_free(const struct cpu_kernels *base, struct cpu_kernels *ret);

#endif
