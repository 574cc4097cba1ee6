/* torchzip.c: see torchzip.h. Field layouts: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3. */
#include "model/torchzip.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "model/file.h"

enum {
    END_BYTES = 22,
    END_MAX_COMMENT = 0xffff,
    END64_LOCATOR_BYTES = 20,
    END64_BYTES = 56,
    CENTRAL_BYTES = 46,
    LOCAL_BYTES = 30,
    FLAG_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13,
    EXTRA_ZIP64 = 0x0001,
};

#define END_SIGNATURE           UINT32_C(0x06054b50)
#define END64_LOCATOR_SIGNATURE UINT32_C(0x07064b50)
#define END64_SIGNATURE         UINT32_C(0x06064b50)
#define CENTRAL_SIGNATURE       UINT32_C(0x02014b50)
#define LOCAL_SIGNATURE         UINT32_C(0x04034b50)

static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)get16(p) | (uint32_t)get16(p + 2) << 16;
}

static uint64_t get64(const uint8_t *p)
{
    return (uint64_t)get32(p) | (uint64_t)get32(p + 4) << 32;
}

/* An archive while its directory is read. */
struct reader {
    int fd;
    uint64_t file_bytes;
    const char *path;
    struct err *e;
    uint64_t n_entries;
    uint64_t directory_offset, directory_bytes;
    char *folder; /* what all names start with, slash included; owned */
};

static int bad(const struct reader *z, const char *what)
{
    return err_set(z->e, -EBADMSG, "%s: not a checkpoint that torch.save wrote: %s", z->path, what);
}

static int read_at(const struct reader *z, void *dst, size_t n, uint64_t offset)
{
    return file_read_at(z->fd, dst, n, offset, z->path, z->e);
}

/* The end record with 64-bit fields, when there is one: the locator sits right in front of the
 * ordinary end record. */
static int read_end64(struct reader *z, uint64_t end_offset)
{
    uint8_t locator[END64_LOCATOR_BYTES], end[END64_BYTES];
    if (end_offset < END64_LOCATOR_BYTES + END64_BYTES)
        return 0;
    uint64_t locator_offset = end_offset - END64_LOCATOR_BYTES;
    int r = read_at(z, locator, sizeof locator, locator_offset);
    if (r < 0)
        return r;
    if (get32(locator) != END64_LOCATOR_SIGNATURE)
        return 0;
    uint64_t offset = get64(locator + 8);
    if (get32(locator + 4) != 0 || get32(locator + 16) > 1)
        return bad(z, "it spans several disks");
    if (offset > locator_offset - END64_BYTES)
        return bad(z, "its ZIP64 end record lies outside the file");
    r = read_at(z, end, sizeof end, offset);
    if (r < 0)
        return r;
    if (get32(end) != END64_SIGNATURE)
        return bad(z, "its ZIP64 end record is damaged");
    if (get32(end + 16) != 0 || get32(end + 20) != 0 || get64(end + 24) != get64(end + 32))
        return bad(z, "it spans several disks");
    z->n_entries = get64(end + 32);
    z->directory_bytes = get64(end + 40);
    z->directory_offset = get64(end + 48);
    return 0;
}

/* Finds the end record: its comment must reach exactly to the end of the file. */
static int read_end(struct reader *z)
{
    if (z->file_bytes < END_BYTES)
        return bad(z, "the file is too short (truncated?)");
    size_t n = (size_t)MIN(z->file_bytes, (uint64_t)END_BYTES + END_MAX_COMMENT);
    uint64_t start = z->file_bytes - n;
    uint8_t *tail = malloc(n);
    if (!tail)
        return err_set(z->e, -ENOMEM, "%s: out of memory", z->path);
    int r = read_at(z, tail, n, start);
    if (r < 0) {
        free(tail);
        return r;
    }
    size_t i = n - END_BYTES + 1;
    bool found = false;
    while (i-- > 0 && !found) {
        found = get32(tail + i) == END_SIGNATURE && get16(tail + i + 20) == n - END_BYTES - i;
        if (!found)
            continue;
        if (get16(tail + i + 4) != 0 || get16(tail + i + 6) != 0 ||
            get16(tail + i + 8) != get16(tail + i + 10)) {
            r = bad(z, "it spans several disks");
            break;
        }
        z->n_entries = get16(tail + i + 10);
        z->directory_bytes = get32(tail + i + 12);
        z->directory_offset = get32(tail + i + 16);
        r = read_end64(z, start + i);
    }
    free(tail);
    if (r == 0 && !found)
        r = bad(z, "it has no end record (truncated download?)");
    return r;
}

