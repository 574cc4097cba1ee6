/* test_products.cc: the CUDA products, their sources executed on the emulated GPU. Packing on the
 * device against the reference, bit by bit; every kernel against sums in double precision; all
 * kernels, batches and orders of CTAs against each other, bit by bit. */
#include "kernels/cuda/bench.h"
#include "kernels/cuda/dev.h"
#include "kernels/cuda/library.h"
#include "kernels/cuda/linear.h"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" {
#include "tests/ops/harness.h"
#include "tests/support/emulated_blas.h"
}

namespace
{

struct shape {
    enum k_weight type;
    uint32_t rows, cols, group_cols;
    bool bias, glu;
};

const struct shape shapes[] = {
    {K_WEIGHT_I4, 128, 512, 512, true},      {K_WEIGHT_I4, 256, 1088, 1088, false},
    {K_WEIGHT_I4, 136, 3072, 3072, true},    {K_WEIGHT_I4, 1, 2, 2, true},
    {K_WEIGHT_I4, 70, 190, 190, true},       {K_WEIGHT_I4, 40, 320, 64, true},
    {K_WEIGHT_I4, 200, 1152, 32, false},     {K_WEIGHT_I4, 24, 1536, 128, true},
    {K_WEIGHT_I4, 33, 192, 48, true},        {K_WEIGHT_I4, 18, 1026, 114, true},
    {K_WEIGHT_I4, 130, 3072, 1536, true},    {K_WEIGHT_I4, 16, 1040, 520, true},
    {K_WEIGHT_I8, 128, 640, 640, true},      {K_WEIGHT_I8, 31, 510, 510, false},
    {K_WEIGHT_I8, 144, 1536, 64, true},      {K_WEIGHT_I8, 35, 1000, 200, true},
    {K_WEIGHT_I8, 129, 2048, 1024, true},    {K_WEIGHT_F16, 192, 768, 768, false},
    {K_WEIGHT_F16, 257, 330, 330, true},     {K_WEIGHT_F16, 5, 64, 64, true},
    {K_WEIGHT_F16, 128, 2176, 2176, false},  {K_WEIGHT_I4, 384, 640, 640, true, true},
    {K_WEIGHT_I8, 256, 192, 64, true, true}, {K_WEIGHT_F16, 256, 100, 100, true, true},
    {K_WEIGHT_I4, 200, 64, 64, true, true},
};

size_t memory_used; /* blocks */

void *memory_alloc(void *, size_t bytes)
{
    memory_used++;
    return emu_alloc(bytes);
}

void memory_free(void *, void *p)
{
    memory_used--;
    emu_free(p);
}

void memory_upload(void *, void *dst, const void *src, size_t bytes)
{
    memcpy(dst, src, bytes);
}

void memory_download(void *, void *dst, const void *src, size_t bytes)
{
    memcpy(dst, src, bytes);
}

struct linear_device device_of(uint32_t arch, uint32_t n_sms)
{
    struct linear_device d = {};
    d.memory = {nullptr, memory_alloc, memory_free, memory_upload, memory_download};
    d.arch = arch;
    d.n_sms = n_sms;
    d.shared_bytes = arch < 800 ? 64 << 10 : arch < 900 ? 99 << 10 : 227 << 10;
    d.max_rows = 300;
    d.max_cols = 32768;
    return d;
}

uint16_t *device_halves(const std::vector<uint16_t> &v)
{
    uint16_t *p = (uint16_t *)emu_alloc(v.size() * 2);
    memcpy(p, v.data(), v.size() * 2);
    return p;
}

std::vector<uint16_t> random_x(struct rng *r, size_t n)
{
    std::vector<uint16_t> x(n);
    for (uint16_t &v : x)
        v = half_from_float(0.3f + rng_normal(r));
    return x;
}

/* ---- packing ---- */

void check_pack(struct cuda_products *p, const struct shape &at, struct rng *r)
{
    struct matrix m = matrix_new(r, at.type, at.rows, at.cols, at.group_cols, at.bias);
    m.src.glu = at.glu;
    struct k_linear *l = linear_new(p, &m.src);
    assert_non_null(l);
    assert_int_equal(l->shape.pair_rows, at.glu && at.rows % 128 == 0 ? at.rows / 2 : 0);
    for (uint32_t row = 0; row < l->shape.rows; row++)
        assert_int_equal(packed_source_row(&l->shape, packed_row(&l->shape, row)), row);
    std::vector<uint8_t> want(l->shape.bytes);
    linear_pack(&l->shape, &m.src, want.data());
    const uint8_t *got = (const uint8_t *)l->memory;
    size_t data = (size_t)l->shape.n_panels * l->shape.n_blocks * packed_block_bytes(l->shape.bits);
    for (size_t i = 0; i < l->shape.bytes; i++) {
        bool padding = (i >= data && i < l->shape.scale_at);
        if (!padding && got[i] != want[i])
            fail_msg("%ux%u bits %u: byte %zu is %02x, expected %02x", at.rows, at.cols,
                     l->shape.bits, i, got[i], want[i]);
    }
    assert_int_equal(l->shape.bytes, at.group_cols * m.src.n_groups == at.cols
                                         ? linear_bytes(at.type, at.rows, at.cols, m.src.n_groups)
                                         : l->shape.bytes);
    for (uint32_t row = 0; row < at.rows; row++)
        for (uint32_t col = 0; col < at.cols; col++) {
            int32_t q = linear_unpack(&l->shape, got, row, col);
            double s = at.type == K_WEIGHT_F16
                           ? 1
                           : (double)half_to_float(
                                 m.scale[(size_t)row * m.src.n_groups + col / at.group_cols]);
            double v = at.type == K_WEIGHT_F16 ? (double)half_to_float((uint16_t)q) : q * s;
            if (v != m.exact[(size_t)row * at.cols + col])
                fail_msg("%ux%u: weight (%u, %u) is %g, expected %g", at.rows, at.cols, row, col, v,
                         m.exact[(size_t)row * at.cols + col]);
        }
    linear_free(p, l);
    matrix_free(&m);
}

void test_packing(void **)
{
    struct rng r = {1};
    struct linear_device d = device_of(DEV_ARCH, 4);
    struct cuda_products p;
    assert_int_equal(products_init(&p, &d), 0);
    for (const struct shape &at : shapes)
        check_pack(&p, at, &r);
    products_deinit(&p);
}

/* Shapes of GLM-130B: every byte belongs to exactly one weight, as far as samples tell; slices
 * cover all blocks; nothing is padded. */
void check_real_shape(enum k_weight type, uint32_t rows, uint32_t cols, uint32_t group_cols,
                      struct rng *r)
{
    uint32_t n_groups = type == K_WEIGHT_F16 ? 1 : cols / group_cols;
    struct packed_shape s = linear_shape(type, rows, cols, n_groups, group_cols);
    size_t data = (size_t)rows * cols / 8 * s.bits;
    size_t scales = type == K_WEIGHT_F16 ? 0 : (size_t)rows * n_groups * 2;
    assert_int_equal(s.bytes, data + scales + rows * 2);
    assert_true(packed_dense(&s));
    uint32_t next = 0;
    for (uint32_t i = 0; i < s.n_slices; i++) {
        struct packed_slice at = packed_slice_at(&s, i);
        assert_int_equal(at.block, next);
        assert_true(at.n_blocks >= 1 && at.n_blocks <= s.slice_blocks);
        if (!s.short_groups) {
            assert_int_equal(at.block * PACKED_COLS / s.group_pad, at.group);
            assert_int_equal(((at.block + at.n_blocks) * PACKED_COLS - 1) / s.group_pad, at.group);
        }
        next += at.n_blocks;
    }
    assert_int_equal(next, s.n_blocks);
    for (int i = 0; i < 300; i++) {
        uint32_t row = rng_below(r, rows), k = rng_below(r, cols);
        struct packed_place at = packed_place_of(&s, row, k);
        assert_int_equal(packed_source_col(&s, packed_col(&s, k)), k);
        assert_true(at.byte + PACKED_LANE_BYTES <= data && at.bit + s.bits <= 128);
        /* the way back: lane, quad, tile, block, panel from the byte; row and column from those */
        size_t lane = at.byte / 16 % 32, quads = s.bits / 4, quad = at.byte / 512 % quads;
        size_t tile = at.byte / 512 / quads % 8, block = at.byte / 4096 / quads % s.n_blocks;
        size_t panel = at.byte / 4096 / quads / s.n_blocks;
        uint32_t step_bits = 32 * (uint32_t)quads, within = at.bit % step_bits;
        uint32_t step = at.bit / step_bits + (uint32_t)quad * 4 / (uint32_t)quads;
        uint32_t reg = s.bits == 4 ? within % 16 / 4 : within / (2 * s.bits);
        uint32_t e = s.bits == 4 ? within / 16 : within / s.bits % 2;
        assert_int_equal(panel * 128 + tile * 16 + lane / 4 + reg % 2 * 8, row);
        assert_int_equal(block * 64 + step * 16 + lane % 4 * 2 + e + reg / 2 * 8, k);
    }
}

void test_real_shapes(void **)
{
    struct rng r = {2};
    static const uint32_t degrees[] = {1, 2, 4, 8};
    for (uint32_t tp : degrees)
        for (int t = 0; t < 3; t++) {
            enum k_weight type = (enum k_weight)t;
            static const uint32_t groups[] = {0, 32, 64, 128};
            for (uint32_t g : groups) {
                if (type == K_WEIGHT_F16 && g)
                    continue;
                check_real_shape(type, 36864 / tp, 12288, g ? g : 12288, &r);
                check_real_shape(type, 12288, 12288 / tp, g ? g : 12288 / tp, &r);
                check_real_shape(type, 65536 / tp, 12288, g ? g : 12288, &r);
                check_real_shape(type, 12288, 32768 / tp, g ? g : 32768 / tp, &r);
            }
            if (type != K_WEIGHT_F16) { /* one scale for each of 8 published shards */
                check_real_shape(type, 12288, 12288 / tp, 1536, &r);
                check_real_shape(type, 12288, 32768 / tp, 4096, &r);
            }
        }
    for (uint32_t tp : degrees)
        check_real_shape(K_WEIGHT_F16, 150528 / tp, 12288, 12288, &r);
}

/* ---- products ---- */

struct run {
    enum linear_kernel kernel;
    uint32_t tokens;
};
const struct run runs[] = {
    {LINEAR_GEMV, 8},   {LINEAR_SLICE, 16}, {LINEAR_SLICE, 32},  {LINEAR_SLICE, 64},
    {LINEAR_WHOLE, 32}, {LINEAR_WHOLE, 64}, {LINEAR_WHOLE, 128}, {LINEAR_WIDE_SLICE, 64},
    {LINEAR_WIDE, 64},  {LINEAR_WIDE, 128}, {LINEAR_WIDE2, 128},
};

/* Guarded, poisoned output of one kernel; empty when there is no such kernel. */
std::vector<uint16_t> multiply(struct cuda_products *p, const struct k_linear *l, const uint16_t *x,
                               uint32_t n, const struct run &run)
{
    size_t size = (size_t)n * l->shape.rows;
    uint16_t *y = (uint16_t *)emu_alloc(size * 2);
    std::vector<uint16_t> r;
    struct linear_end end = {};
    end.y = y;
    if (linear_run(p, l, x, n, &end, run.kernel, run.tokens) == 0)
        r.assign(y, y + size);
    emu_free(y);
    return r;
}

/* Half a step of the result, and what 24-bit sums that round toward zero lose. */
double bound_of(const struct matrix *m, const uint16_t *x, uint32_t row, double want)
{
    double sums = 0;
    for (uint32_t k = 0; k < m->src.cols; k++)
        sums += fabs(m->exact[(size_t)row * m->src.cols + k] * (double)half_to_float(x[k]));
    return fabs(want) * 0x1p-11 + 0x1p-25 + sums * 2e-6 * (1 + m->src.cols / 4096.0);
}

void check_exact(const struct matrix *m, const std::vector<uint16_t> &x, uint32_t n,
                 const std::vector<uint16_t> &y, const char *what)
{
    uint32_t cols = m->src.cols, rows = m->src.rows;
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t row = 0; row < rows; row++) {
            double want = m->bias ? (double)half_to_float(m->bias[row]) : 0;
            for (uint32_t k = 0; k < cols; k++)
                want += m->exact[(size_t)row * cols + k] *
                        (double)half_to_float(x[(size_t)t * cols + k]);
            double got = (double)half_to_float(y[(size_t)t * rows + row]);
            double bound = bound_of(m, &x[(size_t)t * cols], row, want);
            if (!(fabs(got - want) <= bound))
                fail_msg("%s, type %d %ux%u group %u: y[%u][%u] = %.9g, expected %.9g +- %.2g",
                         what, (int)m->src.type, rows, cols, m->src.group_cols, t, row, got, want,
                         bound);
        }
}

