/* writer.c: see writer.h. */
#include "model/writer.h"

#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/util.h"
#include "model/file.h"
#include "model/jsonfile.h"
#include "model/layout.h"

static const char journal_format[] = "glmd-convert-journal";

/* One output file: tensors [first, first + n) of the list. */
struct part {
    char name[64];
    size_t first, n;
    uint64_t bytes;
    bool done;
};

struct writer {
    /* owned */
    char *path;
    char *conversion;
    int lock_fd; /* the directory; holds the lock */
    struct st_list tensors;
    struct part *parts;
    size_t n_parts;
    struct manifest manifest; /* grows as files are finished */
    struct checksum_state *file_sum, *tensor_sum;
    struct buf head; /* of the file that is being written */
    int fd;          /* -1: between files */
    char *part_path, *final_path;
    /* borrowed */
    struct writer_options options;
    /* state */
    bool complete;
    size_t part_idx;       /* file that is being written or comes next */
    size_t tensor_idx;     /* tensor that is being written */
    uint64_t tensor_bytes; /* so much of it */
    uint64_t file_offset;
    struct manifest_list new_tensors; /* of the file that is being written */
};

static int no_memory(const struct writer *w, struct err *e)
{
    return err_set(e, -ENOMEM, "%s: out of memory", w->path);
}

static void warn(const struct writer *w, const char *text)
{
    if (w->options.on_warning)
        w->options.on_warning(w->options.context, text);
}

static bool is_scale_of(const char *name, const char *weight)
{
    size_t n = strlen(weight);
    return strncmp(name, weight, n) == 0 && strcmp(name + n, "_scale") == 0;
}

static uint64_t bytes_of(const struct st_tensor *t)
{
    return st_rows(t) * st_cols(t) * st_dtype_bytes(t->dtype);
}

/* Fills files up to the limit; a weight and its scales stay together. */
static int plan_parts(struct writer *w, struct err *e)
{
    const struct st_tensor *t = w->tensors.tensors;
    w->parts = alloc_array(LAYOUT_MAX_FILES, sizeof *w->parts);
    if (!w->parts)
        return no_memory(w, e);
    struct part *part = NULL;
    for (size_t i = 0; i < w->tensors.n;) {
        size_t n = i + 1 < w->tensors.n && is_scale_of(t[i + 1].name, t[i].name) ? 2 : 1;
        uint64_t bytes = bytes_of(&t[i]) + (n == 2 ? bytes_of(&t[i + 1]) : 0);
        if (!part || part->bytes + bytes > w->options.max_file_bytes) {
            if (w->n_parts == LAYOUT_MAX_FILES)
                return err_set(e, -EINVAL,
                               "files of at most %llu bytes: expected at most %d files, there "
                               "would be more: choose a larger limit",
                               (unsigned long long)w->options.max_file_bytes, LAYOUT_MAX_FILES);
            part = &w->parts[w->n_parts++];
            part->first = i;
        }
        part->n += n;
        part->bytes += bytes;
        i += n;
    }
    for (size_t i = 0; i < w->n_parts; i++)
        snprintf(w->parts[i].name, sizeof w->parts[i].name, "model-%05zu-of-%05zu.safetensors",
                 i + 1, w->n_parts);
    return 0;
}

static int save_journal(struct writer *w, struct err *e)
{
    char *path = file_join(w->path, LAYOUT_JOURNAL);
    json_t *root = json_object();
    int r = path && root ? 0 : -1;
    if (r == 0) {
        r |= json_object_set_new(root, "format", json_string(journal_format));
        r |= json_object_set_new(root, "conversion", json_string(w->conversion));
        r |= json_object_set_new(root, "files", manifest_list_to_json(&w->manifest.files));
        r |= json_object_set_new(root, "tensors", manifest_list_to_json(&w->manifest.tensors));
    }
    r = r < 0 ? no_memory(w, e) : jsonfile_save(path, root, e);
    json_decref(root);
    free(path);
    return r;
}

