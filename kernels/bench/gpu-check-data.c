/* gpu-check-data.c: random inputs, memory and comparisons of gpu-check. */
#include "gpu-check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"

static uint64_t state = 1;

void check_seed(uint64_t seed)
{
    state = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
}

static uint32_t next(void) /* xorshift64* */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)(state * UINT64_C(0x2545f4914f6cdd1d) >> 32);
}

uint32_t check_below(uint32_t n)
{
    return (uint32_t)((uint64_t)next() * n >> 32);
}

static float normal(void)
{
    float sum = -2;
    for (int i = 0; i < 4; i++)
        sum += (float)next() * 0x1p-32f;
    return sum * 1.7320508f;
}

void *check_malloc(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p) {
        fprintf(stderr, "gpu-check: out of memory\n");
        exit(1);
    }
    return p;
}

float *check_random(size_t n, float mean, float scale)
{
    float *x = check_malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = half_round(mean + scale * normal());
    return x;
}

uint16_t *check_halves(size_t n, float mean, float scale)
{
    uint16_t *x = check_malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = half_from_float(mean + scale * normal());
    return x;
}

void *check_device(const float *x, size_t n)
{
    void *p = check_ops->alloc(check_c, n * check_ops->act_bytes(check_c));
    if (!p) {
        fprintf(stderr, "gpu-check: out of memory on the device\n");
        exit(1);
    }
    float *nans = NULL;
    if (!x) {
        nans = check_malloc(n * sizeof *nans);
        for (size_t i = 0; i < n; i++)
            nans[i] = NAN;
    }
    check_ops->upload(check_c, p, x ? x : nans, n);
    free(nans);
    return p;
}

float *check_fetch(const void *x, size_t n)
{
    float *host = check_malloc(n * sizeof *host);
    memset(host, 0xff, n * sizeof *host);
    check_ops->download(check_c, host, x, n);
    return host;
}

void check_drop(void *p)
{
    check_ops->free(check_c, p);
}

double check_error(const float *got, const float *want, size_t n)
{
    double differences = 0, values = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];
        differences += d * d;
        values += (double)want[i] * (double)want[i];
    }
    if (values == 0)
        return differences == 0 ? 0 : INFINITY;
    double error = sqrt(differences / values);
    return isnan(error) ? INFINITY : error;
}