void same_rows(const std::vector<uint16_t> &got, uint32_t first, const std::vector<uint16_t> &want,
               uint32_t n, const struct matrix *m, const char *what, uint32_t tokens)
{
    uint32_t rows = m->src.rows;
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t row = 0; row < rows; row++) {
            uint16_t a = got[(size_t)t * rows + row], b = want[(size_t)(first + t) * rows + row];
            if (a != b)
                fail_msg("%s of %u tokens, type %d %ux%u group %u: y[%u][%u] = %04x, expected %04x",
                         what, tokens, (int)m->src.type, rows, m->src.cols, m->src.group_cols,
                         first + t, row, a, b);
        }
}

/* All kernels over one shape. */
void check_products(struct cuda_products *p, const struct shape &at, struct rng *r)
{
    const uint32_t n = 133;
    struct matrix m = matrix_new(r, at.type, at.rows, at.cols, at.group_cols, at.bias);
    m.src.glu = at.glu;
    struct k_linear *l = linear_new(p, &m.src);
    assert_non_null(l);
    std::vector<uint16_t> x = random_x(r, (size_t)n * at.cols);
    uint16_t *dx = device_halves(x);

    /* the reference of all bits: tokens one at a time */
    std::vector<uint16_t> want;
    const uint32_t n_single = at.rows * at.cols > 100000 ? 5 : 20;
    for (uint32_t t = 0; t < n_single; t++) {
        uint16_t *one = device_halves(
            std::vector<uint16_t>(&x[(size_t)t * at.cols], &x[(size_t)t * at.cols] + at.cols));
        std::vector<uint16_t> y = multiply(p, l, one, 1, {LINEAR_GEMV, 8});
        want.insert(want.end(), y.begin(), y.end());
        emu_free(one);
    }
    check_exact(&m, x, n_single, want, "gemv");

    int n_kernels = 0;
    for (const struct run &run : runs) {
        uint32_t batches[] = {run.kernel == LINEAR_GEMV ? 8u : n,
                              2 + rng_below(r, run.tokens < 12 ? 6 : run.tokens)};
        for (uint32_t batch : batches) {
            if ((run.kernel == LINEAR_SLICE || run.kernel == LINEAR_WIDE_SLICE) &&
                batch > run.tokens)
                batch = run.tokens;
            struct emu_options o = {rng_next(r), 1 + rng_below(r, 3)};
            emu_set_options(&o);
            std::vector<uint16_t> y = multiply(p, l, dx, batch, run);
            if (y.empty())
                continue;
            n_kernels++;
            uint32_t shared = batch < n_single ? batch : n_single;
            same_rows(y, 0, want, shared, &m, linear_kernel_name(run.kernel), run.tokens);
            if (batch > n_single && batch == n) { /* the other tokens, once, for their value */
                std::vector<uint16_t> last_x(&x[(size_t)(n - 1) * at.cols], x.data() + x.size());
                std::vector<uint16_t> last_y(&y[(size_t)(n - 1) * at.rows], y.data() + y.size());
                check_exact(&m, last_x, 1, last_y, linear_kernel_name(run.kernel));
            }
        }
    }
    /* of each shape; some are too large for sm_75 */
    assert_true(n_kernels >= (DEV_ARCH < 800                            ? 8
                              : DEV_ARCH < 900 || l->shape.short_groups ? 10
                                                                        : 14));
    emu_free(dx);
    linear_free(p, l);
    matrix_free(&m);
}

