/* Whether and how models fit: devices from text, the published cases, layouts, advice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "cli/fit.h"

#define GIB ((uint64_t)1 << 30)

static const struct quant_scheme int4 = {.weights = QUANT_INT4};
static const struct quant_scheme int8 = {.weights = QUANT_INT8};
static const struct quant_scheme fp16 = {.weights = QUANT_FP16};

/* Hosts are separated by "|". */
static void devices_of(const char *text, struct fit_devices *ret)
{
    *ret = (struct fit_devices){0};
    char copy[256];
    snprintf(copy, sizeof copy, "%s", text);
    struct err e = ERR_INIT;
    for (char *save, *host = strtok_r(copy, "|", &save); host; host = strtok_r(NULL, "|", &save)) {
        if (fit_devices_add(ret, host, &e) < 0)
            fail_msg("%s: %s", text, e.message);
    }
}

static struct fit_request request(const struct quant_scheme *scheme, const struct fit_devices *d)
{
    return (struct fit_request){.arch = &arch_glm_130b,
                                .scheme = scheme,
                                .devices = d,
                                .mode = K_MODE_FP16,
                                .context = 2048,
                                .concurrency = 1,
                                .n_slots = 32};
}

static void choose(const struct fit_request *q, struct fit_choices *ret)
{
    struct err e = ERR_INIT;
    if (fit_choose(q, ret, &e) < 0)
        fail_msg("%s", e.message);
}

/* ---- devices ---- */

static void test_devices(void **state)
{
    (void)state;
    struct fit_devices d;
    devices_of("2x24GiB,1x48GiB", &d);
    assert_int_equal(d.n, 3);
    assert_string_equal(d.sizes->backend, "cuda");
    assert_int_equal(d.device[1].bytes, 24 * GIB);
    assert_int_equal(d.device[2].bytes, 48 * GIB);
    assert_int_equal(d.device[2].index, 2);
    devices_of("cpu:64GiB", &d);
    assert_int_equal(d.n, 1);
    assert_string_equal(d.sizes->backend, "cpu");
    devices_of("cpu:2x1.5TiB|cpu:512MiB", &d);
    assert_int_equal(d.n, 3);
    assert_int_equal(d.n_hosts, 2);
    assert_int_equal(d.device[0].bytes, 1536 * GIB);
    assert_int_equal(d.device[2].bytes, GIB / 2);
    assert_int_equal(d.device[2].host, 1);
    assert_int_equal(d.device[2].index, 0);
    devices_of("gpu:141GB", &d);
    assert_int_equal(d.device[0].bytes, 141000000000);
    devices_of("64x11GiB", &d);
    assert_int_equal(d.n, 64);

    static const char *const bad[] = {"",
                                      ",",
                                      "8x",
                                      "x24GiB",
                                      "0x24GiB",
                                      "-1x24GiB",
                                      "24",
                                      "24GB,",
                                      "8*24GiB",
                                      "8x24gib",
                                      "8x-1GiB",
                                      "8xnanGiB",
                                      "8x0GiB",
                                      "65x1GiB",
                                      "99999999999x1GiB",
                                      "tpu:1GiB",
                                      "8x999999TiB",
                                      "cpu:1GiB,cuda:1GiB",
                                      "1e9GiB",
                                      "8x24GiB ",
                                      "8x0x10GiB",
                                      "cpu:",
                                      "11111111111111111111111111111111111GiB"};
    for (size_t i = 0; i != ARRAY_LEN(bad); i++) {
        struct err e = ERR_INIT;
        d = (struct fit_devices){0};
        int r = fit_devices_add(&d, bad[i], &e);
        if (r != -EINVAL || !e.message[0])
            fail_msg("\"%s\": expected -EINVAL with a message, found %d \"%s\", %u devices", bad[i],
                     r, e.message, d.n);
    }
}

/* ---- published cases ---- */

/* INT4 weights of a rank, written down from the table of the model's tensors: linears at half a
 * byte, an FP16 scale and bias per row; norms and the biases behind sums in FP32. */
static uint64_t int4_weights(uint64_t tp)
{
    const uint64_t h = 12288, inner = 32768, vocab = 150528, layers = 70;
    uint64_t rows = 3 * h / tp + h + 2 * inner / tp + h;
    uint64_t cells = 3 * h / tp * h + h * (h / tp) + 2 * inner / tp * h + h * (inner / tp);
    uint64_t layer = cells / 2 + rows * 4 + 2 * (2 * h * 4) + 2 * (h * 4);
    return layers * layer + vocab / tp * (2 * h + 2) + 2 * h * 4;
}

