/* test_sp_proto.c: model files that lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "model/file.h"
#include "model/tokenizer/sp_proto.h"
#include "model/tokenizer/sp_shim.h"
#include "tests/unit/tokenizer/golden.h"

static void read_golden(struct buf *ret)
{
    char *path = golden_path("tests/golden/glm130b/tokenizer.model");
    assert_int_equal(file_read_all(path, SP_MAX_FILE_BYTES, ret, NULL), 0);
    free(path);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct buf file = {0}, once = {0}, twice = {0};
    struct sp_proto p, q;
    struct err e = ERR_INIT;
    read_golden(&file);
    if (sp_proto_parse(file.data, file.size, &p, &e) < 0)
        fail_msg("%s", e.message);
    assert_int_equal(p.n_pieces, 480);
    assert_string_equal(sp_proto_text(&p, 4), "<n>");
    assert_int_equal(p.pieces[4].type, SP_PIECE_USER_DEFINED);
    assert_int_equal(p.charsmap.size, 237561);
    assert_string_equal(p.unk_surface.data, " \xe2\x81\x87 ");
    assert_int_equal(sp_proto_write(&p, &once), 0);
    assert_int_equal(sp_proto_parse(once.data, once.size, &q, &e), 0);
    assert_int_equal(sp_proto_write(&q, &twice), 0);
    assert_int_equal(once.size, twice.size);
    assert_memory_equal(once.data, twice.data, once.size);
    sp_proto_deinit(&p);
    sp_proto_deinit(&q);
    buf_deinit(&file);
    buf_deinit(&once);
    buf_deinit(&twice);
}

static void expect(const void *data, size_t size, const char *message)
{
    struct sp_proto p;
    struct err e = ERR_INIT;
    int r = sp_proto_parse(data, size, &p, &e);
    if (r != -EINVAL || !strstr(e.message, message))
        fail_msg("expected -EINVAL with \"%s\", found %d \"%s\"", message, r, e.message);
}

#define EXPECT(message, text) expect(text, sizeof text - 1, message)

static void test_malformed(void **state)
{
    (void)state;
    EXPECT("no pieces", "");
    EXPECT("malformed model", "\x0a\x7f"); /* longer than the file */
    EXPECT("malformed model", "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
    EXPECT("malformed model", "\x0b");     /* a group */
    EXPECT("malformed model", "\x02\x00"); /* field number 0 */
    EXPECT("malformed piece", "\x0a\x02\x0a\x05");
    EXPECT("has 0 bytes", "\x0a\x00");
    EXPECT("not text in UTF-8", "\x0a\x03\x0a\x01\xff");
    EXPECT("not text in UTF-8", "\x0a\x04\x0a\x02"
                                "a\0"); /* ends a key of the library's trie */
    EXPECT("not a finite number", "\x0a\x08\x0a\x01"
                                  "a\x15\x00\x00\xc0\x7f");
    EXPECT("of type 7", "\x0a\x05\x0a\x01"
                        "a\x18\x07");
    EXPECT("model type 2", "\x0a\x03\x0a\x01"
                           "a\x12\x02\x18\x02");
    EXPECT("malformed unk_surface", "\x0a\x03\x0a\x01"
                                    "a\x12\x04\xe2\x02\x01\xff");
    EXPECT("denormalizer_spec", "\x0a\x03\x0a\x01"
                                "a\x2a\x03\x12\x01x");
    EXPECT("cut short", "\x0a\x03\x0a\x01"
                        "a\x1a\x03\x12\x01x");
}

/* Every shortened golden file is refused or read, never more. */
static void test_cut_files(void **state)
{
    (void)state;
    struct buf file = {0};
    read_golden(&file);
    for (size_t size = 0; size < file.size; size += 1 + size / 20) {
        struct sp_proto p;
        char *exact = malloc(size ? size : 1);
        assert_non_null(exact);
        memcpy(exact, file.data, size);
        if (sp_proto_parse(exact, size, &p, NULL) == 0)
            sp_proto_deinit(&p);
        free(exact);
    }
    buf_deinit(&file);
}

/* ---- normalisation tables: one block of 256 units, outputs behind it ---- */

enum { UNITS = 256, LEAF = 1 << 8 };

struct table {
    uint32_t units[UNITS];
    char outputs[80];
};

static uint32_t unit(uint32_t label, uint32_t offset, uint32_t flags)
{
    return label | offset << 10 | flags;
}

static int check_table(const struct table *t, size_t outputs_size, const char *message)
{
    struct buf b = {0};
    struct err e = ERR_INIT;
    uint32_t size = sizeof t->units;
    assert_int_equal(buf_append(&b, &size, 4), 0);
    assert_int_equal(buf_append(&b, t->units, size), 0);
    assert_int_equal(buf_append(&b, t->outputs, outputs_size), 0);
    char *exact = malloc(b.size);
    assert_non_null(exact);
    memcpy(exact, b.data, b.size);
    int r = sp_charsmap_check(exact, b.size, &e);
    free(exact);
    buf_deinit(&b);
    if (message && !strstr(e.message, message))
        fail_msg("expected \"%s\", found %d \"%s\"", message, r, e.message);
    return r;
}

