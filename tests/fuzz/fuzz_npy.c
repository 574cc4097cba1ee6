/* fuzz_npy.c: any bytes as a NumPy file: refused with a message, or an array that is as large as it
 * says. */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "cli/npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct npy a = {0};
    struct err e = ERR_INIT;
    if (npy_parse(data, size, &a, &e) < 0) {
        assert(e.code < 0 && e.message[0]);
        return 0;
    }
    size_t n = 1;
    for (uint32_t i = 0; i != a.n_dims; i++)
        n *= a.shape[i];
    assert(n == a.n);
    unsigned sum = 0;
    for (size_t i = 0; i != n * (a.type == NPY_F32 ? 4 : 1); i++)
        sum += ((const uint8_t *)a.data)[i];
    assert(sum <= 255 * size);
    npy_deinit(&a);
    return 0;
}
