/* test_memory.c: memory of the CPU backend, and that AddressSanitizer, in a build that has it, sees
 * what lies behind the ends of areas and rows, for every instruction set. */
#include "harness.h"

#include "kernels/cpu/mem.h"
#include "kernels/cpu/watch.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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

/* What is mapped shares huge pages with its neighbours, whose sizes are no multiples of them. */
static void test_large_areas_are_neighbours(void **state)
{
    (void)state;
    enum { N = 4, BYTES = (3 << 20) + 5 };
    const long page = sysconf(_SC_PAGESIZE);
    uint8_t *areas[N];
    int n_near = 0;
    for (int i = 0; i < N; i++) {
        areas[i] = mem_alloc(BYTES);
        assert_non_null(areas[i]);
        n_near +=
            i > 0 && areas[i] - areas[i - 1] >= BYTES && areas[i] - areas[i - 1] < BYTES + 2 * page;
    }
    for (int i = 0; i < N; i++)
        mem_free(areas[i]);
    if (n_near < N - 2) /* all but where a chunk ended */
        fail_msg("%d of %d areas lie behind the one before, expected %d", n_near, N - 1, N - 2);
}

/* Its memory goes with an area, though its neighbours stay. */
static void test_freed_areas_take_nothing(void **state)
{
    (void)state;
    enum { N = 3, BYTES = 5 << 20 };
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), n_pages = BYTES / page - 1;
    uint8_t *areas[N];
    for (int i = 0; i < N; i++) {
        areas[i] = mem_alloc(BYTES);
        assert_non_null(areas[i]);
        memset(areas[i], i + 1, BYTES);
    }
    uint8_t *first_page = areas[1] + (page - (uintptr_t)areas[1] % page) % page;
    uint8_t resident[BYTES / 4096];
    assert_int_equal(mincore(first_page, n_pages * page, resident), 0);
    assert_int_equal(resident[0] & 1, 1);
    mem_free(areas[1]);
    if (mincore(first_page, n_pages * page, resident) == 0) /* or it is not mapped */
        for (size_t i = 0; i < n_pages; i++)
            if (resident[i] & 1)
                fail_msg("page %zu of a freed area is there", i);
    for (int i = 0; i < N; i += 2) {
        for (size_t k = 0; k < BYTES; k += 511)
            assert_int_equal(areas[i][k], i + 1);
        mem_free(areas[i]);
    }
}

struct churn {
    pthread_t thread;
    uint32_t seed;
    char wrong[128];
};

/* Areas of all sizes come and go; each starts as zeros and keeps what is written into it. */
static void *churn(void *context)
{
    struct churn *c = context;
    enum { SLOTS = 12, STEP = 509 };
    uint8_t *areas[SLOTS] = {0};
    size_t bytes[SLOTS] = {0};
    for (uint32_t i = 0; i < 150 && !c->wrong[0]; i++) {
        c->seed = c->seed * 1664525u + 1013904223u;
        uint32_t slot = c->seed >> 16 & 0xffff, value = slot % SLOTS + 1;
        slot %= SLOTS;
        for (size_t k = 0; areas[slot] && k < bytes[slot]; k += STEP)
            if (areas[slot][k] != value)
                snprintf(c->wrong, sizeof c->wrong, "byte %zu of %zu is %u, expected %u", k,
                         bytes[slot], areas[slot][k], value);
        mem_free(areas[slot]);
        bytes[slot] = sizes[c->seed % N_SIZES] + (c->seed >> 8) % 5000;
        areas[slot] = mem_alloc(bytes[slot]);
        for (size_t k = 0; k < bytes[slot]; k += STEP) {
            if (areas[slot][k])
                snprintf(c->wrong, sizeof c->wrong, "byte %zu of %zu is %u, expected 0", k,
                         bytes[slot], areas[slot][k]);
            areas[slot][k] = (uint8_t)value;
        }
    }
    for (int i = 0; i < SLOTS; i++)
        mem_free(areas[i]);
    return NULL;
}

static void test_areas_come_and_go(void **state)
{
    (void)state;
    struct churn threads[2] = {{.seed = 1}, {.seed = 77}};
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i].thread, NULL, churn, &threads[i]), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i].thread, NULL);
    for (int i = 0; i < 2; i++)
        if (threads[i].wrong[0])
            fail_msg("%s", threads[i].wrong);
}

/* More than a chunk of the others. */
static void test_huge_area(void **state)
{
    (void)state;
    const size_t bytes = ((size_t)300 << 20) + 1;
    uint8_t *p = mem_alloc(bytes), *other = mem_alloc(2 << 20);
    assert_non_null(p);
    assert_non_null(other);
    p[0] = p[bytes - 1] = 1;
    assert_int_equal(p[bytes / 2], 0);
    mem_free(p);
    assert_int_equal(other[(2 << 20) - 1], 0);
    mem_free(other);
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
        cmocka_unit_test(test_large_areas_are_neighbours),
        cmocka_unit_test(test_freed_areas_take_nothing),
        cmocka_unit_test(test_areas_come_and_go),
        cmocka_unit_test(test_huge_area),
        cmocka_unit_test(test_reserve),
#ifdef WATCH_AREAS
        cmocka_unit_test(test_ends_are_watched),
        cmocka_unit_test(test_rows_are_watched),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
