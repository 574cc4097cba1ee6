/* descriptors.c: see descriptors.h. The input comes from this build, not from outside; it is
 * checked all the same. The files keep their original bytes, so that what a client gets is what the
 * compiler wrote, options and all. */
#include "proto/rpc/descriptors.h"

#include <stdlib.h>
#include <string.h>

#include "google/protobuf/descriptor.pb-c.h"

struct file {
    const uint8_t *data; /* borrowed */
    size_t size;
    Google__Protobuf__FileDescriptorProto *proto; /* owned */
};

struct descriptors {
    struct file files[DESCRIPTORS_MAX_FILES];
    size_t n;
};

static bool read_varint(const uint8_t **at, const uint8_t *end, uint64_t *ret)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && *at < end; shift += 7) {
        uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *ret = value;
            return true;
        }
    }
    return false;
}

/* One `repeated FileDescriptorProto file = 1` of the set. */
static bool read_file(struct descriptors *d, const uint8_t **at, const uint8_t *end)
{
    uint64_t tag, size;
    if (!read_varint(at, end, &tag) || tag != (1 << 3 | 2) || !read_varint(at, end, &size) ||
        size > (uint64_t)(end - *at) || d->n == DESCRIPTORS_MAX_FILES)
        return false;
    struct file *f = &d->files[d->n];
    *f = (struct file){.data = *at, .size = (size_t)size};
    f->proto = google__protobuf__file_descriptor_proto__unpack(NULL, f->size, f->data);
    if (!f->proto)
        return false;
    d->n++;
    *at += size;
    return f->proto->name && f->proto->package;
}

int descriptors_new(const uint8_t *set, size_t size, struct descriptors **ret, struct err *e)
{
    struct descriptors *d = calloc(1, sizeof *d);
    if (!d)
        return err_set(e, -ENOMEM, "no memory for the descriptors of the API");
    const uint8_t *at = set, *end = set + size;
    while (at < end) {
        if (!read_file(d, &at, end)) {
            size_t n = d->n;
            descriptors_free(d);
            return err_set(e, -EBADMSG,
                           "the descriptors of the API: expected a FileDescriptorSet of at most %d "
                           "named files, found something else in file %zu",
                           DESCRIPTORS_MAX_FILES, n);
        }
    }
    *ret = d;
    return 0;
}

void descriptors_free(struct descriptors *d)
{
    if (!d)
        return;
    for (size_t i = 0; i < d->n; i++)
        google__protobuf__file_descriptor_proto__free_unpacked(d->files[i].proto, NULL);
    free(d);
}

int descriptors_find_file(const struct descriptors *d, const char *name)
{
    for (size_t i = 0; i < d->n; i++) {
        if (strcmp(d->files[i].proto->name, name) == 0)
            return (int)i;
    }
    return -1;
}

/* If `name` starts with `part`, followed by a dot or the end: what is behind (the end, or past the
 * dot). NULL otherwise. */
static const char *after(const char *name, const char *part)
{
    size_t length = part ? strlen(part) : 0;
    if (!length || strncmp(name, part, length) != 0)
        return NULL;
    if (name[length] == '.')
        return name + length + 1;
    return name[length] ? NULL : name + length;
}

static bool in_service(const Google__Protobuf__ServiceDescriptorProto *service, const char *name)
{
    const char *rest = after(name, service->name);
    if (!rest || !*rest)
        return rest != NULL;
    for (size_t i = 0; i < service->n_method; i++) {
        if (service->method[i]->name && strcmp(rest, service->method[i]->name) == 0)
            return true;
    }
    return false;
}

static bool is_enum(Google__Protobuf__EnumDescriptorProto *const *enums, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++) {
        if (enums[i]->name && strcmp(name, enums[i]->name) == 0)
            return true;
    }
    return false;
}

/* Goes down from message to nested message, one part of the name at a time. */
static bool in_messages(Google__Protobuf__DescriptorProto *const *messages, size_t n,
                        const char *name)
{
    for (;;) {
        const Google__Protobuf__DescriptorProto *inner = NULL;
        const char *rest = NULL;
        for (size_t i = 0; i < n && !rest; i++) {
            inner = messages[i];
            rest = after(name, inner->name);
        }
        if (!rest)
            return false;
        if (!*rest || is_enum(inner->enum_type, inner->n_enum_type, rest))
            return true;
        name = rest;
        messages = inner->nested_type;
        n = inner->n_nested_type;
    }
}

static bool defines(const Google__Protobuf__FileDescriptorProto *f, const char *symbol)
{
    const char *name = after(symbol, f->package);
    if (!name || !*name)
        return false;
    for (size_t i = 0; i < f->n_service; i++) {
        if (in_service(f->service[i], name))
            return true;
    }
    return is_enum(f->enum_type, f->n_enum_type, name) ||
           in_messages(f->message_type, f->n_message_type, name);
}

int descriptors_find_symbol(const struct descriptors *d, const char *symbol)
{
    for (size_t i = 0; i < d->n; i++) {
        if (defines(d->files[i].proto, symbol))
            return (int)i;
    }
    return -1;
}

bool descriptors_has_service(const struct descriptors *d, const char *name)
{
    for (size_t i = 0; i < d->n; i++) {
        const Google__Protobuf__FileDescriptorProto *f = d->files[i].proto;
        const char *rest = after(name, f->package);
        for (size_t k = 0; rest && k < f->n_service; k++) {
            if (f->service[k]->name && strcmp(rest, f->service[k]->name) == 0)
                return true;
        }
    }
    return false;
}

size_t descriptors_closure(const struct descriptors *d, int file,
                           int ret_files[DESCRIPTORS_MAX_FILES])
{
    bool seen[DESCRIPTORS_MAX_FILES] = {false};
    size_t n = 0;
    ret_files[n++] = file;
    seen[file] = true;
    for (size_t i = 0; i < n; i++) { /* the list grows while it is walked */
        const Google__Protobuf__FileDescriptorProto *f = d->files[ret_files[i]].proto;
        for (size_t k = 0; k < f->n_dependency; k++) {
            int next = descriptors_find_file(d, f->dependency[k]);
            if (next < 0 || seen[next])
                continue;
            seen[next] = true;
            ret_files[n++] = next;
        }
    }
    return n;
}

const uint8_t *descriptors_bytes(const struct descriptors *d, int file, size_t *ret_size)
{
    *ret_size = d->files[file].size;
    return d->files[file].data;
}
