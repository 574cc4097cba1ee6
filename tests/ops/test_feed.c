/* test_feed.c: matrices that come piece by piece (kernels/feed.h) have the bytes that int4.h says,
 * whatever the pieces, their order and the threads that bring them. */
#include "harness.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/mem.h"
#include "kernels/feed.h"

/* ---- the layout, one value at a time ---- */

static uint32_t source_value(const struct k_linear_src *src, uint32_t row, uint32_t col)
{
    size_t at = (size_t)row * src->cols + col;
    const uint8_t *data = src->data;
    if (src->type == K_WEIGHT_I4)
        return ((uint32_t)data[at / 2] >> (at % 2 ? 0 : 4) & 15) ^ PACK_I4_ZERO;
    if (src->type == K_WEIGHT_I8)
        return data[at] ^ PACK_I8_ZERO;
    return data[2 * at] | (uint32_t)data[2 * at + 1] << 8;
}

static void put_value(const struct pack_shape *s, uint8_t *data, uint32_t lane, uint32_t k,
                      uint32_t value)
{
    if (s->bits == 4) {
        uint8_t *byte = data + (size_t)k / 8 * PACK_STEP_BYTES + 4 * (size_t)lane + k % 8 / 2;
        *byte |= (uint8_t)(k % 2 ? value : value << 4);
    } else if (s->bits == 8) {
        data[(size_t)k / 4 * PACK_STEP_BYTES + 4 * (size_t)lane + k % 4] = (uint8_t)value;
    } else {
        data[((size_t)k * PACK_LANES + lane) * 2] = (uint8_t)value;
        data[((size_t)k * PACK_LANES + lane) * 2 + 1] = (uint8_t)(value >> 8);
    }
}

/* Padding holds zeros: the zero point of integers. */
static uint8_t *reference(const struct pack_shape *s, const struct k_linear_src *src)
{
    uint8_t *panels = op_malloc(s->matrix_bytes);
    memset(panels, 0, s->matrix_bytes);
    uint32_t zero = s->bits == 4 ? PACK_I4_ZERO : s->bits == 8 ? PACK_I8_ZERO : 0;
    for (uint32_t row = 0; row < s->n_panels * PACK_LANES; row++) {
        uint8_t *panel = panels + (size_t)(row / PACK_LANES) * s->panel_bytes;
        uint32_t lane = row % PACK_LANES;
        for (uint32_t g = 0; g < s->n_groups; g++) {
            for (uint32_t k = 0; k < s->group_pad; k++) {
                uint32_t col = g * s->group_cols + k;
                bool exists = row < s->rows && k < s->group_cols && col < s->cols;
                put_value(s, panel + s->scale_bytes, lane, g * s->group_pad + k,
                          exists ? source_value(src, row, col) : zero);
            }
            if (src->scale && row < s->rows)
                memcpy(panel + ((size_t)g * PACK_LANES + lane) * 2,
                       &src->scale[(size_t)row * s->n_groups + g], 2);
        }
    }
    return panels;
}

static void check(const struct k_linear *l, const uint8_t *want, const char *what)
{
    for (size_t i = 0; i < l->shape.matrix_bytes; i++)
        if (l->panels[i] != want[i])
            fail_msg("%s: %u x %u, %u bits, groups of %u: byte %zu is %02x, expected %02x", what,
                     l->shape.rows, l->shape.cols, l->shape.bits, l->shape.group_cols, i,
                     l->panels[i], want[i]);
}

/* ---- feeding ---- */

struct piece {
    uint32_t first_row, n_rows;
    bool scales;
};

struct job {
    const struct k_feed_ops *ops;
    struct k_feed *feed;
    struct k_linear *l;
    const struct k_linear_src *src;
    struct piece *pieces;
    uint32_t n_pieces;
    _Atomic uint32_t next;
};

struct worker {
    struct job *job;
    pthread_t thread;
    uint32_t idx;
};

static void *feed_main(void *context)
{
    struct worker *w = context;
    struct job *j = w->job;
    size_t row_bytes = (size_t)j->src->cols * j->l->shape.bits / 8;
    for (uint32_t i; (i = j->next++) < j->n_pieces;) {
        const struct piece *p = &j->pieces[i];
        uint8_t *to = (uint8_t *)j->ops->buffer(j->feed, w->idx) + 8 * (i % 3);
        if (p->scales) {
            size_t row = (size_t)j->src->n_groups * 2;
            memcpy(to, (const uint8_t *)j->src->scale + p->first_row * row, p->n_rows * row);
            j->ops->scales(j->feed, w->idx, j->l, p->first_row, p->n_rows, (uint16_t *)(void *)to);
        } else {
            memcpy(to, (const uint8_t *)j->src->data + p->first_row * row_bytes,
                   p->n_rows * row_bytes);
            j->ops->rows(j->feed, w->idx, j->l, p->first_row, p->n_rows, to);
        }
        memset(to, 0xee, 16); /* the piece was handed over */
    }
    return NULL;
}