void test_products(void **)
{
    struct rng r = {3};
    struct linear_device d = device_of(DEV_ARCH, 4);
    d.shared_bytes = DEV_ARCH < 800 ? 64 << 10 : DEV_ARCH < 900 ? 163 << 10 : 227 << 10;
    struct cuda_products p;
    assert_int_equal(products_init(&p, &d), 0);
    for (const struct shape &at : shapes)
        check_products(&p, at, &r);
    assert_int_equal(p.error, 0);
    products_deinit(&p);
}

/* What linear_multiply chooses on small and large chips, halves and floats: the same values. */
void test_choice(void **)
{
    struct rng r = {4};
    struct matrix m = matrix_new(&r, K_WEIGHT_I4, 300, 1024, 1024, true);
    const uint32_t n = 70;
    std::vector<uint16_t> x = random_x(&r, (size_t)n * 1024), want;
    uint16_t *dx = device_halves(x);
    static const uint32_t chips[] = {1, 2, 4, 200};
    for (uint32_t n_sms : chips) {
        struct linear_device d = device_of(DEV_ARCH, n_sms);
        d.warpgroups = n_sms != 2;
        struct cuda_products p;
        assert_int_equal(products_init(&p, &d), 0);
        assert_int_equal(p.device.warpgroups, d.warpgroups && DEV_ARCH == 900);
        struct k_linear *l = linear_new(&p, &m.src);
        static const uint32_t batches[] = {70, 33, 9, 8, 1};
        for (uint32_t batch : batches) {
            size_t size = (size_t)batch * 300;
            uint16_t *y = (uint16_t *)emu_alloc(size * 2);
            float *yf = (float *)emu_alloc(size * 4);
            struct linear_end halves = {}, floats = {};
            halves.y = y;
            floats.kind = LINEAR_FLOATS;
            floats.y = yf;
            assert_int_equal(linear_multiply(&p, l, dx, batch, &halves), 0);
            assert_int_equal(linear_multiply(&p, l, dx, batch, &floats), 0);
            std::vector<uint16_t> got(y, y + size);
            if (want.empty())
                want = got;
            same_rows(got, 0, want, batch, &m, "chosen kernel", n_sms);
            for (size_t i = 0; i < size; i++)
                assert_int_equal(half_from_float(yf[i]), y[i]);
            emu_free(y);
            emu_free(yf);
        }
        linear_free(&p, l);
        products_deinit(&p);
    }
    emu_free(dx);
    matrix_free(&m);
}

