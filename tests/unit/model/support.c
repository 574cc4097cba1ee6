/* support.c: see support.h. */
#include "tests/unit/model/support.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/npy.h"

char *scratch_new(void)
{
    const char *base = getenv("TMPDIR");
    char *path;
    assert_true(asprintf(&path, "%s/glmd-model-XXXXXX", base ? base : "/tmp") > 0);
    assert_non_null(mkdtemp(path));
    return path;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st;
    (void)type;
    (void)f;
    return remove(path);
}

void scratch_remove(char *path)
{
    assert_int_equal(nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
    free(path);
}

char *path_in(const char *dir, const char *name)
{
    char *path;
    assert_true(asprintf(&path, "%s/%s", dir, name) > 0);
    return path;
}

void *read_file(const char *path, size_t *ret_n)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("%s: cannot open", path);
    struct stat st;
    assert_int_equal(fstat(fileno(f), &st), 0);
    char *data = malloc((size_t)st.st_size + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, (size_t)st.st_size, f), st.st_size);
    data[st.st_size] = '\0';
    fclose(f);
    if (ret_n)
        *ret_n = (size_t)st.st_size;
    return data;
}

void write_file(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (!f)
        fail_msg("%s: cannot create", path);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* nftw has no context argument */
static const char *copy_from, *copy_to;

static int copy_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st;
    (void)f;
    char *to;
    assert_true(asprintf(&to, "%s%s", copy_to, path + strlen(copy_from)) > 0);
    if (type == FTW_D) {
        assert_true(mkdir(to, 0777) == 0 || errno == EEXIST);
    } else {
        size_t n;
        void *data = read_file(path, &n);
        write_file(to, data, n);
        free(data);
    }
    free(to);
    return 0;
}

void copy_tree(const char *from, const char *to)
{
    copy_from = from;
    copy_to = to;
    assert_int_equal(nftw(from, copy_one, 16, FTW_PHYS), 0);
}

void replace_in_file(const char *path, const char *from, const char *to)
{
    size_t n;
    char *text = read_file(path, &n), *at = strstr(text, from);
    if (!at)
        fail_msg("%s: does not contain %s", path, from);
    char *changed;
    int size = asprintf(&changed, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    assert_true(size >= 0);
    write_file(path, changed, (size_t)size);
    free(changed);
    free(text);
}

int memory_file(const void *data, size_t n)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    assert_true(fd >= 0);
    if (n)
        assert_int_equal(write(fd, data, n), n);
    return fd;
}

void golden_options(const char *checkpoint, const char *out, struct convert_options *o)
{
    char *name = NULL;
    if (checkpoint[0] != '/')
        assert_true(asprintf(&name, "glm130b/%s", checkpoint) > 0);
    *o = (struct convert_options){.from = name ? golden_path(name) : strdup(checkpoint),
                                  .out = strdup(out),
                                  .config = golden_path("glm130b/config.json"),
                                  .tokenizer = golden_path("glm130b/tokenizer.model"),
                                  .max_file_bytes = CONVERT_DEFAULT_FILE_BYTES,
                                  .n_threads = 2};
    free(name);
}

void free_options(struct convert_options *o)
{
    free((char *)o->from);
    free((char *)o->out);
    free((char *)o->config);
    free((char *)o->tokenizer);
}

int convert_golden(const char *checkpoint, const char *out, const char *weights, const char *group,
                   struct err *e)
{
    struct convert_options o;
    struct convert_result result;
    golden_options(checkpoint, out, &o);
    if (weights) {
        o.has_weights = true;
        assert_int_equal(quant_weights_parse(weights, &o.scheme.weights), 0);
    }
    if (group) {
        o.has_group = true;
        assert_int_equal(quant_group_parse(group, &o.scheme, e), 0);
    }
    int r = convert_run(&o, &result, e);
    free_options(&o);
    return r;
}

void convert_golden_ok(const char *checkpoint, const char *out, const char *weights,
                       const char *group)
{
    struct err e = ERR_INIT;
    if (convert_golden(checkpoint, out, weights, group, &e) < 0)
        fail_msg("%s: %s", checkpoint, e.message);
}

struct model_dir *open_model_ok(const char *path)
{
    struct model_dir *d;
    struct err e = ERR_INIT;
    if (model_dir_open(path, &d, &e) < 0)
        fail_msg("%s", e.message);
    return d;
}

void *read_tensor(const struct model_dir *d, const char *name, size_t *ret_bytes)
{
    const struct st_tensor *t = model_dir_find(d, name);
    if (!t) {
        fail_msg("%s: no tensor %s", model_dir_path(d), name);
        abort();
    }
    void *data = malloc(t->bytes ? t->bytes : 1);
    assert_non_null(data);
    const struct model_slice all = {0, st_rows(t), 0, st_cols(t)};
    struct err e = ERR_INIT;
    if (model_dir_read(d, t, &all, data, &e) < 0)
        fail_msg("%s", e.message);
    *ret_bytes = t->bytes;
    return data;
}

void note_warning(void *context, const char *text)
{
    struct stopper *s = context;
    s->warnings++;
    snprintf(s->last_warning, sizeof s->last_warning, "%s", text);
}

bool has_file(const char *dir, const char *name)
{
    char *path = path_in(dir, name);
    bool there = access(path, F_OK) == 0;
    free(path);
    return there;
}

void assert_same_tensors(const char *a_path, const char *b_path)
{
    struct model_dir *a = open_model_ok(a_path), *b = open_model_ok(b_path);
    assert_int_equal(model_dir_n_tensors(a), model_dir_n_tensors(b));
    for (size_t i = 0; i < model_dir_n_tensors(a); i++) {
        const char *name = model_dir_tensor_at(a, i)->name;
        size_t n, m;
        uint8_t *x = read_tensor(a, name, &n), *y = read_tensor(b, name, &m);
        assert_int_equal(n, m);
        for (size_t k = 0; k < n; k++) {
            if (x[k] != y[k])
                fail_msg("%s byte %zu: %s has %#x, %s has %#x", name, k, a_path, x[k], b_path,
                         y[k]);
        }
        free(x);
        free(y);
    }
    assert_string_equal(model_dir_digest(a)->hex, model_dir_digest(b)->hex);
    model_dir_close(a);
    model_dir_close(b);
}

void verify_all(const char *path)
{
    struct model_dir *d = open_model_ok(path);
    struct err e = ERR_INIT;
    for (size_t i = 0; i < model_dir_n_tensors(d); i++)
        if (model_dir_verify_tensor(d, model_dir_tensor_at(d, i), &e) < 0)
            fail_msg("%s", e.message);
    model_dir_close(d);
}
