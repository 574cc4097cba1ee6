/* The pickle reader: programs written opcode by opcode, allowed and not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/util.h"
#include "model/pickle.h"

#define TEXT(n, s) "X" n "\0\0\0" s
#define TENSOR_V2  "ctorch._utils\n_rebuild_tensor_v2\n"
#define HALF       "ctorch\nHalfStorage\n"
#define CHAR_      "ctorch\nCharStorage\n"
#define ORDERED    "ccollections\nOrderedDict\n)R"
/* ("storage", type, "0", "cpu", n) -> storage */
#define STORAGE(type, n) "(" TEXT("\7", "storage") type TEXT("\1", "0") TEXT("\3", "cpu") n "tQ"
/* a tensor [2, 3] of a storage of 6 */
#define TENSOR TENSOR_V2 "(" STORAGE(HALF, "K\6") "K\0K\2K\3\x86K\3K\1\x86\x89" ORDERED "tR"
#define BEGIN  "\x80\2}" TEXT("\6", "module") "}("
#define END    "us."

#define P(text) text, sizeof(text) - 1

static int run(const char *program, size_t n, struct pickle_table *t, struct err *e)
{
    /* a copy of exact size, so that a read past the end is a sanitizer finding */
    uint8_t *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, program, n);
    int r = pickle_read(copy, n, "data.pkl", t, e);
    free(copy);
    return r;
}

static void test_tensors(void **state)
{
    (void)state;
    static const char program[] = BEGIN TEXT("\1", "b") TENSOR TEXT("\1", "a") TENSOR_V2
        "(" STORAGE(CHAR_, "J\0\0\1\0") "M\0\1M\2\1\x85K\7\x85\x88" ORDERED "tR" END;
    struct pickle_table t;
    struct err e = ERR_INIT;
    if (run(P(program), &t, &e) < 0)
        fail_msg("%s", e.message);
    assert_int_equal(t.n, 2);
    const struct pickle_tensor *a = pickle_find(&t, "a"), *b = pickle_find(&t, "b");
    assert_non_null(a);
    assert_non_null(b);
    assert_int_equal(a->dtype, PICKLE_I8);
    assert_int_equal(a->storage_n, 65536);
    assert_int_equal(a->offset, 256);
    assert_int_equal(a->n_dims, 1);
    assert_int_equal(a->shape[0], 258);
    assert_int_equal(a->stride[0], 7);
    assert_int_equal(b->dtype, PICKLE_F16);
    assert_int_equal(b->n_dims, 2);
    assert_int_equal(b->shape[1], 3);
    assert_string_equal(b->key, "0");
    assert_null(pickle_find(&t, "c"));
    pickle_table_deinit(&t);
}