/* Plans of GLM-130B's shapes: they exist, fit the memory, and keep within their bounds. */
void test_plans(void **)
{
    static const uint32_t chips[][3] = {/* arch, SMs, KiB of a CTA */
                                        {750, 68, 64},   {800, 108, 163}, {860, 82, 99},
                                        {890, 128, 99},  {900, 132, 227}, {1000, 148, 227},
                                        {1200, 188, 99}, {1200, 20, 99}};
    static const uint32_t matrices[][3] = {/* rows, cols, whether rows are divided */
                                           {36864, 12288, 1},
                                           {12288, 12288, 0},
                                           {65536, 12288, 1},
                                           {12288, 32768, 0},
                                           {150528, 12288, 1}};
    for (const auto &chip : chips)
        for (uint32_t tp = 1; tp <= 8; tp *= 2)
            for (const auto &m : matrices)
                for (int t = 0; t < 3; t++) {
                    struct linear_device d = device_of(chip[0], chip[1]);
                    d.shared_bytes = chip[2] << 10;
                    d.warpgroups = chip[0] == 900;
                    struct packed_shape s = linear_shape((enum k_weight)t, m[0] / (m[2] ? tp : 1),
                                                         m[1] / (m[2] ? 1 : tp), 1, 0);
                    size_t bound = linear_partial_bound(&s, 2048);
                    for (uint32_t n = 1; n <= 2048; n += n < 70 ? 1 : 111) {
                        struct linear_plan p = linear_plan_for(&d, &s, n);
                        assert_true(p.shared_bytes + 1024 <= d.shared_bytes);
                        assert_true(p.partial_bytes <= bound);
                        assert_true(p.tokens >= n || p.kernel == LINEAR_WHOLE ||
                                    p.kernel == LINEAR_WIDE || p.kernel == LINEAR_WIDE2);
                        assert_true(p.kernel < LINEAR_WIDE_SLICE || chip[0] == 900);
                        assert_true(p.n_ctas >= 1 && p.n_threads >= 128);
                    }
                    assert_true(bound <= LINEAR_MAX_PARTIALS);
                }
}