static void test_published_cases(void **state)
{
    (void)state;
    static const struct {
        const char *devices;
        const struct quant_scheme *scheme;
        bool fits;
        uint32_t tp;
        uint32_t sequences;         /* of 2048 tokens */
        uint64_t at_least, at_most; /* tokens of KV */
    } cases[] = {
        /* GLM-130B's own requirements; tokens: device memory - weights, at 3440640 bytes each,
         * less reserve and scratch */
        {"4x24GiB", &int4, true, 4, 3, 7000, 9000},    /* RTX 3090 */
        {"4x24GB", &int4, true, 4, 2, 5000, 7000},     /* counted in units of 1000 */
        {"8x11GiB", &int4, true, 8, 1, 3500, 5500},    /* RTX 2080 Ti */
        {"1x141GB", &int4, true, 1, 9, 18500, 20500},  /* H200 */
        {"8x24GiB", &int8, true, 8, 7, 15000, 17500},  /* RTX 3090 */
        {"8x32GiB", &int8, true, 8, 17, 34000, 38000}, /* V100 */
        {"8x40GiB", &fp16, true, 8, 8, 16500, 18500},  /* A100 */
        {"8x80GiB", &fp16, true, 8, 32, 100000, 130000}, {"8x32GiB", &fp16, false, 8, 0, 0, 0},
        {"3x24GiB", &int4, false, 1, 0, 0, 0},           {"1x80GB", &int4, true, 1, 1, 2048, 4000},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct fit_devices d;
        struct fit_choices c;
        devices_of(cases[i].devices, &d);
        struct fit_request q = request(cases[i].scheme, &d);
        choose(&q, &c);
        uint64_t tokens = c.best.n_blocks * PLAN_KV_BLOCK_TOKENS;
        if (c.best.fits != cases[i].fits || c.best.tp != cases[i].tp ||
            c.best.sequences != cases[i].sequences || tokens < cases[i].at_least ||
            tokens > cases[i].at_most)
            fail_msg("%s, %s: expected %s, tp %u, %u sequences, %llu to %llu tokens; found %s, tp "
                     "%u, %u, %llu",
                     cases[i].devices, quant_weights_name(cases[i].scheme->weights),
                     cases[i].fits ? "room" : "no room", cases[i].tp, cases[i].sequences,
                     (unsigned long long)cases[i].at_least, (unsigned long long)cases[i].at_most,
                     c.best.fits ? "room" : "no room", c.best.tp, c.best.sequences,
                     (unsigned long long)tokens);
        const struct fit_rank *r = &c.best.ranks[0];
        if (cases[i].scheme == &int4 && c.best.pp == 1 &&
            r->need.weights != int4_weights(c.best.tp))
            fail_msg("%s: weights: expected %llu, found %llu", cases[i].devices,
                     (unsigned long long)int4_weights(c.best.tp),
                     (unsigned long long)r->need.weights);
        if (c.best.pp == 1)
            assert_int_equal(r->need.kv_block * c.best.tp, 3440640 * PLAN_KV_BLOCK_TOKENS);
    }
}

/* ---- what holds for every layout ---- */

static void check_layout(const char *text, const struct fit_request *q, const struct fit_layout *l)
{
    uint32_t layers = 0, seen[FIT_MAX_DEVICES] = {0};
    uint64_t per_token = 0;
    bool full = false;
    for (uint32_t i = 0; i != l->pp; i++) {
        assert_true(l->stage_layers[i] > 0);
        layers += l->stage_layers[i];
    }
    if (layers != q->arch->n_layers)
        fail_msg("%s: tp %u x pp %u: %u layers in all stages", text, l->tp, l->pp, layers);
    for (uint32_t i = 0; i != l->tp * l->pp; i++) {
        const struct fit_rank *r = &l->ranks[i];
        const struct fit_device *device = &q->devices->device[r->device];
        uint64_t taken = r->on_device + r->kv_bytes + r->reserve;
        if (seen[r->device]++)
            fail_msg("%s: device %u has two ranks", text, r->device);
        if (!r->missing && taken > device->bytes)
            fail_msg("%s: tp %u x pp %u, rank %u: %llu of %llu bytes are planned", text, l->tp,
                     l->pp, i, (unsigned long long)taken, (unsigned long long)device->bytes);
        full |= taken + r->need.kv_block > device->bytes;
        per_token += r->need.kv_block / PLAN_KV_BLOCK_TOKENS;
        if (!l->crosses_hosts &&
            device->host != q->devices->device[l->ranks[i - r->tp_rank].device].host)
            fail_msg("%s: tp %u x pp %u: stage %u is on two hosts", text, l->tp, l->pp, r->stage);
    }
    if (!full)
        fail_msg("%s: tp %u x pp %u: every rank has room for another block", text, l->tp, l->pp);
    /* a CPU's blocks may be a little larger: kernels/cpu/kv.c */
    uint64_t least = arch_kv_bytes_per_token(q->arch, 2);
    assert_in_range(per_token, least, least + least / 64);
}

