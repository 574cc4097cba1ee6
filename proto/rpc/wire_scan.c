/* wire_scan.c: see wire_scan.h. */
#include "proto/rpc/wire_scan.h"

#include <assert.h>
#include <string.h>

#include "base/utf8.h"
#include "base/util.h"

enum { VARINT_MAX_BYTES = 10, MAX_MESSAGE_FIELDS = 64 };

struct level { /* one message that is being walked */
    const ProtobufCMessageDescriptor *message;
    const uint8_t *end;
    uint64_t seen; /* bit per field: singular messages and oneofs met so far */
    size_t n_unknown;
};

struct scan {
    const uint8_t *start, *at;
    size_t size;
    struct level levels[WIRE_MAX_DEPTH];
    unsigned depth; /* levels in use */
    size_t n_fields, n_unknown, heap;
    struct err *e;
};

static int malformed(const struct scan *s, const char *what)
{
    return err_set(s->e, -EBADMSG, "%s: byte %zu: %s", s->levels[s->depth - 1].message->short_name,
                   (size_t)(s->at - s->start), what);
}

static int grow(struct scan *s, size_t bytes)
{
    /* bytes <= 8 * size of a message that fits memory, the sum stays far below SIZE_MAX */
    s->heap += round_up(bytes, 8);
    size_t limit = WIRE_HEAP_FACTOR * s->size + WIRE_HEAP_SLACK;
    if (s->heap <= limit)
        return 0;
    return err_set(s->e, -E2BIG,
                   "%s: unpacking needs more than %zu bytes of memory for a message of %zu; send "
                   "fewer or fuller parts",
                   s->levels[0].message->short_name, limit, s->size);
}

static int read_varint(struct scan *s, uint64_t *ret)
{
    const uint8_t *end = s->levels[s->depth - 1].end;
    uint64_t value = 0;
    for (unsigned i = 0; i < VARINT_MAX_BYTES; i++) {
        if (s->at + i >= end)
            return malformed(s, "a number is cut off");
        uint8_t byte = s->at[i];
        if (i == 9 && byte > 1)
            return malformed(s, "a number has more than 64 bits");
        value |= (uint64_t)(byte & 0x7f) << 7 * i;
        if (byte < 0x80) {
            s->at += i + 1;
            *ret = value;
            return 0;
        }
    }
    return malformed(s, "a number has more than ten bytes");
}

static unsigned wire_type_of(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
        return PROTOBUF_C_WIRE_TYPE_32BIT;
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return PROTOBUF_C_WIRE_TYPE_64BIT;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_MESSAGE:
        return PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED;
    default:
        return PROTOBUF_C_WIRE_TYPE_VARINT;
    }
}

size_t wire_element_size(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return 8;
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    default:
        return 4;
    }
}

static int scan_packed(struct scan *s, const ProtobufCFieldDescriptor *f, size_t length)
{
    const uint8_t *data = s->at;
    size_t n = 0;
    unsigned wire_type = wire_type_of(f->type);
    if (wire_type == PROTOBUF_C_WIRE_TYPE_VARINT) {
        unsigned run = 0;
        for (size_t i = 0; i < length; i++) {
            bool last = data[i] < 0x80;
            n += last;
            run = last ? 0 : run + 1;
            if (run >= VARINT_MAX_BYTES)
                return malformed(s, "a number has more than ten bytes");
        }
        if (run)
            return malformed(s, "a packed list ends inside a number");
    } else {
        size_t width = wire_type == PROTOBUF_C_WIRE_TYPE_32BIT ? 4 : 8;
        if (length % width)
            return malformed(s, "a packed list ends inside a number");
        n = length / width;
    }
    s->at += length;
    return grow(s, n * wire_element_size(f->type));
}

/* The descriptor's index, or that of the first member of the same oneof. */
static unsigned identity(const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f)
{
    unsigned i = 0;
    if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
        while (!(d->fields[i].flags & PROTOBUF_C_FIELD_FLAG_ONEOF) ||
               d->fields[i].quantifier_offset != f->quantifier_offset)
            i++;
    else
        i = (unsigned)(f - d->fields);
    return i;
}

/* Encoders write a singular message or a oneof once; protobuf-c would merge or replace. */
static int check_once(struct scan *s, const ProtobufCFieldDescriptor *f)
{
    struct level *l = &s->levels[s->depth - 1];
    if (f->label == PROTOBUF_C_LABEL_REPEATED ||
        (f->type != PROTOBUF_C_TYPE_MESSAGE && !(f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)))
        return 0;
    uint64_t bit = UINT64_C(1) << identity(l->message, f);
    if (l->seen & bit)
        return err_set(s->e, -EBADMSG, "%s.%s: given twice, or together with another of its choice",
                       l->message->short_name, f->name);
    l->seen |= bit;
    return 0;
}

static int scan_string(struct scan *s, const ProtobufCFieldDescriptor *f, size_t length)
{
    const char *text = (const char *)s->at;
    size_t good = utf8_check(text, length);
    if (good < length)
        return err_set(s->e, -EBADMSG, "%s.%s: expected UTF-8, found byte 0x%02x at offset %zu",
                       s->levels[s->depth - 1].message->short_name, f->name, (uint8_t)text[good],
                       good);
    if (memchr(text, 0, length))
        return err_set(s->e, -EBADMSG, "%s.%s: text contains a NUL byte",
                       s->levels[s->depth - 1].message->short_name, f->name);
    s->at += length;
    return grow(s, length + 1);
}

