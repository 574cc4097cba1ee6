/* A whole checkpoint file: archive, then the pickle in it, as source_sat.c reads them. */
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/file.h"
#include "model/pickle.h"
#include "model/torchzip.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_pickle(int fd, const struct torchzip_entry *entry, size_t size)
{
    if (entry->offset > size || entry->bytes > size - entry->offset)
        abort(); /* entries lie inside the file: that is the reader's promise */
    uint8_t *text = malloc(entry->bytes ? (size_t)entry->bytes : 1);
    struct err e = ERR_INIT;
    struct pickle_table table;
    if (!text || file_read_at(fd, text, (size_t)entry->bytes, entry->offset, "input", &e) < 0)
        abort();
    if (pickle_read(text, (size_t)entry->bytes, "input", &table, &e) == 0)
        pickle_table_deinit(&table);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fd = memfd_create("input", MFD_CLOEXEC);
    struct err e = ERR_INIT;
    struct torchzip zip;
    if (fd < 0 || file_write(fd, data, size, "input", &e) < 0)
        abort();
    if (torchzip_read(fd, size, "input", &zip, &e) == 0) {
        const struct torchzip_entry *entry = torchzip_find(&zip, "data.pkl");
        if (entry)
            read_pickle(fd, entry, size);
        torchzip_deinit(&zip);
    } else if (e.message[0] == '\0') {
        abort(); /* a refusal says why */
    }
    close(fd);
    return 0;
}
