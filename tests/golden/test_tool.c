/* test_tool.c: `glmd logits` and `glmd compare` as programs, and the manifests that `glmd logits`
 * refuses. */
#include "tests/golden/golden.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "cli/logits_cases.h"
#include "model/safetensors.h"

enum { MAX_ARGS = 24, OUTPUT_BYTES = 4096 };

static char folder[64]; /* temporary, removed at the end */

/* Runs glmd with these arguments; what it prints goes to `output`. Returns the exit code. */
static int run_glmd(char output[OUTPUT_BYTES], const char *const *args)
{
    const char *bin = getenv("GLMD_BIN_DIR");
    assert_non_null(bin);
    char program[512];
    snprintf(program, sizeof program, "%s/glmd", bin);
    char *argv[MAX_ARGS + 2] = {program};
    for (size_t i = 0; args[i]; i++) {
        assert_true(i < MAX_ARGS);
        argv[i + 1] = (char *)(uintptr_t)args[i];
    }
    int fds[2];
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fds[1], 1);
    posix_spawn_file_actions_adddup2(&actions, fds[1], 2);
    pid_t child;
    assert_int_equal(posix_spawn(&child, program, &actions, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(fds[1]);
    size_t size = 0;
    char rest[256];
    for (;;) {
        bool full = size + 1 == OUTPUT_BYTES;
        ssize_t n = full ? read(fds[0], rest, sizeof rest)
                         : read(fds[0], output + size, OUTPUT_BYTES - 1 - size);
        if (n <= 0)
            break;
        size += full ? 0 : (size_t)n;
    }
    output[size] = '\0';
    close(fds[0]);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static const char *model_path(char path[512], const char *name)
{
    const char *models = getenv("GLMD_GOLDEN_MODELS");
    assert_non_null(models);
    snprintf(path, 512, "%s/%s", models, name);
    return path;
}

static const char *manifest_path(char path[512])
{
    const char *root = getenv("GLMD_SOURCE_DIR");
    assert_non_null(root);
    snprintf(path, 512, "%s/tests/golden/glm130b/manifest.json", root);
    return path;
}

/* ---- glmd logits ---- */

/* The data of one tensor, and its shape. */
static float *read_tensor(const char *file, const char *name, struct st_tensor *ret)
{
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    struct st_list list = {0};
    struct err e = ERR_INIT;
    if (st_read_header(fd, &list, &e) < 0)
        fail_msg("%s: %s", file, e.message);
    float *data = NULL;
    for (size_t i = 0; i != list.n; i++) {
        if (strcmp(list.tensors[i].name, name) != 0)
            continue;
        *ret = list.tensors[i];
        data = alloc_array(ret->bytes, 1);
        assert_int_equal(pread(fd, data, ret->bytes, (off_t)ret->offset), ret->bytes);
    }
    st_list_deinit(&list);
    close(fd);
    if (!data)
        fail_msg("%s: no tensor %s", file, name);
    return data;
}

static void run_logits(const char *model, const char *out, const char *tp, const char *pp,
                       const char *stage_layers, const char *decode)
{
    char output[OUTPUT_BYTES];
    char model_buf[512];
    char manifest[512];
    const char *args[] = {"logits",
                          "--model",
                          model_path(model_buf, model),
                          "--cases",
                          manifest_path(manifest),
                          "--out",
                          out,
                          "--tp",
                          tp,
                          "--pp",
                          pp,
                          "--stage-layers",
                          stage_layers,
                          "--threads",
                          "2",
                          decode,
                          NULL};
    int code = run_glmd(output, args);
    if (code != 0)
        fail_msg("glmd logits: exit code %d: %s", code, output);
}

/* All cases of a batched manifest; padding rows are zeros; --decode and stages write the same
 * bytes.
 */
static void test_logits_of_manifest(void **state)
{
    (void)state;
    char out[96];
    char decoded[96];
    snprintf(out, sizeof out, "%s/out.safetensors", folder);
    snprintf(decoded, sizeof decoded, "%s/decoded.safetensors", folder);
    run_logits("fp16-tp2", out, "2", "1", "3", NULL);
    run_logits("fp16-tp2", decoded, "2", "2", "1,2", "--decode");
    json_t *manifest = golden_manifest();
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(manifest, "logits"), i, entry)
    {
        char name[80];
        struct st_tensor t = {0};
        struct st_tensor t2 = {0};
        struct npy expected = {0};
        snprintf(name, sizeof name, "%s.logits", golden_text(entry, "name"));
        float *found = read_tensor(out, name, &t);
        float *again = read_tensor(decoded, name, &t2);
        golden_npy(golden_text(entry, "logits"), NPY_F32, 3, &expected);
        assert_int_equal(t.n_dims, 3);
        for (int d = 0; d != 3; d++)
            assert_int_equal(t.shape[d], expected.shape[d]);
        assert_int_equal(t.bytes, t2.bytes);
        assert_memory_equal(found, again, t.bytes);
        size_t row_size = t.shape[2];
        for (size_t row = 0; row != t.shape[0] * t.shape[1]; row++) {
            int64_t n_valid = json_integer_value(
                json_array_get(json_object_get(entry, "valid_lengths"), row / t.shape[1]));
            bool valid = (int64_t)(row % t.shape[1]) < n_valid;
            for (size_t k = row * row_size; k != (row + 1) * row_size; k++) {
                double x = valid ? (double)((float *)expected.data)[k] : 0.0;
                if (fabs((double)found[k] - x) > (valid ? 1e-4 : 0.0))
                    fail_msg("%s row %zu: %g, expected %g", name, row, (double)found[k], x);
            }
        }
        free(found);
        free(again);
        npy_deinit(&expected);
    }
    json_decref(manifest);
    unlink(out);
    unlink(decoded);
}

static void test_refused_stages(void **state)
{
    (void)state;
    static const struct {
        const char *pp, *layers, *words;
    } cases[] = {
        {"2", "3", "expected one count for each of 2 stages"},
        {"2", "2,2", "expected 3 layers in all, found 4"},
        {"2", "3,", "--stage-layers 3,: expected 1 to 64 counts"},
        {"2", "3,0", "--stage-layers 3,0: expected 1 to 64 counts"},
        {"2", "-1,4", "--stage-layers -1,4: expected 1 to 64 counts"},
        {"4", "1,1,1,1", "expected 3 layers in all, found 4"},
        {"65", "3", "--pp 65: expected "},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        char output[OUTPUT_BYTES];
        char model[512];
        char manifest[512];
        const char *args[] = {"logits",
                              "--model",
                              model_path(model, "fp16-tp1"),
                              "--cases",
                              manifest_path(manifest),
                              "--out",
                              "/dev/null",
                              "--pp",
                              cases[i].pp,
                              "--stage-layers",
                              cases[i].layers,
                              NULL};
        int code = run_glmd(output, args);
        if (code == 0 || !strstr(output, cases[i].words))
            fail_msg("case %zu: exit code %d, \"%s\" without \"%s\"", i, code, output,
                     cases[i].words);
    }
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void test_plain_cases(void **state)
{
    (void)state;
    char path[96];
    snprintf(path, sizeof path, "%s/cases.json", folder);
    write_file(path, "{\"cases\": [{\"input_ids\": [1, 2, 3]},"
                     " {\"input_ids\": [4, 5], \"position_ids\": [7, 7], \"prefix_length\": 2},"
                     " {\"input_ids\": [6], \"bidirectional_prefix\": 1}]}");
    struct logits_cases c = {0};
    struct err e = ERR_INIT;
    assert_int_equal(logits_cases_load(path, 10, 8, &c, &e), 0);
    assert_int_equal(c.n, 3);
    assert_string_equal(c.cases[1].tensor_name, "case1.logits");
    assert_int_equal(c.cases[0].samples[0].positions[2], 2);
    assert_int_equal(c.cases[1].samples[0].positions[1], 7);
    assert_int_equal(c.cases[1].samples[0].prefix_len, 2);
    assert_int_equal(c.cases[2].samples[0].prefix_len, 1);
    assert_false(c.cases[0].batched);
    logits_cases_deinit(&c);
    unlink(path);
}

static void test_refused_manifests(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"[]", ""},
        {"{}", "cases"},
        {"{\"cases\": []}", "cases"},
        {"{\"cases\": [{}]}", "input_ids"},
        {"{\"cases\": [{\"input_ids\": [10]}]}", "input_ids[0]"},
        {"{\"cases\": [{\"input_ids\": [-1]}]}", "input_ids[0]"},
        {"{\"cases\": [{\"input_ids\": [1.5]}]}", "input_ids[0]"},
        {"{\"cases\": [{\"input_ids\": [1,1,1,1,1,1,1,1,1]}]}", "found 9"},
        {"{\"cases\": [{\"input_ids\": [1, 2], \"position_ids\": [1]}]}", "position_ids"},
        {"{\"cases\": [{\"input_ids\": [1], \"position_ids\": [8]}]}", "position_ids[0]"},
        {"{\"cases\": [{\"input_ids\": [1], \"position_ids\": [[0], [0]]}]}", "two-dimensional"},
        {"{\"cases\": [{\"input_ids\": [1], \"prefix_length\": 2}]}", "prefix_length"},
        {"{\"logits\": [{\"name\": \"a/b\", \"tokens\": [[1]]}]}", "name"},
        {"{\"logits\": [{\"name\": \"a\", \"tokens\": []}]}", "tokens"},
        {"{\"logits\": [{\"name\": \"a\", \"tokens\": [[1], [1, 2]]}]}", "as long as the first"},
        {"{\"logits\": [{\"name\": \"a\", \"tokens\": [[1]], \"valid_lengths\": [2]}]}",
         "valid_lengths"},
        {"{\"logits\": [{\"name\": \"a\", \"tokens\": [[1]], \"valid_lengths\": [0]}]}",
         "valid_lengths"},
        {"{\"logits\": [{\"name\": \"a\", \"tokens\": [[1]], \"allowed\": 3}]}", "allowed"},
        {"{\"logits\": [{\"name\": \"a\", \"tokens\": [[1]], \"allowed\": \"none.npy\"}]}",
         "none.npy"},
        {"{\"logits\": [{\"name\": \"a\", \"tokens\": [[1]]}, {\"name\": \"a\", \"tokens\": "
         "[[1]]}]}",
         "twice"},
    };
    char path[96];
    snprintf(path, sizeof path, "%s/bad.json", folder);
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct logits_cases c = {0};
        struct err e = ERR_INIT;
        write_file(path, cases[i].text);
        int r = logits_cases_load(path, 10, 8, &c, &e);
        if (r >= 0)
            fail_msg("accepted: %s", cases[i].text);
        if (!strstr(e.message, cases[i].words))
            fail_msg("expected \"%s\" in \"%s\"", cases[i].words, e.message);
    }
    unlink(path);
}

