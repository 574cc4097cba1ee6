/* wire_pack.c: plain structs -> bytes, by the tables of wire_map.h. Writes the bytes that
 * protobuf-c would write, without building its structs first: fields in the order of their numbers,
 * zeros and empty texts left out unless they are `optional`, lists of scalars packed where the
 * descriptor says so. The recursion follows the schema, which does not refer to itself.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "proto/rpc/wire_bytes.h"
#include "proto/rpc/wire_map.h"

enum wire_type { VARINT = 0, FIXED64 = 1, LENGTH = 2, FIXED32 = 5 };

enum { MAX_ONEOFS = 8 }; /* of one message */

static const void *at(const void *base, size_t offset)
{
    return (const char *)base + offset;
}

static uint32_t get_u32(const void *base)
{
    uint32_t value;
    memcpy(&value, base, sizeof value);
    return value;
}

static uint64_t get_u64(const void *base)
{
    uint64_t value;
    memcpy(&value, base, sizeof value);
    return value;
}

static const void *get_pointer(const void *base)
{
    const void *value;
    memcpy(&value, base, sizeof value);
    return value;
}

/* ---- bytes ---- */

static size_t varint_size(uint64_t value)
{
    return value ? (70 - (size_t)__builtin_clzll(value)) / 7 : 1;
}

/* Nearly always there is room: most fields are a few bytes. */
static inline int reserve(struct buf *out, size_t n)
{
    bool fits = n < out->capacity - out->size && (!out->limit || n <= out->limit - out->size);
    return fits ? 0 : buf_reserve(out, n);
}

/* Room must have been reserved. */
static inline void put_varint(struct buf *out, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        out->data[out->size++] = (char)(value | 0x80);
    out->data[out->size++] = (char)value;
}

static inline int append_varint(struct buf *out, uint64_t value)
{
    if (reserve(out, 10)) { /* the longest */
        int r = buf_reserve(out, varint_size(value));
        if (r < 0)
            return r;
    }
    put_varint(out, value);
    return 0;
}

static int append_bytes(struct buf *out, const void *data, size_t size)
{
    int r = append_varint(out, size);
    return r == 0 && size ? buf_append(out, data, size) : r;
}

static inline int append_tag(struct buf *out, const ProtobufCFieldDescriptor *f,
                             enum wire_type type)
{
    return append_varint(out, (uint64_t)f->id << 3 | type);
}

/* ---- scalars ---- */

static inline enum wire_type type_of(const ProtobufCFieldDescriptor *f)
{
    switch (f->type) {
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
        return FIXED32;
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return FIXED64;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_MESSAGE:
        return LENGTH;
    default:
        return VARINT;
    }
}

/* The number that a varint field carries. */
static inline uint64_t varint_of(const ProtobufCFieldDescriptor *f, const void *member)
{
    switch (f->type) {
    case PROTOBUF_C_TYPE_BOOL:
        return *(const bool *)member;
    case PROTOBUF_C_TYPE_UINT32:
        return get_u32(member);
    case PROTOBUF_C_TYPE_SINT32: {
        uint32_t value = get_u32(member);
        return (uint32_t)(value << 1) ^ (0u - (value >> 31));
    }
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_ENUM:
        return (uint64_t)(int64_t)(int32_t)get_u32(member);
    case PROTOBUF_C_TYPE_SINT64: {
        uint64_t value = get_u64(member);
        return value << 1 ^ (0u - (value >> 63));
    }
    default:
        assert(f->type == PROTOBUF_C_TYPE_INT64 || f->type == PROTOBUF_C_TYPE_UINT64);
        return get_u64(member);
    }
}

static int append_scalar(struct buf *out, const ProtobufCFieldDescriptor *f, const void *member)
{
    enum wire_type type = type_of(f);
    if (type == VARINT)
        return append_varint(out, varint_of(f, member));
    /* IEEE numbers travel little-endian, as they lie in memory here */
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "fixed fields are copied");
    return buf_append(out, member, type == FIXED32 ? 4 : 8);
}

/* Whether all bytes of a scalar are zero: then it is the default, whatever its type. */
static inline bool is_zero(const void *member, size_t size)
{
    return size == 4   ? get_u32(member) == 0
           : size == 8 ? get_u64(member) == 0
                       : !*(const bool *)member;
}

static inline int append_one(struct buf *out, const ProtobufCFieldDescriptor *f, const void *member)
{
    int r = append_tag(out, f, type_of(f));
    return r == 0 ? append_scalar(out, f, member) : r;
}

/* -EINVAL: not a value of the enum. */
static int check_enum(const ProtobufCFieldDescriptor *f, const void *member)
{
    int number = (int)get_u32(member);
    if (number == 0 || protobuf_c_enum_descriptor_get_value(f->descriptor, number))
        return 0;
    return -EINVAL;
}

static int append_text(struct buf *out, const ProtobufCFieldDescriptor *f, const void *member,
                       bool optional)
{
    struct wire_bytes bytes;
    if (f->type == PROTOBUF_C_TYPE_STRING) {
        const char *text = get_pointer(member);
        bytes = (struct wire_bytes){text ? strlen(text) : 0, (const void *)text};
    } else {
        memcpy(&bytes, member, sizeof bytes);
    }
    if (!bytes.size && !optional)
        return 0;
    int r = append_tag(out, f, LENGTH);
    return r == 0 ? append_bytes(out, bytes.data, bytes.size) : r;
}