/* What torch writes around tensors: memo, parameters, metadata, other keys, LONG1. */
static void test_variants(void **state)
{
    (void)state;
    static const struct {
        const char *program;
        size_t n, n_tensors, n_other;
    } cases[] = {
        {P("\x80\2}" TEXT("\6", "module") "}s."), 0, 0},
        {P("\x80\2ccollections\nOrderedDict\n)R(" TEXT("\6", "module") "}(" TEXT("\1", "a") TENSOR
           "u" TEXT("\5", "other") "](K\1G\0\0\0\0\0\0\0\0Neu."),
         1, 0},
        {P(BEGIN TEXT("\1", "a") "ctorch._utils\n_rebuild_parameter\n(" TENSOR "\x88" ORDERED
                                 "tR" END),
         1, 0},
        {P("\x80\2}" TEXT("\6", "module") ORDERED "(" TEXT("\1", "a") TENSOR
           "u}" TEXT("\11", "_metadata") "Nsbs."),
         1, 0},
        {P(BEGIN TEXT("\1", "a") TENSOR_V2 "(" STORAGE(
             HALF, "\x8a\1\6") "\x8a\0\x8a\1\2K\3\x86\x8a\2\3\0K\1\x86\x89" ORDERED "tR" END),
         1, 0},
        {P(BEGIN TEXT("\1", "a") TENSOR
           "q\5" TEXT("\1", "b") "h\5r\0\1\0\0" TEXT("\1", "c") "j\0\1\0\0" END),
         3, 0},
        {P(BEGIN TEXT("\1", "a") "K\1" TEXT("\1", "b") "}" TEXT("\1", "c") TENSOR END), 1, 2},
        {P("\x80\2}" TEXT("\6", "module") "}" TEXT("\1", "a") TENSOR "ss."), 1, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct pickle_table t;
        struct err e = ERR_INIT;
        if (run(cases[i].program, cases[i].n, &t, &e) < 0)
            fail_msg("case %zu: %s", i, e.message);
        if (t.n != cases[i].n_tensors || t.n_other != cases[i].n_other)
            fail_msg("case %zu: expected %zu tensors, %zu other, found %zu, %zu", i,
                     cases[i].n_tensors, cases[i].n_other, t.n, t.n_other);
        pickle_table_deinit(&t);
    }
}

/* Calls that would be code execution, and everything else that is not on the list. */
static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *program;
        size_t n;
        int code;
        const char *message;
    } cases[] = {
        {P("\x80\2cposix\nsystem\n(" TEXT("\2", "ls") "tR."), -ENOTSUP, "posix.system"},
        {P("\x80\2c__builtin__\neval\n."), -ENOTSUP, "__builtin__.eval"},
        {P("\x80\2cbuiltins\ngetattr\n."), -ENOTSUP, "builtins.getattr"},
        {P("\x80\2ctorch\nload\n."), -ENOTSUP, "torch.load"},
        {P("\x80\2ctorch._utils\n_rebuild_tensor_v2x\n."), -ENOTSUP, "not allowed"},
        {P("\x80\2ctorch\n\nHalfStorage\n."), -ENOTSUP, "not allowed"},
        {P("\x80\2cos\nsys\x1btem\n."), -ENOTSUP, "os.sys?tem"},
        {P("\x80\4."), -ENOTSUP, "protocol 2"},
        {P("\x80\2i"), -ENOTSUP, "0x69"},         /* INST */
        {P("\x80\2o"), -ENOTSUP, "0x6f"},         /* OBJ */
        {P("\x80\2(\x81"), -ENOTSUP, "0x81"},     /* NEWOBJ */
        {P("\x80\2\x93"), -ENOTSUP, "0x93"},      /* STACK_GLOBAL */
        {P("\x80\2\x82\1"), -ENOTSUP, "0x82"},    /* EXT1 */
        {P("\x80\2P0\n"), -ENOTSUP, "0x50"},      /* PERSID */
        {P("\x80\2I1\n."), -ENOTSUP, "0x49"},     /* INT as text */
        {P("\x80\2\x8b\0\0\0\0."), -ENOTSUP, ""}, /* LONG4 */
        {P("\x80\2\x8a\11\0\0\0\0\0\0\0\0\1."), -ENOTSUP, "64 bits"},
        {P(""), -EBADMSG, "ends"},
        {P("\x80"), -EBADMSG, "ends"},
        {P("\x80\2"), -EBADMSG, "ends"},
        {P("\x80\2."), -EBADMSG, "one value"},
        {P("\x80\2K\1K\2."), -EBADMSG, "one value"},
        {P("\x80\2}(."), -EBADMSG, "one value"},
        {P("\x80\2K\1."), -EBADMSG, "SwissArmyTransformer"},
        {P("\x80\2}."), -EBADMSG, "module"},
        {P("\x80\2}" TEXT("\6", "module") "K\1s."), -EBADMSG, "module"},
        {P("\x80\2t."), -EBADMSG, "no mark"},
        {P("\x80\2u."), -EBADMSG, "no mark"},
        {P("\x80\2R."), -EBADMSG, "stack is empty"},
        {P("\x80\2K\1(R."), -EBADMSG, "stack is empty"},
        {P("\x80\2K\1\x86."), -EBADMSG, "stack is empty"},
        {P("\x80\2q\0."), -EBADMSG, "stack is empty"},
        {P("\x80\2K\1b."), -EBADMSG, "stack is empty"},
        {P("\x80\2h\0."), -EBADMSG, "memo"},
        {P("\x80\2j\377\377\377\377."), -EBADMSG, "memo"},
        {P("\x80\2K\1r\377\377\377\377."), -EFBIG, "memo"},
        {P("\x80\2K\1(K\2K\3u."), -EBADMSG, "not a dict"},
        {P("\x80\2}K\2a."), -EBADMSG, "not a dict"},
        {P("\x80\2}(K\1u."), -EBADMSG, "without a value"},
        {P("\x80\2X\377\377\377\377ab"), -EBADMSG, "ends"},
        {P("\x80\2cposix"), -EBADMSG, "ends"},
        {P("\x80\2cposix\nsystem"), -EBADMSG, "ends"},
        {P("\x80\2K\1)R."), -EBADMSG, "not a function"},
        {P("\x80\2" HALF ")R."), -EBADMSG, "storage type"},
        {P("\x80\2ccollections\nOrderedDict\n(K\1tR."), -EBADMSG, "OrderedDict"},
        {P("\x80\2ccollections\nOrderedDict\nK\1R."), -EBADMSG, "OrderedDict"},
        {P("\x80\2K\1Q."), -EBADMSG, "persistent id"},
        {P("\x80\2(" TEXT("\5", "stora") HALF TEXT("\1", "0") TEXT("\1", "c") "K\1tQ."), -EBADMSG,
         "persistent id"},
        {P("\x80\2" STORAGE("K\1", "K\1") "."), -EBADMSG, "element type"},
        {P("\x80\2" STORAGE(HALF, "J\377\377\377\377") "."), -EBADMSG, "number of elements"},
        {P("\x80\2(" TEXT("\7", "storage") HALF TEXT("\4", "../x") TEXT("\1", "c") "K\1tQ."),
         -EBADMSG, "not a number"},
        {P("\x80\2" TENSOR_V2 "(K\1K\2tR."), -EBADMSG, "_rebuild_tensor_v2"},
        {P("\x80\2ctorch._utils\n_rebuild_parameter\n(K\1K\2K\3tR."), -EBADMSG,
         "_rebuild_parameter"},
        /* tensors that do not fit their storage of six */
        {P(BEGIN TEXT("\1", "a") TENSOR_V2
           "(" STORAGE(HALF, "K\6") "K\1K\2K\3\x86K\3K\1\x86\x89" ORDERED "tR" END),
         -EBADMSG, "beyond its storage"},
        {P(BEGIN TEXT("\1", "a") TENSOR_V2
           "(" STORAGE(HALF, "K\6") "K\0K\2K\3\x86K\4K\1\x86\x89" ORDERED "tR" END),
         -EBADMSG, "beyond its storage"},
        {P(BEGIN TEXT("\1", "a") TENSOR_V2 "(" STORAGE(
             HALF, "K\6") "K\0\x8a\10\377\377\377\377\377\377\377\177\x85"
                          "\x8a\10\377\377\377\377\377\377\377\177\x85\x89" ORDERED "tR" END),
         -EBADMSG, "beyond its storage"},
        {P(BEGIN TEXT("\1", "a") TENSOR_V2
           "(" STORAGE(HALF, "K\6") "J\377\377\377\377K\2K\3\x86K\3K\1\x86\x89" ORDERED "tR" END),
         -EBADMSG, "bad offset"},
        {P(BEGIN TEXT("\1", "a") TENSOR_V2
           "(" STORAGE(HALF, "K\6") "K\0K\2K\3\x86K\3\x85\x89" ORDERED "tR" END),
         -EBADMSG, "shape or stride"},
        {P(BEGIN TEXT("\1", "a") TENSOR_V2
           "(" STORAGE(HALF, "K\6") "K\0(K\1K\1K\1K\1K\1tK\3\x85\x89" ORDERED "tR" END),
         -EBADMSG, "shape or stride"},
        {P(BEGIN "K\1" TENSOR END), -EBADMSG, "name"},
        {P(BEGIN TEXT("\0", "") TENSOR END), -EBADMSG, "name"},
        {P(BEGIN TEXT("\3", "a\0b") TENSOR END), -EBADMSG, "name"},
        {P(BEGIN TEXT("\1", "a") TENSOR TEXT("\1", "a") TENSOR END), -EBADMSG, "twice"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct pickle_table t;
        struct err e = ERR_INIT;
        int r = run(cases[i].program, cases[i].n, &t, &e);
        if (r != cases[i].code || !strstr(e.message, cases[i].message))
            fail_msg("case %zu: expected %d and \"%s\", found %d and \"%s\"", i, cases[i].code,
                     cases[i].message, r, e.message);
    }
}

