/* emulated_blas.h: what a test links in place of cuBLASLt (kernels/cuda/blas.h): sums in double,
 * rounded once, in the caller's thread. */
#ifndef GLMD_TESTS_SUPPORT_EMULATED_BLAS_H
#define GLMD_TESTS_SUPPORT_EMULATED_BLAS_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct emulated_blas {
    bool missing; /* blas_open finds none */
    bool refuses; /* it knows no way */
    uint64_t n_products;
};
struct emulated_blas *emulated_blas_state(void);

#ifdef __cplusplus
}
#endif

#endif
