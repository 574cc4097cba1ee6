/* harness.h: what the tests of the compute operations share: contexts, random data, comparisons.
 * Data are deterministic: the seed is part of the test.
 */
#ifndef GLMD_TESTS_OPS_HARNESS_H
#define GLMD_TESTS_OPS_HARNESS_H

#include "kernels/kernels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* Instruction sets of the table in kernels/cpu, the plain C one first. Those that this processor
 * does not have are skipped with a line that says so. */
enum { MAX_SETS = 6 };
extern const char *const op_sets[MAX_SETS];

/* A CPU context, or NULL when the processor lacks `isa`. */
struct k_ctx *op_open(const struct k_ops *ops, const char *isa, enum k_mode mode,
                      uint32_t n_threads, uint32_t max_rows, uint32_t max_cols, uint32_t max_seq);
const struct k_ops *op_cpu(void);
const char *op_mode_name(enum k_mode mode);

/* xorshift64*, seeded per test. */
struct rng {
    uint64_t state;
};
uint32_t rng_next(struct rng *r);
/* [0, n) */
uint32_t rng_below(struct rng *r, uint32_t n);
/* Approximately normal, variance 1. */
float rng_normal(struct rng *r);
void rng_fill(struct rng *r, float *x, size_t n, float scale);
uint16_t *rng_halves(struct rng *r, size_t n, float mean, float scale);

/* malloc that fails the test; free with free(). */
void *op_malloc(size_t bytes);

/* A random weight matrix in the form of kernels.h, and the same as plain numbers. */
struct matrix {
    struct k_linear_src src;
    uint8_t *data;
    uint16_t *scale, *bias;
    double *exact;   /* [rows, cols]: q * scale */
    double *rounded; /* [rows, cols]: fp16(q * scale); the same as exact for FP16 */
};
struct matrix matrix_new(struct rng *r, enum k_weight type, uint32_t rows, uint32_t cols,
                         uint32_t group_cols, bool bias);
void matrix_free(struct matrix *m);

/* Fails with the place and both values unless every bit is equal. */
void assert_same_bits(const float *a, const float *b, size_t n, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Fails unless |got - want| <= bound. */
void assert_near(double got, double want, double bound, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* True with GLMD_TEST_LONG=1. */
bool op_long(void);

#endif
