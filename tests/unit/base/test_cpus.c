/* test_cpus.c: lists of processors, and which of them a rank gets on machines with and without NUMA
 * nodes, as the kernel's files tell of them. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cpus.h"

static void parse(const char *text, struct cpus *ret)
{
    struct err e = ERR_INIT;
    if (cpus_parse(text, ret, &e) < 0)
        fail_msg("\"%s\": %s", text, e.message);
}

static const char *text_of(const struct cpus *c)
{
    static char text[CPUS_TEXT_BYTES];
    assert_int_equal(cpus_print(c, text, sizeof text), 0);
    return text;
}

static void lists_are_read_and_printed(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", ""},           {"0", "0"},         {"0-3", "0-3"},
        {"3,1,2", "1-3"},   {"0,2,4", "0,2,4"}, {"8-9,0-1", "0-1,8-9"},
        {"5,5,4-6", "4-6"}, {"4095", "4095"},
    };
    struct cpus c;
    for (size_t i = 0; i != sizeof cases / sizeof *cases; i++) {
        parse(cases[i][0], &c);
        assert_string_equal(text_of(&c), cases[i][1]);
    }
    static const char *const bad[] = {",",
                                      "0,",
                                      "0,,1",
                                      "-1",
                                      "1-",
                                      "3-1",
                                      "4096",
                                      "0-4096",
                                      " 0",
                                      "0 ",
                                      "a",
                                      "0x1",
                                      "99999999999999999999",
                                      "0-1-2"};
    for (size_t i = 0; i != sizeof bad / sizeof *bad; i++) {
        struct err e = ERR_INIT;
        if (cpus_parse(bad[i], &c, &e) != -EINVAL)
            fail_msg("\"%s\" was taken for a list", bad[i]);
        assert_non_null(strstr(e.message, bad[i]));
    }
}

static void a_list_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    struct cpus c;
    char text[8];
    parse("10,12", &c);
    assert_int_equal(cpus_print(&c, text, 6), 0);
    assert_string_equal(text, "10,12");
    assert_int_equal(cpus_print(&c, text, 5), -ENOSPC);
}

/* ---- nodes ---- */

static void write_file(const char *folder, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

/* A machine's folder of nodes; lists[i]: the CPUs of node i, NULL = it has no file. */
static void make_machine(char *folder, const char *online, const char *const *lists, uint32_t n)
{
    snprintf(folder, 64, "/tmp/test-cpus-XXXXXX");
    assert_non_null(mkdtemp(folder));
    if (online)
        write_file(folder, "online", online);
    for (uint32_t i = 0; i != n; i++) {
        char name[96];
        snprintf(name, sizeof name, "%s/node%u", folder, i);
        assert_int_equal(mkdir(name, 0700), 0);
        snprintf(name, sizeof name, "node%u/cpulist", i);
        if (lists[i])
            write_file(folder, name, lists[i]);
    }
}

static void remove_machine(const char *folder, uint32_t n)
{
    char path[128];
    for (uint32_t i = 0; i != n; i++) {
        snprintf(path, sizeof path, "%s/node%u/cpulist", folder, i);
        (void)unlink(path);
        snprintf(path, sizeof path, "%s/node%u", folder, i);
        assert_int_equal(rmdir(path), 0);
    }
    snprintf(path, sizeof path, "%s/online", folder);
    (void)unlink(path);
    assert_int_equal(rmdir(folder), 0);
}

static void expect_near(const char *folder, const char *allowed, uint32_t n_ranks,
                        const char *const *want)
{
    struct cpus a, near;
    parse(allowed, &a);
    for (uint32_t rank = 0; rank != n_ranks; rank++) {
        cpus_near(folder, &a, rank, n_ranks, &near);
        if (strcmp(text_of(&near), want[rank]) != 0)
            fail_msg("rank %u of %u on %s: expected %s, found %s", rank, n_ranks, allowed,
                     want[rank], text_of(&near));
    }
}

#define NEAR(folder, allowed, ...)                                                                 \
    do {                                                                                           \
        static const char *const want_[] = {__VA_ARGS__};                                          \
        expect_near(folder, allowed, sizeof want_ / sizeof *want_, want_);                         \
    } while (0)

static void ranks_get_whole_nodes(void **state)
{
    (void)state;
    char folder[64];
    /* two sockets, the second threads of the cores behind the first ones */
    static const char *const two[] = {"0-3,8-11\n", "4-7,12-15\n"};
    make_machine(folder, "0-1\n", two, 2);
    NEAR(folder, "0-15", "0-15");
    NEAR(folder, "0-15", "0-3,8-11", "4-7,12-15");
    NEAR(folder, "0-15", "0-3,8-11", "0-3,8-11", "4-7,12-15", "4-7,12-15");
    NEAR(folder, "0-15", "0-3,8-11", "0-15", "4-7,12-15"); /* the middle one straddles */
    NEAR(folder, "1-4", "1-3", "1-4");          /* a part of the machine, cut in the middle */
    NEAR(folder, "0-3", "0-3", "0-3");          /* one node of it */
    NEAR(folder, "3,12", "3", "3", "12", "12"); /* more ranks than processors */
    remove_machine(folder, 2);
}

static void odd_machines(void **state)
{
    (void)state;
    char folder[64];
    static const char *const one[] = {"0-7\n"};
    make_machine(folder, "0\n", one, 1);
    NEAR(folder, "0-7", "0-7", "0-7");
    remove_machine(folder, 1);
    /* memory without processors, and a node that is gone */
    static const char *const some[] = {"0-1\n", "\n", NULL, "2-3\n"};
    make_machine(folder, "0-3\n", some, 4);
    NEAR(folder, "0-3", "0-1", "2-3");
    NEAR(folder, "0-5", "0-1", "2-3", "4-5"); /* two that belong to no node */
    remove_machine(folder, 4);
    make_machine(folder, NULL, NULL, 0); /* a kernel that does not tell */
    NEAR(folder, "0-3", "0-3", "0-3");
    remove_machine(folder, 0);
    make_machine(folder, "0-\n", NULL, 0);
    NEAR(folder, "0-3", "0-3", "0-3");
    remove_machine(folder, 0);
    NEAR("/nowhere", "2", "2");
}

/* ---- threads ---- */

static void *bound(void *context)
{
    struct cpus allowed, *one = context;
    assert_int_equal(cpus_bind(one), 0);
    cpus_allowed(&allowed);
    assert_string_equal(text_of(&allowed), text_of(one));
    *one = (struct cpus){.n = 1, .ids = {CPUS_MAX - 1}};
    assert_int_equal(cpus_bind(one), -EINVAL);
    return NULL;
}

static void a_thread_stays_where_it_is_bound(void **state)
{
    (void)state;
    struct cpus before, after;
    pthread_t thread;
    cpus_allowed(&before);
    assert_true(before.n > 0);
    struct cpus last = {.n = 1, .ids = {before.ids[before.n - 1]}};
    assert_int_equal(pthread_create(&thread, NULL, bound, &last), 0);
    pthread_join(thread, NULL);
    cpus_allowed(&after); /* ours is as it was */
    assert_int_equal(after.n, before.n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_are_read_and_printed),
        cmocka_unit_test(a_list_that_does_not_fit_is_refused),
        cmocka_unit_test(ranks_get_whole_nodes),
        cmocka_unit_test(odd_machines),
        cmocka_unit_test(a_thread_stays_where_it_is_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
