/* The pickle of a checkpoint. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/pickle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct pickle_table table;
    struct err e = ERR_INIT;
    if (pickle_read(data, size, "input", &table, &e) < 0) {
        if (e.message[0] == '\0')
            abort(); /* a refusal says why */
        return 0;
    }
    for (size_t i = 0; i < table.n; i++) {
        const struct pickle_tensor *t = &table.tensors[i];
        uint64_t end = t->offset;
        int empty = 0;
        for (uint32_t k = 0; k < t->n_dims; k++) {
            empty |= t->shape[k] == 0;
            end += (t->shape[k] - 1) * t->stride[k];
        }
        if (!empty && end >= t->storage_n)
            abort(); /* the tensor lies inside its storage */
        if (pickle_find(&table, t->name) != t || strlen(t->name) > PICKLE_MAX_NAME_BYTES)
            abort();
    }
    pickle_table_deinit(&table);
    return 0;
}
