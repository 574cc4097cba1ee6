/* test_epoch.c: epochs only grow, whatever crashes, and damaged files are told from new ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "coordinator/epoch.h"

static void test_epoch_file(void **state)
{
    (void)state;
    char dir[] = "epoch-test-XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/epoch", dir);
    struct epoch_store a, b;
    struct err e = ERR_INIT;
    uint64_t epoch;
    assert_int_equal(epoch_open(dir, &a, &e), 0);
    assert_int_equal(epoch_open(dir, &b, &e), -EBUSY);
    assert_non_null(strstr(e.message, "another coordinator"));
    assert_int_equal(epoch_next(&a, 0, &epoch, &e), 0);
    assert_int_equal(epoch, 1);
    assert_int_equal(epoch_next(&a, 10, &epoch, &e), 0);
    assert_int_equal(epoch, 11);
    assert_int_equal(epoch_next(&a, 0, &epoch, &e), 0);
    assert_int_equal(epoch, 12); /* of those that are on disk already */
    epoch_close(&a);
    for (uint64_t last = epoch, i = 0; i != 40; i++, last = epoch) { /* as if it crashed */
        assert_int_equal(epoch_open(dir, &a, &e), 0);
        for (uint64_t n = 0; n <= i; n++) {
            assert_int_equal(epoch_next(&a, 0, &epoch, &e), 0);
            assert_true(epoch > last);
            last = epoch;
        }
        epoch_close(&a);
    }
    static const char *const damaged[] = {"",     "x\n", "12", "-3\n", "99999999999999999999999\n",
                                          "7\n\n"};
    for (size_t i = 0; i != ARRAY_LEN(damaged); i++) {
        FILE *f = fopen(path, "w");
        fputs(damaged[i], f);
        fclose(f);
        if (epoch_open(dir, &a, &e) != -EBADMSG)
            fail_msg("accepted \"%s\"", damaged[i]);
    }
    unlink(path);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_epoch_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
