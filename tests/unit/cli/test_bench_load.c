/* test_bench_load.c: arrivals and prompts of a load. The load itself runs against a coordinator in
 * tests/e2e/test_bench.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "cli/bench_dataset.h"

static void test_arrivals(void **state)
{
    (void)state;
    enum { N = 20000 };
    uint64_t chance = 7, same = 7;
    double at = 0, squares = 0;
    for (int i = 0; i != N; i++) {
        double next = load_next_arrival(at, 50, &chance);
        assert_true(next >= at && isfinite(next));
        squares += (next - at) * (next - at);
        at = next;
    }
    double mean = at / N, deviation = sqrt(squares / N - mean * mean);
    if (fabs(mean - 0.02) > 0.0005 || fabs(deviation - 0.02) > 0.001)
        fail_msg("gaps at 50/s: expected mean and deviation of 0.02 s, found %g and %g", mean,
                 deviation);
    double again = 0;
    for (int i = 0; i != N; i++)
        again = load_next_arrival(again, 50, &same);
    assert_true(again == at);
    assert_true(load_next_arrival(3, 0, &same) == 3); /* all at once */
}

static void test_random_prompts(void **state)
{
    (void)state;
    static const int32_t ids[] = {10, 20, 30};
    struct dataset_options o = {
        .n = 500, .input_len = 40, .output_len = 8, .range = 0.5, .seed = 1};
    struct dataset d = {0}, same = {0}, other = {0};
    assert_int_equal(dataset_random(&o, ids, 3, &d), 0);
    assert_int_equal(dataset_random(&o, ids, 3, &same), 0);
    o.seed = 2;
    assert_int_equal(dataset_random(&o, ids, 3, &other), 0);
    assert_int_equal(d.n, 500);
    double sum = 0;
    bool differs = false;
    uint32_t shortest = UINT32_MAX, longest = 0;
    for (uint32_t i = 0; i != d.n; i++) {
        const struct load_prompt *p = &d.prompts[i];
        assert_null(p->text);
        assert_in_range(p->max_tokens, 4, 12);
        assert_int_equal(p->n_tokens, same.prompts[i].n_tokens);
        assert_memory_equal(p->tokens, same.prompts[i].tokens, p->n_tokens * sizeof *p->tokens);
        differs |= p->n_tokens != other.prompts[i].n_tokens;
        shortest = MIN(shortest, p->n_tokens);
        longest = MAX(longest, p->n_tokens);
        sum += p->n_tokens;
        for (uint32_t k = 0; k != p->n_tokens; k++)
            assert_true(p->tokens[k] == 10 || p->tokens[k] == 20 || p->tokens[k] == 30);
    }
    assert_true(differs);
    assert_in_range(shortest, 20, 22);
    assert_in_range(longest, 58, 60);
    if (fabs(sum / d.n - 40) > 2)
        fail_msg("lengths: expected 40 on average, found %g", sum / d.n);
    dataset_deinit(&d);
    dataset_deinit(&same);
    dataset_deinit(&other);
}

static int read_text(const char *text, struct dataset *ret, struct err *e)
{
    char path[] = "/tmp/glmd-dataset-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    const struct dataset_options o = {.file = path, .n = 5, .output_len = 9};
    int r = dataset_read(&o, ret, e);
    unlink(path);
    return r;
}

static void test_file(void **state)
{
    (void)state;
    struct dataset d = {0};
    struct err e = ERR_INIT;
    if (read_text("{\"prompt\": \"a\", \"max_tokens\": 3}\r\n \n\n{\"prompt\": \"b\", \"x\": []}",
                  &d, &e) < 0)
        fail_msg("%s", e.message);
    static const char *const texts[] = {"a", "b", "a", "b", "a"};
    assert_int_equal(d.n, 5);
    for (uint32_t i = 0; i != 5; i++) {
        assert_string_equal(d.prompts[i].text, texts[i]);
        assert_int_equal(d.prompts[i].max_tokens, i % 2 ? 9 : 3);
    }
    dataset_deinit(&d);
    static const struct {
        const char *text, *reason;
    } wrong[] = {{"", "no prompts"},
                 {"\n\n", "no prompts"},
                 {"{\"prompt\": \"a\"}\n[1]\n", ":2: expected an object"},
                 {"{\"prompt\": \"\"}", ":1: expected an object"},
                 {"{\"prompt\": \"a\", \"max_tokens\": 0}", "max_tokens"},
                 {"{\"prompt\": \"a\", \"max_tokens\": \"3\"}", "max_tokens"},
                 {"{", ":1: "}};
    for (size_t i = 0; i != ARRAY_LEN(wrong); i++) {
        struct err why = ERR_INIT;
        if (read_text(wrong[i].text, &d, &why) != -EINVAL || !strstr(why.message, wrong[i].reason))
            fail_msg("%s: expected \"%s\", found \"%s\"", wrong[i].text, wrong[i].reason,
                     why.message);
        dataset_deinit(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arrivals),
        cmocka_unit_test(test_random_prompts),
        cmocka_unit_test(test_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
