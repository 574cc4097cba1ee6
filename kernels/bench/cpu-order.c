/* cpu-order.c: see cpu-order.h. */
#include "cpu-order.h"

#include <string.h>

#ifdef CPU_HAVE_FREE_ORDER

typedef void multiply_fn(const struct cpu_product *j, uint64_t first, uint64_t end, uint64_t more);
multiply_fn multiply_f32_f16_free_order, multiply_f32_i8_free_order, multiply_f32_i4_free_order;
multiply_fn multiply_i16_i8_free_order, multiply_i16_i4_free_order;
multiply_fn multiply_i8_i8_free_order, multiply_i8_i4_free_order;

bool order_free(const struct cpu_kernels *base, struct cpu_kernels *ret)
{
    *ret = *base;
    ret->multiply[CPU_F32][K_WEIGHT_F16] = multiply_f32_f16_free_order;
    ret->multiply[CPU_F32][K_WEIGHT_I8] = multiply_f32_i8_free_order;
    ret->multiply[CPU_F32][K_WEIGHT_I4] = multiply_f32_i4_free_order;
    ret->multiply[CPU_I16][K_WEIGHT_I8] = multiply_i16_i8_free_order;
    ret->multiply[CPU_I16][K_WEIGHT_I4] = multiply_i16_i4_free_order;
    ret->multiply[CPU_I8][K_WEIGHT_I8] = multiply_i8_i8_free_order;
    ret->multiply[CPU_I8][K_WEIGHT_I4] = multiply_i8_i4_free_order;
    return strcmp(base->name, "avx512gfni") == 0;
}

#else

bool order_free(const struct cpu_kernels *base, struct cpu_kernels *ret)
{
    *ret = *base;
    return false;
}

#endif
