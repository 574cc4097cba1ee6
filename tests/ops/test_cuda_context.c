/* test_cuda_context.c: the CUDA backend's control path against an emulated driver: which devices it
 * takes, what it says when there is none, what happens when memory is short at any allocation, and
 * that the first error of a device stays. */
#include "harness.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"
#include "tests/support/emulated_driver.h"

static const struct k_open_params good = {
    .device = "cuda:0", .mode = K_MODE_FP16, .max_rows = 64, .max_cols = 64, .max_seq = 128};

static void assert_refused(const struct k_open_params *p, int code, const char *words)
{
    struct k_ctx *c = NULL;
    char message[512] = "";
    int r = cuda_open(p, &c, message, sizeof message);
    if (r != code || c || !strstr(message, words))
        fail_msg("expected %d and \"%s\", got %d, \"%s\"", code, words, r, message);
}

static struct k_ctx *open_good(void)
{
    struct k_ctx *c = NULL;
    char message[512] = "";
    int r = cuda_open(&good, &c, message, sizeof message);
    if (r)
        fail_msg("open gave %d: %s", r, message);
    return c;
}

static void assert_nothing_left(void)
{
    assert_int_equal(emulated_driver_state()->allocated, 0);
    assert_int_equal(emulated_driver_state()->host_allocated, 0);
}

static void test_devices(void **state)
{
    (void)state;
    emulated_driver_reset();
    struct k_open_params p = good;
    static const char *const names[] = {"cpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cudas"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        p.device = names[i];
        assert_refused(&p, -EINVAL, names[i]);
    }
    p.device = "cuda:8";
    assert_refused(&p, -ENODEV, "this host has 8 CUDA devices, cuda:0 to cuda:7");
    p = good;
    p.mode = K_MODE_FP32;
    assert_refused(&p, -EINVAL, "fp16 activations only");
    p = good;
    p.max_rows = 0;
    assert_refused(&p, -EINVAL, "max_rows 0");

    emulated_driver_state()->major = 7;
    emulated_driver_state()->minor = 0;
    assert_refused(&good, -ENODEV, "compute capability 7.0, expected at least 7.5");
    emulated_driver_reset();
    emulated_driver_state()->count_error = EMULATED_NO_DEVICE;
    assert_refused(&good, -ENODEV, "no CUDA-capable device is detected (cudaErrorNoDevice)");
    emulated_driver_state()->count_error = EMULATED_OLD_DRIVER;
    emulated_driver_state()->driver_version = 0;
    assert_refused(&good, -ENODEV, "there is no NVIDIA driver, this program needs 13.0");
    emulated_driver_state()->driver_version = 12040;
    assert_refused(&good, -ENODEV, "the driver's CUDA version is 12.4, this program needs 13.0");
    emulated_driver_reset();
    emulated_driver_state()->fail = "stream_wait"; /* of the probe */
    emulated_driver_state()->error = EMULATED_NO_IMAGE;
    assert_refused(&good, -ENODEV, "no kernel image is available");
    assert_nothing_left();

    emulated_driver_reset();
    p = good;
    p.device = "cuda:1";
    struct k_ctx *c = NULL;
    char message[512];
    assert_int_equal(cuda_open(&p, &c, message, sizeof message), 0);
    assert_int_equal(emulated_driver_state()->device, 1);
    const struct emulated_driver *d = emulated_driver_state();
    char expected[128];
    snprintf(expected, sizeof expected, "cuda:1 emulated GPU (0000:01:00.0), sm_%d%d, 1.0 GiB",
             d->major, d->minor);
    assert_non_null(strstr(cuda_describe(c), expected));
    cuda_close(c);
    assert_nothing_left();
}