/* A length-prefixed field; s->at is behind the length, which fits the enclosing message. */
static int scan_delimited(struct scan *s, const ProtobufCFieldDescriptor *f, size_t length)
{
    int r = 0;
    if (f->label == PROTOBUF_C_LABEL_REPEATED) {
        if (wire_type_of(f->type) != PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED)
            return scan_packed(s, f, length);
        r = grow(s, wire_element_size(f->type));
    }
    if (r)
        return r;
    if (f->type == PROTOBUF_C_TYPE_STRING)
        return scan_string(s, f, length);
    if (f->type == PROTOBUF_C_TYPE_BYTES) {
        s->at += length;
        return grow(s, length);
    }
    if (s->depth == WIRE_MAX_DEPTH)
        return err_set(s->e, -E2BIG, "%s: messages nested deeper than %d",
                       s->levels[0].message->short_name, WIRE_MAX_DEPTH);
    const ProtobufCMessageDescriptor *m = f->descriptor;
    s->levels[s->depth++] = (struct level){.message = m, .end = s->at + length};
    return grow(s, m->sizeof_message);
}

static int count_unknown(struct scan *s, size_t length)
{
    if (++s->n_unknown > WIRE_MAX_UNKNOWN)
        return err_set(s->e, -E2BIG,
                       "%s: more than %d unknown fields; is the sender of a much newer version?",
                       s->levels[s->depth - 1].message->short_name, WIRE_MAX_UNKNOWN);
    return grow(s, sizeof(ProtobufCMessageUnknownField)) ?: grow(s, length);
}

static int scan_field(struct scan *s)
{
    struct level *l = &s->levels[s->depth - 1];
    uint64_t key = 0, value = 0;
    int r = read_varint(s, &key);
    if (r)
        return r;
    if (++s->n_fields > WIRE_MAX_FIELDS)
        return err_set(s->e, -E2BIG, "%s: more than %d fields", s->levels[0].message->short_name,
                       WIRE_MAX_FIELDS);
    if (key >> 3 == 0 || key >> 3 > 0x1fffffff)
        return malformed(s, "a field number is out of range");
    const ProtobufCFieldDescriptor *f =
        protobuf_c_message_descriptor_get_field(l->message, (unsigned)(key >> 3));
    unsigned wire_type = key & 7;
    size_t length = 0;
    const uint8_t *content = s->at;
    switch (wire_type) {
    case PROTOBUF_C_WIRE_TYPE_VARINT:
        r = read_varint(s, &value);
        length = (size_t)(s->at - content);
        break;
    case PROTOBUF_C_WIRE_TYPE_32BIT:
    case PROTOBUF_C_WIRE_TYPE_64BIT:
        length = wire_type == PROTOBUF_C_WIRE_TYPE_32BIT ? 4 : 8;
        break;
    case PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED:
        r = read_varint(s, &value);
        length = value > SIZE_MAX / 2 ? SIZE_MAX / 2 : (size_t)value;
        content = s->at;
        break;
    default:
        return malformed(s, "a field has a wire type that is not in use");
    }
    if (r)
        return r;
    if (length > (size_t)(l->end - content))
        return malformed(s, "a field is longer than its message");
    if (!f) {
        s->at = content + length;
        /* protobuf-c keeps the length prefix with the data */
        return count_unknown(s, length + VARINT_MAX_BYTES);
    }
    bool fits =
        wire_type == wire_type_of(f->type) || (wire_type == PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED &&
                                               f->label == PROTOBUF_C_LABEL_REPEATED);
    if (!fits)
        return err_set(s->e, -EBADMSG, "%s.%s: expected wire type %u, found %u",
                       l->message->short_name, f->name, wire_type_of(f->type), wire_type);
    r = check_once(s, f);
    if (r)
        return r;
    if (wire_type == PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED)
        return scan_delimited(s, f, length);
    s->at = content + length;
    return f->label == PROTOBUF_C_LABEL_REPEATED ? grow(s, wire_element_size(f->type)) : 0;
}

int wire_scan_sized(const ProtobufCMessageDescriptor *d, const uint8_t *data, size_t size,
                    struct wire_scan_result *ret, struct err *e)
{
    static const uint8_t nothing[1];
    if (!size)
        data = nothing;
    struct scan s = {.start = data, .at = data, .size = size, .depth = 1, .e = e};
    s.levels[0] = (struct level){.message = d, .end = data + size};
    int r = grow(&s, d->sizeof_message);
    while (!r && s.depth) {
        assert(s.levels[s.depth - 1].message->n_fields <= MAX_MESSAGE_FIELDS);
        if (s.at == s.levels[s.depth - 1].end)
            s.depth--;
        else
            r = scan_field(&s);
    }
    *ret = (struct wire_scan_result){.heap = s.heap, .n_fields = s.n_fields};
    return r;
}

int wire_scan(const ProtobufCMessageDescriptor *d, const uint8_t *data, size_t size, struct err *e)
{
    struct wire_scan_result result;
    return wire_scan_sized(d, data, size, &result, e);
}