/* Every prefix of a right program is refused, and leaks nothing. */
static void test_truncated(void **state)
{
    (void)state;
    static const char program[] = BEGIN TEXT("\1", "b") TENSOR "q\0" TEXT("\1", "a") "h\0" END;
    for (size_t n = 0; n < sizeof program - 1; n++) {
        struct pickle_table t;
        struct err e = ERR_INIT;
        int r = run(program, n, &t, &e);
        if (r != -EBADMSG)
            fail_msg("%zu bytes: expected -EBADMSG, found %d (%s)", n, r, e.message);
    }
}

/* Programs that only grow something. */
static void test_bounds(void **state)
{
    (void)state;
    static const struct {
        const char *unit;
        size_t n;
        int code;
    } cases[] = {
        {P("("), -EFBIG},       /* marks */
        {P("N"), -EFBIG},       /* stack */
        {P("]"), -EFBIG},       /* stack */
        {P("h\0"), -EFBIG},     /* stack, through the memo */
        {P("\x85"), -EFBIG},    /* tuples in tuples: values */
        {P("Nb"), -EFBIG},      /* values that are dropped again */
        {P("h\0h\0s"), -EFBIG}, /* members of one dict, which contains itself */
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct buf b = {0};
        struct pickle_table t;
        struct err e = ERR_INIT;
        assert_int_equal(buf_append(&b, "\x80\2}q\0", 5), 0);
        for (size_t k = 0; k < (size_t)PICKLE_MAX_VALUES + 1000; k++)
            assert_int_equal(buf_append(&b, cases[i].unit, cases[i].n), 0);
        int r = run(b.data, b.size, &t, &e);
        if (r != cases[i].code)
            fail_msg("case %zu: expected %d, found %d: %s", i, cases[i].code, r, e.message);
        buf_deinit(&b);
    }
    struct pickle_table t;
    struct err e = ERR_INIT;
    uint8_t *large = calloc(1, PICKLE_MAX_BYTES + 1);
    assert_non_null(large);
    assert_int_equal(pickle_read(large, PICKLE_MAX_BYTES + 1, "data.pkl", &t, &e), -EFBIG);
    free(large);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors), cmocka_unit_test(test_variants),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
