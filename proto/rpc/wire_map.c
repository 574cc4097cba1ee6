/* wire_map.c: see wire_map.h. Unpacking: scan, protobuf-c, then the plain structs are filled from
 * protobuf-c's; strings, bytes and lists of scalars are shared with them, everything lies in one
 * arena in front of the object. The recursion follows the schema, which does not refer to itself,
 * never the input. Packing: wire_pack.c.
 */
#include "proto/rpc/wire_map.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "proto/rpc/wire_arena.h"
#include "proto/rpc/wire_bytes.h"
#include "proto/rpc/wire_scan.h"

enum { SCRATCH_PER_FIELD = 80 }; /* protobuf-c notes a field in 40 bytes, in doubling lists */

struct object { /* in front of every unpacked plain struct */
    struct wire_arena arena;
    uint64_t data[];
};

static void *at(const void *base, size_t offset)
{
    return (char *)base + offset;
}

static uint32_t get_u32(const void *base, size_t offset)
{
    uint32_t value;
    memcpy(&value, at(base, offset), sizeof value);
    return value;
}

static const void *get_pointer(const void *base, size_t offset)
{
    const void *value;
    memcpy(&value, at(base, offset), sizeof value);
    return value;
}

static void set_pointer(void *base, size_t offset, const void *value)
{
    memcpy(at(base, offset), &value, sizeof value);
}

/* ---- unpacking ---- */

static int fill(const struct wire_map *m, const ProtobufCMessage *pb, struct wire_arena *a,
                void *plain, struct err *e);

static int fill_value(const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f,
                      const void *pb, void *member, size_t size, struct err *e)
{
    const void *value = at(pb, f->offset);
    switch (f->type) {
    case PROTOBUF_C_TYPE_BOOL: {
        protobuf_c_boolean given;
        memcpy(&given, value, sizeof given);
        *(bool *)member = given != 0;
        return 0;
    }
    case PROTOBUF_C_TYPE_BYTES: {
        ProtobufCBinaryData bytes;
        memcpy(&bytes, value, sizeof bytes);
        *(struct wire_bytes *)member = (struct wire_bytes){bytes.len, bytes.data};
        return 0;
    }
    case PROTOBUF_C_TYPE_ENUM: {
        int number = (int)get_u32(value, 0);
        if (!protobuf_c_enum_descriptor_get_value(f->descriptor, number))
            return err_set(e, -EBADMSG, "%s.%s: %d is not a value of %s", d->short_name, f->name,
                           number, ((const ProtobufCEnumDescriptor *)f->descriptor)->short_name);
        memcpy(member, value, size);
        return 0;
    }
    case PROTOBUF_C_TYPE_STRING: {
        const char *text = get_pointer(value, 0);
        set_pointer(member, 0, text ? text : "");
        return 0;
    }
    default:
        memcpy(member, value, size);
        return 0;
    }
}

static int fill_message(const struct wire_field *w, const ProtobufCFieldDescriptor *f,
                        const void *pb, struct wire_arena *a, void *plain, struct err *e)
{
    const ProtobufCMessage *inner = get_pointer(pb, f->offset);
    if (!inner)
        return 0;
    if (w->kind == WIRE_EMBED)
        return fill(w->sub, inner, a, at(plain, w->offset), e);
    void *copy = wire_arena_array(a, 1, w->sub->size);
    if (!copy)
        return -ENOMEM;
    set_pointer(plain, w->offset, copy);
    return fill(w->sub, inner, a, copy, e);
}

static int fill_list(const ProtobufCMessageDescriptor *d, const struct wire_field *w,
                     const ProtobufCFieldDescriptor *f, const void *pb, struct wire_arena *a,
                     void *plain, struct err *e)
{
    size_t n;
    memcpy(&n, at(pb, f->quantifier_offset), sizeof n);
    const void *elements = get_pointer(pb, f->offset);
    uint32_t count = (uint32_t)n;
    if (n > UINT32_MAX)
        return err_set(e, -E2BIG, "%s.%s: too many elements", d->short_name, f->name);
    if (w->kind == WIRE_SAME) {
        uint32_t expected = get_u32(plain, w->other);
        if (n && n != expected)
            return err_set(e, -EBADMSG, "%s.%s: expected %u elements, found %zu", d->short_name,
                           f->name, expected, n);
    } else {
        memcpy(at(plain, w->other), &count, sizeof count);
    }
    if (!n)
        return 0;
    if (!w->sub) {
        set_pointer(plain, w->offset, elements);
        return 0;
    }
    char *copies = wire_arena_array(a, n, w->sub->size);
    if (!copies)
        return -ENOMEM;
    set_pointer(plain, w->offset, copies);
    int r = 0;
    for (size_t i = 0; !r && i < n; i++)
        r = fill(w->sub, get_pointer(elements, i * sizeof(void *)), a, copies + i * w->sub->size,
                 e);
    return r;
}

static int fill_field(const ProtobufCMessageDescriptor *d, const struct wire_field *w,
                      const ProtobufCFieldDescriptor *f, const void *pb, struct wire_arena *a,
                      void *plain, struct err *e)
{
    switch (w->kind) {
    case WIRE_OPTIONAL:
        if (get_u32(pb, f->quantifier_offset) != f->id)
            return 0;
        *(bool *)at(plain, w->other) = true;
        return fill_value(d, f, pb, at(plain, w->offset), w->size, e);
    case WIRE_ONEOF:
        if (get_u32(pb, f->quantifier_offset) != f->id)
            return 0;
        break;
    case WIRE_ARRAY:
    case WIRE_SAME:
        return fill_list(d, w, f, pb, a, plain, e);
    default:
        break;
    }
    if (w->sub)
        return fill_message(w, f, pb, a, plain, e);
    return fill_value(d, f, pb, at(plain, w->offset), w->size, e);
}

