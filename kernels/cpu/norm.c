/* norm.c: LayerNorm or RMSNorm of rows, alone or behind the residual sum. Mean (or zero) first,
 * then the squares of the differences: four partial sums of 16 lanes each, combined in a fixed
 * order.
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
    for (uint32_t i = 0; i < cols; i += VEC) {
        vf *p = &part[i / VEC % PARTS];
        *p = vf_add(*p, vf_load_n(x + i, lanes_left(cols, i)));
    }
    return combine(part) / (float)cols;
}

static float row_variance(const float *x, uint32_t cols, float mean)
{
    vf part[PARTS] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    for (uint32_t i = 0; i < cols; i += VEC) {
        int n = lanes_left(cols, i);
        vf d = vf_select_n(n, vf_sub(vf_load_n(x + i, n), vf_set1(mean)), vf_zero());
        vf *p = &part[i / VEC % PARTS];
        *p = vf_fma(d, d, *p);
    }
    return combine(part) / (float)cols;
}

/* x = alpha * a + r + bias, into r */
static void add_residual(const struct cpu_norm_job *j, const float *a, float *r, uint32_t cols)
{
    for (uint32_t i = 0; i < cols; i += VEC) {
        int n = lanes_left(cols, i);
        vf x = vf_fma(vf_set1(j->alpha), vf_load_n(a + i, n), vf_load_n(r + i, n));
        if (j->bias)
            x = vf_add(x, vf_load_n(j->bias->values + i, n));
        vf_store_n(r + i, x, n);
    }
}

CPU_RANGE_FN(norm, cpu_norm_job)
{
    uint32_t cols = j->norm->cols;
    for (uint64_t row = first; row < end; row++) {
        if (j->a)
            add_residual(j, j->a + row * cols, j->residual + row * cols, cols);
        const float *x = (j->a ? j->residual : j->x) + row * cols;
        float *y = j->y + row * cols;
        float mean = j->norm->kind == K_NORM_RMS ? 0.0f : row_mean(x, cols);
        float inverse = 1.0f / sqrtf(row_variance(x, cols, mean) + j->eps);
        for (uint32_t i = 0; i < cols; i += VEC) {
            int n = lanes_left(cols, i);
            vf d = vf_sub(vf_load_n(x + i, n), vf_set1(mean));
            vf v = vf_fma(vf_mul(d, vf_set1(inverse)), vf_load_n(j->norm->weight + i, n),
                          vf_load_n(j->norm->bias + i, n));
            vf_store_n(y + i, v, n);
        }
    }
}
