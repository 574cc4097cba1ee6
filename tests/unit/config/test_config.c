/* test_config.c: what a configuration may say, and what is refused with which words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/config.h"
#include "base/util.h"

static int read_text(struct config *c, const char *text, struct err *e)
{
    *e = (struct err)ERR_INIT;
    int r = config_init(c);
    assert_int_equal(r, 0);
    r = conf_read(&config_table, c, "f.yaml", text, strlen(text), &c->origin, e);
    if (r == 0)
        r = config_check(c, e);
    return r;
}

static void test_defaults(void **state)
{
    (void)state;
    struct config c;
    struct err e;
    assert_int_equal(read_text(&c, "", &e), 0);
    assert_string_equal(c.coordinator.listen, "127.0.0.1:8130");
    assert_int_equal(c.group.workers, CONFIG_WORKERS_SPAWN);
    assert_int_equal(c.group.devices.n, 1);
    assert_string_equal(config_device(&c, 7), "cpu");
    assert_true(c.deadlines.step == 10 * NSEC_PER_SEC);
    assert_true(c.worker.verify);
    assert_true(c.worker.cuda_graphs);
    assert_int_equal(c.worker.library_rows, 0);
    assert_true(c.worker.warpgroups);
    assert_int_equal(c.worker.kv_cache, CONFIG_KV_CACHE_AUTO);
    assert_int_equal(c.worker.collectives, 0); /* K_COMM_AUTO */
    assert_string_equal(config_precision(&c), "fp16");
    assert_string_equal(config_worker_target(&c), "127.0.0.1:8130");
    config_deinit(&c);
}

static void test_what_is_local(void **state)
{
    (void)state;
    static const struct {
        const char *address;
        bool local;
    } cases[] = {
        {"unix:/run/glmd.sock", true}, {"127.0.0.1:8130", true},      {"127.8.9.10:0", true},
        {"localhost:8130", true},      {"[::1]:8130", true},          {"0.0.0.0:8130", false},
        {"[::]:8130", false},          {"192.0.2.1:8130", false},     {"127.example.com:1", false},
        {"127.0.0.1.nip.io:1", false}, {"localhost.org:1", false},    {"[::1].org:1", false},
        {"127.0.0.1", false},          {"[::ffff:1.2.3.4]:1", false}, {"", false},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        if (config_is_local(cases[i].address) != cases[i].local)
            fail_msg("\"%s\": expected %slocal", cases[i].address, cases[i].local ? "" : "not ");
    }
}

/* What a rank says of itself names the cache only where it is not the activations' own. */
static void test_precision(void **state)
{
    (void)state;
    static const struct {
        const char *activations, *kv_cache, *expected;
    } cases[] = {
        {"fp32", "auto", "fp32"}, {"fp32", "fp16", "fp32+kv16"}, {"fp32", "int8", "fp32+kv8"},
        {"fp16", "auto", "fp16"}, {"fp16", "fp16", "fp16"},      {"fp16", "int8", "fp16+kv8"},
        {"a8", "auto", "a8"},     {"a8", "fp16", "a8"},          {"a8", "int8", "a8+kv8"},
    };
    struct config c;
    struct err e = ERR_INIT;
    assert_int_equal(config_init(&c), 0);
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        assert_int_equal(
            config_set(&c, "worker.activations", cases[i].activations, "--activations", &e), 0);
        assert_int_equal(config_set(&c, "worker.kv_cache", cases[i].kv_cache, "--kv-cache", &e), 0);
        assert_string_equal(config_precision(&c), cases[i].expected);
    }
    assert_int_equal(config_set(&c, "worker.kv_cache", "int4", "--kv-cache", &e), -EINVAL);
    assert_non_null(strstr(e.message, "auto, fp16, int8"));
    config_deinit(&c);
}

