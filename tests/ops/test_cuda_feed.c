/* test_cuda_feed.c: matrices that come piece by piece to the CUDA backend, on the emulated GPU: the
 * bytes of the reference (linear_pack), and what happens when any call of the driver fails. */
#include "harness.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/linear.h"
#include "kernels/feed.h"
#include "tests/support/emulated_driver.h"

static const struct k_open_params params = {
    .device = "cuda:0", .mode = K_MODE_FP16, .max_rows = 8, .max_cols = 1024, .max_seq = 8};

static void assert_nothing_left(void)
{
    assert_int_equal(emulated_driver_state()->allocated, 0);
    assert_int_equal(emulated_driver_state()->host_allocated, 0);
}

static size_t row_bytes(const struct matrix *m)
{
    uint32_t bits = m->src.type == K_WEIGHT_F16 ? 16 : m->src.type == K_WEIGHT_I8 ? 8 : 4;
    return (size_t)m->src.cols * bits / 8;
}

/* One piece from thread `thread`. False: the device has failed. */
static bool bring(struct k_feed *f, uint32_t thread, struct k_linear *l, const struct matrix *m,
                  uint32_t row, uint32_t n, bool scales)
{
    const struct k_feed_ops *ops = glmd_cuda_ops.feed;
    uint8_t *to = ops->buffer(f, thread);
    if (!to)
        return false;
    to += 16 * (row % 3);
    size_t bytes = scales ? (size_t)m->src.n_groups * 2 : row_bytes(m);
    memcpy(to, (const uint8_t *)(scales ? (const void *)m->scale : m->data) + row * bytes,
           n * bytes);
    if (scales)
        ops->scales(f, thread, l, row, n, (const uint16_t *)(void *)to);
    else
        ops->rows(f, thread, l, row, n, to);
    return true;
}

/* All of a matrix, from three threads in turn. NULL: memory was short or the device has failed. */
static struct k_linear *load(struct k_ctx *c, const struct matrix *m, uint32_t panels)
{
    enum { THREADS = 3 };
    const struct k_feed_ops *ops = glmd_cuda_ops.feed;
    struct k_linear_src shape = m->src;
    shape.data = NULL;
    shape.scale = NULL;
    size_t longest =
        row_bytes(m) > (size_t)m->src.n_groups * 2 ? row_bytes(m) : (size_t)m->src.n_groups * 2;
    struct k_feed *f = ops->feed_new(c, THREADS, panels * ops->piece_rows * longest + 64);
    struct k_linear *l = f ? ops->linear_begin(c, &shape) : NULL;
    uint32_t thread = 0;
    bool well = l != NULL;
    for (uint32_t row = 0; well && row < m->src.rows; row += panels * ops->piece_rows) {
        uint32_t n = m->src.rows - row;
        n = n < panels * ops->piece_rows ? n : panels * ops->piece_rows;
        well = bring(f, thread++ % THREADS, l, m, row, n, false);
        if (well && m->src.scale)
            well = bring(f, thread++ % THREADS, l, m, row, n, true);
    }
    ops->feed_free(f);
    if (!well && l)
        glmd_cuda_ops.linear_free(c, l);
    return well ? l : NULL;
}

static void check(const struct k_linear *l, const struct matrix *m)
{
    const struct packed_shape *s = &l->shape;
    uint8_t *want = op_malloc(s->bytes);
    linear_pack(s, &m->src, want);
    size_t data = (size_t)s->n_panels * s->n_blocks * packed_block_bytes(s->bits);
    for (size_t i = 0; i < s->bytes; i++) {
        bool padding = i >= data && i < s->scale_at;
        if (!padding && ((const uint8_t *)l->memory)[i] != want[i])
            fail_msg("%u x %u, %u bits: byte %zu is %02x, expected %02x", s->rows, s->cols, s->bits,
                     i, ((const uint8_t *)l->memory)[i], want[i]);
    }
    free(want);
}

static struct k_ctx *open_device(void)
{
    struct k_ctx *c = NULL;
    char message[256];
    if (glmd_cuda_ops.open(&params, &c, message, sizeof message) != 0)
        fail_msg("%s", message);
    return c;
}