void test_embed_and_gather(void **)
{
    struct rng r = {5};
    static const uint32_t widths[] = {64, 330, 1025};
    for (uint32_t cols : widths) {
        struct linear_device d = device_of(DEV_ARCH, 4);
        struct cuda_products p;
        assert_int_equal(products_init(&p, &d), 0);
        struct matrix m = matrix_new(&r, K_WEIGHT_F16, 150, cols, cols, false);
        struct k_linear *l = linear_new(&p, &m.src);
        static const int32_t ids[] = {1000, 1149, 999, 1150, -1, 1077, 1000};
        const uint32_t n = sizeof ids / sizeof *ids;
        int32_t *dids = (int32_t *)emu_alloc(sizeof ids);
        memcpy(dids, ids, sizeof ids);
        uint16_t *y = (uint16_t *)emu_alloc((size_t)n * cols * 2);
        linear_embed(&p, l, 1000, dids, n, y);
        const uint16_t *table = (const uint16_t *)m.src.data;
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t k = 0; k < cols; k++) {
                bool inside = ids[i] >= 1000 && ids[i] < 1150;
                uint16_t want = inside ? table[(size_t)(ids[i] - 1000) * cols + k] : 0;
                assert_int_equal(y[(size_t)i * cols + k], want);
            }
        static const uint32_t rows[] = {6, 0, 0, 5};
        uint32_t *drows = (uint32_t *)emu_alloc(sizeof rows);
        memcpy(drows, rows, sizeof rows);
        uint16_t *z = (uint16_t *)emu_alloc((size_t)4 * cols * 2);
        linear_gather(&p, y, cols, drows, 4, z);
        for (uint32_t i = 0; i < 4; i++)
            assert_memory_equal(z + (size_t)i * cols, y + (size_t)rows[i] * cols, cols * 2);
        emu_free(dids);
        emu_free(y);
        emu_free(drows);
        emu_free(z);
        linear_free(&p, l);
        products_deinit(&p);
        matrix_free(&m);
    }
}