static int check_end(const struct reader *z)
{
    uint64_t end;
    if (z->n_entries == 0 || z->n_entries > TORCHZIP_MAX_ENTRIES)
        return err_set(z->e, -EBADMSG, "%s: expected 1 to %d entries, found %llu", z->path,
                       TORCHZIP_MAX_ENTRIES, (unsigned long long)z->n_entries);
    if (z->directory_bytes > TORCHZIP_MAX_DIRECTORY_BYTES ||
        z->directory_bytes < z->n_entries * CENTRAL_BYTES)
        return bad(z, "the size of its directory is not possible");
    if (__builtin_add_overflow(z->directory_offset, z->directory_bytes, &end) ||
        end > z->file_bytes)
        return bad(z, "its directory lies outside the file");
    return 0;
}

/* Replaces fields that hold 0xffffffff by those of the ZIP64 extra field, which has only them, in
 * this order. */
static int apply_zip64(const struct reader *z, const uint8_t *extra, size_t n, uint64_t *fields[3])
{
    while (n >= 4) {
        uint16_t id = get16(extra);
        size_t length = get16(extra + 2);
        if (length > n - 4)
            return bad(z, "an extra field is longer than its room");
        if (id == EXTRA_ZIP64) {
            const uint8_t *p = extra + 4;
            for (size_t i = 0; i < 3; i++) {
                if (*fields[i] != UINT32_MAX)
                    continue;
                if (length < 8)
                    return bad(z, "a ZIP64 extra field is too short");
                *fields[i] = get64(p);
                p += 8;
                length -= 8;
            }
            return 0;
        }
        extra += 4 + length;
        n -= 4 + length;
    }
    return 0; /* no such field: 0xffffffff is meant literally */
}

/* The payload starts behind the local header, whose name and extra field may differ in length from
 * the directory's. */
static int locate_payload(const struct reader *z, uint64_t local_offset, const char *name,
                          size_t name_bytes, struct torchzip_entry *entry)
{
    uint8_t local[LOCAL_BYTES + TORCHZIP_MAX_NAME_BYTES];
    if (local_offset > z->directory_offset ||
        z->directory_offset - local_offset < LOCAL_BYTES + name_bytes)
        return bad(z, "an entry lies outside the file");
    int r = read_at(z, local, LOCAL_BYTES + name_bytes, local_offset);
    if (r < 0)
        return r;
    if (get32(local) != LOCAL_SIGNATURE || get16(local + 26) != name_bytes ||
        memcmp(local + LOCAL_BYTES, name, name_bytes) != 0)
        return bad(z, "an entry differs between directory and file");
    uint64_t offset = local_offset + LOCAL_BYTES + name_bytes + get16(local + 28);
    if (offset > z->directory_offset || entry->bytes > z->directory_offset - offset)
        return bad(z, "an entry reaches beyond the entries' part of the file");
    entry->offset = offset;
    return 0;
}

/* Takes the folder off. The first entry says what it is. */
static int take_name(struct reader *z, const char *name, size_t n, struct torchzip_entry *entry)
{
    const char *slash = memchr(name, '/', n);
    if (!slash || slash == name || memchr(name, '\0', n))
        return bad(z, "an entry's name does not start with a folder");
    size_t folder_bytes = (size_t)(slash - name) + 1;
    if (!z->folder)
        z->folder = text_dup(name, folder_bytes);
    entry->name = text_dup(name + folder_bytes, n - folder_bytes);
    if (!z->folder || !entry->name)
        return err_set(z->e, -ENOMEM, "%s: out of memory", z->path);
    if (strlen(z->folder) != folder_bytes || memcmp(z->folder, name, folder_bytes) != 0)
        return bad(z, "its entries are in different folders");
    return 0;
}

