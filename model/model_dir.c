/* model_dir.c: see model_dir.h. Immutable after opening, hence usable by any number of threads. */
#include "model/model_dir.h"

#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "base/util.h"
#include "model/file.h"
#include "model/jsonfile.h"
#include "model/layout.h"
#include "model/manifest.h"
#include "model/synthetic.h"

struct file {
    char *name;              /* owned */
    char *path;              /* owned; for messages */
    int fd;                  /* -1 until open */
    int direct_fd;           /* the same file past the page cache; -1: not here */
    struct timespec changed; /* when it was opened */
    uint64_t bytes;
    size_t n_tensors; /* in the index */
};

struct model_dir {
    /* owned */
    char *path;
    struct file *files; /* sorted by name */
    size_t n_files;
    struct st_list tensors;          /* in file order */
    const struct st_tensor **sorted; /* the same by name */
    struct manifest manifest;
    /* state */
    struct arch arch;
    struct quant_scheme scheme;
    struct model_digest digest;
    bool is_synthetic;
    uint64_t seed; /* of a synthetic model */
};

static char *join(const struct model_dir *d, const char *name, struct err *e)
{
    char *path = file_join(d->path, name);
    if (!path)
        err_set(e, -ENOMEM, "%s: out of memory", d->path);
    return path;
}

static int read_config(struct model_dir *d, struct err *e)
{
    char *path = join(d, LAYOUT_CONFIG, e);
    json_t *config = NULL;
    if (!path)
        return -ENOMEM;
    int r = jsonfile_load(path, LAYOUT_MAX_CONFIG_BYTES, &config, e);
    if (r == 0) {
        r = arch_from_json(config, &d->arch, e);
        if (r == 0)
            r = quant_from_json(config, &d->scheme, e);
        if (r == 0)
            r = quant_check(&d->scheme, &d->arch, e);
        if (r < 0)
            err_prefix(e, "%s", path);
    }
    json_decref(config);
    free(path);
    return r;
}

static int read_manifest(struct model_dir *d, struct err *e)
{
    char *path = join(d, LAYOUT_MANIFEST, e);
    if (!path)
        return -ENOMEM;
    int r = manifest_load(path, &d->manifest, e);
    if (r == -ENOENT) {
        char *journal = join(d, LAYOUT_JOURNAL, NULL);
        bool unfinished = journal && access(journal, F_OK) == 0;
        free(journal);
        r = err_set(e, -ENOENT, "%s: %s", path,
                    unfinished ? "missing: the conversion was not finished; run the same `glmd "
                                 "convert` again, it goes on where it stopped"
                               : "missing: expected a model directory made by `glmd convert`");
    }
    if (r == 0)
        checksum_hex(&d->manifest.digest, d->digest.hex);
    free(path);
    return r;
}

static bool file_name_ok(const char *name)
{
    static const char suffix[] = ".safetensors";
    size_t n = strlen(name);
    return st_name_ok(name) && name[0] != '.' && n >= sizeof suffix &&
           strcmp(name + n - (sizeof suffix - 1), suffix) == 0;
}

static int compare_texts(const void *a, const void *b)
{
    const char *const *x = a, *const *y = b;
    return strcmp(*x, *y);
}

/* Checked file names of the index, one per tensor, sorted. */
static int sorted_file_names(const json_t *weight_map, const char **names, const char *path,
                             struct err *e)
{
    size_t n = 0;
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)weight_map, tensor, value)
    {
        const char *name = json_string_value(value);
        if (!name || !file_name_ok(name))
            return err_set(e, -EBADMSG,
                           "%s: tensor \"%.64s\": expected the name of a .safetensors file in "
                           "this directory, found \"%.64s\"",
                           path, tensor, name ? name : "something else");
        names[n++] = name;
    }
    qsort(names, n, sizeof *names, compare_texts);
    return 0;
}

/* The distinct files of the index, with the number of tensors in each. */
static int collect_files(struct model_dir *d, const json_t *weight_map, const char *path,
                         struct err *e)
{
    size_t n = json_object_size(weight_map);
    const char **names = alloc_array(n, sizeof *names);
    d->files = alloc_array(LAYOUT_MAX_FILES, sizeof *d->files);
    if (!names || !d->files) {
        free(names);
        return err_set(e, -ENOMEM, "%s: out of memory", path);
    }
    int r = sorted_file_names(weight_map, names, path, e);
    for (size_t i = 0; i < n && r == 0; i++) {
        if (d->n_files && strcmp(d->files[d->n_files - 1].name, names[i]) == 0) {
            d->files[d->n_files - 1].n_tensors++;
        } else if (d->n_files == LAYOUT_MAX_FILES) {
            r = err_set(e, -EBADMSG, "%s: expected at most %d files", path, LAYOUT_MAX_FILES);
        } else {
            struct file *f = &d->files[d->n_files];
            *f = (struct file){.name = strdup(names[i]), .fd = -1, .direct_fd = -1, .n_tensors = 1};
            if (f->name)
                d->n_files++;
            else
                r = err_set(e, -ENOMEM, "%s: out of memory", path);
        }
    }
    free(names);
    return r;
}