/* Masks that no prefix describes: the blocks of a multiple choice; a causal one is prefix 0. */
static void test_masks(void **state)
{
    (void)state;
    static const struct {
        uint8_t mask[9];
        int prefix; /* -1: refused */
    } cases[] = {
        {{1, 0, 0, 1, 1, 0, 1, 1, 1}, 0},  {{1, 1, 0, 1, 1, 0, 1, 1, 1}, 2},
        {{1, 1, 1, 1, 1, 1, 1, 1, 1}, 3},  {{1, 0, 0, 1, 1, 0, 1, 0, 1}, -1},
        {{1, 0, 0, 1, 1, 1, 1, 1, 1}, -1}, {{1, 0, 1, 1, 1, 0, 1, 1, 1}, -1},
    };
    char json[96];
    char npy[96];
    snprintf(json, sizeof json, "%s/mask.json", folder);
    snprintf(npy, sizeof npy, "%s/mask.npy", folder);
    write_file(json, "{\"logits\": [{\"name\": \"m\", \"tokens\": [[1, 2, 3]], \"allowed\": "
                     "\"mask.npy\"}]}");
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        static const char header[] =
            "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 3, 3), }\n";
        FILE *f = fopen(npy, "we");
        assert_non_null(f);
        fwrite("\x93NUMPY\x01\x00", 1, 8, f);
        fputc((int)sizeof header - 1, f);
        fputc(0, f);
        fputs(header, f);
        fwrite(cases[i].mask, 1, sizeof cases[i].mask, f);
        assert_int_equal(fclose(f), 0);
        struct logits_cases c = {0};
        struct err e = ERR_INIT;
        int r = logits_cases_load(json, 10, 8, &c, &e);
        if (cases[i].prefix < 0) {
            assert_int_equal(r, -EINVAL);
            assert_non_null(strstr(e.message, "prefix"));
            continue;
        }
        if (r < 0)
            fail_msg("mask %zu: %s", i, e.message);
        assert_int_equal(c.cases[0].samples[0].prefix_len, cases[i].prefix);
        logits_cases_deinit(&c);
    }
    unlink(json);
    unlink(npy);
}

