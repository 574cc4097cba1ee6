/* test_emu.cc: the emulated GPU itself: small kernels that are right, and kernels with each fault
 * that it must find. */
#include "kernels/cuda/dev.h"

#include <csetjmp>
#include <cstdarg>
#include <cstdio>
#include <vector>

extern "C" {
#include <cmocka.h>
}

namespace
{

/* ---- kernels that are right ---- */

struct reverse_params {
    const float *x;
    float *y;
    uint32_t n;
};

/* y[i] = x[n - 1 - i] per CTA, through shared memory. */
DEV_KERNEL(128, 1) void reverse_kernel(DEV_PARAMS(reverse_params) p)
{
    DEV_SHARED(float, tile, 128);
    uint32_t i = dev_cta_x() * 128 + dev_thread();
    tile[dev_thread()] = i < p.n ? p.x[i] : 0.0f;
    dev_barrier();
    float v = tile[127 - dev_thread()];
    if (i < p.n)
        p.y[i] = v;
}

struct warp_params {
    uint32_t *out; /* [5][32] */
    float *sum;
};

DEV_KERNEL(32, 1) void warp_kernel(DEV_PARAMS(warp_params) p)
{
    unsigned lane = dev_lane();
    p.out[lane] = dev_shfl(lane * 10, (lane + 1) % 32);
    p.out[32 + lane] = dev_shfl_xor(lane, 5);
    p.out[64 + lane] = dev_ballot(lane % 3 == 0);
    p.out[96 + lane] = dev_shfl_up(lane, 4);
    p.out[128 + lane] = dev_shfl_down(lane, 30);
    float s = dev_warp_sum((float)lane);
    if (lane == 7)
        *p.sum = s + dev_bits_float(0) * dev_warp_max(1.0f);
    else
        dev_warp_max(1.0f);
}

struct mma_params {
    const uint16_t *a, *b; /* [16][16], [8][16] */
    float *c;              /* [16][8] */
};

/* Fragments of a by ldmatrix, of b by hand. */
DEV_KERNEL(32, 1) void mma_kernel(DEV_PARAMS(mma_params) p)
{
    DEV_SHARED(uint4, tile, 32);
    unsigned lane = dev_lane(), g = lane / 4, t = lane % 4;
    unsigned row = lane % 16, half = lane / 16;
    dev_copy16(tile + row * 2 + half, p.a + row * 16 + half * 8, true);
    dev_copy_commit();
    dev_copy_wait<0>();
    dev_barrier();
    uint32_t a[4];
    dev_ldmatrix4(a, tile + row * 2 + half);
    uint32_t b0, b1;
    memcpy(&b0, p.b + g * 16 + 2 * t, 4);
    memcpy(&b1, p.b + g * 16 + 2 * t + 8, 4);
    float c[4] = {0, 0, 0, 0};
    dev_mma_16816(c, a, b0, b1);
    for (unsigned j = 0; j < 4; j++)
        p.c[(g + j / 2 * 8) * 8 + 2 * t + j % 2] = c[j];
}

struct last_params {
    uint32_t *count, *last;
};

/* Exactly one CTA is the last one. */
DEV_KERNEL(64, 1) void last_kernel(DEV_PARAMS(last_params) p)
{
    DEV_SHARED(uint32_t, is_last, 1);
    if (dev_thread() == 0)
        is_last[0] = dev_atomic_add(p.count, 1) == dev_grid_x() - 1;
    dev_barrier();
    if (is_last[0] && dev_thread() == 63)
        dev_atomic_add(p.last, 1);
}

struct wait_params {
    uint32_t *flags; /* [CTAs] */
};

/* Every CTA waits for its neighbour's flag: they must be in flight together. */
DEV_KERNEL(32, 1) void wait_kernel(DEV_PARAMS(wait_params) p)
{
    if (dev_thread() == 0) {
        dev_store_release(p.flags + dev_cta_x(), 1);
        const uint32_t *other = p.flags + (dev_cta_x() + 1) % dev_grid_x();
        while (!dev_load_acquire(other))
            dev_spin();
    }
    dev_barrier();
}

/* ---- kernels with a fault ---- */

struct fault_params {
    int fault;
    float *memory;
};

enum {
    RACE,
    READ_RACE,
    WARP_RACE,
    BOUNDS,
    DIVERGENT_BARRIER,
    LANE_MISSING,
    MIXED,
    NOT_WAITED,
    MISALIGNED,
    DYNAMIC,
    SPIN,
    TWO_BARRIERS,
    N_FAULTS
};
const char *const found[] = {"race",
                             "race",
                             "race",
                             "out of bounds",
                             "does not reach",
                             "does not reach",
                             "while other lanes",
                             "did not wait",
                             "multiple of",
                             "dynamic shared",
                             "does not happen",
                             "the barrier of line"};
static_assert(sizeof found / sizeof *found == N_FAULTS, "a message for each");

DEV_KERNEL(64, 1) void fault_kernel(DEV_PARAMS(fault_params) p)
{
    DEV_SHARED(uint32_t, tile, 64);
    DEV_SHARED(uint4, wide, 64);
    unsigned i = dev_thread();
    tile[i] = i;
    if (p.fault == RACE)
        tile[i] = tile[63 - i];
    dev_barrier();
    if (p.fault == READ_RACE) {
        uint32_t v = tile[0];
        if (i == 32)
            tile[0] = v + 1;
    }
    if (p.fault == WARP_RACE)
        tile[i ^ 1] = tile[i];
    if (p.fault == BOUNDS)
        tile[i + 1] = 0;
    if (p.fault == DIVERGENT_BARRIER && i != 40)
        dev_barrier();
    if (p.fault == LANE_MISSING && i % 32 != 3)
        dev_shfl(i, 0);
    if (p.fault == MIXED) {
        if (i % 2)
            dev_shfl(i, 0);
        else
            dev_ballot(true);
    }
    if (p.fault == NOT_WAITED && DEV_ARCH >= 800)
        dev_copy16(wide + i, p.memory, true);
    if (p.fault == MISALIGNED)
        dev_load16(p.memory + 1);
    if (p.fault == DYNAMIC)
        dev_dynamic<float>(64, 64);
    if (p.fault == SPIN)
        while (i == 0)
            dev_spin();
    if (p.fault == TWO_BARRIERS) {
        if (i < 32)
            dev_barrier();
        else
            dev_barrier();
    }
}

/* Right: the same as WARP_RACE with the order that it lacks. */
DEV_KERNEL(64, 1) void ordered_kernel(DEV_PARAMS(fault_params))
{
    DEV_SHARED(uint32_t, tile, 64);
    unsigned i = dev_thread();
    tile[i] = i;
    dev_warp_sync();
    uint32_t v = tile[i ^ 1];
    dev_warp_sync();
    tile[i ^ 1] = v;
}

struct dev_launch launch_of(unsigned ctas, unsigned threads)
{
    struct dev_launch at = {};
    at.grid = {ctas, 1, 1};
    at.threads = threads;
    return at;
}

void test_shared_and_order(void **)
{
    for (uint64_t seed = 0; seed < 3; seed++) {
        struct emu_options o = {seed, seed == 2 ? 2u : 1u};
        emu_set_options(&o);
        const uint32_t n = 1000;
        float *x = (float *)emu_alloc(n * 4), *y = (float *)emu_alloc(n * 4);
        for (uint32_t i = 0; i < n; i++)
            x[i] = (float)i;
        reverse_params p = {x, y, n};
        assert_int_equal(emu_try_launch(launch_of(8, 128), reverse_kernel, p), 0);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t from = i / 128 * 128 + 127 - i % 128;
            assert_true(y[i] == (from < n ? (float)from : 0.0f));
        }
        emu_free(x);
        emu_free(y);
    }
}

