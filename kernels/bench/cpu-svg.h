/* cpu-svg.h: shares of the nearer ceiling as a plot: a curve for each matrix and degree, over the
 * batch.
 */
#ifndef GLMD_KERNELS_BENCH_CPU_SVG_H
#define GLMD_KERNELS_BENCH_CPU_SVG_H

#include <stdbool.h>
#include <stdint.h>

struct svg_point {
    const char *matrix;
    uint32_t tp, rows, cols, batch;
    double share;
    bool by_memory; /* the nearer ceiling */
};

/* Points in the order of the table: a curve has one matrix and degree. 0 or -errno. */
int svg_write(const char *path, const char *title, const struct svg_point *points, uint32_t n);

#endif