/* Panels back to rows: fp16(q * scale), for every kind of matrix. */
void test_expand(void **)
{
    struct rng r = {7};
    struct linear_device d = device_of(DEV_ARCH, 4);
    struct cuda_products p;
    assert_int_equal(products_init(&p, &d), 0);
    for (const struct shape &at : shapes) {
        struct matrix m = matrix_new(&r, at.type, at.rows, at.cols, at.group_cols, at.bias);
        m.src.glu = at.glu;
        struct k_linear *l = linear_new(&p, &m.src);
        uint32_t n_panels = l->shape.n_panels, pair_rows = l->shape.pair_rows;
        for (uint32_t first = 0; first < n_panels; first++) {
            uint32_t row0 = first * PACKED_ROWS;
            size_t size = (size_t)(at.rows - row0) * at.cols;
            uint16_t *to = (uint16_t *)emu_alloc(size * 2);
            assert_int_equal(linear_expand(l, first, n_panels - first, to, nullptr), 0);
            for (size_t i = 0; i < size; i++) {
                uint32_t row = (uint32_t)(i / at.cols);
                size_t from = (size_t)(row0 + row) * at.cols + i % at.cols;
                if (pair_rows) { /* of the first half, then of the second */
                    uint32_t half = (n_panels - first) * PACKED_HALF;
                    row = row / half * pair_rows + first * PACKED_HALF + row % half;
                    from = (size_t)row * at.cols + i % at.cols;
                }
                if ((double)half_to_float(to[i]) != m.rounded[from])
                    fail_msg("%ux%u type %d: weight %zu is %g, expected %g", at.rows, at.cols,
                             (int)at.type, i, (double)half_to_float(to[i]), m.rounded[from]);
            }
            emu_free(to);
        }
        linear_free(&p, l);
        matrix_free(&m);
    }
    products_deinit(&p);
}

