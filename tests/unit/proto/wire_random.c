/* wire_random.c: see wire_random.h. */
#include "wire_random.h"

#include <assert.h>
#include <string.h>

#include "proto/rpc/wire_bytes.h"

uint64_t random_u64(struct wire_random *r)
{
    uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

uint32_t random_below(struct wire_random *r, uint32_t n)
{
    return (uint32_t)(random_u64(r) % n);
}

static bool chance(struct wire_random *r)
{
    return r->full || random_below(r, 2);
}

uint32_t oneof_members(const struct wire_map *m)
{
    uint32_t n = 0;
    for (unsigned i = 0; i < m->n_fields; i++)
        n += m->fields[i].kind == WIRE_ONEOF;
    return n ? n : 1;
}

static const char *random_text(struct wire_random *r)
{
    static const char *const pieces[] = {"a",  "blank",           "\xc3\xa9", "\xe6\xb8\x85",
                                         "\n", "\xf0\x9f\x98\x80"};
    char *text = wire_arena_array(r->arena, 1, 64);
    size_t size = 0;
    for (uint32_t n = 1 + random_below(r, 8); n; n--) {
        for (const char *p = pieces[random_below(r, 6)]; *p; p++)
            text[size++] = *p;
    }
    return text;
}

static void random_value(struct wire_random *r, const ProtobufCFieldDescriptor *f, void *member,
                         size_t size)
{
    uint64_t value = random_u64(r) >> random_below(r, 64); /* all magnitudes */
    if (!value)
        value = 1;
    switch (f->type) {
    case PROTOBUF_C_TYPE_BOOL:
        *(bool *)member = chance(r);
        break;
    case PROTOBUF_C_TYPE_STRING: {
        const char *text = random_text(r);
        memcpy(member, &text, sizeof text);
        break;
    }
    case PROTOBUF_C_TYPE_BYTES: {
        struct wire_bytes bytes = {16, wire_arena_array(r->arena, 1, 16)};
        for (size_t i = 0; i < 16; i++)
            ((uint8_t *)bytes.data)[i] = (uint8_t)random_u64(r);
        memcpy(member, &bytes, sizeof bytes);
        break;
    }
    case PROTOBUF_C_TYPE_ENUM: {
        const ProtobufCEnumDescriptor *d = f->descriptor;
        uint32_t number =
            (uint32_t)d->values[r->full ? d->n_values - 1 : random_below(r, d->n_values)].value;
        memcpy(member, &number, size);
        break;
    }
    case PROTOBUF_C_TYPE_FLOAT: {
        float number = (float)(int32_t)value / 64;
        memcpy(member, &number, size);
        break;
    }
    case PROTOBUF_C_TYPE_DOUBLE: {
        double number = (double)(int64_t)value / 64;
        memcpy(member, &number, size);
        break;
    }
    default:
        if (random_below(r, 4) == 0)
            value = ~value; /* negative where the type is signed */
        memcpy(member, &value, size);
    }
}

static void random_list(struct wire_random *r, const struct wire_field *w,
                        const ProtobufCFieldDescriptor *f, char *plain)
{
    uint32_t n = r->full ? 1 + random_below(r, 4) : random_below(r, 4);
    if (w->kind == WIRE_SAME)
        memcpy(&n, plain + w->other, sizeof n);
    else
        memcpy(plain + w->other, &n, sizeof n);
    if (!n || (w->kind == WIRE_SAME && !chance(r)))
        return;
    char *elements = wire_arena_array(r->arena, n, w->size);
    memcpy(plain + w->offset, &elements, sizeof elements);
    for (uint32_t i = 0; i < n; i++)
        if (w->sub)
            random_fill(r, w->sub, elements + (size_t)i * w->size, random_below(r, 8));
        else
            random_value(r, f, elements + (size_t)i * w->size, w->size);
}

static void random_message(struct wire_random *r, const struct wire_field *w, char *plain)
{
    if (w->kind == WIRE_EMBED) {
        random_fill(r, w->sub, plain + w->offset, 0);
        return;
    }
    void *inner = wire_arena_array(r->arena, 1, w->sub->size);
    memcpy(plain + w->offset, &inner, sizeof inner);
    random_fill(r, w->sub, inner, random_below(r, 8));
}

void random_fill(struct wire_random *r, const struct wire_map *m, void *plain, uint32_t oneof_pick)
{
    oneof_pick %= oneof_members(m);
    uint32_t member = 0;
    uint64_t taken = 0; /* oneofs of scalars that have their one member, by place */
    for (unsigned i = 0; i < m->n_fields; i++) {
        const struct wire_field *w = &m->fields[i];
        const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
        char *at = (char *)plain + w->offset;
        if (w->kind == WIRE_ONEOF && member++ != oneof_pick)
            continue;
        if (w->kind == WIRE_ARRAY || w->kind == WIRE_SAME) {
            random_list(r, w, f, plain);
        } else if (w->kind == WIRE_OPTIONAL) {
            uint64_t place = UINT64_C(1) << f->quantifier_offset / 4 % 64;
            bool has = !(taken & place) && chance(r);
            taken |= has ? place : 0;
            memcpy((char *)plain + w->other, &has, sizeof has);
            if (has)
                random_value(r, f, at, w->size);
        } else if (w->sub) {
            if (w->kind != WIRE_POINTER || chance(r))
                random_message(r, w, plain);
        } else {
            random_value(r, f, at, w->kind == WIRE_ONEOF ? sizeof(char *) : w->size);
        }
    }
}

static bool text_differ(const void *a, const void *b)
{
    const char *x, *y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return !x || !y ? x != y : strcmp(x, y) != 0;
}

static bool bytes_differ(const struct wire_bytes *a, const struct wire_bytes *b)
{
    return a->size != b->size || (a->size && memcmp(a->data, b->data, a->size) != 0);
}

static const char *one_differ(const struct wire_field *w, const ProtobufCFieldDescriptor *f,
                              const void *a, const void *b)
{
    bool differ;
    if (w->sub)
        return plain_differ(w->sub, a, b);
    if (f->type == PROTOBUF_C_TYPE_STRING)
        differ = text_differ(a, b);
    else if (f->type == PROTOBUF_C_TYPE_BYTES)
        differ = bytes_differ(a, b);
    else
        differ = memcmp(a, b, w->size) != 0;
    return differ ? w->name : NULL;
}

static const char *field_differ(const struct wire_field *w, const ProtobufCFieldDescriptor *f,
                                const char *a, const char *b)
{
    const char *x, *y;
    switch (w->kind) {
    case WIRE_ARRAY:
    case WIRE_SAME: {
        uint32_t n, n_b;
        memcpy(&n, a + w->other, sizeof n);
        memcpy(&n_b, b + w->other, sizeof n_b);
        memcpy(&x, a + w->offset, sizeof x);
        memcpy(&y, b + w->offset, sizeof y);
        if (n != n_b || !x != !y)
            return w->name;
        for (uint32_t i = 0; x && i < n; i++) {
            const char *differ = one_differ(w, f, x + (size_t)i * w->size, y + (size_t)i * w->size);
            if (differ)
                return differ;
        }
        return NULL;
    }
    case WIRE_OPTIONAL:
        if (*(const bool *)(a + w->other) != *(const bool *)(b + w->other))
            return w->name;
        return one_differ(w, f, a + w->offset, b + w->offset);
    case WIRE_POINTER:
    case WIRE_ONEOF:
        if (w->sub) {
            memcpy(&x, a + w->offset, sizeof x);
            memcpy(&y, b + w->offset, sizeof y);
            if (!x || !y)
                return x == y ? NULL : w->name;
            return plain_differ(w->sub, x, y);
        }
        break;
    default:
        break;
    }
    return one_differ(w, f, a + w->offset, b + w->offset);
}

const char *plain_differ(const struct wire_map *m, const void *a, const void *b)
{
    const char *differ = NULL;
    for (unsigned i = 0; !differ && i < m->n_fields; i++)
        differ = field_differ(&m->fields[i], &m->descriptor->fields[i], a, b);
    return differ;
}
