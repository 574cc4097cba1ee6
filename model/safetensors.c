/* safetensors.c: see safetensors.h. */
#include "model/safetensors.h"

#include <assert.h>
#include <endian.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "base/util.h"
#include "model/file.h"
#include "model/jsonfile.h"

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
    [ST_F16] = {"F16", 2}, [ST_F32] = {"F32", 4}, [ST_BF16] = {"BF16", 2},
    [ST_I8] = {"I8", 1},   [ST_U8] = {"U8", 1},
};

static const char metadata_key[] = "__metadata__";

size_t st_dtype_bytes(enum st_dtype dtype)
{
    assert((size_t)dtype < ARRAY_LEN(dtypes));
    return dtypes[dtype].bytes;
}

const char *st_dtype_name(enum st_dtype dtype)
{
    assert((size_t)dtype < ARRAY_LEN(dtypes));
    return dtypes[dtype].name;
}

uint64_t st_rows(const struct st_tensor *t)
{
    uint64_t rows = 1;
    for (uint32_t i = 0; i + 1 < t->n_dims; i++)
        rows *= t->shape[i];
    return rows;
}

uint64_t st_cols(const struct st_tensor *t)
{
    return t->shape[t->n_dims - 1];
}

bool st_name_ok(const char *name)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t n = strnlen(name, ST_MAX_NAME_BYTES + 1);
    return n > 0 && n <= ST_MAX_NAME_BYTES && strspn(name, allowed) == n;
}

void st_list_deinit(struct st_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        free(l->tensors[i].name);
    free(l->tensors);
    *l = (struct st_list){0};
}

/* dtype * shape; false when it does not fit. An empty tensor has 0 bytes. */
static bool tensor_bytes(const struct st_tensor *t, uint64_t *ret_bytes)
{
    uint64_t bytes = st_dtype_bytes(t->dtype);
    for (uint32_t i = 0; i < t->n_dims; i++) {
        if (__builtin_mul_overflow(bytes, t->shape[i], &bytes))
            return false;
    }
    *ret_bytes = bytes;
    return true;
}

static int parse_dtype(const json_t *entry, struct st_tensor *t, struct err *e)
{
    const char *text = json_string_value(json_object_get(entry, "dtype"));
    if (!text)
        return err_set(e, -EBADMSG, "dtype: expected a string");
    for (size_t i = 0; i < ARRAY_LEN(dtypes); i++) {
        if (strcmp(text, dtypes[i].name) == 0) {
            t->dtype = (enum st_dtype)i;
            return 0;
        }
    }
    return err_set(e, -EBADMSG, "dtype: expected F16, F32, BF16, I8 or U8, found \"%.32s\"", text);
}

/* A whole number that is not negative. */
static bool parse_u64(const json_t *v, uint64_t *ret_value)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *ret_value = (uint64_t)json_integer_value(v);
    return true;
}

static int parse_shape(const json_t *entry, struct st_tensor *t, struct err *e)
{
    const json_t *shape = json_object_get(entry, "shape");
    size_t n = json_array_size(shape);
    if (!json_is_array(shape) || n < 1 || n > ST_MAX_DIMS)
        return err_set(e, -EBADMSG, "shape: expected an array of 1 to %d sizes", ST_MAX_DIMS);
    t->n_dims = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        if (!parse_u64(json_array_get(shape, i), &t->shape[i]))
            return err_set(e, -EBADMSG, "shape: expected whole numbers");
    }
    return 0;
}

/* data_start: where the tensors' bytes begin in the file. */
static int parse_tensor(const char *name, const json_t *entry, uint64_t data_start,
                        uint64_t data_bytes, struct st_tensor *t, struct err *e)
{
    if (!json_is_object(entry))
        return err_set(e, -EBADMSG, "expected an object");
    int r = parse_dtype(entry, t, e);
    if (r == 0)
        r = parse_shape(entry, t, e);
    if (r < 0)
        return r;
    const json_t *range = json_object_get(entry, "data_offsets");
    uint64_t begin = 0, end = 0;
    if (json_array_size(range) != 2 || !parse_u64(json_array_get(range, 0), &begin) ||
        !parse_u64(json_array_get(range, 1), &end))
        return err_set(e, -EBADMSG, "data_offsets: expected two whole numbers");
    if (begin > end || end > data_bytes)
        return err_set(e, -EBADMSG,
                       "data_offsets: [%llu, %llu) does not lie in the file's %llu bytes of data "
                       "(truncated?)",
                       (unsigned long long)begin, (unsigned long long)end,
                       (unsigned long long)data_bytes);
    if (!tensor_bytes(t, &t->bytes) || t->bytes != end - begin)
        return err_set(e, -EBADMSG, "data_offsets: %llu bytes do not fit dtype and shape",
                       (unsigned long long)(end - begin));
    t->offset = data_start + begin;
    t->name = strdup(name);
    return t->name ? 0 : err_set(e, -ENOMEM, "out of memory");
}

