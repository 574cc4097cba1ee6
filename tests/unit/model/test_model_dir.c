/* Model directories: slices, checksums, and directories that somebody changed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "model/layout.h"
#include "model/manifest.h"
#include "tests/unit/model/support.h"

#define DENSE    "transformer.layers.1.attention.dense.weight"
#define ONE_FILE "model-00001-of-00001.safetensors"

/* One converted model for all tests; each copies it. */
static char *scratch, *model;

static int set_up(void **state)
{
    (void)state;
    scratch = scratch_new();
    model = path_in(scratch, "model");
    convert_golden_ok("ckpt-int4-tp4", model, NULL, NULL);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    free(model);
    scratch_remove(scratch);
    return 0;
}

/* All rectangles that ranks read, and some that they do not, against the whole tensor. */
static void test_slices(void **state)
{
    (void)state;
    struct model_dir *d = open_model_ok(model);
    struct err e = ERR_INIT;
    static const char *const names[] = {DENSE, "transformer.word_embeddings.weight",
                                        "transformer.layers.0.mlp.dense_4h_to_h.weight_scale",
                                        "transformer.final_layernorm.bias"};
    srand(3);
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        const struct st_tensor *t = model_dir_find(d, names[i]);
        assert_non_null(t);
        size_t bytes, element = st_dtype_bytes(t->dtype);
        uint8_t *whole = read_tensor(d, names[i], &bytes);
        uint64_t rows = st_rows(t), cols = st_cols(t);
        assert_int_equal(bytes, rows * cols * element);
        for (unsigned k = 0; k < 200; k++) {
            struct model_slice s;
            s.row0 = (uint64_t)rand() % rows;
            s.n_rows = (uint64_t)rand() % (rows - s.row0 + 1);
            s.col0 = k % 3 ? (uint64_t)rand() % cols : 0;
            s.n_cols = k % 3 ? (uint64_t)rand() % (cols - s.col0 + 1) : cols;
            size_t part = s.n_cols * element, n = s.n_rows * part;
            uint8_t *found = malloc(n + 1);
            assert_non_null(found);
            found[n] = 0x5a;
            if (model_dir_read(d, t, &s, found, &e) < 0)
                fail_msg("%s", e.message);
            assert_int_equal(found[n], 0x5a);
            for (uint64_t r = 0; r < s.n_rows; r++)
                if (memcmp(found + r * part, whole + ((s.row0 + r) * cols + s.col0) * element,
                           part) != 0)
                    fail_msg("%s rows %lu+%lu columns %lu+%lu: row %lu differs", names[i], s.row0,
                             s.n_rows, s.col0, s.n_cols, r);
            free(found);
        }
        free(whole);
    }
    model_dir_close(d);
}

static void test_order(void **state)
{
    (void)state;
    struct model_dir *d = open_model_ok(model);
    assert_string_equal(model_dir_tensor_at(d, 0)->name, "transformer.word_embeddings.weight");
    size_t n = model_dir_n_tensors(d);
    assert_int_equal(n, 3 + 3 * (12 + 4));
    assert_string_equal(model_dir_tensor_at(d, n - 1)->name, "transformer.final_layernorm.bias");
    for (size_t i = 0; i < n; i++) {
        const struct st_tensor *t = model_dir_tensor_at(d, i);
        assert_ptr_equal(model_dir_find(d, t->name), t);
    }
    assert_null(model_dir_find(d, "transformer.word_embeddings.bias"));
    assert_string_equal(model_dir_path(d), model);
    model_dir_close(d);
}

