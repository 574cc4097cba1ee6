/* test_cpus_quota.c: what limits of control groups leave, in made-up trees of groups of both
 * versions. */
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

#define NO_LIMIT UINT32_MAX

/* A folder that goes when the test does. */
static char root[64];

static int make_root(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "/tmp/test-cpus-quota-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command);
}

/* `path` below the root, with the folders on the way. */
static void put(const char *path, const char *text)
{
    char full[512];
    int n = snprintf(full, sizeof full, "%s/%s", root, path);
    assert_in_range(n, 1, sizeof full - 1);
    for (char *at = full + strlen(root) + 1; (at = strchr(at, '/')); at++) {
        *at = '\0';
        (void)mkdir(full, 0700);
        *at = '/';
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

/* What a process gets of which the kernel says `membership`. */
static void expect(const char *membership, uint32_t want)
{
    char path[128];
    put("membership", membership);
    snprintf(path, sizeof path, "%s/membership", root);
    uint32_t found = cpus_quota(root, path);
    if (found != want)
        fail_msg("%s: expected %u, found %u", membership, want, found);
}

static void a_container_sees_its_own_limit_at_the_root(void **state)
{
    (void)state;
    expect("0::/\n", NO_LIMIT);
    put("cpu.max", "400000 100000\n");
    expect("0::/\n", 4);
    expect("0::/../elsewhere\n", 4); /* moved outside of what it sees */
    expect("0::/gone (deleted)\n", 4);
    put("cpu.max", "max 100000\n");
    expect("0::/\n", NO_LIMIT);
}

static void the_least_on_the_way_up_counts(void **state)
{
    (void)state;
    put("a/b/c/cpu.max", "800000 100000\n");
    expect("0::/a/b/c\n", 8);
    put("a/b/cpu.max", "max 100000\n");
    expect("0::/a/b/c\n", 8);
    put("a/cpu.max", "150000 50000\n");
    expect("0::/a/b/c\n", 3);
    expect("0::/a/b\n", 3);
    put("x/cpu.max", "100000 100000\n"); /* a neighbour's */
    put("a/b/c/d/cpu.max", "100000 100000\n");
    expect("0::/a/b/c\n", 3);
    expect("0::/\n", NO_LIMIT);
}

static void whole_processors_and_at_least_one(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint32_t want;
    } cases[] = {
        {"250000 100000\n", 2},
        {"199999 100000\n", 1},
        {"50000 100000\n", 1},
        {"1000 1000000\n", 1},
        {"400000 100000", 4},
        {"1000000000 1\n", 1000000000},
        {"", NO_LIMIT},
        {"\n", NO_LIMIT},
        {"400000\n", NO_LIMIT},
        {"400000 \n", NO_LIMIT},
        {"400000 0\n", NO_LIMIT},
        {"0 100000\n", NO_LIMIT},
        {"-400000 100000\n", NO_LIMIT},
        {"400000 100000 7\n", NO_LIMIT},
        {"4e5 100000\n", NO_LIMIT},
        {"400000  100000\n", NO_LIMIT},
        {"400000\t100000\n", NO_LIMIT},
        {"1000000001 100000\n", NO_LIMIT},
        {"999999999999999999999999999999999999999999999 100000\n", NO_LIMIT},
        {"18446744073709951616 100000\n", NO_LIMIT}, /* 2^64 + 400000 */
    };
    for (size_t i = 0; i != sizeof cases / sizeof *cases; i++) {
        put("cpu.max", cases[i].text);
        char path[128];
        put("membership", "0::/\n");
        snprintf(path, sizeof path, "%s/membership", root);
        uint32_t found = cpus_quota(root, path);
        if (found != cases[i].want)
            fail_msg("\"%s\": expected %u, found %u", cases[i].text, cases[i].want, found);
    }
}

static void version_1_has_a_hierarchy_for_processors(void **state)
{
    (void)state;
    put("cpu/box/cpu.cfs_quota_us", "300000\n");
    put("cpu/box/cpu.cfs_period_us", "100000\n");
    put("cpu/box/in/cpu.cfs_quota_us", "-1\n");
    put("cpu/box/in/cpu.cfs_period_us", "100000\n");
    expect("7:memory:/\n4:cpu,cpuacct:/box/in\n0::/\n", 3);
    expect("4:cpuacct,cpu:/box\n", 3);
    expect("4:cpuacct:/box\n2:cpuset:/box\n1:name=cpu:/box\n", NO_LIMIT);
    put("cpu.max", "200000 100000\n"); /* both are there */
    expect("4:cpu,cpuacct:/box/in\n0::/\n", 2);
    put("cpu/box/cpu.cfs_period_us", "");
    expect("4:cpu:/box\n", NO_LIMIT);
    put("cpu/box/cpu.cfs_quota_us", "300000100000\n");
    expect("4:cpu:/box\n", NO_LIMIT);
}

static void what_is_not_understood_limits_nothing(void **state)
{
    (void)state;
    put("cpu.max", "100000 100000\n");
    static const char *const cases[] = {"",       "\n",     "0::\n",   "0:/\n", "::\n",
                                        "0::a\n", "1::/\n", "0:x:/\n", "cpu\n", ":cp:/\n"};
    for (size_t i = 0; i != sizeof cases / sizeof *cases; i++)
        expect(cases[i], NO_LIMIT);
    expect("0::/", 1); /* without an end of line */
    assert_int_equal(cpus_quota(root, "/nowhere"), NO_LIMIT);
    assert_int_equal(cpus_quota("/nowhere", CPUS_MEMBERSHIP), NO_LIMIT);
    /* a name longer than any path */
    char *text = malloc(100000);
    assert_non_null(text);
    memset(text, 'x', 99999);
    memcpy(text, "0::/", 4);
    text[99999] = '\0';
    expect(text, NO_LIMIT);
    memset(text, '/', 99999); /* nothing but separators, as far as there is room */
    memcpy(text, "0::/", 4);
    text[4000] = '\0';
    expect(text, 1);
    free(text);
}

static void no_more_than_the_allowed_ones_are_usable(void **state)
{
    (void)state;
    struct cpus allowed, one;
    cpus_allowed(&allowed);
    assert_in_range(cpus_usable(), 1, allowed.n);
    one = (struct cpus){.n = 1, .ids = {allowed.ids[allowed.n - 1]}};
    assert_int_equal(cpus_bind(&one), 0);
    assert_int_equal(cpus_usable(), 1);
    assert_int_equal(cpus_bind(&allowed), 0);
}

int main(void)
{
#define IN_A_TREE(test) cmocka_unit_test_setup_teardown(test, make_root, remove_root)
    const struct CMUnitTest tests[] = {
        IN_A_TREE(a_container_sees_its_own_limit_at_the_root),
        IN_A_TREE(the_least_on_the_way_up_counts),
        IN_A_TREE(whole_processors_and_at_least_one),
        IN_A_TREE(version_1_has_a_hierarchy_for_processors),
        IN_A_TREE(what_is_not_understood_limits_nothing),
        cmocka_unit_test(no_more_than_the_allowed_ones_are_usable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