static int compare_offsets(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* The ranges must tile the data from the first byte to the last. */
static int check_tiling(const struct st_list *l, uint64_t data_start, uint64_t file_bytes,
                        struct err *e)
{
    uint64_t at = data_start;
    for (size_t i = 0; i < l->n; i++) {
        const struct st_tensor *t = &l->tensors[i];
        if (t->offset != at)
            return err_set(e, -EBADMSG, "tensor \"%s\" %s", t->name,
                           t->offset < at ? "overlaps another one"
                                          : "is preceded by bytes that belong to no tensor");
        at += t->bytes;
    }
    if (at != file_bytes)
        return err_set(e, -EBADMSG, "expected the file to end at byte %llu, found %llu bytes",
                       (unsigned long long)at, (unsigned long long)file_bytes);
    return 0;
}

static int parse_entries(const json_t *root, uint64_t data_start, uint64_t file_bytes,
                         struct st_list *l, struct err *e)
{
    const char *key;
    json_t *entry;
    assert(l->tensors);
    json_object_foreach((json_t *)root, key, entry)
    {
        if (strcmp(key, metadata_key) == 0)
            continue;
        if (!st_name_ok(key))
            return err_set(e, -EBADMSG,
                           "expected tensor names of 1 to %d characters of [A-Za-z0-9._-], found "
                           "\"%.64s\"",
                           ST_MAX_NAME_BYTES, key);
        int r = parse_tensor(key, entry, data_start, file_bytes - data_start, &l->tensors[l->n], e);
        if (r < 0)
            return err_prefix(e, "tensor \"%s\"", key);
        l->n++;
    }
    qsort(l->tensors, l->n, sizeof *l->tensors, compare_offsets);
    return check_tiling(l, data_start, file_bytes, e);
}

int st_parse_header(const char *json, size_t json_bytes, uint64_t file_bytes,
                    struct st_list *ret_list, struct err *e)
{
    *ret_list = (struct st_list){0};
    if (json_bytes > ST_MAX_HEADER_BYTES || file_bytes < 8 || file_bytes - 8 < json_bytes)
        return err_set(e, -EBADMSG, "a header of %zu bytes is not possible", json_bytes);
    json_t *root;
    int r = jsonfile_parse(json, json_bytes, "safetensors header", &root, e);
    if (r < 0)
        return r;
    size_t n = json_object_size(root);
    if (n > ST_MAX_TENSORS)
        r = err_set(e, -EBADMSG, "expected at most %d tensors, found %zu", ST_MAX_TENSORS, n);
    if (r == 0 && !(ret_list->tensors = alloc_array(n, sizeof *ret_list->tensors)))
        r = err_set(e, -ENOMEM, "out of memory for %zu tensors", n);
    if (r == 0)
        r = parse_entries(root, 8 + (uint64_t)json_bytes, file_bytes, ret_list, e);
    json_decref(root);
    if (r < 0)
        st_list_deinit(ret_list);
    return r;
}

int st_read_header(int fd, struct st_list *ret_list, struct err *e)
{
    *ret_list = (struct st_list){0};
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_set(e, -errno, "cannot stat: %s", err_name(-errno));
    uint64_t file_bytes = (uint64_t)st.st_size, json_bytes;
    int r = file_read_at(fd, &json_bytes, sizeof json_bytes, 0, "header", e);
    if (r < 0)
        return r;
    json_bytes = le64toh(json_bytes);
    if (json_bytes < 2 || json_bytes > ST_MAX_HEADER_BYTES || json_bytes > file_bytes - 8)
        return err_set(e, -EBADMSG,
                       "not a safetensors file: a header of %llu bytes (at most %d, in a file of "
                       "%llu)",
                       (unsigned long long)json_bytes, ST_MAX_HEADER_BYTES,
                       (unsigned long long)file_bytes);
    char *json = malloc(json_bytes);
    if (!json)
        return err_set(e, -ENOMEM, "out of memory for a header of %llu bytes",
                       (unsigned long long)json_bytes);
    r = file_read_at(fd, json, json_bytes, 8, "header", e);
    if (r == 0)
        r = st_parse_header(json, json_bytes, file_bytes, ret_list, e);
    free(json);
    return r;
}

static int format_tensor(struct buf *out, const struct st_tensor *t, uint64_t begin)
{
    int r =
        buf_printf(out, "\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, st_dtype_name(t->dtype));
    for (uint32_t i = 0; i < t->n_dims && r == 0; i++)
        r = buf_printf(out, "%s%llu", i ? "," : "", (unsigned long long)t->shape[i]);
    if (r == 0)
        r = buf_printf(out, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin,
                       (unsigned long long)begin + t->bytes);
    return r;
}

int st_format_header(struct st_list *l, struct buf *ret_head, uint64_t *ret_file_bytes)
{
    enum { ALIGN = 64 }; /* of the first tensor */
    buf_clear(ret_head);
    int r = buf_append(ret_head, "\0\0\0\0\0\0\0\0", 8);
    if (r == 0)
        r = buf_append_str(ret_head, "{\"__metadata__\":{\"format\":\"pt\"}");
    uint64_t at = 0;
    for (size_t i = 0; i < l->n && r == 0; i++) {
        struct st_tensor *t = &l->tensors[i];
        assert(st_name_ok(t->name));
        if (!tensor_bytes(t, &t->bytes))
            return -EFBIG;
        t->offset = at;
        r = buf_append_str(ret_head, ",");
        if (r == 0)
            r = format_tensor(ret_head, t, at);
        if (__builtin_add_overflow(at, t->bytes, &at))
            return -EFBIG;
    }
    if (r == 0)
        r = buf_append_str(ret_head, "}");
    while (r == 0 && ret_head->size % ALIGN)
        r = buf_append_str(ret_head, " ");
    if (r < 0)
        return r;
    if (ret_head->size - 8 > ST_MAX_HEADER_BYTES)
        return -EFBIG;
    for (size_t i = 0; i < l->n; i++)
        l->tensors[i].offset += ret_head->size;
    uint64_t length = htole64((uint64_t)ret_head->size - 8);
    memcpy(ret_head->data, &length, sizeof length);
    *ret_file_bytes = at + ret_head->size;
    return 0;
}
