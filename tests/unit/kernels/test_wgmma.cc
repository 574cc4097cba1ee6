/* test_wgmma.cc: warpgroups of the emulated GPU (dev_wgmma.h): a kernel that is right, against
 * plain sums, and kernels with each fault that the emulation must find. */
#include "kernels/cuda/dev_wgmma.h"

#include <csetjmp>
#include <cstdarg>
#include <cstdio>
#include <vector>

extern "C" {
#include <cmocka.h>
}

namespace
{

enum {
    RIGHT,
    NO_ASYNC_FENCE,
    NO_FENCE,
    FRAGMENT_WITHOUT_FENCE,
    READ_EARLY,
    FRAGMENT_EARLY,
    NOT_WAITED,
    NOT_COMMITTED,
    CHANGED,
    RACE,
    DIFFERENT,
    MISSING,
    BASE,
    N_FAULTS
};
const char *const found[] = {"",
                             "without dev_async_fence",
                             "accumulators changed",
                             "a fragment changed",
                             "accumulators are read",
                             "a fragment is written",
                             "in flight that it did not wait for",
                             "accumulators are read",
                             "shared memory changed",
                             "race",
                             "different operands",
                             "does not reach",
                             "multiple of 1024"};
static_assert(sizeof found / sizeof *found == N_FAULTS, "a message for each");

struct wgmma_params {
    const uint16_t *a, *b; /* [64][64], [N][64] */
    float *d;              /* [64][N] */
    int fault;
};

/* d = a b^T, 4 steps; all threads copy b, swizzled. */
template <int N> DEV_KERNEL(128, 1) void wgmma_kernel(DEV_PARAMS(wgmma_params) p)
{
    dev_shared<uint4> b = dev_wgmma_aligned(dev_dynamic<uint4>(0, N * 8 + DEV_WGMMA_ALIGN / 16)) +
                          (p.fault == BASE ? 8 : 0);
    const uint32_t lane = dev_lane(), g = lane / 4, t = lane % 4, thread = dev_thread();
    for (uint32_t i = thread; i < N * 8; i += 128)
        dev_copy16(b + (i & ~7u) + (i % 8 ^ i / 8 % 8), p.b + i * 8, true);
    dev_copy_commit();
    dev_copy_wait<0>();
    if (p.fault != NO_ASYNC_FENCE)
        dev_async_fence();
    if (p.fault != RACE)
        dev_barrier();
    dev_accum<N> d;
    dev_fragment a[4];
    d.clear();
    for (int step = 0; step < 4; step++) {
        uint32_t v[4];
        for (uint32_t j = 0; j < 4; j++)
            memcpy(&v[j],
                   p.a + (dev_warp() * 16 + g + j % 2 * 8) * 64 + step * 16 + 2 * t + j / 2 * 8, 4);
        a[step].set(v);
    }
    if (p.fault != NO_FENCE)
        dev_wgmma_fence();
    if (p.fault == NO_FENCE)
        d.clear();
    if (p.fault == FRAGMENT_WITHOUT_FENCE) {
        const uint32_t zeros[4] = {0, 0, 0, 0};
        a[2].set(zeros);
    }
    const uint64_t rows = dev_wgmma_rows(b);
    if (p.fault == MISSING && dev_warp() == 2)
        return;
    for (int step = 0; step < 4; step++)
        dev_wgmma(d, a[step],
                  dev_wgmma_step(rows, p.fault == DIFFERENT && thread == 77 ? 3 - step : step));
    if (p.fault != NOT_COMMITTED)
        dev_wgmma_commit();
    if (p.fault == FRAGMENT_EARLY) {
        const uint32_t zeros[4] = {0, 0, 0, 0};
        a[1].set(zeros);
    }
    if (p.fault == CHANGED) {
        dev_barrier();
        b[thread] = make_uint4(1, 2, 3, 4);
        dev_async_fence();
        dev_barrier();
    }
    if (p.fault == NOT_WAITED)
        return;
    if (p.fault == READ_EARLY)
        dev_wgmma_wait<1>();
    else
        dev_wgmma_wait<0>();
    if (p.fault == RIGHT)
        d.arrived();
    for (uint32_t i = 0; i < N / 2; i++)
        p.d[(dev_warp() * 16 + g + i / 2 % 2 * 8) * N + i / 4 * 8 + 2 * t + i % 2] = d.get((int)i);
}

struct problem {
    uint16_t *a, *b;
    std::vector<float> d;
};

problem problem_of(int n)
{
    problem p = {(uint16_t *)emu_alloc(64 * 64 * 2), (uint16_t *)emu_alloc((size_t)n * 64 * 2), {}};
    for (int i = 0; i < 64 * 64; i++)
        p.a[i] = half_from_float((float)((i * 7 + i / 64) % 23 - 11));
    for (int i = 0; i < n * 64; i++)
        p.b[i] = half_from_float((float)((i * 5 + i / 64 * 3) % 17 - 8));
    p.d.resize((size_t)n * 64);
    return p;
}

template <int N> int run(problem *p, int fault)
{
    struct dev_launch at = {};
    at.grid = {1, 1, 1};
    at.threads = 128;
    at.shared = N * 128 + DEV_WGMMA_ALIGN;
    wgmma_params params = {p->a, p->b, p->d.data(), fault};
    return emu_try_launch(at, wgmma_kernel<N>, params);
}

template <int N> void check_right()
{
    problem p = problem_of(N);
    if (run<N>(&p, RIGHT) != 0)
        fail_msg("%s", emu_message());
    for (int row = 0; row < 64; row++)
        for (int col = 0; col < N; col++) {
            float want = 0;
            for (int k = 0; k < 64; k++)
                want += half_to_float(p.a[row * 64 + k]) * half_to_float(p.b[col * 64 + k]);
            if (p.d[(size_t)(row * N + col)] != want)
                fail_msg("n %d: d[%d][%d] = %g, expected %g", N, row, col,
                         (double)p.d[(size_t)(row * N + col)], (double)want);
        }
    emu_free(p.a);
    emu_free(p.b);
}

void test_right(void **)
{
    check_right<8>();
    check_right<64>();
    check_right<128>();
    check_right<256>();
}

void test_faults(void **)
{
    problem p = problem_of(64);
    for (int fault = RIGHT + 1; fault < N_FAULTS; fault++) {
        int rc = run<64>(&p, fault);
        if (rc == 0 || !strstr(emu_message(), found[fault]))
            fail_msg("fault %d: want \"%s\", got %d \"%s\"", fault, found[fault], rc,
                     emu_message());
        print_message("  %s\n", emu_message());
    }
    emu_free(p.a);
    emu_free(p.b);
}

} // namespace

int main(void)
{
    if (!emu_works() || !DEV_WGMMA) {
        printf("skipped: fibers and ThreadSanitizer do not go together, or no warpgroups\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_right), cmocka_unit_test(test_faults)};
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