static void test_values_of_every_type(void **state)
{
    (void)state;
    struct config c;
    struct err e;
    int r = read_text(&c,
                      "# comment\n"
                      "cluster: {name: \"left wing\"}\n"
                      "group:\n"
                      "  tensor_parallel: 4\n"
                      "  workers: external\n"
                      "  devices: [\"cuda:0\", 'cuda:1', cpu]\n"
                      "worker:\n"
                      "  kv_bytes: 2GiB\n"
                      "  verify: No\n"
                      "  activations: fp16\n"
                      "coordinator:\n"
                      "  worker_listen: \"[::1]:9000\"\n"
                      "deadlines:\n"
                      "  step: 1m\n"
                      "  heartbeat: 0.25s\n",
                      &e);
    assert_int_equal(r, -EINVAL); /* no fractions */
    assert_non_null(strstr(e.message, "f.yaml:15: deadlines.heartbeat"));
    assert_string_equal(c.cluster.name, "left wing");
    assert_int_equal(c.group.tensor_parallel, 4);
    assert_int_equal(c.group.workers, CONFIG_WORKERS_EXTERNAL);
    assert_int_equal(c.group.devices.n, 3);
    assert_string_equal(config_device(&c, 1), "cuda:1");
    assert_string_equal(config_device(&c, 3), "cpu");
    assert_true(c.worker.kv_bytes == (uint64_t)2 << 30);
    assert_false(c.worker.verify);
    assert_int_equal(c.worker.activations, CONFIG_ACTIVATIONS_FP16);
    assert_true(c.deadlines.step == 60 * NSEC_PER_SEC);
    assert_string_equal(config_worker_target(&c), "[::1]:9000");
    config_deinit(&c);
}

static void test_groups(void **state)
{
    (void)state;
    struct config c;
    struct err e;
    char name[CONFIG_MAX_GROUP_NAME + 8];
    assert_int_equal(read_text(&c, "", &e), 0);
    assert_int_equal(config_group_ranks(&c), 1);
    assert_int_equal(config_stage_layers(&c, 0), 0);
    config_replica_name(&c, 0, name);
    assert_string_equal(name, "0");
    config_deinit(&c);
    const char *text = "group:\n"
                       "  tensor_parallel: 2\n"
                       "  pipeline_parallel: 3\n"
                       "  stage_layers: [24, 24, 22]\n"
                       "  replicas: 2\n"
                       "  devices: [\"cuda:0\", \"cuda:1\", \"cuda:2\", \"cuda:3\", \"cuda:4\", "
                       "\"cuda:5\", \"cuda:6\"]\n";
    if (read_text(&c, text, &e) != 0)
        fail_msg("%s", e.message);
    assert_int_equal(config_group_ranks(&c), 6);
    assert_int_equal(config_stage_layers(&c, 2), 22);
    config_replica_name(&c, 1, name);
    assert_string_equal(name, "1");
    assert_string_equal(config_device(&c, 6 + 0), "cuda:6"); /* rank 0 of the second replica */
    config_deinit(&c);
    assert_int_equal(read_text(&c, "group: {name: left, replicas: 64}", &e), 0);
    config_replica_name(&c, 63, name);
    assert_string_equal(name, "left-63");
    config_deinit(&c);
}