/* Long products through the library, where that was asked for: the published weights, fp16(q *
 * scale); everything else as ever. */
void test_library(void **)
{
    struct rng r = {8};
    struct linear_device d = device_of(DEV_ARCH, 4);
    struct cuda_products own, p;
    const size_t before = memory_used;
    assert_int_equal(products_init(&own, &d), 0);
    d.library_rows = 20;
    emulated_blas_state()->missing = true;
    assert_int_equal(products_init(&p, &d), -ENOSYS);
    products_deinit(&p);
    emulated_blas_state()->missing = false;
    assert_int_equal(products_init(&p, &d), 0);
    for (const shape &at : {shape{K_WEIGHT_I4, 256, 512, 512, true, true},
                            shape{K_WEIGHT_I8, 200, 384, 128, true, false}}) {
        struct matrix m = matrix_new(&r, at.type, at.rows, at.cols, at.group_cols, at.bias);
        m.src.glu = at.glu;
        struct k_linear *l = linear_new(&p, &m.src), *same = linear_new(&own, &m.src);
        const uint32_t n = 40;
        std::vector<uint16_t> x = random_x(&r, (size_t)n * at.cols);
        uint16_t *dx = device_halves(x), *y = (uint16_t *)emu_alloc((size_t)n * at.rows * 2);
        struct linear_end end = {};
        end.y = y;
        auto product = [&](struct cuda_products *q, struct k_linear *w, uint32_t batch) {
            assert_int_equal(linear_multiply(q, w, dx, batch, &end), 0);
            return std::vector<uint16_t>(y, y + (size_t)batch * at.rows);
        };
        const uint64_t calls = emulated_blas_state()->n_products;
        std::vector<uint16_t> got = product(&p, l, n);
        assert_true(emulated_blas_state()->n_products > calls);
        std::swap(m.exact, m.rounded);
        check_exact(&m, x, n, got, "library");
        std::swap(m.exact, m.rounded);
        /* short ones, and all of them when it knows no way, have the bits of the own kernels */
        const uint64_t after = emulated_blas_state()->n_products;
        std::vector<uint16_t> want = product(&own, same, n);
        same_rows(product(&p, l, 19), 0, want, 19, &m, "below the threshold", 19);
        emulated_blas_state()->refuses = true;
        same_rows(product(&p, l, n), 0, want, n, &m, "refused", n);
        emulated_blas_state()->refuses = false;
        assert_int_equal(emulated_blas_state()->n_products, after);
        if (at.glu) { /* what the library cannot do is left to the separate operations */
            end.kind = LINEAR_GLU;
            assert_int_equal(linear_multiply(&p, l, dx, n, &end), -ENOTSUP);
            assert_int_equal(linear_multiply(&p, l, dx, 19, &end), 0);
        }
        emu_free(dx);
        emu_free(y);
        linear_free(&p, l);
        linear_free(&own, same);
        matrix_free(&m);
    }
    assert_int_equal(p.error, 0);
    products_deinit(&p);
    products_deinit(&own);
    assert_int_equal(memory_used, before);
}