static void add_pieces(struct job *j, struct rng *r, bool scales, uint32_t most)
{
    uint32_t rows = j->src->rows, unit = j->ops->piece_rows;
    for (uint32_t row = 0; row < rows;) {
        uint32_t n = unit * (1 + rng_below(r, most));
        n = n < rows - row ? n : rows - row;
        j->pieces[j->n_pieces++] = (struct piece){row, n, scales};
        row += n;
    }
}

static void check_feed(struct k_ctx *c, const struct matrix *m, struct rng *r, uint32_t n_threads,
                       uint32_t most)
{
    enum { MAX_PIECES = 256, MAX_THREADS = 4 };
    const struct k_ops *ops = op_cpu();
    struct piece pieces[MAX_PIECES];
    struct worker workers[MAX_THREADS];
    struct k_linear_src shape = m->src;
    shape.data = NULL;
    shape.scale = NULL;
    struct job j = {.ops = ops->feed, .src = &m->src, .pieces = pieces};
    j.l = ops->feed->linear_begin(c, &shape);
    j.feed = ops->feed->feed_new(c, n_threads, (size_t)most * ops->feed->piece_rows * 2048);
    assert_true(j.l && j.feed);
    add_pieces(&j, r, false, most);
    if (m->src.scale)
        add_pieces(&j, r, true, most);
    for (uint32_t i = j.n_pieces; i > 1; i--) { /* in any order */
        uint32_t k = rng_below(r, i);
        struct piece p = pieces[k];
        pieces[k] = pieces[i - 1];
        pieces[i - 1] = p;
    }
    for (uint32_t i = 0; i < n_threads; i++) {
        workers[i] = (struct worker){.job = &j, .idx = i};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, feed_main, &workers[i]), 0);
    }
    for (uint32_t i = 0; i < n_threads; i++)
        pthread_join(workers[i].thread, NULL);
    ops->feed->feed_free(j.feed);

    uint8_t *want = reference(&j.l->shape, &m->src);
    check(j.l, want, "pieces");
    struct k_linear *whole = ops->linear_new(c, &m->src);
    assert_non_null(whole);
    check(whole, want, "as a whole");
    assert_same_bits(j.l->bias, whole->bias, (size_t)whole->shape.n_panels * PACK_LANES, "bias");
    free(want);
    ops->linear_free(c, whole);
    ops->linear_free(c, j.l);
}

static void test_layout(void **state)
{
    (void)state;
    static const struct {
        uint32_t rows, cols, group_cols;
    } shapes[] = {{1, 2, 2},      {16, 64, 64},     {17, 66, 66},   {96, 256, 32},
                  {100, 250, 50}, {47, 130, 130},   {64, 512, 128}, {33, 96, 24},
                  {80, 34, 34},   {129, 1000, 125}, {48, 44, 11},   {31, 1024, 512}};
    struct k_ctx *c = op_open(op_cpu(), NULL, K_MODE_FP32, 2, 4, 1024, 4);
    struct rng r = {7};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (enum k_weight type = K_WEIGHT_F16; type <= K_WEIGHT_I4; type++) {
            struct matrix m =
                matrix_new(&r, type, shapes[i].rows, shapes[i].cols,
                           type == K_WEIGHT_F16 ? shapes[i].cols : shapes[i].group_cols, i % 2);
            check_feed(c, &m, &r, 1, 1);
            check_feed(c, &m, &r, 2, 3);
            check_feed(c, &m, &r, 4, 8);
            matrix_free(&m);
        }
    op_cpu()->close(c);
}

/* Pages are made, contents stay; small areas are left alone. */
static void test_touch(void **state)
{
    (void)state;
    static const size_t sizes[] = {100, 1 << 20, (5 << 20) + 4096, 16 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *p = mem_alloc(sizes[i]);
        assert_non_null(p);
        p[0] = 1;
        p[sizes[i] / 2] = 2;
        p[sizes[i] - 1] = 3;
        for (uint32_t part = 0; part < 3; part++)
            mem_touch(p, sizes[i] * part / 3, sizes[i] * (part + 1) / 3);
        assert_int_equal(p[0], 1);
        assert_int_equal(p[sizes[i] / 2], 2);
        assert_int_equal(p[sizes[i] - 1], 3);
        assert_int_equal(p[sizes[i] / 3], 0);
        mem_free(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_touch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
