/* test_openai_description.c: openapi.json and docs/http-fields.md say what the codec does: the same
 * fields with the same types and limits, and replies of the described shape. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/openai_internal.h"
#include "openai_rig.h"

static json_t *description; /* openapi.json */

static int load(void **state)
{
    (void)state;
    json_error_t error;
    description = json_loadb((const char *)openai_openapi, openai_openapi_size,
                             JSON_REJECT_DUPLICATES, &error);
    if (!description)
        fail_msg("openapi.json:%d: %s", error.line, error.text);
    return 0;
}

static int unload(void **state)
{
    (void)state;
    json_decref(description);
    return 0;
}

static const json_t *schema_of(const char *name)
{
    const json_t *s = json_object_get(description, "components");
    s = json_object_get(json_object_get(s, "schemas"), name);
    if (!s)
        fail_msg("there is no schema %s", name);
    return s;
}

/* "#/components/schemas/Error" -> that schema. */
static const json_t *resolve(const json_t *schema)
{
    const char *ref = json_string_value(json_object_get(schema, "$ref"));
    return ref ? schema_of(strrchr(ref, '/') + 1) : schema;
}

/* ---- requests ---- */

static const struct {
    const char *path, *schema;
} routes[OPENAI_N_ROUTES] = {
    [OPENAI_COMPLETIONS] = {"/v1/completions", "CompletionRequest"},
    [OPENAI_CHAT] = {"/v1/chat/completions", "ChatCompletionRequest"},
    [OPENAI_FILL] = {"/v1/fill", "FillRequest"},
    [OPENAI_LEGACY] = {"/generate", "GenerateRequest"},
    [OPENAI_TOKENIZE] = {"/tokenize", "TokenizeRequest"},
    [OPENAI_DETOKENIZE] = {"/detokenize", "DetokenizeRequest"},
};

/* "string array", in any order, and null besides. */
static void expect_types(const char *field, const json_t *schema, const char *types)
{
    const json_t *list = json_object_get(schema, "type");
    size_t n = 1;
    for (const char *at = types; *at; at++)
        n += *at == ' ';
    if (json_array_size(list) != n + 1)
        fail_msg("%s: expected the types %s and null", field, types);
    for (size_t i = 0; i != n + 1; i++) {
        const char *type = json_string_value(json_array_get(list, i));
        if (strcmp(type, "null") != 0 && !strstr(types, type))
            fail_msg("%s: expected one of \"%s\", found %s", field, types, type);
    }
}

static void expect_number(const char *field, const json_t *schema, const char *key, double value)
{
    const json_t *v = json_object_get(schema, key);
    if (!json_is_number(v) || json_number_value(v) != value)
        fail_msg("%s: expected %s %.17g, found %.17g", field, key, value, json_number_value(v));
}

static void expect_field(const struct openai_field *f, const json_t *s)
{
    static const char *const types[] = {
        [OPENAI_BOOL] = "boolean",
        [OPENAI_INT] = "integer",
        [OPENAI_NUMBER] = "number",
        [OPENAI_TEXT] = "string",
    };
    const char *use = json_string_value(json_object_get(s, "x-glmd"));
    bool refused = f->type == OPENAI_REFUSED, ignored = f->type == OPENAI_IGNORED;
    assert_non_null(json_object_get(s, "description"));
    if (refused || ignored) {
        if (!use || strcmp(use, refused ? "refused" : "ignored") != 0)
            fail_msg("%s: expected x-glmd %s", f->name, refused ? "refused" : "ignored");
        return;
    }
    if (use)
        fail_msg("%s: expected no x-glmd, found %s", f->name, use);
    expect_types(f->name, s, f->type == OPENAI_JSON ? f->note : types[f->type]);
    if (f->type == OPENAI_INT || f->type == OPENAI_NUMBER) {
        expect_number(f->name, s, "minimum", f->min);
        expect_number(f->name, s, "maximum", f->max);
    }
    if (f->type == OPENAI_TEXT)
        expect_number(f->name, s, "maxLength", f->max);
}

