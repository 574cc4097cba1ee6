/* source_sat_internal.h: what source_sat.c (opening, checking) and source_sat_read.c share. */
#ifndef GLMD_MODEL_SOURCE_SAT_INTERNAL_H
#define GLMD_MODEL_SOURCE_SAT_INTERNAL_H

#include "model/pickle.h"
#include "model/source_sat.h"
#include "model/torchzip.h"

struct sat_shard {
    /* owned */
    char *path;
    int fd;
    struct torchzip zip;
    struct pickle_table table;
    const struct torchzip_entry **storages; /* one per tensor of the table; borrowed from zip */
    /* state */
    uint64_t bytes;
    const struct torchzip_entry *crc_entry; /* storage that is being read from its start */
    uint64_t crc_bytes;                     /* so many bytes of it so far */
    uint32_t crc;
};

struct sat_source {
    char *path; /* owned */
    struct sat_info info;
    struct sat_shard shards[SAT_MAX_SHARDS];
};

#endif
