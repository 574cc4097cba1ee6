#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/options.h"

enum { MAX_ARGS = 64 };

struct outcome {
    struct worker_options o;
    enum options_result result;
    char out[4096], error[1024];
};

static void parse(struct outcome *t, const char *const *args)
{
    char *argv[MAX_ARGS + 2] = {(char *)"glmd-worker"};
    int argc = 1;
    for (; *args; args++)
        argv[argc++] = (char *)*args;
    memset(t, 0, sizeof *t);
    FILE *out = fmemopen(t->out, sizeof t->out, "w");
    FILE *error = fmemopen(t->error, sizeof t->error, "w");
    assert_true(out && error);
    t->result = options_parse(&t->o, argc, argv, out, error);
    fclose(out);
    fclose(error);
}

#define PARSE(t, ...) parse(t, (const char *const[]){__VA_ARGS__ __VA_OPT__(, ) NULL})

static void flags_fill_the_configuration(void **state)
{
    (void)state;
    struct outcome t;
    PARSE(&t, "--coordinator", "localhost:1", "--model", "m", "--rank=1", "--tp", "2", "--device",
          "cuda:3", "--activations", "a8", "--kv-cache", "int8", "--threads", "4", "--kv-bytes",
          "2MiB", "--memory-utilization", "85", "--slots", "7", "--max-step-tokens", "99",
          "--no-verify", "--listen", "h:2", "--health-listen", "", "--cluster", "c", "--log-level",
          "debug", "--set", "deadlines.step=3s", "--spawned");
    if (t.result != OPTIONS_RUN)
        fail_msg("%s", t.error);
    const struct config *c = &t.o.config;
    assert_int_equal(t.o.rank, 1);
    assert_string_equal(t.o.device, "cuda:3");
    assert_true(t.o.spawned);
    assert_string_equal(config_worker_target(c), "localhost:1");
    assert_string_equal(c->model.dir, "m");
    assert_int_equal(c->group.tensor_parallel, 2);
    assert_int_equal(c->worker.activations, CONFIG_ACTIVATIONS_A8);
    assert_int_equal(c->worker.kv_cache, CONFIG_KV_CACHE_INT8);
    assert_int_equal(c->worker.threads, 4);
    assert_int_equal(c->worker.kv_bytes, 2 << 20);
    assert_int_equal(c->worker.memory_utilization, 85);
    assert_int_equal(c->worker.slots, 7);
    assert_int_equal(c->worker.max_step_tokens, 99);
    assert_false(c->worker.verify);
    assert_string_equal(c->worker.listen, "h:2");
    assert_string_equal(c->worker.health_listen, "");
    assert_string_equal(c->cluster.name, "c");
    assert_int_equal(c->log.level, LOG_LEVEL_DEBUG);
    assert_int_equal(c->deadlines.step, INT64_C(3000000000));
    options_deinit(&t.o);
}

static void flags_override_the_file(void **state)
{
    (void)state;
    char path[] = "/tmp/glmd-options-XXXXXX";
    int fd = mkstemp(path);
    static const char text[] = "model:\n  dir: from-file\ngroup:\n  tensor_parallel: 4\n"
                               "  devices: [cuda:0, cuda:1]\n";
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    close(fd);
    struct outcome t;
    PARSE(&t, "--model", "from-flag", "--rank", "3", "--config", path);
    unlink(path);
    if (t.result != OPTIONS_RUN)
        fail_msg("%s", t.error);
    assert_string_equal(t.o.config.model.dir, "from-flag");
    assert_int_equal(t.o.config.group.tensor_parallel, 4);
    assert_string_equal(t.o.device, "cuda:1"); /* the last one repeats */
    options_deinit(&t.o);
}

static void expect_usage(const char *part, const char *const *args)
{
    struct outcome t;
    parse(&t, args);
    if (t.result != OPTIONS_EXIT_USAGE || !strstr(t.error, part))
        fail_msg("expected a usage error with \"%s\", found %d with \"%s\"", part, (int)t.result,
                 t.error);
    options_deinit(&t.o);
}

#define USAGE(part, ...) expect_usage(part, (const char *const[]){__VA_ARGS__ __VA_OPT__(, ) NULL})

static void says_what_is_wrong(void **state)
{
    (void)state;
    USAGE("--rank is missing", "--model", "m");
    USAGE("--rank: expected a number", "--model", "m", "--rank", "x");
    USAGE("--rank: expected a number", "--model", "m", "--rank", "-1");
    USAGE("--rank 2: expected below 2", "--model", "m", "--rank", "2", "--tp", "2");
    USAGE("no model", "--rank", "0");
    USAGE("--nonsense: unknown option", "--nonsense");
    USAGE("unknown option or missing value", "--rank");
    USAGE("stray: expected options only", "stray");
    USAGE("--tp", "--rank", "0", "--model", "m", "--tp", "many");
    USAGE("/nowhere/glmd.yaml", "--config", "/nowhere/glmd.yaml", "--rank", "0");
    USAGE("device fake: expected step_us", "--rank", "0", "--model", "m", "--device", "fake:x=1");
    USAGE("no.such.key", "--set", "no.such.key=1", "--rank", "0");
}

static void help_and_version(void **state)
{
    (void)state;
    struct outcome t;
    PARSE(&t, "--help");
    assert_int_equal(t.result, OPTIONS_EXIT_OK);
    assert_non_null(strstr(t.out, "usage: glmd-worker"));
    options_deinit(&t.o);
    PARSE(&t, "--version");
    assert_int_equal(t.result, OPTIONS_EXIT_OK);
    assert_string_equal(t.out, "glmd-worker " GLMD_VERSION "\n");
    options_deinit(&t.o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flags_fill_the_configuration),
        cmocka_unit_test(flags_override_the_file),
        cmocka_unit_test(says_what_is_wrong),
        cmocka_unit_test(help_and_version),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
