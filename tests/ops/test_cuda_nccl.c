/* test_cuda_nccl.c: the library that is really there, where it is: the table fills, and the calls
 * that need no GPU answer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/nccl.h"

static const struct nccl_library *library;

static void test_versions_and_ids(void **state)
{
    (void)state;
    int version = 0;
    struct nccl_id a = {{0}}, b = {{0}};
    assert_int_equal(library->version(&version), NCCL_OK);
    assert_true(version >= NCCL_OLDEST);
    assert_int_equal(library->unique_id(&a), NCCL_OK);
    assert_int_equal(library->unique_id(&b), NCCL_OK);
    assert_memory_not_equal(&a, &b, sizeof a);
    assert_non_null(library->error_text(1));
    print_message("NCCL %d\n", version);
}

/* Without its groups ended, nothing of what is asked for is done: they nest and end. */
static void test_groups(void **state)
{
    (void)state;
    assert_int_equal(library->group_start(), NCCL_OK);
    assert_int_equal(library->group_start(), NCCL_OK);
    assert_int_equal(library->group_end(), NCCL_OK);
    assert_int_equal(library->group_end(), NCCL_OK);
}

int main(void)
{
    char message[512] = "";
    library = nccl_find(message, sizeof message);
    if (!library) {
        print_message("skipped: %s\n", message);
        return 77;
    }
    assert_ptr_equal(nccl_find(message, sizeof message), library);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_versions_and_ids),
        cmocka_unit_test(test_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