/* The journal of an earlier run into two lists; -ENOENT when there is none. */
static int load_journal(struct writer *w, struct manifest_list *files,
                        struct manifest_list *tensors, struct err *e)
{
    char *path = file_join(w->path, LAYOUT_JOURNAL);
    json_t *root = NULL, *object = NULL;
    const char *text = "";
    if (!path)
        return no_memory(w, e);
    int r = jsonfile_load(path, MANIFEST_MAX_BYTES, &root, e);
    if (r == 0)
        r = jsonfile_get_string(root, "format", &text, e);
    if (r == 0 && strcmp(text, journal_format) != 0)
        r = err_set(e, -EINVAL, "%s: not a journal of `glmd convert`", path);
    if (r == 0)
        r = jsonfile_get_string(root, "conversion", &text, e);
    if (r == 0 && strcmp(text, w->conversion) != 0)
        r = err_set(e, -EEXIST,
                    "%s: the folder holds an unfinished conversion of another checkpoint or with "
                    "other options: run that one again, or remove the folder",
                    w->path);
    if (r == 0)
        r = jsonfile_get_object(root, "files", &object, e);
    if (r == 0)
        r = manifest_list_from_json(object, files, e);
    if (r == 0)
        r = jsonfile_get_object(root, "tensors", &object, e);
    if (r == 0)
        r = manifest_list_from_json(object, tensors, e);
    json_decref(root);
    free(path);
    return r;
}

/* Keeps one file of an earlier run if it is as the journal says. */
static int keep_part(struct writer *w, struct part *part, const struct manifest_list *files,
                     const struct manifest_list *tensors, struct err *e)
{
    const struct manifest_entry *known = manifest_find(files, part->name);
    if (!known)
        return 0;
    char *path = file_join(w->path, part->name);
    struct checksum sum;
    uint64_t bytes = 0;
    struct err why = ERR_INIT;
    if (!path)
        return no_memory(w, e);
    int r = checksum_file(path, &sum, &bytes, &why);
    free(path);
    if (r < 0 || bytes != known->bytes || !checksum_equal(&sum, &known->sum)) {
        char text[ERR_MESSAGE_BYTES + 128];
        snprintf(text, sizeof text, "%s: not as an earlier run left it (%s): it is written again",
                 part->name, r < 0 ? why.message : "another size or checksum");
        warn(w, text);
        return 0;
    }
    for (size_t i = part->first; i < part->first + part->n; i++) {
        const struct manifest_entry *t = manifest_find(tensors, w->tensors.tensors[i].name);
        if (!t)
            return 0;
        if (manifest_add(&w->manifest.tensors, t->name, t->bytes, &t->sum) < 0)
            return no_memory(w, e);
    }
    part->done = true;
    return manifest_add(&w->manifest.files, part->name, bytes, &sum) < 0 ? no_memory(w, e) : 0;
}