/* ---- glmd compare ---- */

/* option_b: "--activations-b" or "--kv-cache-b", and its value. */
static json_t *run_compare(const char *a, const char *b, const char *option_b, const char *value_b,
                           int *ret_code)
{
    char output[OUTPUT_BYTES];
    char path_a[512];
    char path_b[512];
    const char *args[] = {"compare",
                          model_path(path_a, a),
                          model_path(path_b, b),
                          "--json",
                          "--tokens",
                          "300",
                          "--tp",
                          "2",
                          option_b,
                          value_b,
                          NULL};
    *ret_code = run_glmd(output, args);
    return *ret_code ? NULL : json_loads(output, 0, NULL);
}

static double number(const json_t *o, const char *key)
{
    assert_true(json_is_number(json_object_get(o, key)));
    return json_number_value(json_object_get(o, key));
}

static void test_compare(void **state)
{
    (void)state;
    int code;
    /* The same weights from two checkpoints: no difference at all. */
    json_t *o = run_compare("fp16-tp1", "fp16-tp4", "--activations-b", "fp32", &code);
    assert_non_null(o);
    assert_int_equal(number(o, "tokens"), 300);
    assert_true(number(o, "top1_agreement") == 1.0);
    assert_true(number(o, "kl_max") == 0.0);
    assert_true(number(o, "perplexity_a") == number(o, "perplexity_b"));
    json_decref(o);
    /* Rounded activations: small, but not nothing. */
    o = run_compare("int4-tp1", "int4-tp1", "--activations-b", "fp16", &code);
    assert_non_null(o);
    assert_true(number(o, "top1_agreement") > 0.95);
    assert_true(number(o, "kl_mean") > 0.0 && number(o, "kl_mean") < 1e-3);
    json_decref(o);
    /* A rounded cache: INT8 more than FP16. */
    double kl[2];
    for (int i = 0; i != 2; i++) {
        o = run_compare("int4-tp1", "int4-tp1", "--kv-cache-b", i ? "int8" : "fp16", &code);
        assert_non_null(o);
        kl[i] = number(o, "kl_mean");
        json_decref(o);
    }
    if (!(kl[0] > 0.0 && kl[1] > 20 * kl[0] && kl[1] < 0.02))
        fail_msg("KL of the FP16 cache %g, of the INT8 cache %g", kl[0], kl[1]);
    /* INT4 of random weights is another model. */
    o = run_compare("fp16-tp1", "int4-tp1", "--activations-b", "fp32", &code);
    assert_non_null(o);
    assert_true(number(o, "kl_mean") > 0.1);
    json_decref(o);
    assert_null(run_compare("fp16-tp1", "missing", "--activations-b", "fp32", &code));
    assert_int_equal(code, 1);
    assert_null(run_compare("fp16-tp1", "fp16-tp1", "--activations-b", "fp64", &code));
    assert_int_equal(code, 2);
    assert_null(run_compare("fp16-tp1", "fp16-tp1", "--kv-cache-b", "int4", &code));
    assert_int_equal(code, 2);
}

static int make_folder(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.40s/glmd-tool-XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_of_manifest),
        cmocka_unit_test(test_refused_stages),
        cmocka_unit_test(test_plain_cases),
        cmocka_unit_test(test_refused_manifests),
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_compare),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