static void test_layouts(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "1x141GB",
        "2x80GiB",
        "3x24GiB",
        "3x48GiB",
        "5x24GiB",
        "6x24GiB",
        "7x24GiB",
        "8x11GiB",
        "16x12GiB",
        "2x24GiB,1x48GiB",
        "1x48GiB,3x24GiB,1x11GiB",
        "4x24GiB|4x24GiB",
        "3x24GiB|3x24GiB",
        "8x11GiB|2x48GiB",
        "cpu:96GiB",
        "cpu:2x64GiB|cpu:32GiB",
        "64x11GiB",
        "1x24GiB",
    };
    for (size_t i = 0; i != ARRAY_LEN(texts); i++) {
        struct fit_devices d;
        struct fit_choices c;
        devices_of(texts[i], &d);
        struct fit_request q = request(&int4, &d);
        choose(&q, &c);
        check_layout(texts[i], &q, &c.best);
        for (uint32_t k = 0; k != c.n; k++) {
            struct fit_layout l;
            struct err e = ERR_INIT;
            assert_int_equal(fit_layout(&q, c.choice[k].tp, c.choice[k].pp, &l, &e), 0);
            check_layout(texts[i], &q, &l);
            assert_int_equal(l.n_blocks, c.choice[k].n_blocks);
            if (l.fits && !c.best.fits)
                fail_msg("%s: tp %u x pp %u fits and is not the first choice", texts[i], l.tp,
                         l.pp);
        }
    }
}

static void test_choice(void **state)
{
    (void)state;
    static const struct {
        const char *devices;
        uint32_t tp, pp;
        uint32_t stage_layers[7];
        bool even, crosses_hosts;
        const char *why;
    } cases[] = {
        {"1x141GB", 1, 1, {70}, true, false, "one device holds the whole model"},
        {"8x24GiB", 8, 1, {70}, true, false, "each device reads 1/8 of the weights"},
        {"3x48GiB", 1, 3, {23, 24, 23}, true, false, "stages of 23 to 24 layers"},
        {"5x24GiB", 1, 5, {14, 14, 14, 14, 14}, true, false, "tp 4 fits too, with fewer devices"},
        {"6x24GiB", 2, 3, {23, 24, 23}, true, false, "pipeline stages in between"},
        {"7x24GiB", 1, 7, {10, 10, 10, 10, 10, 10, 10}, true, false, "one device per stage"},
        {"4x24GiB|4x24GiB", 4, 2, {35, 35}, true, false, "tensor parallelism within a host"},
        {"3x24GiB|3x24GiB", 1, 6, {11, 12, 12, 12, 12, 11}, true, false, "one device per stage"},
        {"2x24GiB,1x48GiB", 1, 3, {15, 19, 36}, false, false, "in proportion to memory"},
        {"2x24GiB,2x48GiB", 4, 1, {70}, true, false, "of the larger devices stay unused"},
    };
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct fit_devices d;
        struct fit_choices c;
        char why[FIT_TEXT_BYTES];
        devices_of(cases[i].devices, &d);
        struct fit_request q = request(&int4, &d);
        choose(&q, &c);
        const struct fit_layout *l = &c.best;
        if (!l->fits || l->tp != cases[i].tp || l->pp != cases[i].pp || l->even != cases[i].even ||
            l->crosses_hosts != cases[i].crosses_hosts)
            fail_msg("%s: expected tp %u x pp %u, found tp %u x pp %u (fits %d, even %d)",
                     cases[i].devices, cases[i].tp, cases[i].pp, l->tp, l->pp, l->fits, l->even);
        for (uint32_t s = 0; s != l->pp; s++) {
            if (l->stage_layers[s] != cases[i].stage_layers[s])
                fail_msg("%s: stage %u: expected %u layers, found %u", cases[i].devices, s,
                         cases[i].stage_layers[s], l->stage_layers[s]);
        }
        fit_why(&q, &c, why);
        if (!strstr(why, cases[i].why))
            fail_msg("%s: expected \"%s\", found \"%s\"", cases[i].devices, cases[i].why, why);
    }
}

