/* The route table against tests/e2e/http_routes.txt: a route is added in both places, or in none.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "coordinator/http_routes.h"
#include "coordinator/page.h"

static const char *const needs[] = {
    [AUTH_PUBLIC] = "public", [AUTH_USER] = "user", [AUTH_ADMIN] = "admin"};

static void read_fixture(struct buf *ret)
{
    struct buf path = {0};
    char line[512];
    assert_int_equal(buf_printf(&path, "%s/tests/e2e/http_routes.txt", getenv("GLMD_SOURCE_DIR")),
                     0);
    FILE *f = fopen(path.data, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        if (*line != '#')
            assert_int_equal(buf_append_str(ret, line), 0);
    }
    fclose(f);
    buf_deinit(&path);
}

static void test_table_is_the_fixture(void **state)
{
    struct buf expected = {0}, found = {0};
    (void)state;
    read_fixture(&expected);
    for (size_t i = 0; i != http_n_routes; i++) {
        const struct http_route *r = &http_routes[i];
        buf_printf(&found, "%s %s %s\n", r->method, r->path, needs[r->need]);
    }
    for (size_t i = 0; i != page_n_files; i++) {
        const char *allow;
        const struct http_route *r = http_route_find("GET", page_files[i].path, &allow);
        assert_non_null(r);
        buf_printf(&found, "%s %s %s\n", r->method, page_files[i].path, needs[r->need]);
    }
    assert_string_equal(found.data, expected.data);
    buf_deinit(&expected);
    buf_deinit(&found);
}

static void expect(const char *method, const char *path, bool served, const char *allowed)
{
    const char *allow;
    const struct http_route *r = http_route_find(method, path, &allow);
    if ((r != NULL) != served)
        fail_msg("%s %s: expected %s", method, path, served ? "a route" : "none");
    if (allowed ? !allow || strcmp(allow, allowed) != 0 : allow != NULL)
        fail_msg("%s %s: expected Allow: %s, found %s", method, path, allowed ? allowed : "none",
                 allow ? allow : "none");
}

static void test_what_is_not_listed_is_not_served(void **state)
{
    (void)state;
    expect("GET", "/health", true, "GET, HEAD");
    expect("HEAD", "/health", true, "GET, HEAD");
    expect("POST", "/health", false, "GET, HEAD");
    expect("POST", "/v1/completions", true, "POST");
    expect("GET", "/v1/completions", false, "POST");
    expect("HEAD", "/v1/completions", false, "POST");
    expect("OPTIONS", "/v1/completions", false, "POST");
    expect("post", "/v1/completions", false, "POST");
    expect("GET", "/v1/models/glm-130b", true, "GET, HEAD");
    expect("GET", "/v1/models/a/b", true, "GET, HEAD");
    expect("GET", "/v1/models/", false, NULL);
    expect("GET", "/v1/modelsx", false, NULL);
    expect("GET", "/v1/completions/", false, NULL);
    expect("GET", "//health", false, NULL);
    expect("GET", "/health/../metrics", false, NULL);
    expect("GET", "/HEALTH", false, NULL);
    expect("GET", "", false, NULL);
    expect("GET", "*", false, NULL);
    expect("GET", "/page/", false, NULL);
    expect("GET", "/page/../main.js", false, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table_is_the_fixture),
        cmocka_unit_test(test_what_is_not_listed_is_not_served),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