/* Each text is refused with a message that has all of these words. */
static const struct {
    const char *text;
    const char *words[4];
} refused[] = {
    {"coordinator:\n  limits:\n    max_que: 7\n",
     {"f.yaml:3:", "coordinator.limits.max_que", "did you mean \"coordinator.limits.max_queue\""}},
    {"listen: 1\n", {"f.yaml:1:", "unknown key", "listen\"?"}},
    {"qqqqqqqqqqqq: 1\n", {"unknown key \"qqqqqqqqqqqq\" (`glmd config show`"}},
    {"groups: {}\n", {"did you mean \"group\""}},
    {"group:\n  workers: many\n", {"f.yaml:2:", "group.workers", "spawn, external", "\"many\""}},
    {"group:\n  tensor_parallel: two\n", {"f.yaml:2:", "whole number from 1 to 64", "\"two\""}},
    {"group:\n  tensor_parallel: 0\n", {"from 1 to 64", "\"0\""}},
    {"group:\n  tensor_parallel: 65\n", {"from 1 to 64", "\"65\""}},
    {"group:\n  tensor_parallel: -1\n", {"from 1 to 64", "\"-1\""}},
    {"group:\n  tensor_parallel: 99999999999999999999999\n", {"from 1 to 64"}},
    {"group:\n  tensor_parallel: \"2\"\n", {"whole number", "found a quoted text"}},
    {"group:\n  tensor_parallel:\n", {"f.yaml:2:", "found nothing"}},
    {"group:\n  tensor_parallel: [2]\n", {"whole number", "found a list"}},
    {"group:\n  tensor_parallel: {a: 2}\n", {"whole number", "found a mapping"}},
    {"group: 7\n", {"f.yaml:1:", "group: expected a mapping", "found one value"}},
    {"group: [7]\n", {"group: expected a mapping", "found a list"}},
    {"group:\n  devices: cpu\n", {"group.devices", "a list of 1 to 64", "\"cpu\""}},
    {"group:\n  devices: []\n", {"group.devices", "1 to 64", "0 items"}},
    {"group:\n  devices: [[cpu]]\n", {"f.yaml:2:", "found a list"}},
    {"group:\n  devices: [{a: b}]\n", {"expected a list of texts", "found a mapping"}},
    {"group:\n  devices: [gpu]\n", {"f.yaml:2:", "cpu, cuda:N or fake", "\"gpu\""}},
    {"group:\n  devices: [\"cuda:\"]\n", {"cpu, cuda:N or fake"}},
    {"group:\n  devices: [faker]\n", {"cpu, cuda:N or fake", "\"faker\""}},
    {"group:\n  devices: [cpu, cpu]\n", {"at most one device for each of the 1 ranks", "found 2"}},
    {"group:\n  name: a/b\n", {"f.yaml:2:", "group.name", "letters, digits", "\"a/b\""}},
    {"group:\n  tensor_parallel: 8\n  pipeline_parallel: 9\n",
     {"f.yaml:3:", "at most 64 ranks", "8 x 9"}},
    {"group:\n  pipeline_parallel: 3\n  stage_layers: [1, 2]\n",
     {"f.yaml:3:", "each of the 3 stages", "found 2"}},
    {"group:\n  pipeline_parallel: 2\n  stage_layers: [1, 0]\n", {"group.stage_layers", "\"0\""}},
    {"group:\n  pipeline_parallel: 2\n  stage_layers: [1, 2x]\n", {"group.stage_layers", "\"2x\""}},
    {"worker:\n  verify: maybe\n", {"worker.verify", "true or false", "\"maybe\""}},
    {"worker:\n  kv_bytes: 2GB\n", {"worker.kv_bytes", "KiB, MiB", "\"2GB\""}},
    {"worker:\n  kv_bytes: 999999TiB\n", {"worker.kv_bytes", "64TiB"}},
    {"worker:\n  kv_bytes: 99999999999TiB\n", {"worker.kv_bytes", "64TiB"}},
    {"deadlines:\n  step: 10\n", {"deadlines.step", "us, ms, s", "\"10\""}},
    {"deadlines:\n  step: 2h\n", {"from 100ms to 1h"}},
    {"deadlines:\n  lease: 500ms\n", {"f.yaml:2: deadlines.lease", "four heartbeats"}},
    {"cluster:\n  name: \"\"\n", {"cluster.name", "1 to 64 bytes"}},
    {"cluster:\n  name: \"a\\nb\"\n", {"one line", "0x0a"}},
    {"cluster:\n  name: a\n  name: b\n", {"f.yaml:3:", "given twice", "line 2"}},
    {"cluster:\n  name: a\ncluster:\n  name: b\n", {"f.yaml:3:", "cluster", "given twice"}},
    {"cluster: &a\n  name: x\n", {"anchors"}},
    {"cluster:\n  name: &a x\n", {"f.yaml:2:", "anchors"}},
    {"cluster: {name: *a}\n", {"f.yaml:1:"}},
    {"cluster:\n  name: !!str x\n", {"tags"}},
    {"--- {}\n--- {}\n", {"f.yaml:2:", "second"}},
    {"just words\n", {"f.yaml:1:", "mapping of keys"}},
    {"- a\n- b\n", {"f.yaml:1:", "mapping of keys", "found a list"}},
    {"? {a: b}\n: c\n", {"expected a key, found a mapping"}},
    {"? [a]\n: c\n", {"expected a key, found a list"}},
    {"cluster.name: x\n", {"nest mappings"}},
    {"cluster: {name: \"x}\n", {"not valid YAML"}},
    {"cluster:\n\tname: x\n", {"f.yaml:2:", "not valid YAML"}},
    {"a: \xff\xfe\n", {"not valid YAML"}},
    {"coordinator:\n  tls:\n    cert: a.pem\n",
     {"f.yaml:3: coordinator.tls.cert", "coordinator.tls.key"}},
    {"coordinator:\n  tls:\n    ca: a.pem\n", {"f.yaml:3: coordinator.tls.ca", "plaintext"}},
    {"worker:\n  tls:\n    key: a.pem\n", {"worker.tls.key", "worker.tls.cert"}},
    {"coordinator:\n  deadlines:\n    request: 2h\n", {"coordinator.deadlines.request", "at most"}},
    {"group:\n  spawn:\n    restart_min: 1m\n", {"group.spawn.restart_min", "restart_max"}},
};