void test_warp_operations(void **)
{
    uint32_t out[5 * 32];
    float sum;
    warp_params p = {out, &sum};
    assert_int_equal(emu_try_launch(launch_of(1, 32), warp_kernel, p), 0);
    for (uint32_t i = 0; i < 32; i++) {
        assert_int_equal(out[i], (i + 1) % 32 * 10);
        assert_int_equal(out[32 + i], i ^ 5);
        assert_int_equal(out[64 + i], 0x49249249);
        assert_int_equal(out[96 + i], i < 4 ? i : i - 4);
        assert_int_equal(out[128 + i], i < 2 ? i + 30 : i);
    }
    assert_true(sum == 496.0f);
}

void test_mma(void **)
{
    uint16_t *a = (uint16_t *)emu_alloc(512), *b = (uint16_t *)emu_alloc(256);
    float c[128];
    for (int i = 0; i < 256; i++)
        a[i] = half_from_float((float)((i * 7) % 23 - 11));
    for (int i = 0; i < 128; i++)
        b[i] = half_from_float((float)((i * 5) % 17 - 8));
    mma_params p = {a, b, c};
    if (emu_try_launch(launch_of(1, 32), mma_kernel, p) != 0)
        fail_msg("%s", emu_message());
    for (int row = 0; row < 16; row++)
        for (int col = 0; col < 8; col++) {
            float want = 0;
            for (int k = 0; k < 16; k++)
                want += half_to_float(a[row * 16 + k]) * half_to_float(b[col * 16 + k]);
            assert_true(c[row * 8 + col] == want);
        }
    emu_free(a);
    emu_free(b);
}