/* Notes what the open file is, and opens it once more for direct reads. */
static int know_file(struct file *f, struct err *e)
{
    struct stat st, other;
    if (fstat(f->fd, &st) < 0)
        return err_set(e, -errno, "%s: cannot stat: %s", f->path, err_name(-errno));
    f->changed = st.st_mtim;
    f->direct_fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
    if (f->direct_fd >= 0 && (fstat(f->direct_fd, &other) < 0 || other.st_dev != st.st_dev ||
                              other.st_ino != st.st_ino)) {
        close(f->direct_fd); /* replaced meanwhile */
        f->direct_fd = -1;
    }
    return 0;
}

/* Opens one file, reads its header and appends its tensors. */
static int open_file(struct model_dir *d, size_t file_idx, const json_t *weight_map, struct err *e)
{
    struct file *f = &d->files[file_idx];
    f->path = join(d, f->name, e);
    if (!f->path)
        return -ENOMEM;
    int r = file_open(f->path, &f->fd, &f->bytes, e);
    if (r < 0)
        return r;
    const struct manifest_entry *entry = manifest_find(&d->manifest.files, f->name);
    if (!entry || entry->bytes != f->bytes)
        return err_set(e, -EBADMSG,
                       "%s: expected %llu bytes as the manifest says, found %llu: copy the file "
                       "again or convert again",
                       f->path, entry ? (unsigned long long)entry->bytes : 0,
                       (unsigned long long)f->bytes);
    r = know_file(f, e);
    if (r < 0)
        return r;
    struct st_list l;
    r = st_read_header(f->fd, &l, e);
    if (r < 0)
        return err_prefix(e, "%s", f->path);
    for (size_t i = 0; i < l.n && r == 0; i++) {
        const char *home = json_string_value(json_object_get(weight_map, l.tensors[i].name));
        if (!home || strcmp(home, f->name) != 0)
            r = err_set(e, -EBADMSG, "%s: tensor \"%s\" is not in the index for this file", f->path,
                        l.tensors[i].name);
    }
    if (r == 0 && l.n != f->n_tensors)
        r = err_set(e, -EBADMSG, "%s: expected %zu tensors as the index says, found %zu", f->path,
                    f->n_tensors, l.n);
    if (r < 0) {
        st_list_deinit(&l);
        return r;
    }
    /* the names change their owner; room for all was made by the caller */
    for (size_t i = 0; i < l.n; i++) {
        l.tensors[i].file_idx = (uint32_t)file_idx;
        d->tensors.tensors[d->tensors.n++] = l.tensors[i];
    }
    free(l.tensors);
    return 0;
}