static void test_refused_with_reason(void **state)
{
    (void)state;
    for (size_t i = 0; i != ARRAY_LEN(refused); i++) {
        struct config c;
        struct err e;
        int r = read_text(&c, refused[i].text, &e);
        if (r >= 0)
            fail_msg("accepted:\n%s", refused[i].text);
        for (size_t k = 0; k != ARRAY_LEN(refused[i].words) && refused[i].words[k]; k++) {
            if (!strstr(e.message, refused[i].words[k]))
                fail_msg("%s\nexpected \"%s\" in \"%s\"", refused[i].text, refused[i].words[k],
                         e.message);
        }
        config_deinit(&c);
    }
}

static void test_too_deep_and_too_long(void **state)
{
    (void)state;
    struct config c;
    struct err e;
    struct buf text = {0};
    for (int i = 0; i != 1000; i++)
        buf_append_str(&text, "[");
    assert_int_equal(read_text(&c, text.data, &e), -EINVAL);
    config_deinit(&c);
    buf_clear(&text);
    buf_append_str(&text, "cluster:\n  name: ");
    for (int i = 0; i != 5000; i++)
        buf_append_str(&text, "x");
    assert_int_equal(read_text(&c, text.data, &e), -EINVAL);
    assert_non_null(strstr(e.message, "at most 4096 bytes, found 5000"));
    config_deinit(&c);
    buf_clear(&text);
    while (text.size <= CONF_MAX_FILE_BYTES)
        buf_append_str(&text, "# a comment\n");
    assert_int_equal(read_text(&c, text.data, &e), -EFBIG);
    config_deinit(&c);
    assert_int_equal(config_init(&c), 0);
    assert_int_equal(conf_read(&config_table, &c, "f.yaml", "a\0b", 3, NULL, &e), -EINVAL);
    assert_non_null(strstr(e.message, "NUL"));
    config_deinit(&c);
    buf_deinit(&text);
}

