/* source_sat_read.c: reads merged tensors out of the shards of source_sat.h. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>

#include "base/util.h"
#include "model/file.h"
#include "model/source_sat_internal.h"

/* Continues the CRC of a storage when these bytes follow those that were read last. Storages that
 * are not read from first to last byte in order are not checked. */
static int follow_crc(struct sat_shard *shard, const struct torchzip_entry *entry, uint64_t offset,
                      const char *rows, size_t row_bytes, uint64_t n_rows, size_t pitch,
                      struct err *e)
{
    if (offset == 0) {
        shard->crc_entry = entry;
        shard->crc_bytes = 0;
        shard->crc = (uint32_t)crc32_z(0, NULL, 0);
    }
    if (shard->crc_entry != entry || shard->crc_bytes != offset)
        return 0;
    if (pitch == row_bytes) {
        shard->crc = (uint32_t)crc32_z(shard->crc, (const Bytef *)rows, row_bytes * n_rows);
    } else {
        for (uint64_t i = 0; i < n_rows; i++)
            shard->crc = (uint32_t)crc32_z(shard->crc, (const Bytef *)rows + i * pitch, row_bytes);
    }
    shard->crc_bytes += row_bytes * n_rows;
    if (shard->crc_bytes == entry->bytes && shard->crc != entry->crc)
        return err_set(e, -EBADMSG,
                       "%s: entry %s: expected CRC-32 %08x, found %08x: the file is damaged, "
                       "download it again",
                       shard->path, entry->name, entry->crc, shard->crc);
    return 0;
}

/* Rows [row0, row0 + n_rows) of one shard's own tensor to dst, dst_pitch bytes apart. */
static int read_part(struct sat_shard *shard, const char *name, size_t element_bytes, uint64_t row0,
                     uint64_t n_rows, char *dst, size_t dst_pitch, struct err *e)
{
    const struct pickle_tensor *t = pickle_find(&shard->table, name);
    assert(t); /* sat_check */
    const struct torchzip_entry *entry = shard->storages[t - shard->table.tensors];
    uint64_t cols = t->n_dims == 2 ? t->shape[1] : 1;
    uint64_t row_stride = t->stride[0] * element_bytes;
    uint64_t start = t->offset * element_bytes + row0 * row_stride; /* in the storage */
    const struct file_rows rows = {
        .offset = entry->offset + start,
        .src_pitch = row_stride,
        .row_bytes = (size_t)cols * element_bytes,
        .n_rows = n_rows,
        .dst_pitch = dst_pitch,
    };
    struct file_rows flat = rows;
    if (row_stride == rows.row_bytes && dst_pitch == rows.row_bytes) {
        /* dense on both sides: one row, so that biases are not read two bytes at a time */
        flat.row_bytes *= (size_t)n_rows;
        flat.src_pitch = flat.dst_pitch = flat.row_bytes;
        flat.n_rows = 1;
    }
    int r = file_read_rows(shard->fd, &flat, dst, shard->path, e);
    if (r == 0 && row_stride == rows.row_bytes)
        r = follow_crc(shard, entry, start, dst, rows.row_bytes, n_rows, dst_pitch, e);
    return r < 0 ? err_prefix(e, "tensor \"%s\"", name) : 0;
}

int sat_read(struct sat_source *s, const struct sat_tensor *t, uint64_t row0, uint64_t n_rows,
             void *dst, struct err *e)
{
    assert(row0 <= t->t.rows && n_rows <= t->t.rows - row0);
    size_t pitch = (size_t)t->t.cols * t->element_bytes;
    uint32_t n_shards = t->t.split == SHARD_COPY ? 1 : s->info.n_shards;
    for (uint32_t rank = 0; rank < n_shards; rank++) {
        struct shard_piece pieces[2];
        size_t n = shard_pieces(&t->t, s->info.n_shards, rank, pieces);
        uint64_t local0 = 0; /* the shard's own row at which the piece starts */
        for (size_t i = 0; i < n; i++) {
            const struct shard_piece *p = &pieces[i];
            uint64_t begin = MAX(row0, p->row0);
            uint64_t end = MIN(row0 + n_rows, p->row0 + p->n_rows);
            if (begin < end) {
                char *at = (char *)dst + (begin - row0) * pitch + p->col0 * t->element_bytes;
                int r = read_part(&s->shards[rank], t->t.name, t->element_bytes,
                                  local0 + begin - p->row0, end - begin, at, pitch, e);
                if (r < 0)
                    return r;
            }
            local0 += p->n_rows;
        }
    }
    return 0;
}

int sat_check_copies(struct sat_source *s, const struct sat_tensor *t, struct err *e)
{
    assert(t->t.split == SHARD_COPY);
    size_t row_bytes = (size_t)t->t.cols * t->element_bytes, bytes = row_bytes * t->t.rows;
    char *first = malloc(bytes), *other = malloc(bytes);
    if (!first || !other) {
        free(first);
        free(other);
        return err_set(e, -ENOMEM, "%s: out of memory", t->t.name);
    }
    int r =
        read_part(&s->shards[0], t->t.name, t->element_bytes, 0, t->t.rows, first, row_bytes, e);
    for (uint32_t rank = 1; rank < s->info.n_shards && r == 0; rank++) {
        r = read_part(&s->shards[rank], t->t.name, t->element_bytes, 0, t->t.rows, other, row_bytes,
                      e);
        if (r == 0 && memcmp(first, other, bytes) != 0)
            r = err_set(e, -EBADMSG,
                        "tensor \"%s\" differs between %s and %s: do the shards belong together?",
                        t->t.name, s->shards[0].path, s->shards[rank].path);
    }
    free(first);
    free(other);
    return r;
}