/* One record of the central directory; *ret_used = its length. */
static int read_central(struct reader *z, const uint8_t *p, size_t n, struct torchzip_entry *entry,
                        size_t *ret_used)
{
    if (n < CENTRAL_BYTES || get32(p) != CENTRAL_SIGNATURE)
        return bad(z, "its directory is damaged");
    size_t name_bytes = get16(p + 28), extra_bytes = get16(p + 30), comment_bytes = get16(p + 32);
    size_t used = CENTRAL_BYTES + name_bytes + extra_bytes + comment_bytes;
    if (used > n || name_bytes == 0 || name_bytes > TORCHZIP_MAX_NAME_BYTES)
        return bad(z, "its directory is damaged");
    if (get16(p + 8) & FLAG_ENCRYPTED)
        return err_set(z->e, -ENOTSUP, "%s: an entry is encrypted", z->path);
    if (get16(p + 10) != 0)
        return err_set(z->e, -ENOTSUP,
                       "%s: an entry is compressed (method %u); torch.save stores entries as they "
                       "are: was the file re-packed?",
                       z->path, get16(p + 10));
    uint64_t compressed = get32(p + 20), local_offset = get32(p + 42);
    entry->bytes = get32(p + 24);
    entry->crc = get32(p + 16);
    const char *name = (const char *)p + CENTRAL_BYTES;
    uint64_t *fields[3] = {&entry->bytes, &compressed, &local_offset};
    int r = apply_zip64(z, p + CENTRAL_BYTES + name_bytes, extra_bytes, fields);
    if (r < 0)
        return r;
    if (compressed != entry->bytes)
        return bad(z, "a stored entry has two different sizes");
    *ret_used = used;
    r = take_name(z, name, name_bytes, entry);
    return r < 0 ? r : locate_payload(z, local_offset, name, name_bytes, entry);
}

static int compare_names(const void *a, const void *b)
{
    const struct torchzip_entry *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int compare_offsets(const void *a, const void *b)
{
    const struct torchzip_entry *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* Payloads apart from each other, names different; leaves the entries sorted by name. */
static int check_entries(const struct reader *z, struct torchzip *zip)
{
    assert(zip->entries);
    qsort(zip->entries, zip->n, sizeof *zip->entries, compare_offsets);
    for (size_t i = 1; i < zip->n; i++) {
        const struct torchzip_entry *before = &zip->entries[i - 1];
        if (before->offset + before->bytes > zip->entries[i].offset)
            return err_set(z->e, -EBADMSG, "%s: entries \"%.64s\" and \"%.64s\" overlap", z->path,
                           before->name, zip->entries[i].name);
    }
    qsort(zip->entries, zip->n, sizeof *zip->entries, compare_names);
    for (size_t i = 1; i < zip->n; i++) {
        if (strcmp(zip->entries[i - 1].name, zip->entries[i].name) == 0)
            return err_set(z->e, -EBADMSG, "%s: entry \"%.64s\" occurs twice", z->path,
                           zip->entries[i].name);
    }
    return 0;
}

static int read_directory(struct reader *z, const uint8_t *directory, struct torchzip *zip)
{
    size_t at = 0;
    for (uint64_t i = 0; i < z->n_entries; i++) {
        size_t used = 0;
        struct torchzip_entry *entry = &zip->entries[zip->n++]; /* counted: deinit frees its name */
        int r = read_central(z, directory + at, (size_t)z->directory_bytes - at, entry, &used);
        if (r < 0)
            return r;
        at += used;
    }
    return check_entries(z, zip);
}

int torchzip_read(int fd, uint64_t file_bytes, const char *path, struct torchzip *ret_zip,
                  struct err *e)
{
    *ret_zip = (struct torchzip){0};
    struct reader z = {.fd = fd, .file_bytes = file_bytes, .path = path, .e = e};
    int r = read_end(&z);
    if (r == 0)
        r = check_end(&z);
    if (r < 0)
        return r;
    assert(z.directory_bytes > 0);
    uint8_t *directory = malloc((size_t)z.directory_bytes);
    ret_zip->entries = alloc_array((size_t)z.n_entries, sizeof *ret_zip->entries);
    if (!directory || !ret_zip->entries) {
        free(directory);
        free(ret_zip->entries);
        *ret_zip = (struct torchzip){0};
        return err_set(e, -ENOMEM, "%s: out of memory for its directory", path);
    }
    r = read_at(&z, directory, (size_t)z.directory_bytes, z.directory_offset);
    if (r == 0)
        r = read_directory(&z, directory, ret_zip);
    free(directory);
    free(z.folder);
    if (r < 0)
        torchzip_deinit(ret_zip);
    return r;
}

void torchzip_deinit(struct torchzip *z)
{
    for (size_t i = 0; i < z->n; i++)
        free(z->entries[i].name);
    free(z->entries);
    *z = (struct torchzip){0};
}

const struct torchzip_entry *torchzip_find(const struct torchzip *z, const char *name)
{
    size_t low = 0, high = z->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(z->entries[middle].name, name);
        if (order == 0)
            return &z->entries[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}
