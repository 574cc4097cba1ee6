/* test_page.c: the ring of samples, and the files of the page. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/history.h"
#include "coordinator/page.h"

static void test_history_keeps_the_newest(void **state)
{
    (void)state;
    static struct history h;
    for (uint32_t i = 0; i != 3 * HISTORY_CAPACITY + 7; i++) {
        history_add(&h, &(struct history_sample){.running = i});
        uint32_t n = i + 1 < HISTORY_CAPACITY ? i + 1 : HISTORY_CAPACITY;
        assert_int_equal(h.n, n);
        assert_int_equal(history_get(&h, n - 1)->running, i);
        assert_int_equal(history_get(&h, 0)->running, i + 1 - n);
    }
}

/* Each file is there, has its kind, and whatever it names is served as well. */
static void test_files_refer_to_files(void **state)
{
    (void)state;
    static const char served[][14] = {"/openapi.json", "/metrics", "/status"};
    assert_string_equal(page_files[0].path, "/");
    for (size_t i = 0; i != page_n_files; i++) {
        const struct page_file *f = &page_files[i];
        assert_true(*f->size > 100);
        char *text = strndup((const char *)f->data, *f->size);
        assert_int_equal(strlen(text), *f->size);
        assert_null(strstr(text, "https://")); /* nothing from elsewhere */
        for (char *p = text; (p = strstr(p, "=\"/"));) {
            char *path = p + 2, *end = strchr(path, '"');
            *end = '\0';
            bool found = false;
            for (size_t k = 0; k != page_n_files; k++)
                found |= strcmp(page_files[k].path, path) == 0;
            for (size_t k = 0; k != sizeof served / sizeof *served; k++)
                found |= strcmp(served[k], path) == 0;
            if (!found)
                fail_msg("%s names %s, which is not served", f->path, path);
            p = end + 1;
        }
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_history_keeps_the_newest),
        cmocka_unit_test(test_files_refer_to_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