static void test_known_answer(void **state)
{
    (void)state;
    char *copy = path_in(scratch, "known");
    copy_tree(model, copy);
    struct model_dir *d = open_model_ok(copy);
    struct err e = ERR_INIT;
    uint64_t hash = 0;
    assert_int_equal(model_dir_known_answer(d, &hash), -ENOENT);
    model_dir_close(d);
    assert_int_equal(model_manifest_set_known_answer(copy, 0xfedcba9876543210, &e), 0);
    d = open_model_ok(copy);
    assert_int_equal(model_dir_known_answer(d, &hash), 0);
    assert_int_equal(hash, 0xfedcba9876543210);
    struct model_dir *original = open_model_ok(model);
    assert_string_equal(model_dir_digest(d)->hex, model_dir_digest(original)->hex);
    model_dir_close(original);
    model_dir_close(d);
    assert_int_equal(model_manifest_set_known_answer("/nonexistent", 1, &e), -ENOENT);
    free(copy);
}

/* Every byte of a small tensor matters, and only that tensor is reported. */
static void test_verify(void **state)
{
    (void)state;
    char *copy = path_in(scratch, "verify"), *file = path_in(copy, ONE_FILE);
    copy_tree(model, copy);
    size_t n;
    char *data = read_file(file, &n);
    struct model_dir *d = open_model_ok(copy);
    const struct st_tensor *t = model_dir_find(d, DENSE);
    data[t->offset + t->bytes / 2] ^= 4;
    write_file(file, data, n);
    for (size_t i = 0; i < model_dir_n_tensors(d); i++) {
        struct err e = ERR_INIT;
        const struct st_tensor *each = model_dir_tensor_at(d, i);
        int r = model_dir_verify_tensor(d, each, &e);
        if (r != (each == t ? -EBADMSG : 0))
            fail_msg("%s: found %d %s", each->name, r, e.message);
        if (each == t) {
            assert_non_null(strstr(e.message, DENSE));
            assert_non_null(strstr(e.message, ONE_FILE));
        }
    }
    /* the file shrinks under an open directory: an error, not a signal */
    assert_int_equal(truncate(file, (off_t)(t->offset + 1)), 0);
    struct err e = ERR_INIT;
    assert_int_equal(model_dir_verify_tensor(d, t, &e), -EBADMSG);
    const struct model_slice half = {0, st_rows(t), 0, st_cols(t) / 2};
    uint8_t *dst = malloc(t->bytes);
    assert_int_equal(model_dir_read(d, t, &half, dst, &e), -EBADMSG);
    assert_non_null(strstr(e.message, "truncated"));
    free(dst);
    model_dir_close(d);
    free(data);
    free(file);
    free(copy);
}