static void test_asked_layouts(void **state)
{
    (void)state;
    struct fit_devices d;
    struct fit_choices c;
    struct err e = ERR_INIT;
    devices_of("4x24GiB|4x24GiB", &d);
    struct fit_request q = request(&int4, &d);
    q.tp = 8;
    choose(&q, &c);
    assert_int_equal(c.n, 1);
    assert_true(c.best.fits && c.best.crosses_hosts);
    q.tp = 2;
    q.pp = 3;
    choose(&q, &c);
    assert_int_equal(c.best.pp, 3);
    q.tp = 5;
    q.pp = 0;
    assert_int_equal(fit_choose(&q, &c, &e), -EINVAL);
    assert_non_null(strstr(e.message, "num_heads is 96"));
    q.tp = 4;
    q.pp = 3;
    assert_int_equal(fit_choose(&q, &c, &e), -EINVAL);
    assert_non_null(strstr(e.message, "8 devices"));
    q.scheme = &(struct quant_scheme){
        .weights = QUANT_INT4, .group = QUANT_GROUP_SHARD, .group_n = 6}; /* of 32768 columns */
    q.pp = 1;
    assert_int_equal(fit_choose(&q, &c, &e), -EINVAL);
    assert_non_null(strstr(e.message, "a number of shards"));
}

/* ---- advice ---- */

static void test_advice_is_true(void **state)
{
    (void)state;
    struct fit_devices d;
    struct fit_choices c;
    struct fit_advice a;
    devices_of("8x11GiB", &d);
    struct fit_request q = request(&int4, &d);
    q.concurrency = 3;
    choose(&q, &c);
    assert_false(c.best.fits);
    fit_advise(&q, &c, &a);
    assert_non_null(strstr(a.reason, "3 sequences of 2048 need 6144"));
    unsigned context = 0, concurrency = 0, more = 0;
    bool kv8 = false;
    for (uint32_t i = 0; i != a.n_help; i++) {
        sscanf(a.help[i], "--context %u", &context);
        sscanf(a.help[i], "--concurrency %u", &concurrency);
        sscanf(a.help[i], "%u more device", &more);
        kv8 |= strstr(a.help[i], "--kv-cache int8") != NULL;
    }
    if (!context || !concurrency || !more || !kv8)
        fail_msg("context %u, concurrency %u, %u more devices, INT8 %d: something is not proposed",
                 context, concurrency, more, kv8);

    struct fit_request other = q;
    other.context = context;
    choose(&other, &c);
    assert_true(c.best.fits);
    other.context = context + PLAN_KV_BLOCK_TOKENS;
    choose(&other, &c);
    assert_false(c.best.fits);
    other = q;
    other.concurrency = concurrency;
    choose(&other, &c);
    assert_true(c.best.fits);
    other.concurrency = concurrency + 1;
    choose(&other, &c);
    assert_false(c.best.fits);
    other = q;
    other.kv_type = K_KV_I8;
    choose(&other, &c);
    assert_true(c.best.fits);
    for (uint32_t n = more - 1; n <= more; n++) {
        char text[32];
        snprintf(text, sizeof text, "%ux11GiB", 8 + n);
        devices_of(text, &d);
        choose(&q, &c);
        if (c.best.fits != (n == more))
            fail_msg("%s: expected %s", text, n == more ? "room" : "no room");
    }
}

static void test_advice_for_weights(void **state)
{
    (void)state;
    struct fit_devices d;
    struct fit_choices c;
    struct fit_advice a;
    devices_of("4x24GiB", &d);
    struct fit_request q = request(&fp16, &d);
    choose(&q, &c);
    assert_false(c.best.fits);
    fit_advise(&q, &c, &a);
    assert_non_null(strstr(a.reason, "are missing"));
    assert_true(a.n_help > 0);
    assert_non_null(strstr(a.help[0], "INT4 weights"));

    devices_of("1x300MiB", &d); /* below the reserve */
    q.scheme = &int4;
    choose(&q, &c);
    assert_false(c.best.fits);
    assert_int_equal(c.best.n_blocks, 0);
    fit_advise(&q, &c, &a);
    assert_non_null(strstr(a.reason, "0.000 GiB behind the reserve"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_devices),
        cmocka_unit_test(test_published_cases),
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_asked_layouts),
        cmocka_unit_test(test_advice_is_true),
        cmocka_unit_test(test_advice_for_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
