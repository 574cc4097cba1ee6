/* safetensors headers: what is written is read back; everything else is refused. */
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
#include "model/safetensors.h"
#include "tests/unit/model/support.h"

static void test_round_trip(void **state)
{
    (void)state;
    struct st_tensor tensors[] = {
        {.name = (char *)"a.weight", .dtype = ST_F16, .n_dims = 2, .shape = {3, 5}},
        {.name = (char *)"b", .dtype = ST_U8, .n_dims = 1, .shape = {7}},
        {.name = (char *)"empty", .dtype = ST_I8, .n_dims = 3, .shape = {2, 0, 9}},
        {.name = (char *)"c", .dtype = ST_F32, .n_dims = 1, .shape = {2}},
    };
    struct st_list list = {.tensors = tensors, .n = ARRAY_LEN(tensors)}, back;
    struct buf head = {0};
    struct err e = ERR_INIT;
    uint64_t file_bytes;
    assert_int_equal(st_format_header(&list, &head, &file_bytes), 0);
    assert_int_equal(head.size % 64, 0);
    assert_int_equal(file_bytes, head.size + 30 + 7 + 8);
    char *file = calloc(1, file_bytes);
    assert_non_null(file);
    memcpy(file, head.data, head.size);
    int fd = memory_file(file, file_bytes);
    if (st_read_header(fd, &back, &e) < 0)
        fail_msg("%s", e.message);
    assert_int_equal(back.n, list.n);
    for (size_t i = 0; i < list.n; i++) {
        const struct st_tensor *want = &tensors[i], *found = NULL;
        for (size_t k = 0; k < back.n; k++)
            if (strcmp(back.tensors[k].name, want->name) == 0)
                found = &back.tensors[k];
        if (!found) {
            fail_msg("%s was not read back", want->name);
            abort();
        }
        assert_int_equal(found->dtype, want->dtype);
        assert_int_equal(found->n_dims, want->n_dims);
        assert_memory_equal(found->shape, want->shape, sizeof want->shape);
        assert_int_equal(found->offset, want->offset);
        assert_int_equal(found->bytes, want->bytes);
    }
    assert_int_equal(st_rows(&tensors[0]), 3);
    assert_int_equal(st_cols(&tensors[0]), 5);
    assert_int_equal(st_rows(&tensors[1]), 1);
    assert_int_equal(st_cols(&tensors[1]), 7);
    st_list_deinit(&back);
    close(fd);
    /* one byte more or less at the end */
    for (size_t size = file_bytes - 1; size <= file_bytes + 1; size += 2) {
        file = realloc(file, file_bytes + 1);
        fd = memory_file(file, size);
        assert_int_equal(st_read_header(fd, &back, &e), -EBADMSG);
        close(fd);
    }
    free(file);
    buf_deinit(&head);
}

/* Headers for a file with 16 bytes of data. */
static void test_headers(void **state)
{
    (void)state;
    static const struct {
        const char *json, *message; /* message NULL = fine */
    } cases[] = {
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[8],\"data_offsets\":[0,16]}}", NULL},
        {"{\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[12,16]},"
         "\"a\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
         "\"__metadata__\":{\"format\":\"pt\"}}",
         NULL},
        {"", "JSON"},
        {"[]", "object"},
        {"{", "JSON"},
        {"{\"a\":1}", "expected an object"},
        {"{}", "end at byte"},
        {"{\"a\":{\"dtype\":\"F8\",\"shape\":[16],\"data_offsets\":[0,16]}}", "dtype"},
        {"{\"a\":{\"dtype\":7,\"shape\":[16],\"data_offsets\":[0,16]}}", "dtype"},
        {"{\"a\":{\"shape\":[16],\"data_offsets\":[0,16]}}", "dtype"},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,16]}}", "shape"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,16]}}", "shape"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,16],\"data_offsets\":[0,16]}}", "shape"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[-16],\"data_offsets\":[0,16]}}", "shape"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[16.0],\"data_offsets\":[0,16]}}", "shape"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[15],\"data_offsets\":[0,16]}}", "do not fit"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[16],\"data_offsets\":[0,16]}}", "do not fit"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,16]}}",
         "do not fit"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[9223372036854775807],\"data_offsets\":[0,16]}}",
         "do not fit"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[16]}}", "data_offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[16],\"data_offsets\":[0]}}", "data_offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[16],\"data_offsets\":[16,0]}}", "data_offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[17],\"data_offsets\":[0,17]}}", "truncated"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[16],\"data_offsets\":[-1,15]}}", "data_offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[12],\"data_offsets\":[4,16]}}", "no tensor"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[12,16]}}",
         "no tensor"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[10],\"data_offsets\":[0,10]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[8,16]}}",
         "overlaps"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[16],\"data_offsets\":[0,16]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[16],\"data_offsets\":[0,16]}}",
         "overlaps"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[12],\"data_offsets\":[0,12]}}", "end at byte"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[16],\"data_offsets\":[0,16]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[16],\"data_offsets\":[0,16]}}",
         "duplicate"},
        {"{\"../a\":{\"dtype\":\"U8\",\"shape\":[16],\"data_offsets\":[0,16]}}", "names"},
        {"{\"\":{\"dtype\":\"U8\",\"shape\":[16],\"data_offsets\":[0,16]}}", "names"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct st_list l;
        struct err e = ERR_INIT;
        size_t n = strlen(cases[i].json);
        int r = st_parse_header(cases[i].json, n, 8 + n + 16, &l, &e);
        if (cases[i].message ? r != -EBADMSG || !strstr(e.message, cases[i].message) : r != 0)
            fail_msg("%s: expected %s, found %d and \"%s\"", cases[i].json,
                     cases[i].message ? cases[i].message : "success", r, e.message);
        if (r == 0)
            st_list_deinit(&l);
    }
}

static void test_lengths(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {
        0, 1, 17, ST_MAX_HEADER_BYTES + 1, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        char file[24] = "";
        struct st_list l;
        struct err e = ERR_INIT;
        memcpy(file, &lengths[i], 8);
        file[8] = '{';
        file[9] = '}';
        int fd = memory_file(file, sizeof file);
        if (st_read_header(fd, &l, &e) != -EBADMSG)
            fail_msg("a header of %llu bytes was accepted", (unsigned long long)lengths[i]);
        close(fd);
        for (size_t n = 0; n < 8; n++) {
            fd = memory_file(file, n);
            assert_int_equal(st_read_header(fd, &l, &e), -EBADMSG);
            close(fd);
        }
    }
}

static void test_names(void **state)
{
    (void)state;
    char name[300];
    memset(name, 'a', sizeof name);
    name[256] = '\0';
    assert_true(st_name_ok(name));
    name[256] = 'a';
    name[257] = '\0';
    assert_false(st_name_ok(name));
    assert_true(st_name_ok("transformer.layers.0.mlp-x_Y9"));
    assert_false(st_name_ok(""));
    assert_false(st_name_ok("a/b"));
    assert_false(st_name_ok("a b"));
    assert_false(st_name_ok("\xc3\xa4"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
