/* A whole safetensors file. */
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/file.h"
#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fd = memfd_create("input", MFD_CLOEXEC);
    struct err e = ERR_INIT;
    struct st_list list;
    if (fd < 0 || file_write(fd, data, size, "input", &e) < 0)
        abort();
    if (st_read_header(fd, &list, &e) == 0) {
        uint64_t total = 0;
        for (size_t i = 0; i < list.n; i++) {
            const struct st_tensor *t = &list.tensors[i];
            if (t->offset > size || t->bytes > size - t->offset || !st_name_ok(t->name) ||
                t->bytes != st_rows(t) * st_cols(t) * st_dtype_bytes(t->dtype))
                abort();
            total += t->bytes;
        }
        if (total > size)
            abort(); /* no overlap */
        st_list_deinit(&list);
    } else if (e.message[0] == '\0') {
        abort();
    }
    close(fd);
    return 0;
}
