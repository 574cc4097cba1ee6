/* npy.c: see npy.h.
 *
 *   6 bytes "\x93NUMPY", 1 byte major, 1 byte minor
 *   2 bytes (major 1) or 4 bytes (major 2) length of the header, little endian
 *   header: "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", blanks, newline
 *   data
 */
#include "cli/npy.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/util.h"
#include "model/file.h"

/* What is left of the header. */
struct text {
    const char *at, *end;
};

static void skip_blanks(struct text *t)
{
    while (t->at != t->end && (*t->at == ' ' || *t->at == '\n'))
        t->at++;
}

/* Skips blanks and then `literal`, if it stands there. */
static bool take(struct text *t, const char *literal)
{
    skip_blanks(t);
    size_t n = strlen(literal);
    if ((size_t)(t->end - t->at) < n || memcmp(t->at, literal, n) != 0)
        return false;
    t->at += n;
    return true;
}

static bool take_number(struct text *t, uint64_t *ret)
{
    skip_blanks(t);
    uint64_t value = 0;
    const char *begin = t->at;
    for (; t->at != t->end && *t->at >= '0' && *t->at <= '9'; t->at++) {
        if (t->at - begin >= 18)
            return false;
        value = value * 10 + (uint64_t)(*t->at - '0');
    }
    *ret = value;
    return t->at != begin;
}

static bool take_shape(struct text *t, struct npy *a)
{
    if (!take(t, "("))
        return false;
    while (!take(t, ")")) {
        if (a->n_dims == NPY_MAX_DIMS || !take_number(t, &a->shape[a->n_dims]))
            return false;
        a->n_dims++;
        if (!take(t, ","))
            return take(t, ")");
    }
    return true;
}

static bool take_descr(struct text *t, struct npy *a)
{
    if (take(t, "'|u1'") || take(t, "'|b1'"))
        a->type = NPY_U8;
    else if (take(t, "'<f4'"))
        a->type = NPY_F32;
    else
        return false;
    return true;
}

static int parse_header(struct text t, struct npy *a, struct err *e)
{
    bool has_descr = false;
    bool has_shape = false;
    bool has_order = false;
    bool ok = take(&t, "{");
    while (ok && !take(&t, "}")) {
        if (take(&t, "'descr':") && !has_descr)
            ok = has_descr = take_descr(&t, a);
        else if (take(&t, "'shape':") && !has_shape)
            ok = has_shape = take_shape(&t, a);
        else if (take(&t, "'fortran_order':") && !has_order)
            ok = has_order = take(&t, "False");
        else
            ok = false;
        if (ok && !take(&t, ",")) {
            ok = take(&t, "}");
            break;
        }
    }
    if (!ok || !has_descr || !has_shape || !has_order)
        return err_set(e, -EBADMSG,
                       "not a NumPy array that can be read here: expected uint8, bool or float32, "
                       "C order, at most %d dimensions",
                       NPY_MAX_DIMS);
    return 0;
}

int npy_parse(const void *bytes, size_t size, struct npy *ret, struct err *e)
{
    const uint8_t *p = bytes;
    if (size < 12 || memcmp(p, "\x93NUMPY", 6) != 0 || (p[6] != 1 && p[6] != 2))
        return err_set(e, -EBADMSG, "not a NumPy array file of format 1 or 2");
    size_t begin = p[6] == 1 ? 10 : 12;
    size_t header = p[8] | (size_t)p[9] << 8;
    if (p[6] == 2)
        header |= (size_t)p[10] << 16 | (size_t)p[11] << 24;
    if (header > NPY_MAX_HEADER || header > size - begin)
        return err_set(e, -EBADMSG, "NumPy header of %zu bytes: expected at most %zu", header,
                       MIN(size - begin, (size_t)NPY_MAX_HEADER));
    struct npy a = {0};
    const char *text = (const char *)p + begin;
    int r = parse_header((struct text){text, text + header}, &a, e);
    if (r < 0)
        return r;
    a.n = 1;
    for (uint32_t i = 0; i != a.n_dims; i++) {
        if (!mul_size(a.n, (size_t)a.shape[i], &a.n))
            return err_set(e, -EBADMSG, "NumPy shape is out of range");
    }
    size_t data_bytes;
    size_t found = size - begin - header;
    if (!mul_size(a.n, a.type == NPY_F32 ? 4 : 1, &data_bytes) || data_bytes != found)
        return err_set(e, -EBADMSG, "NumPy array of %zu elements: found %zu bytes of data", a.n,
                       found);
    a.data = alloc_array(data_bytes, 1);
    if (!a.data)
        return err_set(e, -ENOMEM, "out of memory: NumPy array of %zu bytes", data_bytes);
    memcpy(a.data, text + header, data_bytes);
    *ret = a;
    return 0;
}

int npy_load(const char *path, enum npy_type type, uint32_t n_dims, size_t max_bytes,
             struct npy *ret, struct err *e)
{
    struct buf bytes = {0};
    struct npy a = {0};
    int r = file_read_all(path, max_bytes, &bytes, e);
    if (r < 0) {
        buf_deinit(&bytes);
        return r;
    }
    r = npy_parse(bytes.data, bytes.size, &a, e);
    buf_deinit(&bytes);
    if (r < 0) {
        err_prefix(e, "%s", path);
        return r;
    }
    if (a.type != type || a.n_dims != n_dims) {
        r = err_set(e, -EBADMSG, "%s: expected %s in %u dimensions, found %s in %u", path,
                    type == NPY_F32 ? "float32" : "uint8", n_dims,
                    a.type == NPY_F32 ? "float32" : "uint8", a.n_dims);
        npy_deinit(&a);
        return r;
    }
    *ret = a;
    return 0;
}

void npy_deinit(struct npy *a)
{
    free(a->data);
    *a = (struct npy){0};
}
