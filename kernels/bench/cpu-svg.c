/* cpu-svg.c: see cpu-svg.h. */
#include "cpu-svg.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { LEFT = 56, TOP = 44, WIDTH = 560, HEIGHT = 300, RIGHT = 200, BOTTOM = 44 };

static const char *const colours[] = {"#1f77b4", "#d62728", "#2ca02c", "#9467bd",
                                      "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f"};
enum { N_COLOURS = sizeof colours / sizeof *colours };

struct plot {
    FILE *f;
    double largest_batch, top;
};

static double x_of(const struct plot *p, uint32_t batch)
{
    return LEFT + WIDTH * (p->largest_batch > 1 ? log2(batch) / log2(p->largest_batch) : 0.5);
}

static double y_of(const struct plot *p, double share)
{
    return TOP + HEIGHT * (1 - share / p->top);
}

static bool same_curve(const struct svg_point *a, const struct svg_point *b)
{
    return strcmp(a->matrix, b->matrix) == 0 && a->tp == b->tp && a->rows == b->rows;
}

static void draw_axes(const struct plot *p, const char *title)
{
    fprintf(p->f, "<text x=\"%d\" y=\"22\" font-size=\"14\">%s</text>\n", LEFT, title);
    for (int i = 0; i <= (int)(p->top * 5 + 0.5); i++)
        fprintf(p->f,
                "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>"
                "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.1f</text>\n",
                LEFT, LEFT + WIDTH, y_of(p, i / 5.0), y_of(p, i / 5.0), i == 5 ? "#555" : "#ddd",
                LEFT - 8, y_of(p, i / 5.0) + 4, i / 5.0);
    for (uint32_t batch = 1; batch <= p->largest_batch; batch *= 2)
        fprintf(p->f,
                "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"#eee\"/>"
                "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%u</text>\n",
                x_of(p, batch), x_of(p, batch), TOP, TOP + HEIGHT, x_of(p, batch),
                TOP + HEIGHT + 18, batch);
    fprintf(p->f,
            "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">batch (hollow: memory is the nearer "
            "ceiling; filled: arithmetic)</text>\n",
            LEFT + WIDTH / 2, TOP + HEIGHT + 36);
}

static void draw_curve(const struct plot *p, const struct svg_point *points, uint32_t n, int idx)
{
    const char *colour = colours[idx % N_COLOURS];
    fprintf(p->f, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" points=\"", colour);
    for (uint32_t i = 0; i < n; i++)
        fprintf(p->f, "%.1f,%.1f ", x_of(p, points[i].batch), y_of(p, points[i].share));
    fprintf(p->f, "\"/>\n");
    for (uint32_t i = 0; i < n; i++)
        fprintf(p->f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\" stroke=\"%s\"/>\n",
                x_of(p, points[i].batch), y_of(p, points[i].share),
                points[i].by_memory ? "#fff" : colour, colour);
    fprintf(p->f, "<text x=\"%d\" y=\"%d\" fill=\"%s\">%s %u x %u, TP %u</text>\n",
            LEFT + WIDTH + 14, TOP + 12 + 18 * idx, colour, points->matrix, points->rows,
            points->cols, points->tp);
}

int svg_write(const char *path, const char *title, const struct svg_point *points, uint32_t n)
{
    struct plot p = {.f = fopen(path, "w"), .largest_batch = 1, .top = 1};
    if (!p.f)
        return -errno;
    for (uint32_t i = 0; i < n; i++) {
        p.largest_batch = fmax(p.largest_batch, points[i].batch);
        p.top = fmax(p.top, ceil(points[i].share * 5) / 5);
    }
    fprintf(p.f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "font-family=\"sans-serif\" font-size=\"12\">\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
            LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM);
    draw_axes(&p, title);
    int idx = 0;
    for (uint32_t i = 0, end; i < n; i = end, idx++) {
        for (end = i + 1; end < n && same_curve(points + i, points + end);)
            end++;
        draw_curve(&p, points + i, end - i, idx);
    }
    fprintf(p.f, "</svg>\n");
    bool failed = ferror(p.f);
    return fclose(p.f) != 0 || failed ? -EIO : 0;
}
