/* test_memory.c: memory of the CPU backend, and that AddressSanitizer, in a build that has it, sees
 * what lies behind the ends of areas and rows, for every instruction set. */
#include "harness.h"

#include "kernels/cpu/mem.h"
#include "kernels/cpu/watch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* malloc's, the last ones of them, mapped ones. */
static const size_t sizes[] = {
    1, 63, 64, 65, 4000, (1 << 20) - 65, 1 << 20, (1 << 20) + 1, (4 << 20) + 7};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static void test_areas(void **state)
{
    (void)state;
    for (int i = 0; i < N_SIZES; i++) {
        uint8_t *p = mem_alloc(sizes[i]);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        for (size_t k = 0; k < sizes[i]; k++)
            if (p[k])
                fail_msg("byte %zu of %zu is %u, expected 0", k, sizes[i], p[k]);
        memset(p, 0x5a, sizes[i]);
        mem_touch(p, 0, sizes[i]);
        mem_touch(p, sizes[i] / 2, sizes[i]);
        for (size_t k = 0; k < sizes[i]; k++)
            if (p[k] != 0x5a)
                fail_msg("byte %zu of %zu is %u after mem_touch, expected 90", k, sizes[i], p[k]);
        mem_free(p);
    }
    mem_free(NULL);
    assert_null(mem_alloc(SIZE_MAX));
}

static void test_reserve(void **state)
{
    (void)state;
    void *p = NULL;
    size_t capacity = 0;
    assert_int_equal(mem_reserve(&p, &capacity, 100), 0);
    assert_int_equal(capacity, 100);
    void *before = p;
    assert_int_equal(mem_reserve(&p, &capacity, 99), 0);
    assert_ptr_equal(p, before);
    assert_int_equal(capacity, 100);
    assert_int_equal(mem_reserve(&p, &capacity, 2 << 20), 0);
    assert_int_equal(capacity, 2 << 20);
    memset(p, 1, capacity);
    assert_int_equal(mem_reserve(&p, &capacity, SIZE_MAX), -ENOMEM);
    assert_int_equal(capacity, 2 << 20);
    mem_free(p);
}

#ifdef WATCH_AREAS
static void test_ends_are_watched(void **state)
{
    (void)state;
    for (int i = 0; i < N_SIZES; i++) {
        uint8_t *p = mem_alloc(sizes[i]);
        assert_non_null(p);
        assert_null(__asan_region_is_poisoned(p, sizes[i]));
        assert_true(__asan_address_is_poisoned(p - 1));
        for (size_t k = 0; k < 64; k++)
            if (!__asan_address_is_poisoned(p + sizes[i] + k))
                fail_msg("byte %zu behind %zu may be accessed", k, sizes[i]);
        mem_free(p);
    }
}

enum missing { NOTHING, LAST_INPUT, LAST_OUTPUT };
static const char *const missing_names[] = {"nothing", "the last input", "the last output"};

static void norm_of_a_row(const char *isa, uint32_t cols, enum missing missing)
{
    const struct k_ops *ops = op_cpu();
    struct k_ctx *c = op_open(ops, isa, K_MODE_FP16, 1, 1, cols, 16);
    uint16_t *weight = op_malloc(cols * sizeof *weight);
    struct k_norm *norm = ops->norm_new(c, K_NORM_RMS, weight, NULL, cols);
    float *x = op_malloc((cols - (missing == LAST_INPUT)) * sizeof *x);
    float *y = op_malloc((cols - (missing == LAST_OUTPUT)) * sizeof *y);
    ops->norm(c, norm, 1e-5f, x, 1, y);
    free(x);
    free(y);
    free(weight);
    ops->norm_free(c, norm);
    ops->close(c);
}

/* Whether a process that does it is ended. */
static bool is_ended(const char *isa, uint32_t cols, enum missing missing)
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        close(STDERR_FILENO); /* the report is what is wanted */
        norm_of_a_row(isa, cols, missing);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

/* Whole vectors, and the rest of a row in masked ones. */
static void test_rows_are_watched(void **state)
{
    (void)state;
    for (int set = 0; set < MAX_SETS; set++) {
        struct k_ctx *c = op_open(op_cpu(), op_sets[set], K_MODE_FP16, 1, 1, 8, 16);
        if (!c)
            continue;
        op_cpu()->close(c);
        for (uint32_t cols = 16; cols <= 32; cols += 4)
            for (enum missing m = NOTHING; m <= LAST_OUTPUT; m++)
                if (is_ended(op_sets[set], cols, m) != (m != NOTHING))
                    fail_msg("%s: a norm of %u values without %s %s", op_sets[set], cols,
                             missing_names[m],
                             m == NOTHING ? "was ended" : "went on, and nobody saw it");
    }
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_areas),
        cmocka_unit_test(test_reserve),
#ifdef WATCH_AREAS
        cmocka_unit_test(test_ends_are_watched),
        cmocka_unit_test(test_rows_are_watched),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
