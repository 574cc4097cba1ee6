/* test_convert_resume.c: conversions that were stopped, go on, and do not overwrite what is not
 * theirs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/util.h"
#include "model/layout.h"
#include "tests/unit/model/support.h"

static int count_down(void *context, const struct convert_progress *p)
{
    struct stopper *s = context;
    assert_true(p->done_bytes <= p->total_bytes);
    return s->left-- == 0;
}

/* Converts ckpt-fp16-tp2 to small files, stopping after `left` progress reports. */
static int convert_some(const char *out, unsigned left, struct stopper *s,
                        struct convert_result *result, struct err *e)
{
    struct convert_options o;
    golden_options("ckpt-fp16-tp2", out, &o);
    *s = (struct stopper){.left = left};
    o.max_file_bytes = 30000;
    o.on_progress = count_down;
    o.on_warning = note_warning;
    o.context = s;
    int r = convert_run(&o, result, e);
    free_options(&o);
    return r;
}

static void test_resume_at_every_point(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *whole = path_in(scratch, "whole");
    struct stopper s;
    struct convert_result result;
    struct err e = ERR_INIT;
    assert_int_equal(convert_some(whole, UINT32_MAX, &s, &result, &e), 0);
    assert_int_equal(result.kept_bytes, 0);
    unsigned n_reports = UINT32_MAX - s.left;
    assert_true(n_reports >= 39);
    for (unsigned stop = 0; stop < n_reports; stop += 3) {
        char *out = path_in(scratch, "part");
        int r = convert_some(out, stop, &s, &result, &e);
        assert_int_equal(r, -ECANCELED);
        assert_true(has_file(out, LAYOUT_JOURNAL));
        assert_false(has_file(out, LAYOUT_MANIFEST));
        struct model_dir *d;
        assert_int_equal(model_dir_open(out, &d, &e), -ENOENT);
        assert_non_null(strstr(e.message, "not finished"));
        r = convert_some(out, UINT32_MAX, &s, &result, &e);
        if (r < 0)
            fail_msg("stopped after %u reports: %s", stop, e.message);
        if (stop > n_reports / 2 && result.kept_bytes == 0)
            fail_msg("stopped after %u of %u reports: nothing was kept", stop, n_reports);
        assert_int_equal(s.warnings, 0);
        assert_false(has_file(out, LAYOUT_JOURNAL));
        assert_same_tensors(whole, out);
        scratch_remove(out);
    }
    free(whole);
    scratch_remove(scratch);
}

/* A kept file that was damaged in between is written again. */
static void test_resume_checks_kept_files(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *out = path_in(scratch, "out"), *whole = path_in(scratch, "w");
    struct stopper s;
    struct convert_result result;
    struct err e = ERR_INIT;
    assert_int_equal(convert_some(whole, UINT32_MAX, &s, &result, &e), 0);
    assert_int_equal(convert_some(out, 20, &s, &result, &e), -ECANCELED);
    char *first = NULL;
    for (unsigned total = 1; total < 100 && !first; total++) {
        char name[64];
        snprintf(name, sizeof name, "model-00001-of-%05u.safetensors", total);
        if (has_file(out, name))
            first = path_in(out, name);
    }
    assert_non_null(first);
    size_t n;
    char *data = read_file(first, &n);
    data[n - 1] ^= 1;
    write_file(first, data, n);
    assert_int_equal(convert_some(out, UINT32_MAX, &s, &result, &e), 0);
    assert_int_equal(s.warnings, 1);
    assert_non_null(strstr(s.last_warning, "written again"));
    assert_same_tensors(whole, out);
    free(data);
    free(first);
    free(out);
    free(whole);
    scratch_remove(scratch);
}

static void test_resume_only_the_same(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *out = path_in(scratch, "out");
    struct stopper s;
    struct convert_result result;
    struct err e = ERR_INIT;
    assert_int_equal(convert_some(out, 10, &s, &result, &e), -ECANCELED);
    assert_int_equal(convert_golden("ckpt-fp16-tp2", out, "int8", NULL, &e), -EEXIST);
    assert_non_null(strstr(e.message, "other options"));
    assert_int_equal(convert_golden("ckpt-fp16-tp4", out, NULL, NULL, &e), -EEXIST);
    assert_int_equal(convert_some(out, UINT32_MAX, &s, &result, &e), 0);
    /* finished: nothing may be overwritten */
    assert_int_equal(convert_some(out, UINT32_MAX, &s, &result, &e), -EEXIST);
    assert_non_null(strstr(e.message, "finished model"));
    /* somebody's folder */
    char *other = path_in(scratch, "letters"), *letter = path_in(other, "letter.txt");
    assert_int_equal(mkdir(other, 0777), 0);
    write_file(letter, "dear", 4);
    assert_int_equal(convert_golden("ckpt-fp16-tp2", other, NULL, NULL, &e), -EEXIST);
    assert_non_null(strstr(e.message, "letter.txt"));
    free(letter);
    free(other);
    free(out);
    scratch_remove(scratch);
}

/* The last run ended between manifest and journal. */
static void test_resume_after_manifest(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *out = path_in(scratch, "out");
    char *journal = path_in(out, LAYOUT_JOURNAL);
    struct stopper s;
    struct convert_result result;
    struct err e = ERR_INIT;
    assert_int_equal(convert_some(out, 30, &s, &result, &e), -ECANCELED);
    size_t n;
    void *text = read_file(journal, &n);
    assert_int_equal(convert_some(out, UINT32_MAX, &s, &result, &e), 0);
    write_file(journal, text, n);
    assert_int_equal(convert_some(out, UINT32_MAX, &s, &result, &e), 0);
    assert_true(result.was_complete);
    assert_false(has_file(out, LAYOUT_JOURNAL));
    verify_all(out);
    free(text);
    free(journal);
    free(out);
    scratch_remove(scratch);
}

/* A write that fails part-way, as on a full disk: here by a limit on file size. */
static void test_failed_write(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *out = path_in(scratch, "out");
    struct rlimit before, limit;
    struct stopper s;
    struct convert_result result;
    struct err e = ERR_INIT;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 50000; /* the embedding has 81920 bytes */
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    int r = convert_some(out, UINT32_MAX, &s, &result, &e);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(r, -EFBIG);
    assert_non_null(strstr(e.message, "cannot write"));
    assert_false(has_file(out, LAYOUT_MANIFEST));
    assert_int_equal(convert_some(out, UINT32_MAX, &s, &result, &e), 0);
    verify_all(out);
    free(out);
    scratch_remove(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume_at_every_point),
        cmocka_unit_test(test_resume_checks_kept_files),
        cmocka_unit_test(test_resume_only_the_same),
        cmocka_unit_test(test_resume_after_manifest),
        cmocka_unit_test(test_failed_write),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