static bool exists(const struct writer *w, const char *name)
{
    return faccessat(w->lock_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static int check_empty(const struct writer *w, struct err *e)
{
    DIR *dir = opendir(w->path);
    if (!dir)
        return err_set(e, -errno, "%s: cannot open: %s", w->path, err_name(-errno));
    int r = 0;
    const struct dirent *entry;
    while ((entry = readdir(dir)) && r == 0) { /* NOLINT: only this thread reads this stream */
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            r = err_set(e, -EEXIST,
                        "%s: expected a new or empty folder, found \"%.64s\" in it: choose "
                        "another --out",
                        w->path, entry->d_name);
    }
    closedir(dir);
    return r;
}

/* Goes on with an earlier run, or begins a new one. */
static int resume(struct writer *w, struct err *e)
{
    if (!exists(w, LAYOUT_JOURNAL)) {
        if (exists(w, LAYOUT_MANIFEST))
            return err_set(e, -EEXIST,
                           "%s: holds a finished model: choose another --out, or remove it first",
                           w->path);
        int r = check_empty(w, e);
        return r < 0 ? r : save_journal(w, e);
    }
    struct manifest_list files = {0}, tensors = {0};
    int r = load_journal(w, &files, &tensors, e);
    w->complete = r == 0 && exists(w, LAYOUT_MANIFEST);
    for (size_t i = 0; i < w->n_parts && r == 0 && !w->complete; i++)
        r = keep_part(w, &w->parts[i], &files, &tensors, e);
    manifest_list_deinit(&files);
    manifest_list_deinit(&tensors);
    if (r == 0 && w->complete) /* the last run ended between manifest and journal */
        unlinkat(w->lock_fd, LAYOUT_JOURNAL, 0);
    return r;
}

static int check_room(const struct writer *w, struct err *e)
{
    struct statvfs fs;
    uint64_t need = 0;
    for (size_t i = 0; i < w->n_parts; i++)
        need += w->parts[i].done ? 0 : w->parts[i].bytes;
    if (fstatvfs(w->lock_fd, &fs) < 0 || fs.f_blocks == 0)
        return 0; /* this file system does not tell */
    uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (need > room)
        return err_set(e, -ENOSPC,
                       "%s: %.1f GB are needed, %.1f GB are free: make room or choose another "
                       "--out",
                       w->path, (double)need / 1e9, (double)room / 1e9);
    return 0;
}

static int lock(struct writer *w, struct err *e)
{
    if (mkdir(w->path, 0777) < 0 && errno != EEXIST)
        return err_set(e, -errno, "%s: cannot create: %s", w->path, err_name(-errno));
    w->lock_fd = open(w->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (w->lock_fd < 0)
        return err_set(e, -errno, "%s: cannot open: %s", w->path, err_name(-errno));
    if (flock(w->lock_fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK)
        return err_set(e, -EBUSY, "%s: another `glmd convert` is writing to it", w->path);
    return 0; /* a file system without locks: go on without */
}

int writer_open(const struct writer_options *o, struct st_list *tensors, struct writer **ret,
                struct err *e)
{
    struct writer *w = calloc(1, sizeof *w);
    if (!w) {
        st_list_deinit(tensors);
        return err_set(e, -ENOMEM, "%s: out of memory", o->path);
    }
    w->options = *o;
    w->tensors = *tensors;
    *tensors = (struct st_list){0};
    w->fd = w->lock_fd = -1;
    w->path = strdup(o->path);
    w->conversion = strdup(o->conversion);
    w->options.path = w->path;
    w->options.conversion = w->conversion;
    w->file_sum = checksum_new();
    w->tensor_sum = checksum_new();
    int r = w->path && w->conversion && w->file_sum && w->tensor_sum
                ? 0
                : err_set(e, -ENOMEM, "out of memory");
    snprintf(w->manifest.converter, sizeof w->manifest.converter, "glmd %s", GLMD_VERSION);
    if (r == 0)
        r = plan_parts(w, e);
    if (r == 0)
        r = lock(w, e);
    if (r == 0)
        r = resume(w, e);
    if (r == 0)
        r = check_room(w, e);
    if (r < 0) {
        writer_close(w);
        return r;
    }
    *ret = w;
    return 0;
}

/* Gives up the file that is being written. */
static void abandon_part(struct writer *w)
{
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
    if (w->part_path)
        unlink(w->part_path);
    free(w->part_path);
    free(w->final_path);
    w->part_path = w->final_path = NULL;
}

void writer_close(struct writer *w)
{
    if (!w)
        return;
    abandon_part(w);
    manifest_list_deinit(&w->new_tensors);
    manifest_deinit(&w->manifest);
    checksum_free(w->file_sum);
    checksum_free(w->tensor_sum);
    buf_deinit(&w->head);
    st_list_deinit(&w->tensors);
    free(w->parts);
    if (w->lock_fd >= 0)
        close(w->lock_fd);
    free(w->path);
    free(w->conversion);
    free(w);
}

bool writer_is_complete(const struct writer *w)
{
    return w->complete;
}

bool writer_has(const struct writer *w, size_t i)
{
    if (w->complete)
        return true;
    for (size_t p = 0; p < w->n_parts; p++) {
        if (i >= w->parts[p].first && i < w->parts[p].first + w->parts[p].n)
            return w->parts[p].done;
    }
    return false;
}

static int put(struct writer *w, const void *data, size_t n, struct err *e)
{
    int r = file_write(w->fd, data, n, w->part_path, e);
    if (r < 0)
        return r;
    checksum_update(w->file_sum, data, n);
    /* Start writing back now, so that the sync at the end of the file does not wait for all. */
    sync_file_range(w->fd, (off_t)w->file_offset, (off_t)n, SYNC_FILE_RANGE_WRITE);
    w->file_offset += n;
    return 0;
}

static int begin_part(struct writer *w, struct err *e)
{
    while (w->part_idx < w->n_parts && w->parts[w->part_idx].done)
        w->part_idx++;
    assert(w->part_idx < w->n_parts);
    struct part *part = &w->parts[w->part_idx];
    w->final_path = file_join(w->path, part->name);
    if (!w->final_path || asprintf(&w->part_path, "%s.part", w->final_path) < 0) {
        w->part_path = NULL;
        return no_memory(w, e);
    }
    w->fd = open(w->part_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w->fd < 0)
        return err_set(e, -errno, "%s: cannot create: %s", w->part_path, err_name(-errno));
    struct st_list list = {.tensors = w->tensors.tensors + part->first, .n = part->n};
    uint64_t file_bytes;
    if (st_format_header(&list, &w->head, &file_bytes) < 0)
        return no_memory(w, e);
    w->tensor_idx = part->first;
    w->tensor_bytes = 0;
    w->file_offset = 0;
    checksum_reset(w->file_sum);
    checksum_reset(w->tensor_sum);
    return put(w, w->head.data, w->head.size, e);
}

static int end_part(struct writer *w, struct err *e)
{
    struct part *part = &w->parts[w->part_idx];
    struct checksum sum;
    checksum_final(w->file_sum, &sum);
    int fd = w->fd;
    w->fd = -1; /* closed by file_publish in any case */
    int r = file_publish(fd, w->part_path, w->final_path, e);
    if (r < 0)
        return r;
    free(w->part_path);
    free(w->final_path);
    w->part_path = w->final_path = NULL;
    r = manifest_add(&w->manifest.files, part->name, w->file_offset, &sum);
    for (size_t i = 0; i < w->new_tensors.n && r == 0; i++) {
        const struct manifest_entry *t = &w->new_tensors.entries[i];
        r = manifest_add(&w->manifest.tensors, t->name, t->bytes, &t->sum);
    }
    manifest_list_deinit(&w->new_tensors);
    if (r < 0)
        return no_memory(w, e);
    part->done = true;
    w->part_idx++;
    return save_journal(w, e);
}

static int end_tensor(struct writer *w, struct err *e)
{
    const struct st_tensor *t = &w->tensors.tensors[w->tensor_idx];
    struct checksum sum;
    checksum_final(w->tensor_sum, &sum);
    checksum_reset(w->tensor_sum);
    if (manifest_add(&w->new_tensors, t->name, t->bytes, &sum) < 0)
        return no_memory(w, e);
    w->tensor_idx++;
    w->tensor_bytes = 0;
    const struct part *part = &w->parts[w->part_idx];
    return w->tensor_idx == part->first + part->n ? end_part(w, e) : 0;
}

int writer_append(struct writer *w, const void *data, size_t n, struct err *e)
{
    assert(!w->complete);
    int r = w->fd < 0 ? begin_part(w, e) : 0;
    if (r == 0) {
        const struct st_tensor *t = &w->tensors.tensors[w->tensor_idx];
        assert(n <= t->bytes - w->tensor_bytes);
        r = put(w, data, n, e);
        checksum_update(w->tensor_sum, data, n);
        w->tensor_bytes += n;
        if (r == 0 && w->tensor_bytes == t->bytes)
            r = end_tensor(w, e);
    }
    if (r < 0)
        abandon_part(w);
    return r;
}

int writer_add_file(struct writer *w, const char *name, const void *data, size_t n, struct err *e)
{
    char *path = file_join(w->path, name);
    struct checksum sum;
    if (!path)
        return no_memory(w, e);
    int r = file_replace(path, data, n, e);
    free(path);
    if (r < 0)
        return r;
    checksum_reset(w->file_sum);
    checksum_update(w->file_sum, data, n);
    checksum_final(w->file_sum, &sum);
    return manifest_add(&w->manifest.files, name, n, &sum) < 0 ? no_memory(w, e) : 0;
}

int writer_add_json(struct writer *w, const char *name, const json_t *object, struct err *e)
{
    struct buf text = {0};
    int r = jsonfile_format(object, &text) < 0 ? no_memory(w, e) : 0;
    if (r == 0)
        r = writer_add_file(w, name, text.data, text.size, e);
    buf_deinit(&text);
    return r;
}

static int add_index(struct writer *w, struct err *e)
{
    json_t *map = json_object();
    json_int_t total = 0;
    int r = map ? 0 : -1;
    for (size_t p = 0; p < w->n_parts && r == 0; p++) {
        const struct part *part = &w->parts[p];
        total += (json_int_t)part->bytes;
        for (size_t i = part->first; i < part->first + part->n && r == 0; i++)
            r = json_object_set_new(map, w->tensors.tensors[i].name, json_string(part->name));
    }
    json_t *index = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", total, "weight_map", map);
    r = r < 0 || !index ? no_memory(w, e) : writer_add_json(w, LAYOUT_INDEX, index, e);
    json_decref(index);
    return r;
}

int writer_finish(struct writer *w, json_t *source, struct err *e)
{
    assert(!w->complete && w->fd < 0);
    int r = add_index(w, e);
    if (r < 0)
        return r;
    w->manifest.source = json_incref(source);
    char *path = file_join(w->path, LAYOUT_MANIFEST);
    r = path && manifest_complete(&w->manifest) == 0 ? manifest_save(path, &w->manifest, e)
                                                     : no_memory(w, e);
    free(path);
    if (r < 0)
        return r;
    if (unlinkat(w->lock_fd, LAYOUT_JOURNAL, 0) < 0)
        return err_set(e, -errno, "%s/" LAYOUT_JOURNAL ": cannot remove: %s", w->path,
                       err_name(-errno));
    w->complete = true;
    return 0;
}