static void every_field_is_described(void **state)
{
    (void)state;
    for (int r = 0; r != OPENAI_N_ROUTES; r++) {
        const json_t *properties = json_object_get(schema_of(routes[r].schema), "properties");
        size_t n = 0;
        for (size_t i = 0; i != openai_n_fields; i++) {
            const struct openai_field *f = &openai_fields[i];
            if (!(f->routes >> r & 1))
                continue;
            const json_t *s = json_object_get(properties, f->name);
            if (!s)
                fail_msg("%s: %s is not described", routes[r].schema, f->name);
            expect_field(f, s);
            n++;
        }
        if (n != json_object_size(properties))
            fail_msg("%s: %zu fields are described, the parser knows %zu", routes[r].schema,
                     json_object_size(properties), n);
    }
}

static void no_field_is_there_twice(void **state)
{
    (void)state;
    for (size_t i = 0; i != openai_n_fields; i++) {
        for (size_t k = 0; k != i; k++) {
            bool same = openai_fields[i].routes & openai_fields[k].routes &&
                        strcmp(openai_fields[i].name, openai_fields[k].name) == 0;
            if (same)
                fail_msg("%s is in the table twice for one route", openai_fields[i].name);
        }
    }
}

static const json_t *body_schema(const json_t *holder, const char *type)
{
    const json_t *s = json_object_get(json_object_get(holder, "content"), type);
    return resolve(json_object_get(s, "schema"));
}

static void every_route_takes_its_schema(void **state)
{
    (void)state;
    const json_t *paths = json_object_get(description, "paths");
    for (int r = 0; r != OPENAI_N_ROUTES; r++) {
        const json_t *post = json_object_get(json_object_get(paths, routes[r].path), "post");
        const json_t *body = json_object_get(post, "requestBody");
        if (body_schema(body, "application/json") != schema_of(routes[r].schema))
            fail_msg("%s: expected a body of %s", routes[r].path, routes[r].schema);
    }
}

static void every_field_is_documented(void **state)
{
    (void)state;
    const char *root = getenv("GLMD_SOURCE_DIR");
    char path[4096];
    snprintf(path, sizeof path, "%s/docs/http-fields.md", root ? root : ".");
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    static char text[1 << 18];
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    for (size_t i = 0; i != openai_n_fields; i++) {
        static const char letters[] = "CHFGTD";
        const struct openai_field *field = &openai_fields[i];
        char row[128], entry[128], where[8] = "";
        for (int r = 0, at = 0; r != OPENAI_N_ROUTES; r++) {
            if (field->routes >> r & 1)
                where[at++] = letters[r];
        }
        snprintf(row, sizeof row, "| `%s` | ", field->name);
        snprintf(entry, sizeof entry, "`%s` (%s)", field->name, where);
        bool other = field->type == OPENAI_REFUSED || field->type == OPENAI_IGNORED;
        if (!strstr(text, other ? entry : row))
            fail_msg("docs/http-fields.md: expected %s", other ? entry : row);
    }
}

/* ---- replies ---- */

/* What of JSON Schema the description uses. */
static void check(const json_t *v, const json_t *schema, const char *where);

static bool has_type(const json_t *v, const char *type)
{
    return (strcmp(type, "object") == 0 && json_is_object(v)) ||
           (strcmp(type, "array") == 0 && json_is_array(v)) ||
           (strcmp(type, "string") == 0 && json_is_string(v)) ||
           (strcmp(type, "integer") == 0 && json_is_integer(v)) ||
           (strcmp(type, "number") == 0 && json_is_number(v)) ||
           (strcmp(type, "boolean") == 0 && json_is_boolean(v)) ||
           (strcmp(type, "null") == 0 && json_is_null(v));
}

static void check_type(const json_t *v, const json_t *type, const char *where)
{
    bool ok = json_is_string(type) && has_type(v, json_string_value(type));
    for (size_t i = 0; i != json_array_size(type); i++)
        ok = ok || has_type(v, json_string_value(json_array_get(type, i)));
    if (!ok)
        fail_msg("%s: a value of another type than described", where);
}

