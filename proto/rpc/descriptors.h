/* descriptors.h: the .proto files that this build speaks, as compiled descriptors, and where a name
 * is defined. Internal to proto/rpc. Read-only once open. */
#ifndef GLMD_PROTO_RPC_DESCRIPTORS_H
#define GLMD_PROTO_RPC_DESCRIPTORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum { DESCRIPTORS_MAX_FILES = 64 };

struct descriptors;

/* `set`: a serialized google.protobuf.FileDescriptorSet with all imports; borrowed. */
int descriptors_new(const uint8_t *set, size_t size, struct descriptors **ret, struct err *e);
void descriptors_free(struct descriptors *d);

/* Index of a file, or -1. A symbol is a service, method, message or enum with its package. */
int descriptors_find_file(const struct descriptors *d, const char *name);
int descriptors_find_symbol(const struct descriptors *d, const char *symbol);
bool descriptors_has_service(const struct descriptors *d, const char *name);

/* The file itself first, then everything it imports, each once. Returns how many. */
size_t descriptors_closure(const struct descriptors *d, int file,
                           int ret_files[DESCRIPTORS_MAX_FILES]);

/* The serialized FileDescriptorProto, as the compiler wrote it. */
const uint8_t *descriptors_bytes(const struct descriptors *d, int file, size_t *ret_size);

/* The set that the build embeds. */
extern const uint8_t glmd_descriptors[];
extern const size_t glmd_descriptors_size;

#endif