/* A text that is replaced in one of the files; the directory must be refused. */
static void test_changed_files(void **state)
{
    (void)state;
    static const struct {
        const char *file, *from, *to, *message;
    } cases[] = {
        {LAYOUT_CONFIG, "\"num_layers\": 3", "\"num_layers\": 2", "belong to no layer"},
        {LAYOUT_CONFIG, "\"num_layers\": 3", "\"num_layers\": 4", "is missing"},
        {LAYOUT_CONFIG, "\"hidden_size\": 64", "\"hidden_size\": 128", "expected F16"},
        {LAYOUT_CONFIG, "\"inner_size\": 192", "\"inner_size\": 184", "expected"},
        {LAYOUT_CONFIG, "\"num_heads\": 4", "\"num_heads\": 5", "num_heads"},
        {LAYOUT_CONFIG, "\"bits\": 4", "\"bits\": 8", "expected I8"},
        {LAYOUT_CONFIG, "\"group_shards\": 4", "\"group_shards\": 2", "weight_scale"},
        {LAYOUT_CONFIG, "\"group_shards\": 4", "\"group_shards\": 3", "cut"},
        {LAYOUT_CONFIG, "quantization_config", "quantisation_config", "expected F16"},
        {LAYOUT_CONFIG, "{", "[", "JSON"},
        {LAYOUT_INDEX, "weight_map", "weightmap", "weight_map"},
        {LAYOUT_INDEX, ONE_FILE, "../" ONE_FILE, "in this directory"},
        {LAYOUT_INDEX, ONE_FILE, "/etc/passwd", "in this directory"},
        {LAYOUT_INDEX, ONE_FILE, "model-00009-of-00009.safetensors", "model-0000"},
        {LAYOUT_INDEX, "\"" ONE_FILE "\"", "7", "in this directory"},
        {LAYOUT_INDEX, DENSE, "transformer.layers.1.attention.dense.wait", "not in the index"},
        {LAYOUT_MANIFEST, "\"format_version\": 1", "\"format_version\": 2", "format_version"},
        {LAYOUT_MANIFEST, "glmd-model", "other", "format"},
        {LAYOUT_MANIFEST, "\"source\"", "\"origin\"", "source"},
        {LAYOUT_MANIFEST, "\"digest\": \"", "\"digest\": \"0", "32 hex digits"},
        {LAYOUT_MANIFEST, DENSE, "transformer.layers.1.attention.dense.wait", "digest"},
        {LAYOUT_MANIFEST, ONE_FILE, "model-00002-of-00002.safetensors", "as the manifest says"},
        {LAYOUT_MANIFEST, "\"files\"", "\"known_answer\": \"12\", \"files\"", "known_answer"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char *copy = path_in(scratch, "changed"), *file = path_in(copy, cases[i].file);
        copy_tree(model, copy);
        replace_in_file(file, cases[i].from, cases[i].to);
        struct model_dir *d;
        struct err e = ERR_INIT;
        int r = model_dir_open(copy, &d, &e);
        if (r >= 0 || !strstr(e.message, cases[i].message))
            fail_msg("%s, %s -> %s: expected an error with \"%s\", found %d \"%s\"", cases[i].file,
                     cases[i].from, cases[i].to, cases[i].message, r, e.message);
        free(file);
        scratch_remove(copy);
    }
}

static void test_missing_files(void **state)
{
    (void)state;
    static const char *const names[] = {LAYOUT_CONFIG, LAYOUT_INDEX, LAYOUT_MANIFEST, ONE_FILE};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char *copy = path_in(scratch, "missing"), *file = path_in(copy, names[i]);
        copy_tree(model, copy);
        assert_int_equal(unlink(file), 0);
        struct model_dir *d;
        struct err e = ERR_INIT;
        assert_int_equal(model_dir_open(copy, &d, &e), -ENOENT);
        assert_non_null(strstr(e.message, names[i]));
        free(file);
        scratch_remove(copy);
    }
}

/* Cut anywhere: header, data; and one byte too long. */
static void test_tensor_file_size(void **state)
{
    (void)state;
    char *copy = path_in(scratch, "size"), *file = path_in(copy, ONE_FILE);
    copy_tree(model, copy);
    size_t n;
    char *data = read_file(file, &n);
    for (size_t size = 0; size < n; size += n / 17) {
        write_file(file, data, size);
        struct model_dir *d;
        struct err e = ERR_INIT;
        assert_int_equal(model_dir_open(copy, &d, &e), -EBADMSG);
        assert_non_null(strstr(e.message, "as the manifest says"));
    }
    free(data);
    free(file);
    scratch_remove(copy);
}

static void test_not_a_directory(void **state)
{
    (void)state;
    struct model_dir *d;
    struct err e = ERR_INIT;
    assert_int_equal(model_dir_open("/nonexistent", &d, &e), -ENOENT);
    assert_non_null(strstr(e.message, "glmd convert"));
    char *fifo = path_in(model, "config.json");
    assert_int_equal(model_dir_open(fifo, &d, &e), -ENOTDIR);
    free(fifo);
    model_dir_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slices),           cmocka_unit_test(test_order),
        cmocka_unit_test(test_known_answer),     cmocka_unit_test(test_verify),
        cmocka_unit_test(test_changed_files),    cmocka_unit_test(test_missing_files),
        cmocka_unit_test(test_tensor_file_size), cmocka_unit_test(test_not_a_directory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