/* What `show` prints is a configuration with the same values; annotated or not. */
static void test_show_reads_back(void **state)
{
    (void)state;
    struct config c, back;
    struct err e = ERR_INIT;
    assert_int_equal(
        read_text(
            &c,
            "cluster: {name: \"a: #b\"}\ngroup: {tensor_parallel: 2, devices: "
            "[\"cuda:0\", cpu]}\nworker: {kv_bytes: 3MiB}\nmodel: {name: \"Null\", dir: \"~\"}\n",
            &e),
        0);
    for (int annotate = 0; annotate != 2; annotate++) {
        struct buf text = {0}, again = {0};
        assert_int_equal(conf_show(&config_table, &c, annotate, &text), 0);
        if (read_text(&back, text.data, &e) < 0)
            fail_msg("%s\n%s", e.message, text.data);
        assert_int_equal(conf_show(&config_table, &back, annotate, &again), 0);
        assert_string_equal(text.data, again.data);
        assert_string_equal(back.cluster.name, "a: #b");
        assert_string_equal(back.model.name, "Null");
        assert_string_equal(config_device(&back, 0), "cuda:0");
        buf_deinit(&text);
        buf_deinit(&again);
        config_deinit(&back);
    }
    config_deinit(&c);
}

static void test_flags_override_and_lose_their_line(void **state)
{
    (void)state;
    struct config c;
    struct err e;
    assert_int_equal(read_text(&c, "deadlines:\n  lease: 6s\n", &e), 0);
    assert_int_equal(config_set(&c, "deadlines.lease", "300ms", "--lease", &e), 0);
    assert_int_equal(config_check(&c, &e), -EINVAL);
    assert_int_equal(strncmp(e.message, "deadlines.lease:", 16), 0); /* no line of the file */
    assert_int_equal(config_set_pair(&c, "deadlines.lease=7s", &e), 0);
    assert_int_equal(config_check(&c, &e), 0);
    assert_int_equal(config_set_pair(&c, "group.devices=cpu, cuda:3", &e), 0);
    assert_int_equal(c.group.devices.n, 2);
    assert_string_equal(c.group.devices.items[1], "cuda:3");
    assert_int_equal(config_set_pair(&c, "group.devices=cpu,,cpu", &e), -EINVAL);
    assert_int_equal(config_set_pair(&c, "worker.kv_byte=1", &e), -EINVAL);
    assert_non_null(strstr(e.message, "did you mean \"worker.kv_bytes\""));
    assert_int_equal(config_set_pair(&c, "no equals sign", &e), -EINVAL);
    assert_non_null(strstr(e.message, "KEY=VALUE"));
    assert_int_equal(config_set(&c, "log.level", "loud", "--log-level", &e), -EINVAL);
    assert_non_null(strstr(e.message, "--log-level: log.level: expected one of error, warn"));
    config_deinit(&c);
}

static void test_files(void **state)
{
    (void)state;
    struct config c;
    struct err e = ERR_INIT;
    char path[] = "glmd-config-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    static const char text[] = "log:\n  level: debug\n";
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    close(fd);
    assert_int_equal(config_init(&c), 0);
    assert_int_equal(config_load(&c, path, &e), 0);
    assert_int_equal(c.log.level, LOG_LEVEL_DEBUG);
    unlink(path);
    assert_int_equal(config_load(&c, path, &e), -ENOENT);
    assert_non_null(strstr(e.message, path));
    assert_int_equal(config_load(&c, "/", &e), -EINVAL);
    config_deinit(&c);
}

/* Every option has a sane table entry: its default parses (conf_defaults asserts it), its bounds
 * are in order, it is documented. */
static void test_table(void **state)
{
    (void)state;
    for (size_t i = 0; i != config_table.n; i++) {
        const struct conf_option *o = &config_table.options[i];
        if (o->max && o->min > o->max)
            fail_msg("%s: min above max", o->path);
        if (strlen(o->doc) < 10 || o->doc[strlen(o->doc) - 1] != '.')
            fail_msg("%s: its documentation is no sentence: \"%s\"", o->path, o->doc);
        for (size_t k = 0; k != i; k++) {
            if (strcmp(o->path, config_table.options[k].path) == 0)
                fail_msg("%s: twice in the table", o->path);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_precision),
        cmocka_unit_test(test_values_of_every_type),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_refused_with_reason),
        cmocka_unit_test(test_too_deep_and_too_long),
        cmocka_unit_test(test_show_reads_back),
        cmocka_unit_test(test_what_is_local),
        cmocka_unit_test(test_flags_override_and_lose_their_line),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
