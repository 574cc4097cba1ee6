/* test_sets.c: which instruction set is chosen, and that these tests know all there are. */
#include "harness.h"

#include "kernels/cpu/cpu.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static int known(const char *name)
{
    for (int i = 0; i < MAX_SETS; i++)
        if (!strcmp(op_sets[i], name))
            return i;
    return -1;
}

/* A set that is not in op_sets would be chosen without having been compared with anything. */
static void test_all_sets_are_tested(void **state)
{
    (void)state;
    const char *last = "";
    int before = MAX_SETS;
    for (uint32_t i = 0; cpu_kernels_name(i); i++) {
        last = cpu_kernels_name(i);
        print_message("this processor can run %s\n", last);
        if (known(last) < 0)
            fail_msg("%s is not one of the sets that the tests of operations go through", last);
        if (known(last) >= before)
            fail_msg("%s comes behind %s: expected the best first", last, op_sets[before]);
        before = known(last);
        assert_string_equal(cpu_kernels_find(last)->name, last);
    }
    assert_string_equal(last, "c"); /* everywhere */
}

static void test_the_best_is_chosen(void **state)
{
    (void)state;
    const struct k_ops *ops = op_cpu();
    struct k_ctx *c = op_open(ops, NULL, K_MODE_FP16, 1, 1, 8, 1);
    char want[64];
    snprintf(want, sizeof want, "cpu %s, 1 thread, fp16", cpu_kernels_name(0));
    assert_string_equal(ops->describe(c), want);
    ops->close(c);
}

static void test_an_unknown_set_is_refused(void **state)
{
    (void)state;
    const struct k_ops *ops = op_cpu();
    struct k_open_params p = {"cpu", K_MODE_FP16, 1, 1, 8, 1, "avx1024"};
    struct k_ctx *c = NULL;
    char message[256] = "";
    assert_int_equal(ops->open(&p, &c, message, sizeof message), -ENOTSUP);
    assert_null(c);
    assert_non_null(strstr(message, "avx1024"));
    assert_non_null(strstr(message, cpu_kernels_name(0)));
    assert_null(cpu_kernels_find(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_sets_are_tested),
        cmocka_unit_test(test_the_best_is_chosen),
        cmocka_unit_test(test_an_unknown_set_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