static int fill(const struct wire_map *m, const ProtobufCMessage *pb, struct wire_arena *a,
                void *plain, struct err *e)
{
    assert(m->n_fields == m->descriptor->n_fields && pb->descriptor == m->descriptor);
    int r = 0;
    for (unsigned i = 0; !r && i < m->n_fields; i++)
        r = fill_field(m->descriptor, &m->fields[i], &m->descriptor->fields[i], pb, a, plain, e);
    return r;
}

int wire_map_unpack(const struct wire_map *m, const uint8_t *data, size_t size, void **ret,
                    struct err *e)
{
    *ret = NULL;
    struct wire_scan_result scan;
    int r = wire_scan_sized(m->descriptor, data, size, &scan, e);
    if (r)
        return r;
    struct object *o = calloc(1, sizeof *o + m->size);
    if (!o)
        return err_set(e, -ENOMEM, "%s: out of memory", m->descriptor->short_name);
    wire_arena_init(&o->arena, scan.heap + SCRATCH_PER_FIELD * scan.n_fields, 2 * scan.heap);
    ProtobufCAllocator allocator = wire_arena_allocator(&o->arena);
    ProtobufCMessage *pb = protobuf_c_message_unpack(m->descriptor, &allocator, size, data);
    if (!pb) {
        r = err_set(e, -EBADMSG, "%s: malformed message", m->descriptor->short_name);
    } else {
        o->arena.limit = 0; /* plain structs: in proportion to what was admitted */
        r = fill(m, pb, &o->arena, o->data, e);
        if (r == -ENOMEM)
            err_set(e, r, "%s: out of memory", m->descriptor->short_name);
    }
    if (r) {
        wire_map_free(o->data);
        return r;
    }
    *ret = o->data;
    return 0;
}

void *wire_map_new(size_t size, size_t hint, struct wire_arena **ret_arena)
{
    struct object *o = calloc(1, sizeof *o + size);
    if (!o)
        return NULL;
    wire_arena_init(&o->arena, 0, hint);
    *ret_arena = &o->arena;
    return o->data;
}

void wire_map_free(void *object)
{
    if (!object)
        return;
    struct object *o = (struct object *)((char *)object - offsetof(struct object, data));
    wire_arena_deinit(&o->arena);
    free(o);
}

/* ---- tables against descriptors ---- */

/* Lists are shared with protobuf-c, elements look as its own do, and so do members but for bool. */
static size_t plain_size(ProtobufCType type)
{
    static_assert(sizeof(struct wire_bytes) == sizeof(ProtobufCBinaryData) &&
                      offsetof(struct wire_bytes, data) == offsetof(ProtobufCBinaryData, data),
                  "lists of bytes are shared");
    return type == PROTOBUF_C_TYPE_BOOL ? sizeof(bool) : wire_element_size(type);
}

static const char *check_field(const struct wire_field *w, const ProtobufCFieldDescriptor *f)
{
    bool repeated = f->label == PROTOBUF_C_LABEL_REPEATED;
    bool message = f->type == PROTOBUF_C_TYPE_MESSAGE;
    bool oneof = f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF;
    if (strcmp(w->name, f->name) != 0)
        return "expected the field of this name, in the order of the numbers";
    if (repeated != (w->kind == WIRE_ARRAY || w->kind == WIRE_SAME))
        return "repeated on one side only";
    if (oneof != (w->kind == WIRE_ONEOF || w->kind == WIRE_OPTIONAL))
        return "member of a oneof, or optional, on one side only";
    if (message != (w->sub != NULL))
        return "a message on one side only";
    if (message && w->sub->descriptor != f->descriptor)
        return "table of another message";
    if (message && w->kind != WIRE_ONEOF && w->size != w->sub->size)
        return "struct of another message";
    if (!message && w->size != (repeated ? wire_element_size(f->type) : plain_size(f->type)))
        return "size of the member does not fit the type";
    if (w->kind == WIRE_ONEOF && !message && f->type != PROTOBUF_C_TYPE_STRING)
        return "only strings and messages can be members of a oneof";
    if (repeated && f->type == PROTOBUF_C_TYPE_ENUM)
        return "lists of this type are not supported";
    return NULL;
}

int wire_map_check(const struct wire_map *m, struct err *e)
{
    const ProtobufCMessageDescriptor *d = m->descriptor;
    if (m->n_fields != d->n_fields)
        return err_set(e, -EINVAL, "%s: the table has %u fields, the message %u", d->short_name,
                       m->n_fields, d->n_fields);
    if (m->size > 2 * d->sizeof_message + 64)
        return err_set(e, -EINVAL, "%s: struct of %zu bytes for a message of %zu", d->short_name,
                       m->size, d->sizeof_message);
    for (unsigned i = 0; i < m->n_fields; i++) {
        const char *wrong = check_field(&m->fields[i], &d->fields[i]);
        if (wrong)
            return err_set(e, -EINVAL, "%s.%s (table: %s): %s", d->short_name, d->fields[i].name,
                           m->fields[i].name, wrong);
        int r = m->fields[i].sub ? wire_map_check(m->fields[i].sub, e) : 0;
        if (r)
            return r;
    }
    return 0;
}
