/* wire_map.h: plain structs <-> protobuf-c's structs, by tables. Internal to proto/rpc.
 *
 * One table per message lists its fields in the order of their numbers, all of them, under the
 * names of the .proto file; type and place on the protobuf-c side come from the generated
 * descriptor. wire_map_check() compares table and descriptor; the tests call it for every message.
 *
 * How fields look in the plain structs:
 *
 *   singular scalar, enum     T x                             absent = 0
 *   `optional` scalar         bool has_x; T x
 *   singular string           const char *x                   never NULL after unpacking; "" when
 *                                                             absent. NULL packs as ""
 *   singular bytes            struct wire_bytes x
 *   singular message          const struct y *x               NULL = absent
 *   EMBED                     struct y x                      absent = zeros
 *   member of a oneof         const char * or const struct *  at most one is not NULL
 *   repeated                  const T *x; uint32_t n_x        T may be const char *, a struct, and
 *                                                             is uint32_t for bool
 *   SAME                      const T *x                      as long as another list; NULL when
 *                                                             absent
 */
#ifndef GLMD_PROTO_RPC_WIRE_MAP_H
#define GLMD_PROTO_RPC_WIRE_MAP_H

#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "base/buf.h"
#include "base/err.h"
#include "proto/rpc/wire_arena.h"

enum wire_kind {
    WIRE_VALUE,
    WIRE_OPTIONAL, /* has_x in `other` */
    WIRE_ONEOF,
    WIRE_EMBED,
    WIRE_POINTER,
    WIRE_ARRAY, /* n_x in `other` */
    WIRE_SAME,  /* count in `other`, set by an earlier field */
};

struct wire_field {
    const char *name;
    enum wire_kind kind;
    uint16_t offset, other;
    uint16_t size; /* sizeof the member, or of an element of WIRE_ARRAY and WIRE_SAME */
    const struct wire_map *sub;
};

struct wire_map {
    const ProtobufCMessageDescriptor *descriptor;
    size_t size; /* sizeof the plain struct */
    const struct wire_field *fields;
    unsigned n_fields;
};

#define WIRE_SIZEOF(T, member)         sizeof(((T *)0)->member)
#define WIRE_SIZEOF_ELEMENT(T, member) sizeof(*((T *)0)->member)

#define F_VALUE(T, x)                                                                              \
    {                                                                                              \
#x, WIRE_VALUE, offsetof(T, x), 0, WIRE_SIZEOF(T, x), NULL                                 \
    }
#define F_OPTIONAL(T, x)                                                                           \
    {                                                                                              \
#x, WIRE_OPTIONAL, offsetof(T, x), offsetof(T, has_##x), WIRE_SIZEOF(T, x), NULL           \
    }
#define F_ONEOF(T, x, map)                                                                         \
    {                                                                                              \
#x, WIRE_ONEOF, offsetof(T, x), 0, sizeof(void *), map                                     \
    }
#define F_EMBED(T, x, map)                                                                         \
    {                                                                                              \
#x, WIRE_EMBED, offsetof(T, x), 0, WIRE_SIZEOF(T, x), map                                  \
    }
#define F_POINTER(T, x, map)                                                                       \
    {                                                                                              \
#x, WIRE_POINTER, offsetof(T, x), 0, WIRE_SIZEOF_ELEMENT(T, x), map                        \
    }
#define F_ARRAY(T, x)                                                                              \
    {                                                                                              \
#x, WIRE_ARRAY, offsetof(T, x), offsetof(T, n_##x), WIRE_SIZEOF_ELEMENT(T, x), NULL        \
    }
#define F_MESSAGES(T, x, map)                                                                      \
    {                                                                                              \
#x, WIRE_ARRAY, offsetof(T, x), offsetof(T, n_##x), WIRE_SIZEOF_ELEMENT(T, x), map         \
    }
#define F_SAME(T, x, count)                                                                        \
    {                                                                                              \
#x, WIRE_SAME, offsetof(T, x), offsetof(T, count), WIRE_SIZEOF_ELEMENT(T, x), NULL         \
    }
#define WIRE_MAP(name, message, T)                                                                 \
    static const struct wire_map name = {&glmd__v1__##message##__descriptor, sizeof(T),            \
                                         name##_fields,                                            \
                                         sizeof name##_fields / sizeof name##_fields[0]}
#define WIRE_MAP_EMPTY(name, message, T)                                                           \
    static const struct wire_map name = {&glmd__v1__##message##__descriptor, sizeof(T), NULL, 0}

/* The three public functions of a message. */
#define WIRE_DEFINE(name, T, map)                                                                  \
    int wire_unpack_##name(const uint8_t *data, size_t size, T **ret, struct err *e)               \
    {                                                                                              \
        void *object = NULL;                                                                       \
        int r = wire_map_unpack(&map, data, size, &object, e);                                     \
        *ret = object;                                                                             \
        return r;                                                                                  \
    }                                                                                              \
    void wire_free_##name(T *object)                                                               \
    {                                                                                              \
        wire_map_free(object);                                                                     \
    }                                                                                              \
    int wire_pack_##name(const T *object, struct buf *out)                                         \
    {                                                                                              \
        return wire_map_pack(&map, object, out);                                                   \
    }

int wire_map_unpack(const struct wire_map *m, const uint8_t *data, size_t size, void **ret,
                    struct err *e);
/* An empty object of `size` bytes, for who fills it without a table; what it points to comes from
 * the arena. `hint`: see wire_arena_init. NULL: no memory. */
void *wire_map_new(size_t size, size_t hint, struct wire_arena **ret_arena);
void wire_map_free(void *object);
int wire_map_pack(const struct wire_map *m, const void *object, struct buf *out);

/* -EINVAL when a table contradicts its descriptor, with the field's name. */
int wire_map_check(const struct wire_map *m, struct err *e);

/* Shared between files. */
extern const struct wire_map wire_model_info_map;

/* Tables of every message that travels on its own, for the tests; NULL behind the last. */
extern const struct wire_map *const wire_inference_maps[];
extern const struct wire_map *const wire_cluster_maps[];
extern const struct wire_map *const wire_worker_maps[];
extern const struct wire_map *const wire_kserve_maps[];
extern const struct wire_map *const wire_details_maps[];

#endif