/* A singular text, bytes or scalar of `size` bytes in memory. */
static inline int append_value(struct buf *out, const ProtobufCFieldDescriptor *f,
                               const void *member, size_t size, bool optional)
{
    if (f->type == PROTOBUF_C_TYPE_STRING || f->type == PROTOBUF_C_TYPE_BYTES)
        return append_text(out, f, member, optional);
    if (!optional && is_zero(member, size))
        return 0;
    int r = f->type == PROTOBUF_C_TYPE_ENUM ? check_enum(f, member) : 0;
    return r == 0 ? append_one(out, f, member) : r;
}

/* ---- messages and lists ---- */

static int append_fields(struct buf *out, const struct wire_map *m, const void *plain);

/* Its length comes first: a byte is kept for it, and what follows moves where it needs more. */
static int append_message(struct buf *out, const ProtobufCFieldDescriptor *f,
                          const struct wire_map *m, const void *plain)
{
    int r = append_tag(out, f, LENGTH);
    if (r == 0)
        r = append_varint(out, 0);
    if (r < 0)
        return r;
    size_t begin = out->size;
    r = append_fields(out, m, plain);
    if (r < 0)
        return r;
    size_t size = out->size - begin, more = varint_size(size) - 1;
    r = more ? buf_reserve(out, more) : 0;
    if (r < 0)
        return r;
    if (more)
        memmove(out->data + begin + more, out->data + begin, size);
    out->size = begin - 1;
    put_varint(out, size);
    out->size += size;
    return 0;
}

static int append_packed(struct buf *out, const ProtobufCFieldDescriptor *f, const char *elements,
                         size_t n, size_t element_size)
{
    enum wire_type type = type_of(f);
    size_t size = type == VARINT ? 0 : n * element_size;
    for (size_t i = 0; type == VARINT && i != n; i++)
        size += varint_size(varint_of(f, elements + i * element_size));
    int r = append_tag(out, f, LENGTH);
    if (r == 0)
        r = append_varint(out, size);
    if (r == 0)
        r = buf_reserve(out, size);
    if (r < 0)
        return r;
    if (type != VARINT)
        return buf_append(out, elements, size);
    for (size_t i = 0; i != n; i++)
        put_varint(out, varint_of(f, elements + i * element_size));
    return 0;
}

static int append_list(struct buf *out, const struct wire_field *w,
                       const ProtobufCFieldDescriptor *f, const void *plain)
{
    const char *elements = get_pointer(at(plain, w->offset));
    size_t n = get_u32(at(plain, w->other));
    if (!n || (w->kind == WIRE_SAME && !elements))
        return 0;
    assert(elements);
    if (f->flags & PROTOBUF_C_FIELD_FLAG_PACKED)
        return append_packed(out, f, elements, n, w->size);
    int r = 0;
    for (size_t i = 0; i != n && r == 0; i++) {
        if (w->sub) {
            r = append_message(out, f, w->sub, elements + i * w->sub->size);
        } else if (type_of(f) == LENGTH) { /* an empty one counts, too */
            r = append_text(out, f, elements + i * w->size, true);
        } else {
            r = append_one(out, f, elements + i * w->size);
        }
    }
    return r;
}

/* The oneofs of a message in which a member was written. */
struct oneofs {
    unsigned places[MAX_ONEOFS];
    size_t n;
};

/* -EINVAL: two members of one choice. */
static int note_oneof(struct oneofs *o, const ProtobufCFieldDescriptor *f)
{
    for (size_t i = 0; i != o->n; i++)
        if (o->places[i] == f->quantifier_offset)
            return -EINVAL;
    assert(o->n < MAX_ONEOFS);
    o->places[o->n++] = f->quantifier_offset;
    return 0;
}

static int append_field(struct buf *out, const struct wire_field *w,
                        const ProtobufCFieldDescriptor *f, const void *plain, struct oneofs *oneofs)
{
    const void *member = at(plain, w->offset), *inner;
    int r;
    switch (w->kind) {
    case WIRE_ARRAY:
    case WIRE_SAME:
        return append_list(out, w, f, plain);
    case WIRE_OPTIONAL:
        return *(const bool *)at(plain, w->other) ? append_value(out, f, member, w->size, true) : 0;
    case WIRE_ONEOF:
        inner = get_pointer(member);
        r = inner ? note_oneof(oneofs, f) : 0;
        if (r < 0 || !inner)
            return r;
        return w->sub ? append_message(out, f, w->sub, inner) : append_text(out, f, member, true);
    case WIRE_POINTER:
        inner = get_pointer(member);
        return inner ? append_message(out, f, w->sub, inner) : 0;
    case WIRE_EMBED:
        return append_message(out, f, w->sub, member);
    case WIRE_VALUE:
        return append_value(out, f, member, w->size, false);
    }
    assert(false);
    return -EINVAL;
}

static int append_fields(struct buf *out, const struct wire_map *m, const void *plain)
{
    struct oneofs oneofs = {.n = 0};
    int r = 0;
    assert(m->n_fields == m->descriptor->n_fields);
    for (unsigned i = 0; r == 0 && i != m->n_fields; i++)
        r = append_field(out, &m->fields[i], &m->descriptor->fields[i], plain, &oneofs);
    return r;
}

int wire_map_pack(const struct wire_map *m, const void *object, struct buf *out)
{
    size_t before = out->size;
    int r = buf_reserve(out, 0);
    if (r == 0)
        r = append_fields(out, m, object);
    if (r < 0)
        out->size = before;
    if (out->data)
        out->data[out->size] = '\0';
    return r;
}
