/* support.h: what the tests of the model room share: scratch folders, changed copies of files,
 * conversions of the golden checkpoints. Whatever fails ends the test. */
#ifndef GLMD_TESTS_UNIT_MODEL_SUPPORT_H
#define GLMD_TESTS_UNIT_MODEL_SUPPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/convert.h"
#include "model/model_dir.h"

/* A new folder under TMPDIR (or /tmp), removed by scratch_remove. */
char *scratch_new(void);
void scratch_remove(char *path);

/* "<dir>/<name>", malloc'd. */
char *path_in(const char *dir, const char *name);

void *read_file(const char *path, size_t *ret_n); /* NUL-terminated */
void write_file(const char *path, const void *data, size_t n);
void copy_tree(const char *from, const char *to);
/* Replaces the first occurrence of `from` in a text file. */
void replace_in_file(const char *path, const char *from, const char *to);

/* A file with this content and no name. */
int memory_file(const void *data, size_t n);

/* Converts tests/golden/glm130b/<checkpoint> (or an absolute path) with its config. weights, group:
 * NULL = not given. */
int convert_golden(const char *checkpoint, const char *out, const char *weights, const char *group,
                   struct err *e);
void convert_golden_ok(const char *checkpoint, const char *out, const char *weights,
                       const char *group);
/* The options that convert_golden uses; the strings belong to the caller of free_options. */
void golden_options(const char *checkpoint, const char *out, struct convert_options *o);
void free_options(struct convert_options *o);

struct model_dir *open_model_ok(const char *path);
/* All bytes of a tensor, malloc'd. */
void *read_tensor(const struct model_dir *d, const char *name, size_t *ret_bytes);

/* Every tensor of both directories has the same bytes. */
void assert_same_tensors(const char *a_path, const char *b_path);
void verify_all(const char *path); /* every tensor against its checksum */
bool has_file(const char *dir, const char *name);

/* What a conversion is watched with. */
struct stopper {
    unsigned left; /* progress reports until the stop */
    unsigned warnings;
    char last_warning[512];
};

void note_warning(void *context, const char *text); /* on_warning of a struct stopper */

#endif
