/* norm.c: LayerNorm or RMSNorm of rows, alone or behind the residual sum. Mean (or zero) first,
 * then the squares of the differences: four partial sums of 16 lanes each (vector i counts for sum
 * i % 4), combined in a fixed order.
 *
 * The rows of a long batch come from far caches, so that the first pass over a row, which takes it
 * in, does as much as it can, and the others bring in the next row.
 */
#include "isa.h"

#include <math.h>

enum { PARTS = 4 };

VEC_FN int lanes_left(uint32_t cols, uint32_t i)
{
    return cols - i < VEC ? (int)(cols - i) : VEC;
}

VEC_FN float combine(const vf part[PARTS])
{
    return vf_sum(vf_add(vf_add(part[0], part[1]), vf_add(part[2], part[3])));
}

/* A row as it comes: x, or alpha * a + x + bias, which goes to `sum`. */
struct row_input {
    const float *a, *bias; /* NULL: none */
    const float *x;
    float *sum;
    vf alpha;
};

VEC_FN vf take_in(const struct row_input *in, uint32_t i)
{
    vf x = vf_load(in->x + i);
    if (!in->a)
        return x;
    x = vf_fma(in->alpha, vf_load(in->a + i), x);
    x = in->bias ? vf_add(x, vf_load(in->bias + i)) : x;
    vf_store(in->sum + i, x);
    return x;
}

VEC_FN vf take_in_n(const struct row_input *in, uint32_t i, int n)
{
    vf x = vf_load_n(in->x + i, n);
    if (!in->a)
        return x;
    x = vf_fma(in->alpha, vf_load_n(in->a + i, n), x);
    x = in->bias ? vf_add(x, vf_load_n(in->bias + i, n)) : x;
    vf_store_n(in->sum + i, x, n);
    return x;
}

/* Takes the row in. */
VEC_FN float row_sum(const struct row_input *in, uint32_t cols)
{
    vf part[PARTS] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    uint32_t i = 0;
    for (; i + PARTS * VEC <= cols; i += PARTS * VEC)
        TILE_UNROLL for (uint32_t p = 0; p < PARTS; p++) part[p] =
            vf_add(part[p], take_in(in, i + p * VEC));
    TILE_UNROLL for (uint32_t p = 0; p < PARTS; p++)
    {
        if (i + p * VEC < cols)
            part[p] = vf_add(part[p], take_in_n(in, i + p * VEC, lanes_left(cols, i + p * VEC)));
    }
    return combine(part);
}

/* The squares of the differences from the mean, added up; brings in `next`. */
VEC_FN float row_squares(const float *x, uint32_t cols, float mean, const float *next)
{
    vf part[PARTS] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    const vf m = vf_set1(mean);
    uint32_t i = 0;
    for (; i + PARTS * VEC <= cols; i += PARTS * VEC)
        TILE_UNROLL for (uint32_t p = 0; p < PARTS; p++)
        {
            vf d = vf_sub(vf_load(x + i + p * VEC), m);
            VEC_PREFETCH(next + i + p * VEC);
            part[p] = vf_fma(d, d, part[p]);
        }
    TILE_UNROLL for (uint32_t p = 0; p < PARTS; p++)
    {
        if (i + p * VEC < cols) {
            int n = lanes_left(cols, i + p * VEC);
            vf d = vf_select_n(n, vf_sub(vf_load_n(x + i + p * VEC, n), m), vf_zero());
            part[p] = vf_fma(d, d, part[p]);
        }
    }
    return combine(part);
}

/* y = (x - mean) * inverse * weight + bias; brings in `next` */
VEC_FN void scale_row(const struct k_norm *norm, const float *x, float mean, float inverse,
                      const float *next, float *y)
{
    const vf m = vf_set1(mean), scale = vf_set1(inverse);
    uint32_t i = 0;
    for (; i + VEC <= norm->cols; i += VEC) {
        vf_store(y + i, vf_fma(vf_mul(vf_sub(vf_load(x + i), m), scale), vf_load(norm->weight + i),
                               vf_load(norm->bias + i)));
        VEC_PREFETCH(next + i);
    }
    if (i < norm->cols) {
        int n = lanes_left(norm->cols, i);
        vf d = vf_mul(vf_sub(vf_load_n(x + i, n), m), scale);
        vf_store_n(y + i, vf_fma(d, vf_load_n(norm->weight + i, n), vf_load_n(norm->bias + i, n)),
                   n);
    }
}

CPU_RANGE_FN(norm, cpu_norm_job)
{
    const uint32_t cols = j->norm->cols;
    for (uint64_t row = first; row < end; row++) {
        const size_t at = row * cols, next = at + (row + 1 < end ? cols : 0);
        const struct row_input in = {
            .a = j->a ? j->a + at : NULL,
            .bias = j->bias ? j->bias->values : NULL,
            .x = j->x + at,
            .sum = j->a ? j->sum + at : NULL,
            .alpha = vf_set1(j->alpha),
        };
        const float sum = row_sum(&in, cols), *x = j->a ? in.sum : in.x;
        const float mean = j->norm->kind == K_NORM_RMS ? 0.0f : sum / (float)cols;
        const float variance = row_squares(x, cols, mean, j->x + next) / (float)cols;
        scale_row(j->norm, x, mean, 1.0f / sqrtf(variance + j->eps), (j->a ? j->a : j->x) + next,
                  j->y + at);
    }
}