void test_ctas(void **)
{
    uint32_t count = 0, last = 0;
    last_params p = {&count, &last};
    struct emu_options o = {99, 3};
    emu_set_options(&o);
    assert_int_equal(emu_try_launch(launch_of(13, 64), last_kernel, p), 0);
    assert_int_equal(count, 13);
    assert_int_equal(last, 1);

    uint32_t flags[4] = {0};
    wait_params w = {flags};
    o = {0, 0}; /* all at once */
    emu_set_options(&o);
    assert_int_equal(emu_try_launch(launch_of(4, 32), wait_kernel, w), 0);
    memset(flags, 0, sizeof flags);
    o = {0, 1};
    emu_set_options(&o);
    assert_int_equal(emu_try_launch(launch_of(4, 32), wait_kernel, w), -1);
}

DEV_KERNEL(32, 1) void static_kernel(DEV_PARAMS(fault_params))
{
    DEV_SHARED(uint32_t, word, 1);
    if (dev_thread() == 0)
        word[0] = 1;
}

/* 48 KiB are there for the asking of nobody, static shared memory included; then what was asked for
 * is the limit. */
void test_shared_limit(void **)
{
    fault_params p = {};
    struct dev_launch at = launch_of(1, 32);
    at.shared = (48 << 10) - 16;
    assert_int_equal(emu_try_launch(at, static_kernel, p), 0);
    at.shared = 48 << 10;
    assert_int_equal(emu_try_launch(at, static_kernel, p), -1);
    print_message("  %s\n", emu_message());
    assert_int_equal(dev_allow_shared(static_kernel, 48 << 10), cudaSuccess);
    assert_int_equal(emu_try_launch(at, static_kernel, p), 0);
    at.shared += 16;
    assert_int_equal(emu_try_launch(at, static_kernel, p), -1);
    assert_int_not_equal(dev_allow_shared(static_kernel, 300 << 10), cudaSuccess);
}

void test_faults(void **)
{
    struct emu_options o = {0, 1};
    emu_set_options(&o);
    float *memory = (float *)emu_alloc(1024);
    for (int fault = 0; fault < N_FAULTS; fault++) {
        if (fault == NOT_WAITED && DEV_ARCH < 800)
            continue;
        fault_params p = {fault, memory};
        int rc = emu_try_launch(launch_of(1, 64), fault_kernel, p);
        if (rc == 0 || !strstr(emu_message(), found[fault]))
            fail_msg("fault %d: want \"%s\", got %d \"%s\"", fault, found[fault], rc,
                     emu_message());
        print_message("  %s\n", emu_message());
    }
    fault_params p = {-1, memory};
    assert_int_equal(emu_try_launch(launch_of(1, 64), fault_kernel, p), 0);
    assert_int_equal(emu_try_launch(launch_of(1, 64), ordered_kernel, p), 0);
    assert_int_equal(emu_try_launch(launch_of(1, 33), ordered_kernel, p), -1);
    struct dev_launch much = launch_of(1, 64);
    much.shared = 300 << 10;
    assert_int_equal(emu_try_launch(much, ordered_kernel, p), -1);
    emu_free(memory);
}

} // namespace

int main(void)
{
    if (!emu_works()) {
        printf("skipped: fibers and ThreadSanitizer do not go together\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shared_and_order),
        cmocka_unit_test(test_warp_operations),
        cmocka_unit_test(test_mma),
        cmocka_unit_test(test_ctas),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_shared_limit),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
