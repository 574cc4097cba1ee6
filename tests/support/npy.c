/* npy.c: see npy.h. Version 1 and 2 headers, C order, little endian. */
#include "tests/support/npy.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Noreturn void die(const char *path, const char *what)
{
    fprintf(stderr, "%s: %s\n", path, what);
    abort();
}

const char *source_dir(void)
{
    const char *dir = getenv("GLMD_SOURCE_DIR");
    return dir ? dir : ".";
}

char *golden_path(const char *name)
{
    char *path;
    if (asprintf(&path, "%s/tests/golden/%s", source_dir(), name) < 0)
        die(name, "out of memory");
    return path;
}

/* "(3, 4)" behind 'shape': -> dims */
static void parse_shape(struct npy *a, const char *header, const char *path)
{
    const char *p = strstr(header, "'shape': (");
    if (!p)
        die(path, "no shape in the header");
    p += strlen("'shape': (");
    a->n = 1;
    while (*p && *p != ')') {
        char *end;
        unsigned long long size = strtoull(p, &end, 10);
        if (end == p || a->n_dims == NPY_MAX_DIMS)
            die(path, "bad shape in the header");
        a->shape[a->n_dims++] = (size_t)size;
        a->n *= (size_t)size;
        p = end + strspn(end, ", ");
    }
}

static char *read_header(FILE *f, const char *path)
{
    unsigned char start[12];
    if (fread(start, 1, 10, f) != 10 || memcmp(start, "\x93NUMPY", 6) != 0)
        die(path, "not an npy file");
    size_t length = (size_t)start[8] | (size_t)start[9] << 8;
    if (start[6] > 1) {
        if (fread(start + 10, 1, 2, f) != 2)
            die(path, "truncated");
        length |= (size_t)start[10] << 16 | (size_t)start[11] << 24;
    }
    if (length > 1 << 16)
        die(path, "header too long");
    char *header = calloc(1, length + 1);
    if (!header || fread(header, 1, length, f) != length)
        die(path, "truncated header");
    return header;
}

void npy_load(struct npy *a, const char *path, enum npy_type type)
{
    static const struct {
        const char *descr;
        size_t bytes;
    } types[] = {[NPY_F32] = {"'<f4'", 4},
                 [NPY_F16] = {"'<f2'", 2},
                 [NPY_U8] = {"'|u1'", 1},
                 [NPY_I8] = {"'|i1'", 1}};
    *a = (struct npy){.type = type};
    FILE *f = fopen(path, "rb");
    if (!f)
        die(path, "cannot open");
    char *header = read_header(f, path);
    if (!strstr(header, types[type].descr))
        die(path, "another type than expected");
    if (!strstr(header, "'fortran_order': False"))
        die(path, "not in C order");
    parse_shape(a, header, path);
    free(header);
    size_t bytes = a->n * types[type].bytes;
    a->data = malloc(bytes ? bytes : 1);
    if (!a->data || fread(a->data, 1, bytes, f) != bytes)
        die(path, "truncated data");
    fclose(f);
}

void npy_load_golden(struct npy *a, const char *name, enum npy_type type)
{
    char *path = golden_path(name);
    npy_load(a, path, type);
    free(path);
}

void npy_deinit(struct npy *a)
{
    free(a->data);
    a->data = NULL;
}
