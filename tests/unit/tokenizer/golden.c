/* golden.c: see golden.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/tokenizer/golden.h"

char *golden_path(const char *name)
{
    const char *root = getenv("GLMD_SOURCE_DIR");
    char *path = NULL;
    if (!root || asprintf(&path, "%s/%s", root, name) < 0)
        fail_msg("GLMD_SOURCE_DIR must be the repository's root");
    return path;
}

json_t *golden_json(const char *name)
{
    char *path = golden_path(name);
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    if (!root)
        fail_msg("%s: %s", path, error.text);
    free(path);
    return root;
}

void golden_arch(struct arch *ret)
{
    struct err e = ERR_INIT;
    json_t *config = golden_json("tests/golden/glm130b/config.json");
    if (arch_from_json(config, ret, &e) < 0)
        fail_msg("%s", e.message);
    json_decref(config);
}

static struct tokenizer *open_variant(const struct arch *a, enum tokenizer_variant variant)
{
    struct err e = ERR_INIT;
    struct tokenizer *t;
    char *path = golden_path("tests/golden/glm130b/tokenizer.model");
    if (tokenizer_open_file(path, a, variant, &t, &e) < 0)
        fail_msg("%s", e.message);
    free(path);
    return t;
}

struct tokenizer *golden_tokenizer(void)
{
    struct arch a;
    golden_arch(&a);
    return open_variant(&a, TOKENIZER_PLAIN);
}

struct tokenizer *golden_whitespace_tokenizer(struct arch *ret)
{
    golden_arch(ret);
    ret->vocab = 1024;
    return open_variant(ret, TOKENIZER_WHITESPACE);
}

struct token_list golden_ids(const json_t *array)
{
    struct token_list l = {0};
    size_t i;
    const json_t *id;
    json_array_foreach((json_t *)array, i, id)
        assert_int_equal(token_list_append(&l, (int32_t)json_integer_value(id)), 0);
    return l;
}

static void print_ids(const char *name, const struct token_list *l)
{
    fprintf(stderr, "%s (%zu):", name, l->n);
    for (size_t i = 0; i < l->n; i++)
        fprintf(stderr, " %" PRId32, l->ids[i]);
    fputc('\n', stderr);
}

void golden_check_ids(const struct token_list *found, const json_t *expected, const char *what)
{
    struct token_list want = golden_ids(expected);
    if (found->n != want.n ||
        (want.n && memcmp(found->ids, want.ids, want.n * sizeof *want.ids) != 0)) {
        print_ids("expected", &want);
        print_ids("found", found);
        fail_msg("ids differ: %s", what);
    }
    token_list_deinit(&want);
}

void golden_check_text(const struct buf *found, const char *expected, const char *what)
{
    const char *text = found->data ? found->data : "";
    if (found->size != strlen(expected) || memcmp(text, expected, found->size) != 0)
        fail_msg("%s: expected \"%s\", found \"%s\"", what, expected, text);
}
