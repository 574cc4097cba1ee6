/* emulated_backend.c: a program linked with this and -Wl,--wrap=k_backend finds the CUDA backend on
 * the emulated GPU under "cuda" (emulated_driver.h). */
#include <string.h>

#include "kernels/cuda/cuda.h"

const struct k_ops *__real_k_backend(const char *name, char *message, size_t size);
const struct k_ops *__wrap_k_backend(const char *name, char *message, size_t size);

const struct k_ops *__wrap_k_backend(const char *name, char *message, size_t size)
{
    return strcmp(name, "cuda") == 0 ? &glmd_cuda_ops : __real_k_backend(name, message, size);
}