/* What gpu-speed measures ceilings with does what it says, at sizes with remainders. */
void test_bench_kernels(void **)
{
    static const size_t sizes[] = {16, 4096, 16 * 5003, 1 << 20};
    for (size_t bytes : sizes) {
        uint32_t *from = (uint32_t *)emu_alloc(bytes), *to = (uint32_t *)emu_alloc(bytes);
        uint32_t *word = (uint32_t *)emu_alloc(4);
        word[0] = 0;
        assert_int_equal(bench_noise(from, bytes, 7, true, nullptr), 0);
        assert_int_equal(bench_copy(to, from, bytes, 2, nullptr), 0);
        assert_memory_equal(from, to, bytes);
        assert_int_equal(bench_read(from, bytes, word, 2, nullptr), 0);
        uint32_t sum = 0;
        for (size_t i = 0; i < bytes / 4; i += 4)
            sum += from[i] ^ from[i + 1] ^ from[i + 2] ^ from[i + 3];
        assert_int_equal(word[0], sum);
        for (size_t i = 0; i < bytes / 2; i++) {
            float v = half_to_float(((const uint16_t *)from)[i]);
            assert_true(fabsf(v) >= 0.0625f && fabsf(v) < 0.125f);
        }
        assert_int_equal(bench_fill(to, bytes / 2, 0x1400, nullptr), 0);
        for (size_t i = 0; i < bytes / 2; i++)
            assert_int_equal(((const uint16_t *)to)[i], 0x1400);
        emu_free(from);
        emu_free(to);
        emu_free(word);
    }
}

/* Memory runs out at the n-th block: NULL, and nothing is lost. */
int fail_at;

void *failing_alloc(void *arg, size_t bytes)
{
    return fail_at-- == 0 ? nullptr : memory_alloc(arg, bytes);
}

void test_out_of_memory(void **)
{
    struct rng r = {6};
    struct matrix m = matrix_new(&r, K_WEIGHT_I4, 256, 8192, 8192, true);
    size_t before = memory_used;
    int failures = 0;
    for (int n = 0;; n++) {
        struct linear_device d = device_of(DEV_ARCH < 900 ? DEV_ARCH : 800, 4);
        d.memory.alloc = failing_alloc;
        fail_at = n;
        struct cuda_products p;
        int rc = products_init(&p, &d);
        struct k_linear *l = rc ? nullptr : linear_new(&p, &m.src);
        bool done = l != nullptr;
        failures += !done;
        if (done)
            assert_true(products_bytes(&p) <= linear_product_bytes(&l->shape, d.max_rows) +
                                                  linear_staging_bytes(&l->shape));
        linear_free(&p, l);
        products_deinit(&p);
        assert_int_equal(memory_used, before);
        if (done)
            break;
    }
    assert_int_equal(failures, 4); /* counters, matrix, partial sums, staging */
    matrix_free(&m);
}

} // namespace

int main(void)
{
    if (!emu_works()) {
        printf("skipped: fibers and ThreadSanitizer do not go together\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packing),       cmocka_unit_test(test_real_shapes),
        cmocka_unit_test(test_products),      cmocka_unit_test(test_choice),
        cmocka_unit_test(test_plans),         cmocka_unit_test(test_embed_and_gather),
        cmocka_unit_test(test_expand),        cmocka_unit_test(test_bench_kernels),
        cmocka_unit_test(test_out_of_memory), cmocka_unit_test(test_library),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