static void check_object(const json_t *v, const json_t *schema, const char *where)
{
    const json_t *properties = json_object_get(schema, "properties");
    const json_t *required = json_object_get(schema, "required");
    const char *key;
    json_t *member;
    for (size_t i = 0; i != json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));
        if (!json_object_get(v, name))
            fail_msg("%s: %s is missing", where, name);
    }
    json_object_foreach((json_t *)v, key, member)
    {
        const json_t *s = json_object_get(properties, key);
        char path[256];
        snprintf(path, sizeof path, "%s.%s", where, key);
        if (s)
            check(member, s, path);
        else if (json_is_false(json_object_get(schema, "additionalProperties")))
            fail_msg("%s: it is not described", path);
    }
}

static void check(const json_t *v, const json_t *schema, const char *where)
{
    schema = resolve(schema);
    const json_t *any = json_object_get(schema, "anyOf");
    if (any) /* one schema, or null */
        schema = resolve(json_array_get(any, json_is_null(v)));
    const json_t *type = json_object_get(schema, "type");
    const json_t *items = json_object_get(schema, "items");
    const json_t *values = json_object_get(schema, "enum");
    if (type)
        check_type(v, type, where);
    bool known = !values;
    for (size_t i = 0; i != json_array_size(values); i++)
        known = known || json_equal(v, json_array_get(values, i));
    if (!known)
        fail_msg("%s: a value that is not described", where);
    if (json_is_object(v))
        check_object(v, schema, where);
    for (size_t i = 0; items && i != json_array_size(v); i++)
        check(json_array_get(v, i), items, where);
}

static void check_text(const char *text, size_t n, const char *schema)
{
    json_t *v = json_loadb(text, n, 0, NULL);
    if (!v)
        fail_msg("not JSON: %.*s", (int)n, text);
    check(v, schema_of(schema), schema);
    json_decref(v);
}

/* All that can be in a reply to this body; its events or its one object. */
static void reply_to(enum openai_route route, const char *body, const char *schema)
{
    static const struct wire_top_logprob top[] = {{1, -0.5f, ""}, {5, -2, ""}};
    static const struct wire_token_logprob logprobs[] = {{1, -0.5f, top, 2}, {3, -4, top, 2}};
    static const struct wire_usage usage = {.prompt_tokens = 2, .completion_tokens = 2};
    const struct wire_choice_delta delta = {
        .text = "is人",
        .tokens = (const int32_t[]){1, 3},
        .n_tokens = 2,
        .logprobs = logprobs,
        .n_logprobs = 2,
        .finish_reason = WIRE_FINISH_STOP,
        .has_stop_token = true,
        .stop_token = 9,
        .has_score = true,
        .score = -0.5,
    };
    const struct wire_generate_response g = {
        .choices = &delta, .n_choices = 1, .usage = &usage, .has_seed = true, .seed = 3};
    const struct wire_blank_delta blank = {
        .text = "x", .tokens = delta.tokens, .n_tokens = 2, .finish_reason = WIRE_FINISH_LENGTH};
    const struct wire_filled_text result = {.text = "a x",
                                            .blanks = (const char *const[]){"x"},
                                            .n_blanks = 1,
                                            .tokens = delta.tokens,
                                            .n_tokens = 2};
    const struct wire_token_ids ids = {delta.tokens, 2};
    const struct wire_fill_call call = {
        .input = delta.tokens, .n_input = 2, .outputs = &ids, .n_outputs = 1};
    const struct wire_fill_response f = {
        .blanks = &blank,
        .n_blanks = 1,
        .results = &result,
        .n_results = 1,
        .calls = &call,
        .n_calls = 1,
        .usage = &usage,
        .has_seed = true,
    };
    struct openai_request *q;
    struct openai_error e;
    struct openai_reply *r;
    struct buf out = {0};
    if (openai_parse(&rig_settings, route, body, strlen(body), &q, &e) < 0)
        fail_msg("%s: %s", body, e.message);
    assert_int_equal(openai_reply_new(q, rig_identity(), &r), 0);
    const struct stream_message m = {.generate = q->generate ? &g : NULL,
                                     .fill = q->fill ? &f : NULL};
    assert_int_equal(openai_reply_message(r, 0, &m, &out), 0);
    assert_int_equal(openai_reply_finish(r, &out), 0);
    size_t n_events = 0;
    if (!q->stream)
        check_text(out.data, out.size, schema);
    for (const char *at = out.data; q->stream && strncmp(at, "data: [DONE]", 12) != 0; n_events++) {
        const char *end = strstr(at, "\n\n");
        assert_non_null(end);
        check_text(at + 6, (size_t)(end - at) - 6, schema);
        at = end + 2;
    }
    assert_int_equal(q->stream, n_events != 0);
    openai_reply_free(r);
    openai_request_free(q);
    buf_deinit(&out);
}