/* "a" -> outputs[value] */
static struct table one_rule(uint32_t value)
{
    struct table t = {{0}, "x"};
    memset(t.units, 0xff, sizeof t.units); /* no label */
    t.units[0] = unit(0, 1, 0);
    t.units[1 ^ 'a'] = unit('a', 2, LEAF);
    t.units[1 ^ 'a' ^ 2] = 0x80000000 | value;
    return t;
}

static void test_table(void **state)
{
    (void)state;
    struct table t = one_rule(0);
    assert_int_equal(check_table(&t, 2, NULL), 0);
    assert_int_equal(check_table(&t, 1, "do not end in a NUL"), -EINVAL);
    t = one_rule(2);
    assert_int_equal(check_table(&t, 2, "outside of its output table"), -EINVAL);
    t = one_rule(0);
    t.units[1 ^ 'a'] = unit('a', 0x1000, 0);
    assert_int_equal(check_table(&t, 2, "outside of itself"), -EINVAL);
    t.units[1 ^ 'a'] = unit('a', 0x1000, 1 << 9); /* the scaled form of an offset */
    assert_int_equal(check_table(&t, 2, "outside of itself"), -EINVAL);
    t = one_rule(0);
    t.units[0] = unit(0, UNITS, 0);
    assert_int_equal(check_table(&t, 2, "outside of itself"), -EINVAL);
    t = one_rule(0);
    memset(t.outputs, 'x', sizeof t.outputs - 1);
    assert_int_equal(check_table(&t, sizeof t.outputs, "writes 79 bytes"), -EINVAL);
}

/* A unit that is its own child would match any number of rules at one place. */
static void test_table_cycle(void **state)
{
    (void)state;
    struct table t = one_rule(0);
    t.units[1 ^ 'a'] = unit('a', 'a', LEAF); /* base ^ 'a' is the unit itself */
    t.units[1] = 0x80000000;                 /* its rule */
    assert_int_equal(check_table(&t, 2, "cycle"), -EINVAL);
}

/* n rules "\1", "\1\1", "\1\1\1", ...: each is a prefix of the next. Unit i stands in block i. */
static int check_chain(uint32_t n, const char *message)
{
    size_t n_units = (n + 2) * (size_t)UNITS;
    uint32_t *units = malloc(n_units * sizeof *units);
    struct buf b = {0};
    struct err e = ERR_INIT;
    assert_non_null(units);
    memset(units, 0xff, n_units * sizeof *units);
    units[0] = unit(0, UNITS, 0);
    for (uint32_t i = 1; i <= n; i++) {
        uint32_t at = i * UNITS + 1, base = (i + 1) * UNITS;
        units[at] = unit(1, at ^ base, LEAF);
        units[base] = 0x80000000;
    }
    uint32_t size = (uint32_t)(n_units * sizeof *units);
    assert_int_equal(buf_append(&b, &size, 4), 0);
    assert_int_equal(buf_append(&b, units, size), 0);
    assert_int_equal(buf_append(&b, "x", 2), 0);
    int r = sp_charsmap_check(b.data, b.size, &e);
    if (message && !strstr(e.message, message))
        fail_msg("expected \"%s\", found %d \"%s\"", message, r, e.message);
    free(units);
    buf_deinit(&b);
    return r;
}

static void test_table_chain(void **state)
{
    (void)state;
    assert_int_equal(check_chain(1, NULL), 0);
    assert_int_equal(check_chain(SP_MAX_RULES_PER_PLACE, NULL), 0);
    assert_int_equal(check_chain(SP_MAX_RULES_PER_PLACE + 1, "more than 32"), -EINVAL);
    assert_int_equal(check_chain(1000, "more than 32"), -EINVAL);
}

static void test_library_errors_come_back(void **state)
{
    (void)state;
    struct sp_proto p;
    struct buf model = {0};
    struct sp_shim *shim;
    struct err e = ERR_INIT;
    /* one piece, and no unknown piece */
    assert_int_equal(sp_proto_parse("\x0a\x03\x0a\x01"
                                    "a",
                                    5, &p, &e),
                     0);
    assert_int_equal(sp_proto_write(&p, &model), 0);
    assert_int_equal(sp_shim_load(model.data, model.size, &shim, &e), -EINVAL);
    assert_non_null(strstr(e.message, "unk is not defined"));
    sp_proto_deinit(&p);
    buf_deinit(&model);
    assert_int_equal(sp_shim_load("\xff", 1, &shim, &e), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_cut_files),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_table_cycle),
        cmocka_unit_test(test_table_chain),
        cmocka_unit_test(test_library_errors_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
