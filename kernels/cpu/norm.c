/* norm.c: LayerNorm or RMSNorm of rows, alone or behind the residual sum. Mean (or zero) first,
 * then the squares of the differences: four partial sums of 16 lanes each (vector i counts for sum
 * i % 4), combined in a fixed order.
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

static float row_mean(const float *x, uint32_t cols)
{
    vf part[PARTS] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    uint32_t i = 0;
    for (; i + PARTS * VEC <= cols; i += PARTS * VEC)
        TILE_UNROLL for (uint32_t p = 0; p < PARTS; p++) part[p] =
            vf_add(part[p], vf_load(x + i + p * VEC));
    TILE_UNROLL for (uint32_t p = 0; p < PARTS; p++)
    {
        if (i + p * VEC < cols)
            part[p] = vf_add(part[p], vf_load_n(x + i + p * VEC, lanes_left(cols, i + p * VEC)));
    }
    return combine(part) / (float)cols;
}

static float row_variance(const float *x, uint32_t cols, float mean)
{
    vf part[PARTS] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    const vf m = vf_set1(mean);
    uint32_t i = 0;
    for (; i + PARTS * VEC <= cols; i += PARTS * VEC)
        TILE_UNROLL for (uint32_t p = 0; p < PARTS; p++)
        {
            vf d = vf_sub(vf_load(x + i + p * VEC), m);
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
    return combine(part) / (float)cols;
}

/* x = alpha * a + r + bias, into r */
static void add_residual(const struct cpu_norm_job *j, const float *a, float *r, uint32_t cols)
{
    const vf alpha = vf_set1(j->alpha);
    const float *bias = j->bias ? j->bias->values : NULL;
    uint32_t i = 0;
    for (; i + VEC <= cols; i += VEC) {
        vf x = vf_fma(alpha, vf_load(a + i), vf_load(r + i));
        vf_store(r + i, bias ? vf_add(x, vf_load(bias + i)) : x);
    }
    if (i < cols) {
        int n = lanes_left(cols, i);
        vf x = vf_fma(alpha, vf_load_n(a + i, n), vf_load_n(r + i, n));
        vf_store_n(r + i, bias ? vf_add(x, vf_load_n(bias + i, n)) : x, n);
    }
}

/* y = (x - mean) * inverse * weight + bias */
static void scale_row(const struct k_norm *norm, const float *x, float mean, float inverse,
                      float *y)
{
    const vf m = vf_set1(mean), scale = vf_set1(inverse);
    uint32_t i = 0;
    for (; i + VEC <= norm->cols; i += VEC)
        vf_store(y + i, vf_fma(vf_mul(vf_sub(vf_load(x + i), m), scale), vf_load(norm->weight + i),
                               vf_load(norm->bias + i)));
    if (i < norm->cols) {
        int n = lanes_left(norm->cols, i);
        vf d = vf_mul(vf_sub(vf_load_n(x + i, n), m), scale);
        vf_store_n(y + i, vf_fma(d, vf_load_n(norm->weight + i, n), vf_load_n(norm->bias + i, n)),
                   n);
    }
}

CPU_RANGE_FN(norm, cpu_norm_job)
{
    uint32_t cols = j->norm->cols;
    for (uint64_t row = first; row < end; row++) {
        if (j->a)
            add_residual(j, j->a + row * cols, j->residual + row * cols, cols);
        const float *x = (j->a ? j->residual : j->x) + row * cols;
        float mean = j->norm->kind == K_NORM_RMS ? 0.0f : row_mean(x, cols);
        float inverse = 1.0f / sqrtf(row_variance(x, cols, mean) + j->eps);
        scale_row(j->norm, x, mean, inverse, j->y + row * cols);
    }
}