static int compare_sorted(const void *a, const void *b)
{
    const struct st_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* -ENOMEM */
static int sort_tensors(struct model_dir *d)
{
    d->sorted = alloc_array(d->tensors.n, sizeof(const struct st_tensor *));
    if (!d->sorted)
        return -ENOMEM;
    for (size_t i = 0; i < d->tensors.n; i++)
        d->sorted[i] = &d->tensors.tensors[i];
    qsort(d->sorted, d->tensors.n, sizeof(const struct st_tensor *), compare_sorted);
    return 0;
}

static int read_files(struct model_dir *d, const json_t *weight_map, const char *path,
                      struct err *e)
{
    size_t n = json_object_size(weight_map);
    if (n == 0 || n > ST_MAX_TENSORS)
        return err_set(e, -EBADMSG, "%s: expected 1 to %d tensors, found %zu", path, ST_MAX_TENSORS,
                       n);
    int r = collect_files(d, weight_map, path, e);
    if (r < 0)
        return r;
    d->tensors.tensors = alloc_array(n, sizeof *d->tensors.tensors);
    if (!d->tensors.tensors)
        return err_set(e, -ENOMEM, "%s: out of memory", path);
    for (size_t i = 0; i < d->n_files; i++) {
        r = open_file(d, i, weight_map, e);
        if (r < 0)
            return r;
    }
    /* every tensor of every file is in the index, under that file, and the numbers agree */
    assert(d->tensors.n == n);
    return sort_tensors(d) < 0 ? err_set(e, -ENOMEM, "%s: out of memory", path) : 0;
}

static int read_index(struct model_dir *d, struct err *e)
{
    char *path = join(d, LAYOUT_INDEX, e);
    json_t *index = NULL, *weight_map = NULL;
    if (!path)
        return -ENOMEM;
    int r = jsonfile_load(path, LAYOUT_MAX_INDEX_BYTES, &index, e);
    if (r == 0) {
        r = jsonfile_get_object(index, "weight_map", &weight_map, e);
        if (r < 0)
            err_prefix(e, "%s", path);
    }
    if (r == 0)
        r = read_files(d, weight_map, path, e);
    json_decref(index);
    free(path);
    return r;
}

static void format_shape(const struct st_tensor *t, char *ret_text, size_t size)
{
    size_t at = 0;
    for (uint32_t i = 0; i < t->n_dims && at < size; i++)
        at += (size_t)snprintf(ret_text + at, size - at, "%s%llu", i ? ", " : "",
                               (unsigned long long)t->shape[i]);
}

static int check_tensor(const struct model_dir *d, const struct st_tensor *expected, struct err *e)
{
    const struct st_tensor *found = model_dir_find(d, expected->name);
    if (!found)
        return err_set(e, -EBADMSG, "%s: tensor \"%s\" is missing", d->path, expected->name);
    bool same = found->dtype == expected->dtype && found->n_dims == expected->n_dims;
    for (uint32_t i = 0; i < expected->n_dims && same; i++)
        same = found->shape[i] == expected->shape[i];
    if (!same) {
        char want[100], have[100];
        format_shape(expected, want, sizeof want);
        format_shape(found, have, sizeof have);
        return err_set(e, -EBADMSG, "%s: tensor \"%s\": expected %s [%s], found %s [%s]",
                       model_dir_file_name(d, found), expected->name,
                       st_dtype_name(expected->dtype), want, st_dtype_name(found->dtype), have);
    }
    const struct manifest_entry *entry = manifest_find(&d->manifest.tensors, expected->name);
    if (!entry || entry->bytes != found->bytes)
        return err_set(e, -EBADMSG, "%s/" LAYOUT_MANIFEST ": no checksum for tensor \"%s\"",
                       d->path, expected->name);
    return 0;
}

/* Exactly the tensors of the architecture under the scheme. */
static int check_tensors(const struct model_dir *d, struct err *e)
{
    struct st_list expected;
    if (layout_tensors(&d->arch, &d->scheme, &expected) < 0)
        return err_set(e, -ENOMEM, "%s: out of memory", d->path);
    int r = 0;
    for (size_t i = 0; i < expected.n && r == 0; i++)
        r = check_tensor(d, &expected.tensors[i], e);
    if (r == 0 && d->tensors.n != expected.n)
        r = err_set(e, -EBADMSG, "%s: expected %zu tensors, found %zu: some belong to no layer",
                    d->path, expected.n, d->tensors.n);
    st_list_deinit(&expected);
    return r;
}

int model_dir_open(const char *path, struct model_dir **ret_dir, struct err *e)
{
    struct model_dir *d = calloc(1, sizeof *d);
    if (!d || !(d->path = strdup(path))) {
        free(d);
        return err_set(e, -ENOMEM, "%s: out of memory", path);
    }
    int r = read_manifest(d, e);
    if (r == 0)
        r = read_config(d, e);
    if (r == 0)
        r = read_index(d, e);
    if (r == 0)
        r = check_tensors(d, e);
    if (r < 0) {
        model_dir_close(d);
        return r;
    }
    *ret_dir = d;
    return 0;
}

int model_dir_synthetic(const struct arch *a, const struct quant_scheme *scheme, uint64_t seed,
                        struct model_dir **ret_dir, struct err *e)
{
    int r = arch_check(a, e);
    if (r == 0)
        r = quant_check(scheme, a, e);
    if (r < 0)
        return r;
    struct model_dir *d = calloc(1, sizeof *d);
    if (!d)
        return err_set(e, -ENOMEM, "out of memory");
    d->path = strdup(a->name);
    d->arch = *a;
    d->scheme = *scheme;
    d->is_synthetic = true;
    d->seed = seed;
    memset(d->digest.hex, '0', sizeof d->digest.hex - 1);
    r = layout_tensors(a, scheme, &d->tensors);
    for (size_t i = 0; i < d->tensors.n && r == 0; i++) {
        struct st_tensor *t = &d->tensors.tensors[i];
        t->bytes = st_rows(t) * st_cols(t) * st_dtype_bytes(t->dtype);
    }
    if (r == 0)
        r = sort_tensors(d);
    if (r < 0 || !d->path) {
        model_dir_close(d);
        return err_set(e, -ENOMEM, "out of memory");
    }
    *ret_dir = d;
    return 0;
}

void model_dir_close(struct model_dir *d)
{
    if (!d)
        return;
    for (size_t i = 0; i < d->n_files; i++) {
        if (d->files[i].fd >= 0)
            close(d->files[i].fd);
        if (d->files[i].direct_fd >= 0)
            close(d->files[i].direct_fd);
        free(d->files[i].name);
        free(d->files[i].path);
    }
    free(d->files);
    st_list_deinit(&d->tensors);
    free(d->sorted);
    manifest_deinit(&d->manifest);
    free(d->path);
    free(d);
}

const char *model_dir_path(const struct model_dir *d)
{
    return d->path;
}

const struct arch *model_dir_arch(const struct model_dir *d)
{
    return &d->arch;
}

const struct quant_scheme *model_dir_scheme(const struct model_dir *d)
{
    return &d->scheme;
}

const struct model_digest *model_dir_digest(const struct model_dir *d)
{
    return &d->digest;
}

const struct manifest *model_dir_manifest(const struct model_dir *d)
{
    return &d->manifest;
}

int model_dir_known_answer(const struct model_dir *d, uint64_t *ret_hash)
{
    if (!d->manifest.has_known_answer)
        return -ENOENT;
    *ret_hash = d->manifest.known_answer;
    return 0;
}

int model_manifest_set_known_answer(const char *path, uint64_t hash, struct err *e)
{
    char *file = file_join(path, LAYOUT_MANIFEST);
    struct manifest m = {0};
    if (!file)
        return err_set(e, -ENOMEM, "%s: out of memory", path);
    int r = manifest_load(file, &m, e);
    if (r == 0) {
        m.has_known_answer = true;
        m.known_answer = hash;
        r = manifest_save(file, &m, e);
    }
    manifest_deinit(&m);
    free(file);
    return r;
}

const struct st_tensor *model_dir_find(const struct model_dir *d, const char *name)
{
    const struct st_tensor key = {.name = (char *)name}, *key_at = &key;
    const struct st_tensor **found =
        bsearch(&key_at, d->sorted, d->tensors.n, sizeof(const struct st_tensor *), compare_sorted);
    return found ? *found : NULL;
}

size_t model_dir_n_tensors(const struct model_dir *d)
{
    return d->tensors.n;
}

const struct st_tensor *model_dir_tensor_at(const struct model_dir *d, size_t i)
{
    assert(i < d->tensors.n);
    return &d->tensors.tensors[i];
}

const char *model_dir_file_name(const struct model_dir *d, const struct st_tensor *t)
{
    return d->is_synthetic ? "(synthetic)" : d->files[t->file_idx].name;
}

/* Rows of a tensor that no file holds. */
static void make_up(const struct model_dir *d, const struct st_tensor *t,
                    const struct model_slice *slice, void *dst)
{
    size_t element = st_dtype_bytes(t->dtype), row_bytes = (size_t)slice->n_cols * element;
    for (uint64_t i = 0; i < slice->n_rows; i++)
        synthetic_fill(t, d->scheme.weights, d->seed,
                       ((slice->row0 + i) * st_cols(t) + slice->col0) * element, row_bytes,
                       (char *)dst + i * row_bytes);
}

int model_dir_read(const struct model_dir *d, const struct st_tensor *t,
                   const struct model_slice *slice, void *dst, struct err *e)
{
    uint64_t rows = st_rows(t), cols = st_cols(t);
    assert(slice->row0 <= rows && slice->n_rows <= rows - slice->row0);
    assert(slice->col0 <= cols && slice->n_cols <= cols - slice->col0);
    if (slice->n_rows == 0 || slice->n_cols == 0)
        return 0;
    if (d->is_synthetic) {
        make_up(d, t, slice, dst);
        return 0;
    }
    const struct file *f = &d->files[t->file_idx];
    size_t element = st_dtype_bytes(t->dtype);
    const struct file_rows part = {
        .offset = t->offset + (slice->row0 * cols + slice->col0) * element,
        .src_pitch = cols * element,
        .row_bytes = (size_t)slice->n_cols * element,
        .n_rows = slice->n_rows,
        .dst_pitch = (size_t)slice->n_cols * element,
    };
    int r = file_read_rows(f->fd, &part, dst, f->path, e);
    return r < 0 ? err_prefix(e, "tensor \"%s\"", t->name) : 0;
}

static void check_range(const struct st_tensor *t, uint64_t first, uint64_t n)
{
    assert(first <= t->bytes && n <= t->bytes - first);
}

int model_dir_read_bytes(const struct model_dir *d, const struct st_tensor *t, uint64_t first,
                         size_t n, void *dst, struct err *e)
{
    check_range(t, first, n);
    if (d->is_synthetic) {
        synthetic_fill(t, d->scheme.weights, d->seed, first, n, dst);
        return 0;
    }
    const struct file *f = &d->files[t->file_idx];
    int r = file_read_at(f->fd, dst, n, t->offset + first, f->path, e);
    return r < 0 ? err_prefix(e, "tensor \"%s\"", t->name) : 0;
}

int model_dir_read_direct(const struct model_dir *d, const struct st_tensor *t, uint64_t first,
                          size_t n, void *buffer, void **ret_data, struct err *e)
{
    check_range(t, first, n);
    int r = -EINVAL;
    if (!d->is_synthetic && d->files[t->file_idx].direct_fd >= 0) {
        const struct file *f = &d->files[t->file_idx];
        r = file_read_direct(f->direct_fd, buffer, n, t->offset + first, f->path, ret_data, e);
    }
    if (r == -EINVAL) { /* a file system that cannot, or not so */
        *ret_data = buffer;
        return model_dir_read_bytes(d, t, first, n, buffer, e);
    }
    return r < 0 ? err_prefix(e, "tensor \"%s\"", t->name) : 0;
}

bool model_dir_is_cached(const struct model_dir *d, const struct st_tensor *t)
{
    return d->is_synthetic || file_is_cached(d->files[t->file_idx].fd, t->offset, t->bytes);
}

void model_dir_read_ahead(const struct model_dir *d, const struct st_tensor *t, uint64_t first,
                          uint64_t n)
{
    check_range(t, first, n);
    if (!d->is_synthetic) /* a wish */
        (void)posix_fadvise(d->files[t->file_idx].fd, (off_t)(t->offset + first), (off_t)n,
                            POSIX_FADV_WILLNEED);
}

bool model_dir_is_synthetic(const struct model_dir *d)
{
    return d->is_synthetic;
}

int model_dir_check_unchanged(const struct model_dir *d, struct err *e)
{
    for (size_t i = 0; i < d->n_files; i++) {
        const struct file *f = &d->files[i];
        struct stat st;
        if (fstat(f->fd, &st) < 0)
            return err_set(e, -errno, "%s: cannot stat: %s", f->path, err_name(-errno));
        if ((uint64_t)st.st_size != f->bytes || st.st_mtim.tv_sec != f->changed.tv_sec ||
            st.st_mtim.tv_nsec != f->changed.tv_nsec)
            return err_set(e, -EBADMSG,
                           "%s: was changed while it was read: start again when nothing writes "
                           "to the model directory",
                           f->path);
    }
    return 0;
}

int model_dir_check_sum(const struct model_dir *d, const struct st_tensor *t,
                        const struct checksum *found, struct err *e)
{
    if (d->is_synthetic)
        return 0;
    const struct file *f = &d->files[t->file_idx];
    const struct manifest_entry *entry = manifest_find(&d->manifest.tensors, t->name);
    if (checksum_equal(found, &entry->sum))
        return 0;
    char want[CHECKSUM_HEX_BYTES], have[CHECKSUM_HEX_BYTES];
    checksum_hex(&entry->sum, want);
    checksum_hex(found, have);
    return err_set(e, -EBADMSG,
                   "%s: tensor \"%s\": expected checksum %s, found %s: the file is damaged, "
                   "copy it again or convert again",
                   f->path, t->name, want, have);
}

int model_dir_verify_tensor(const struct model_dir *d, const struct st_tensor *t, struct err *e)
{
    if (d->is_synthetic)
        return 0;
    const struct file *f = &d->files[t->file_idx];
    struct checksum found;
    int r = checksum_range(f->fd, t->offset, t->bytes, f->path, &found, e);
    return r < 0 ? err_prefix(e, "tensor \"%s\"", t->name) : model_dir_check_sum(d, t, &found, e);
}
