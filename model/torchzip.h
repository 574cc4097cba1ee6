/* torchzip.h: the ZIP archives that torch.save writes, read as hostile input.
 *
 *   +--------------+---------+--------------+---------+ ... +-------------------+------+
 *   | local header | payload | local header | payload |     | central directory | end  |
 *   +--------------+---------+--------------+---------+ ... +-------------------+------+
 *
 * Every entry is stored, not compressed. Sizes come from the central directory (local headers may
 * leave them to a data descriptor); ZIP64 is understood (a shard of GLM-130B has 32 GB). Refused:
 * compression, encryption, several disks, entries that overlap each other or the directory,
 * repeated names. Nothing is written or extracted.
 */
#ifndef GLMD_MODEL_TORCHZIP_H
#define GLMD_MODEL_TORCHZIP_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum {
    TORCHZIP_MAX_ENTRIES = 1 << 17,
    TORCHZIP_MAX_DIRECTORY_BYTES = 64 << 20,
    TORCHZIP_MAX_NAME_BYTES = 512,
};

struct torchzip_entry {
    char *name;      /* behind the archive's folder: "data.pkl", "data/0" */
    uint64_t offset; /* of the payload in the file */
    uint64_t bytes;
    uint32_t crc; /* CRC-32 of the payload, as the directory has it */
};

struct torchzip {
    struct torchzip_entry *entries; /* sorted by name */
    size_t n;
};

/* Reads the directory of an open file of file_bytes bytes. `path` is for messages. -EBADMSG with
 * the reason; -ENOTSUP for what torch.save never writes. */
int torchzip_read(int fd, uint64_t file_bytes, const char *path, struct torchzip *ret_zip,
                  struct err *e);
void torchzip_deinit(struct torchzip *z);

/* NULL when there is no such entry. */
const struct torchzip_entry *torchzip_find(const struct torchzip *z, const char *name);

#endif
