/* manifest.h: manifest.json, the last file that a conversion writes: what the directory must hold,
 * byte for byte, and where it came from.
 *
 *   {"format": "glmd-model", "format_version": 1,
 *    "converter": "glmd 0.1.0",
 *    "source": {...},                             free-form description, strings and numbers
 *    "digest": "<32 hex>",                        see manifest_digest
 *    "files":   {name: {"bytes": n, "xxh3_128": "<32 hex>"}},
 *    "tensors": {name: {"bytes": n, "xxh3_128": "<32 hex>"}},
 *    "known_answer": "<16 hex>"}                  token hash of a fixed step; absent until known
 */
#ifndef GLMD_MODEL_MANIFEST_H
#define GLMD_MODEL_MANIFEST_H

#include <jansson.h>

#include "model/checksum.h"

enum { MANIFEST_MAX_BYTES = 64 << 20 };

struct manifest_entry {
    char *name; /* owned; [A-Za-z0-9._-]{1,256} */
    uint64_t bytes;
    struct checksum sum;
};

struct manifest_list { /* sorted by name once the manifest is complete */
    struct manifest_entry *entries;
    size_t n, capacity;
};

struct manifest {
    char converter[64];
    json_t *source; /* owned object */
    struct checksum digest;
    struct manifest_list files, tensors;
    bool has_known_answer;
    uint64_t known_answer;
};

void manifest_deinit(struct manifest *m);

int manifest_add(struct manifest_list *l, const char *name, uint64_t bytes,
                 const struct checksum *sum);
/* Sorts by name and sets the digest. -ENOMEM. */
int manifest_complete(struct manifest *m);
const struct manifest_entry *manifest_find(const struct manifest_list *l, const char *name);

/* XXH3-128 over name, NUL and checksum of every tensor, in the order of the names. */
int manifest_digest(const struct manifest_list *tensors, struct checksum *ret);

/* The digest is recomputed and compared. -EINVAL, -EBADMSG with the reason. */
int manifest_from_json(const json_t *root, struct manifest *ret, struct err *e);
int manifest_load(const char *path, struct manifest *ret, struct err *e);
int manifest_save(const char *path, const struct manifest *m, struct err *e);

/* One list <-> JSON, also for the journal of an unfinished conversion. */
json_t *manifest_list_to_json(const struct manifest_list *l);
int manifest_list_from_json(const json_t *object, struct manifest_list *ret, struct err *e);
void manifest_list_deinit(struct manifest_list *l);

#endif