static void test_bytes(void **state)
{
    (void)state;
    static const struct {
        uint32_t rows, cols, group_cols;
    } shapes[] = {{1, 16, 16}, {128, 64, 64}, {300, 130, 130}, {520, 256, 32}, {129, 1000, 125}};
    emulated_driver_reset();
    struct k_ctx *c = open_device();
    struct rng r = {11};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (enum k_weight type = K_WEIGHT_F16; type <= K_WEIGHT_I4; type++)
            for (uint32_t panels = 1; panels <= 3; panels += 2) {
                uint32_t group = type == K_WEIGHT_F16 ? shapes[i].cols : shapes[i].group_cols;
                struct matrix m =
                    matrix_new(&r, type, shapes[i].rows, shapes[i].cols, group, i % 2);
                struct k_linear *l = load(c, &m, panels);
                assert_non_null(l);
                check(l, &m);
                glmd_cuda_ops.linear_free(c, l);
                matrix_free(&m);
            }
    glmd_cuda_ops.close(c);
    assert_nothing_left();
}

/* Every call fails once, at every time it is made: memory that is short is no fault of the device,
 * anything else is told by sync, and nothing is left behind. */
static void test_failures(void **state)
{
    (void)state;
    static const char *const calls[] = {
        "alloc",      "alloc_host", "stream_new", "event_new",         "event_record",
        "event_wait", "copy",       "use",        "stream_wait_event", "stream_wait"};
    struct rng r = {12};
    struct matrix m = matrix_new(&r, K_WEIGHT_I4, 900, 64, 32, true);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        bool short_of = i < 2, failed = true;
        for (int after = 0; failed; after++) {
            assert_true(after < 200);
            emulated_driver_reset();
            struct k_ctx *c = open_device();
            emulated_driver_state()->fail = calls[i];
            emulated_driver_state()->fail_after = after;
            emulated_driver_state()->error =
                short_of ? EMULATED_OUT_OF_MEMORY : EMULATED_ILLEGAL_ADDRESS;
            struct k_linear *l = load(c, &m, 1);
            failed = emulated_driver_state()->fail == NULL;
            emulated_driver_state()->fail = NULL;
            char message[512] = "";
            int rc = glmd_cuda_ops.sync(c, message, sizeof message);
            bool freeing = l && strcmp(calls[i], "use") == 0; /* what is over can be given back */
            if (failed && freeing && rc == 0) {
                check(l, &m);
            } else if (!failed || short_of) {
                if (rc != 0 || !l == !failed)
                    fail_msg("%s, %d: sync gave %d \"%s\"", calls[i], after, rc, message);
            } else if (rc != -EIO || !strstr(message, "an illegal memory access")) {
                fail_msg("%s, %d: sync gave %d \"%s\"", calls[i], after, rc, message);
            }
            if (l)
                glmd_cuda_ops.linear_free(c, l);
            glmd_cuda_ops.close(c);
            assert_nothing_left();
        }
    }
    matrix_free(&m);
}

/* The bus's own rate: so many bytes in pieces by two buffers, behind two that count for nothing; a
 * failure is memory that is short, or the device's, and nothing is left of either. */
static void test_copy_time(void **state)
{
    (void)state;
    const size_t piece = glmd_cuda_ops.feed->piece_bytes;
    static const char *const calls[] = {"none", "alloc_host", "alloc", "copy", "stream_wait"};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        emulated_driver_reset();
        struct k_ctx *c = open_device();
        struct emulated_driver *d = emulated_driver_state();
        uint64_t copies = d->n_copies;
        bool short_of = strstr(calls[i], "alloc") != NULL;
        d->fail = calls[i];
        d->error = short_of ? EMULATED_OUT_OF_MEMORY : EMULATED_ILLEGAL_ADDRESS;
        int64_t ns = -1;
        int rc = glmd_cuda_ops.feed->copy_time(c, 3 * piece + 5, &ns);
        int expected = i == 0 ? 0 : short_of ? -ENOMEM : -EIO;
        char message[256] = "";
        int sync = glmd_cuda_ops.sync(c, message, sizeof message);
        if (rc != expected || sync != (expected == -EIO ? -EIO : 0))
            fail_msg("%s: %d, expected %d; sync %d \"%s\"", calls[i], rc, expected, sync, message);
        if (i == 0) {
            assert_int_equal(d->n_copies - copies, 2 + 4);
            assert_true(ns > 0);
        }
        glmd_cuda_ops.close(c);
        assert_nothing_left();
    }
}

int main(void)
{
    if (!emulated_driver_works())
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_copy_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
