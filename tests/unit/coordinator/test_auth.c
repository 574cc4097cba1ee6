/* Key files, who a key belongs to, and what it may use. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "coordinator/auth.h"

#define ALICE "glmd-alice-key"
#define OPS   "glmd-ops-key"

static char path[] = "/tmp/glmd-keys-XXXXXX";

static void put_hash(const char *key, char ret[80])
{
    uint8_t hash[AUTH_HASH_BYTES];
    assert_int_equal(auth_hash(key, strlen(key), hash), 0);
    snprintf(ret, 80, "sha256:");
    for (size_t i = 0; i != sizeof hash; i++)
        snprintf(ret + 7 + 2 * i, 80 - 7 - 2 * i, "%02x", hash[i]);
}

/* A new file each time, as an editor or a package would replace it. */
static void write_file(const char *format, ...)
{
    va_list ap;
    unlink(path);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    va_start(ap, format);
    vfprintf(f, format, ap);
    va_end(ap);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(chmod(path, 0640), 0);
}

static int set_up(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int tear_down(void **state)
{
    (void)state;
    return unlink(path);
}

/* The look that sees a change, and the one that sees that it has settled. */
static int reload(struct auth *a, struct err *e)
{
    *e = (struct err)ERR_INIT;
    assert_int_equal(auth_reload_if_changed(a, e), 0);
    return auth_reload_if_changed(a, e);
}

static struct auth *open_two(const char *alice_options)
{
    struct auth *a;
    struct err e = ERR_INIT;
    char alice[80], ops[80];
    put_hash(ALICE, alice);
    put_hash(OPS, ops);
    write_file("# who may do what\n\nalice %s %s # a comment\n ops\t%s admin\n", alice,
               alice_options, ops);
    int r = auth_open(path, &a, &e);
    assert_string_equal(e.message, "");
    assert_int_equal(r, 0);
    return a;
}

static int check(const struct auth *a, const char *authorization, enum auth_need need,
                 struct auth_key **ret)
{
    struct err e = ERR_INIT;
    int r = auth_check(a, authorization, need, ret, &e);
    assert_int_equal(e.code, r);
    assert_null(strstr(e.message, "glmd-")); /* no message repeats a key */
    return r;
}

static void test_without_a_file_everybody_may_do_everything(void **state)
{
    (void)state;
    struct auth *a;
    struct auth_key *k;
    struct err e = ERR_INIT;
    assert_int_equal(auth_open("", &a, &e), 0);
    assert_false(auth_has_keys(a));
    assert_int_equal(check(a, NULL, AUTH_ADMIN, &k), 0);
    assert_null(k);
    auth_close(a);
}

static void test_keys_and_routes(void **state)
{
    (void)state;
    static const struct {
        const char *authorization;
        enum auth_need need;
        int want;
        const char *name;
    } cases[] = {
        {NULL, AUTH_PUBLIC, 0, NULL},
        {"Bearer nobody", AUTH_PUBLIC, 0, NULL},
        {NULL, AUTH_USER, -EACCES, NULL},
        {"", AUTH_USER, -EACCES, NULL},
        {"Bearer ", AUTH_USER, -EACCES, NULL},
        {"Bearer glmd-alice-ke", AUTH_USER, -EACCES, NULL},
        {"Bearer glmd-alice-key ", AUTH_USER, -EACCES, NULL},
        {"Basic " ALICE, AUTH_USER, -EACCES, NULL},
        {"Bearer " ALICE, AUTH_USER, 0, "alice"},
        {"bearer   " ALICE, AUTH_USER, 0, "alice"},
        {ALICE, AUTH_USER, 0, "alice"},
        {"Bearer " ALICE, AUTH_ADMIN, -EPERM, NULL},
        {"Bearer " OPS, AUTH_ADMIN, 0, "ops"},
        {"Bearer " OPS, AUTH_USER, 0, "ops"},
    };
    struct auth *a = open_two("");
    assert_true(auth_has_keys(a));
    for (size_t i = 0; i != sizeof cases / sizeof *cases; i++) {
        struct auth_key *k;
        int r = check(a, cases[i].authorization, cases[i].need, &k);
        if (r != cases[i].want)
            fail_msg("case %zu: expected %d, found %d", i, cases[i].want, r);
        if (cases[i].name)
            assert_string_equal(k->name, cases[i].name);
        else
            assert_null(k);
    }
    char longest[400];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    struct auth_key *k;
    assert_int_equal(check(a, longest, AUTH_USER, &k), -EACCES);
    auth_close(a);
}

static void test_wrong_files(void **state)
{
    (void)state;
    char hash[80];
    put_hash(ALICE, hash);
    const struct {
        const char *text, *want;
    } cases[] = {
        {"alice", ":1: expected sha256:HASH"},
        {"alice sha256:12", ":1: expected sha256: and 64"},
        {"a/b HASH", ":1: expected a name"},
        {"alice HASH everything", ":1: expected admin, requests=N"},
        {"alice HASH requests=", ":1: expected a whole number"},
        {"alice HASH requests=0", ":1: expected a whole number from 1"},
        {"alice HASH requests=2x", ":1: expected a whole number"},
        {"alice HASH requests= 2", ":1: expected a whole number"},
        {"alice HASH priority=101", ":1: expected a whole number from -100 to 100"},
        {"alice HASH tokens_per_minute=99999999999999999999", ":1: expected a whole number"},
        {"\n\nalice HASH\nalice HASH", ":4: the same name"},
        {"alice HASH\nbob HASH", ":2: the same key"},
        {"alice sha256:zz34567890123456789012345678901234567890123456789012345678901234",
         ":1: expected hexadecimal"},
    };
    for (size_t i = 0; i != sizeof cases / sizeof *cases; i++) {
        char text[1024];
        size_t n = 0;
        for (const char *p = cases[i].text; *p;) { /* HASH stands for the hash */
            bool is_hash = strncmp(p, "HASH", 4) == 0;
            n += (size_t)snprintf(text + n, sizeof text - n, "%.*s", is_hash ? 80 : 1,
                                  is_hash ? hash : p);
            p += is_hash ? 4 : 1;
        }
        struct auth_key **keys;
        struct err e = ERR_INIT;
        size_t n_keys;
        int r = auth_parse(text, n, "keys", &keys, &n_keys, &e);
        if (r != -EINVAL || !strstr(e.message, cases[i].want))
            fail_msg("case %zu: expected -EINVAL and \"%s\", found %d and \"%s\"", i, cases[i].want,
                     r, e.message);
        assert_null(strstr(e.message, hash + 8));
    }
}

static void test_a_file_that_others_may_write_is_refused(void **state)
{
    (void)state;
    struct auth *a;
    struct err e = ERR_INIT;
    write_file("");
    assert_int_equal(chmod(path, 0660), 0);
    assert_int_equal(auth_open(path, &a, &e), -EACCES);
    assert_non_null(strstr(e.message, "chmod go-w"));
}

static void test_reload(void **state)
{
    (void)state;
    char alice[80];
    struct err e = ERR_INIT;
    struct auth_key *k, *other;
    int64_t retry;
    struct auth *a = open_two("requests=1");
    struct auth_cost cost = {.tokens = 10, .context = 10, .choices = 1};
    assert_int_equal(reload(a, &e), 0);
    assert_int_equal(check(a, ALICE, AUTH_USER, &k), 0);
    assert_int_equal(auth_begin(k, &cost, 1, &retry, &e), 0);

    /* a wrong file changes nothing, and is complained of once */
    write_file("alice\n");
    assert_int_equal(reload(a, &e), -EINVAL);
    assert_int_equal(reload(a, &e), 0);
    assert_int_equal(check(a, OPS, AUTH_USER, &other), 0);
    unlink(path);
    assert_int_equal(reload(a, &e), -ENOENT);
    assert_int_equal(reload(a, &e), 0);

    /* the use of a key survives, its limits are the new ones; the other key is gone */
    put_hash(ALICE, alice);
    write_file("alice %s requests=2\n", alice);
    assert_int_equal(reload(a, &e), 1);
    assert_int_equal(check(a, OPS, AUTH_USER, &other), -EACCES);
    assert_int_equal(check(a, ALICE, AUTH_USER, &other), 0);
    assert_ptr_equal(other, k);
    assert_int_equal(auth_begin(k, &cost, 2, &retry, &e), 0);
    assert_int_equal(auth_begin(k, &cost, 3, &retry, &e), -EDQUOT);

    /* requests of a key that is gone go on */
    write_file("# nobody\n");
    assert_int_equal(reload(a, &e), 1);
    assert_int_equal(check(a, ALICE, AUTH_USER, &other), -EACCES);
    auth_end(k, &cost, 5);
    auth_end(k, &cost, 5); /* frees it */
    auth_close(a);
}

/* Adds to the file, or writes it anew, in its place: as `cp` or a shell does. */
static void put_text(const char *mode, const char *format, ...)
{
    va_list ap;
    FILE *f = fopen(path, mode);
    assert_non_null(f);
    va_start(ap, format);
    vfprintf(f, format, ap);
    va_end(ap);
    assert_int_equal(fclose(f), 0);
}

static void expect_two(const struct auth *a, uint32_t requests)
{
    struct auth_key *k;
    assert_int_equal(check(a, ALICE, AUTH_USER, &k), 0);
    assert_int_equal(k->limits.requests, requests);
    assert_int_equal(check(a, OPS, AUTH_ADMIN, &k), 0);
}

/* Empty, without an operator, without limits: the parts of a file are files, too. None of them is
 * taken while there is one more at every look. */
static void test_a_file_while_it_is_written(void **state)
{
    (void)state;
    char alice[80], ops[80];
    struct err e = ERR_INIT;
    struct auth *a = open_two("requests=1");
    struct auth_key *k;
    put_hash(ALICE, alice);
    put_hash(OPS, ops);
    const char *const parts[] = {"# written slowly\n",
                                 "alice ",
                                 alice,
                                 " reque",
                                 "sts=2",
                                 "0\n",
                                 "ops ",
                                 ops,
                                 " ad",
                                 "min\n"};
    put_text("w", "%s", "");
    for (size_t i = 0; i != sizeof parts / sizeof *parts; i++) {
        assert_int_equal(auth_reload_if_changed(a, &e), 0);
        expect_two(a, 1);
        put_text("a", "%s", parts[i]);
    }
    assert_int_equal(auth_reload_if_changed(a, &e), 0);
    expect_two(a, 1);
    assert_int_equal(auth_reload_if_changed(a, &e), 1);
    expect_two(a, 20);

    /* left where it breaks off in a key: nothing changes */
    put_text("w", "alice %.30s", alice);
    assert_int_equal(reload(a, &e), -EINVAL);
    assert_non_null(strstr(e.message, ":1: expected sha256: and 64"));
    expect_two(a, 20);

    /* it was back before the second look */
    put_text("w", "alice %s\n", alice);
    assert_int_equal(auth_reload_if_changed(a, &e), 0);
    write_file("alice %s requests=3\nops %s admin\n", alice, ops);
    assert_int_equal(reload(a, &e), 1);
    expect_two(a, 3);
    assert_int_equal(check(a, ALICE, AUTH_USER, &k), 0);
    auth_close(a);
}

/* What the coordinator may not read, and what is no file at all. Nothing changes, nobody waits. */
static void test_a_file_that_cannot_be_read(void **state)
{
    (void)state;
    char alice[80], ops[80];
    struct err e = ERR_INIT;
    struct auth *a = open_two("requests=1");
    uid_t us = geteuid();
    put_hash(ALICE, alice);
    put_hash(OPS, ops);

    assert_int_equal(chmod(path, 0), 0);
    if (us == 0) /* root may read everything */
        assert_int_equal(seteuid(65534), 0);
    int r = reload(a, &e), again = reload(a, &e);
    if (us == 0)
        assert_int_equal(seteuid(us), 0);
    assert_int_equal(r, -EACCES);
    assert_int_equal(again, 0); /* it was said */
    expect_two(a, 1);

    assert_int_equal(chmod(path, 0622), 0);
    assert_int_equal(reload(a, &e), -EACCES);
    assert_non_null(strstr(e.message, "chmod go-w"));
    expect_two(a, 1);

    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(reload(a, &e), -EINVAL);
    expect_two(a, 1);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(reload(a, &e), -EINVAL);
    expect_two(a, 1);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(symlink(path, path), 0);
    assert_int_equal(reload(a, &e), -ELOOP);
    expect_two(a, 1);

    write_file("alice %s requests=2\nops %s admin\n", alice, ops);
    assert_int_equal(reload(a, &e), 1);
    expect_two(a, 2);
    auth_close(a);
}

static void test_what_a_key_may_never_have(void **state)
{
    (void)state;
    static struct {
        struct auth_cost cost;
        int want;
    } cases[] = {
        {{.tokens = 100, .context = 50, .choices = 2, .priority = 5}, 0},
        {{.tokens = 100, .context = 51, .choices = 2, .priority = 5}, -EPERM},
        {{.tokens = 100, .context = 50, .choices = 3, .priority = 5}, -EPERM},
        {{.tokens = 100, .context = 50, .choices = 2, .priority = 6}, -EPERM},
        {{.tokens = 1001, .context = 50, .choices = 2, .priority = 5}, -EPERM},
        {{.tokens = 1000, .context = 50, .choices = 2, .priority = -100}, 0},
    };
    struct auth *a = open_two("context=50 choices=2 priority=5 tokens_per_minute=1000");
    struct auth_key *k;
    assert_int_equal(check(a, ALICE, AUTH_USER, &k), 0);
    for (size_t i = 0; i != sizeof cases / sizeof *cases; i++) {
        struct err e = ERR_INIT;
        int64_t retry, now = (int64_t)(i + 1) * 60 * NSEC_PER_SEC;
        int r = auth_begin(k, &cases[i].cost, now, &retry, &e);
        if (r != cases[i].want)
            fail_msg("case %zu: expected %d, found %d: %s", i, cases[i].want, r, e.message);
        if (r == 0)
            auth_end(k, &cases[i].cost, 0);
    }
    auth_close(a);
}

static void test_tokens_a_minute(void **state)
{
    (void)state;
    struct auth *a = open_two("tokens_per_minute=600");
    struct auth_key *k;
    struct err e = ERR_INIT;
    int64_t retry, now = 1000 * NSEC_PER_SEC;
    struct auth_cost cost = {.tokens = 400, .context = 400, .choices = 1}, late = cost,
                     second = cost;
    assert_int_equal(check(a, ALICE, AUTH_USER, &k), 0);
    assert_int_equal(auth_begin(k, &cost, now, &retry, &e), 0); /* 200 are left */
    assert_int_equal(auth_begin(k, &late, now, &retry, &e), -EDQUOT);
    assert_int_equal(retry, 20 * NSEC_PER_SEC); /* 200 more, at 10 a second */
    assert_int_equal(auth_begin(k, &late, now + retry - 1000000, &retry, &e), -EDQUOT);
    assert_int_equal(auth_begin(k, &second, now + 20 * NSEC_PER_SEC, &retry, &e), 0); /* 0 left */
    auth_end(k, &cost, 100);   /* gives 300 back */
    auth_end(k, &second, 400); /* gives nothing back */
    struct auth_cost small = {.tokens = 300, .context = 300, .choices = 1}, refused = small;
    assert_int_equal(auth_begin(k, &small, now + 20 * NSEC_PER_SEC, &retry, &e), 0);
    assert_int_equal(auth_begin(k, &refused, now + 20 * NSEC_PER_SEC, &retry, &e), -EDQUOT);
    assert_int_equal(retry, 30 * NSEC_PER_SEC);
    auth_end(k, &small, 400); /* 100 more than was taken: they are owed */
    assert_int_equal(auth_begin(k, &refused, now + 20 * NSEC_PER_SEC, &retry, &e), -EDQUOT);
    assert_int_equal(retry, 40 * NSEC_PER_SEC);
    auth_close(a);
}

/* A key's minute is what it was while a request ran: who was not charged gets nothing back, and who
 * was charged gets it back though there is no limit in between. */
static void test_a_limit_that_comes_and_goes(void **state)
{
    (void)state;
    char alice[80];
    struct err e = ERR_INIT;
    struct auth_key *k;
    int64_t retry, now = 1000 * NSEC_PER_SEC;
    struct auth_cost free_one = {.tokens = 500}, charged = {.tokens = 600}, third = {.tokens = 300},
                     refused = third;
    struct auth *a = open_two("requests=9");
    put_hash(ALICE, alice);
    assert_int_equal(check(a, ALICE, AUTH_USER, &k), 0);
    assert_int_equal(auth_begin(k, &free_one, now, &retry, &e), 0);
    write_file("alice %s tokens_per_minute=600\n", alice);
    assert_int_equal(reload(a, &e), 1);
    assert_int_equal(auth_begin(k, &charged, now, &retry, &e), 0); /* the whole minute */
    auth_end(k, &free_one, 100);
    assert_int_equal(auth_begin(k, &refused, now, &retry, &e), -EDQUOT);
    assert_int_equal(retry, 30 * NSEC_PER_SEC);

    write_file("alice %s\n", alice);
    assert_int_equal(reload(a, &e), 1);
    auth_end(k, &charged, 200); /* 400 are left */
    write_file("alice %s tokens_per_minute=600 requests=9\n", alice);
    assert_int_equal(reload(a, &e), 1);
    assert_int_equal(auth_begin(k, &third, now, &retry, &e), 0);
    assert_int_equal(auth_begin(k, &refused, now, &retry, &e), -EDQUOT);
    assert_int_equal(retry, 20 * NSEC_PER_SEC);
    auth_end(k, &third, 300);
    auth_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_a_file_everybody_may_do_everything),
        cmocka_unit_test(test_keys_and_routes),
        cmocka_unit_test(test_wrong_files),
        cmocka_unit_test(test_a_file_that_others_may_write_is_refused),
        cmocka_unit_test(test_reload),
        cmocka_unit_test(test_a_file_while_it_is_written),
        cmocka_unit_test(test_a_file_that_cannot_be_read),
        cmocka_unit_test(test_what_a_key_may_never_have),
        cmocka_unit_test(test_tokens_a_minute),
        cmocka_unit_test(test_a_limit_that_comes_and_goes),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