/* Every allocation fails once: nothing is lost, nothing is left, and the device is well. */
static void test_out_of_memory(void **state)
{
    (void)state;
    static const char *const calls[] = {"alloc", "alloc_host", "stream_new", "event_new"};
    const struct k_kv_params kv_params = {2, 2, 64, 8, 16, K_KV_AUTO};
    static const uint16_t halves[64];
    static const float table[128 * 32];
    char message[512];
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        bool failed = true;
        for (int after = 0; failed; after++) {
            assert_true(after < 50);
            emulated_driver_reset();
            emulated_driver_state()->fail = calls[i];
            emulated_driver_state()->fail_after = after;
            emulated_driver_state()->error = EMULATED_OUT_OF_MEMORY;
            struct k_ctx *c = NULL;
            int r = cuda_open(&good, &c, message, sizeof message);
            if (r) {
                assert_int_equal(r, -ENOMEM);
                assert_non_null(strstr(message, "out of memory"));
                assert_nothing_left();
                continue;
            }
            struct k_norm *norm = cuda_norm_new(c, K_NORM_LAYER, halves, halves, 64);
            struct k_bias *bias = cuda_bias_new(c, halves, 64);
            struct k_rope *rope = cuda_rope_new(c, table, table, 128, 32);
            struct k_kv *kv = cuda_kv_new(c, &kv_params);
            void *buffer = cuda_new(c, 4096);
            failed = !norm || !bias || !rope || !kv || !buffer;
            assert_int_equal(cuda_sync(c, message, sizeof message), 0);
            cuda_norm_free(c, norm);
            cuda_bias_free(c, bias);
            cuda_rope_free(c, rope);
            cuda_kv_free(c, kv);
            cuda_free(c, buffer);
            cuda_close(c);
            assert_nothing_left();
        }
    }
}

static void test_memory(void **state)
{
    (void)state;
    emulated_driver_reset();
    struct k_ctx *c = open_good();
    uint64_t before, after, total;
    assert_int_equal(cuda_memory(c, &before, &total), 0);
    assert_int_equal(total, (uint64_t)1 << 30);
    void *p = cuda_new(c, 1 << 20);
    assert_non_null(p);
    for (uint32_t i = 0; i < 1 << 20; i++)
        assert_int_equal(((const uint8_t *)p)[i], 0); /* the emulated device's memory is ours */
    assert_int_equal(cuda_memory(c, &after, &total), 0);
    assert_int_equal(before - after, 1 << 20);
    assert_null(cuda_new(c, (size_t)2 << 30));
    char message[512];
    assert_int_equal(cuda_sync(c, message, sizeof message), 0);
    cuda_free(c, p);
    cuda_close(c);
    assert_nothing_left();
}

/* More than the page-locked buffer holds, there and back, in both forms. */
static void test_transfers(void **state)
{
    (void)state;
    emulated_driver_reset();
    struct k_ctx *c = open_good();
    const size_t n = CUDA_STAGE_BYTES / sizeof(float) + 1234;
    float *from = op_malloc(n * sizeof *from), *to = op_malloc(n * sizeof *to);
    for (size_t i = 0; i < n; i++)
        from[i] = (float)(int)(i % 2048) - 1024.0f; /* exact in binary16 */
    void *p = cuda_new(c, n * sizeof(float));
    cuda_upload(c, p, from, n);
    cuda_download(c, to, p, n);
    assert_same_bits(to, from, n, "activations");
    memset(to, 0, n * sizeof *to);
    cuda_upload_bytes(c, p, from, n * sizeof *from);
    cuda_download_bytes(c, to, p, n * sizeof *to);
    assert_same_bits(to, from, n, "bytes");
    cuda_free(c, p);
    free(from);
    free(to);
    cuda_close(c);
}

/* The first error is the one that is told, at every later sync too, whatever comes after it. */
static void test_sticky_errors(void **state)
{
    (void)state;
    static const char *const calls[] = {"copy", "stream_wait", "last_error", "use", "clear"};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        emulated_driver_reset();
        struct k_ctx *c = open_good();
        char message[512] = "";
        assert_int_equal(cuda_sync(c, message, sizeof message), 0);
        emulated_driver_state()->fail = calls[i];
        emulated_driver_state()->error = EMULATED_ILLEGAL_ADDRESS;
        emulated_driver_state()->sticky = 1;
        static const float x[64];
        float y[64] = {0};
        void *p = cuda_new(c, 256);
        if (p) {
            cuda_upload(c, p, x, 64);
            cuda_download(c, y, p, 64);
        }
        for (int again = 0; again < 3; again++) {
            assert_int_equal(cuda_sync(c, message, sizeof message), -EIO);
            if (!strstr(message, "cuda:0: an illegal memory access was encountered "
                                 "(cudaErrorIllegalAddress), first seen at "))
                fail_msg("%s: \"%s\"", calls[i], message);
        }
        uint64_t free_bytes, total;
        assert_int_equal(cuda_memory(c, &free_bytes, &total), -EIO);
        cuda_free(c, p);
        cuda_close(c); /* gives back what it can */
        assert_nothing_left();
    }
}

int main(void)
{
    if (!emulated_driver_works())
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_devices),       cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_memory),        cmocka_unit_test(test_transfers),
        cmocka_unit_test(test_sticky_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
