/* gpu-check.h: what the parts of gpu-check share: two backends, random inputs, comparisons. */
#ifndef GLMD_KERNELS_BENCH_GPU_CHECK_H
#define GLMD_KERNELS_BENCH_GPU_CHECK_H

#include "kernels/kernels.h"

struct check_limits {
    uint32_t max_rows, max_cols, max_seq;
    bool full; /* GLM-130B's shapes */
};

extern const struct k_ops *check_ops, *check_cpu;
extern struct k_ctx *check_c, *check_ref; /* what is checked; the CPU in FP32 */

/* One line. `same`: whatever had to be equal bit for bit was. */
void check_report(const char *what, double error, double bound, bool same);

/* ---- gpu-check-data.c ---- */

void check_seed(uint64_t seed);
uint32_t check_below(uint32_t n);
/* Values that binary16 holds, about normal. */
float *check_random(size_t n, float mean, float scale);
uint16_t *check_halves(size_t n, float mean, float scale);
/* malloc that ends the program. */
void *check_malloc(size_t bytes);
/* Activations on the device; NULL: filled with NaNs. */
void *check_device(const float *x, size_t n);
float *check_fetch(const void *x, size_t n);
void check_drop(void *p); /* of check_device */
double check_error(const float *got, const float *want, size_t n);

void check_rowwise(const struct check_limits *l);
void check_linears(const struct check_limits *l);
void check_sequences(const struct check_limits *l);

#endif