static void replies_are_as_described(void **state)
{
    (void)state;
    static const struct {
        enum openai_route route;
        const char *body, *schema;
    } rows[] = {
        {OPENAI_COMPLETIONS, "{\"prompt\":\"a\"}", "Completion"},
        {OPENAI_COMPLETIONS,
         "{\"prompt\":[1],\"echo\":true,\"logprobs\":2,\"return_token_ids\":true,"
         "\"stop_token_ids\":[9]}",
         "Completion"},
        {OPENAI_COMPLETIONS, "{\"prompt\":\"a\",\"logprobs\":0}", "Completion"},
        {OPENAI_COMPLETIONS,
         "{\"prompt\":\"a\",\"stream\":true,\"stream_options\":{\"include_usage\":true},"
         "\"logprobs\":1,\"return_token_ids\":true}",
         "Completion"},
        {OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", "ChatCompletion"},
        {OPENAI_CHAT,
         "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"logprobs\":true,"
         "\"top_logprobs\":2,\"return_token_ids\":true}",
         "ChatCompletion"},
        {OPENAI_CHAT,
         "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"logprobs\":true,"
         "\"stream\":true,\"stream_options\":{\"include_usage\":true}}",
         "ChatCompletionChunk"},
        {OPENAI_FILL, "{\"text\":\"[MASK]\"}", "Fill"},
        {OPENAI_FILL, "{\"text\":\"[MASK]\",\"return_token_ids\":true}", "Fill"},
        {OPENAI_FILL, "{\"text\":\"[MASK]\",\"stream\":true,\"return_token_ids\":true}",
         "FillChunk"},
        {OPENAI_LEGACY, "{\"text\":\"a\"}", "Generated"},
        {OPENAI_LEGACY, "{\"prompt\":[\"a\",\"b\"]}", "Generated"},
    };
    for (size_t i = 0; i != ARRAY_LEN(rows); i++)
        reply_to(rows[i].route, rows[i].body, rows[i].schema);
}

static void the_other_answers_are_as_described(void **state)
{
    (void)state;
    const struct wire_model_info m = {.id = "glm", .architecture = "glm", .context_length = 2048};
    const struct openai_request q = {.token_strs = true};
    const struct wire_tokenize_response w = {.ids = (const int32_t[]){5},
                                             .n_ids = 1,
                                             .pieces = (const char *const[]){"x"},
                                             .n_pieces = 1};
    struct openai_error e;
    struct buf b = {0};
    openai_models_encode(&m, 1, 3, &b);
    check_text(b.data, b.size, "Models");
    buf_clear(&b);
    openai_model_encode(&m, 3, &b);
    check_text(b.data, b.size, "Model");
    buf_clear(&b);
    openai_tokenize_encode(&q, &w, 2048, &b);
    check_text(b.data, b.size, "Tokenized");
    buf_clear(&b);
    openai_detokenize_encode(&(struct wire_detokenize_response){.text = "x"}, &b);
    check_text(b.data, b.size, "Detokenized");
    buf_clear(&b);
    openai_tokenizer_encode("</s>", 256, &b);
    check_text(b.data, b.size, "TokenizerInfo");
    buf_clear(&b);
    openai_version_encode("1", &b);
    check_text(b.data, b.size, "Version");
    buf_clear(&b);
    openai_error_set(&e, 400, "n", "x");
    openai_error_encode(&e, &b);
    check_text(b.data, b.size, "Error");
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_field_is_described),
        cmocka_unit_test(no_field_is_there_twice),
        cmocka_unit_test(every_route_takes_its_schema),
        cmocka_unit_test(every_field_is_documented),
        cmocka_unit_test(replies_are_as_described),
        cmocka_unit_test(the_other_answers_are_as_described),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
