/* bench_plot.c: line plots as SVG (bench.h): plain shapes and text, no script, no style sheet, so
 * that every viewer and every forge shows them. */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "cli/bench.h"

enum {
    PANEL_WIDTH = 460,
    PANEL_HEIGHT = 320,
    LEFT = 64, /* of the axes within the panel */
    RIGHT = 16,
    TOP = 34,
    BOTTOM = 62,
    MAX_TICKS = 12,
};

/* Okabe and Ito's colours, which most people can tell apart. */
static const char *const colours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                      "#e69f00", "#56b4e9", "#000000"};

struct axis {
    double min, max;
    bool log;
    double ticks[MAX_TICKS];
    size_t n_ticks;
};

/* Text being written; the first failure sticks. */
struct svg {
    struct buf *out;
    int error;
};

static void put(struct svg *s, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void put(struct svg *s, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    assert(n >= 0 && (size_t)n < sizeof text);
    if (!s->error)
        s->error = buf_append(s->out, text, (size_t)n);
}

static void put_escaped(struct svg *s, const char *text)
{
    for (; *text && !s->error; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '<')
            put(s, "&lt;");
        else if (c == '&')
            put(s, "&amp;");
        else if (c == '>')
            put(s, "&gt;");
        else if (c < 0x20)
            put(s, " "); /* XML has no such characters */
        else
            s->error = buf_append(s->out, text, 1);
    }
}

static void put_text(struct svg *s, double x, double y, const char *attributes, const char *text)
{
    put(s, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, attributes);
    put_escaped(s, text);
    put(s, "</text>\n");
}

/* ---- axes ---- */

static bool drawable(const struct plot *p, double x, double y)
{
    return isfinite(x) && isfinite(y) && (!p->x_log || x > 0);
}

/* 1, 2 or 5 times a power of ten: about five steps over the range. */
static double nice_step(double range)
{
    double power = pow(10, floor(log10(range / 5)));
    double rest = range / 5 / power;
    return (rest <= 1 ? 1 : rest <= 2 ? 2 : rest <= 5 ? 5 : 10) * power;
}

static void linear_axis(struct axis *a, double max)
{
    double step = nice_step(max > 0 ? max : 1);
    *a = (struct axis){.max = ceil((max > 0 ? max : 1) / step) * step};
    for (int i = 0; a->n_ticks != MAX_TICKS && i * step <= a->max * 1.0001; i++)
        a->ticks[a->n_ticks++] = i * step;
}

/* Powers of two or ten between the ends, whichever there are fewer than MAX_TICKS of. */
static void log_axis(struct axis *a, double min, double max)
{
    *a = (struct axis){.min = min, .max = max > min ? max : 2 * min, .log = true};
    double base = a->max / a->min <= 2048 ? 2 : 10;
    for (double x = pow(base, ceil(log(a->min) / log(base) - 1e-9));
         a->n_ticks != MAX_TICKS && x <= a->max * 1.0001; x *= base)
        a->ticks[a->n_ticks++] = x;
}

static void find_axes(const struct plot *p, struct axis *x, struct axis *y)
{
    double x_min = INFINITY, x_max = 0, y_max = p->y_mark;
    for (size_t i = 0; i != p->n_series; i++) {
        const struct plot_series *s = &p->series[i];
        for (size_t j = 0; j != s->n; j++) {
            if (!drawable(p, s->x[j], s->y[j]))
                continue;
            x_min = fmin(x_min, s->x[j]);
            x_max = fmax(x_max, s->x[j]);
            y_max = fmax(y_max, s->y[j]);
        }
    }
    if (p->x_log && x_min <= x_max)
        log_axis(x, x_min, x_max);
    else
        linear_axis(x, x_max);
    linear_axis(y, y_max);
}

/* Where a value lies between the ends of its axis, 0 to 1. */
static double position(const struct axis *a, double value)
{
    double at = a->log ? log(value / a->min) / log(a->max / a->min) : value / a->max;
    return fmin(fmax(at, 0), 1);
}

static double x_at(const struct axis *a, double left, double value)
{
    return left + LEFT + position(a, value) * (PANEL_WIDTH - LEFT - RIGHT);
}

static double y_at(const struct axis *a, double top, double value)
{
    return top + PANEL_HEIGHT - BOTTOM - position(a, value) * (PANEL_HEIGHT - TOP - BOTTOM);
}

static void put_axes(struct svg *s, const struct plot *p, const struct axis *x,
                     const struct axis *y, double left, double top)
{
    char label[32], attributes[96];
    double x0 = left + LEFT, x1 = left + PANEL_WIDTH - RIGHT;
    double y0 = top + PANEL_HEIGHT - BOTTOM, y1 = top + TOP;
    put_text(s, left + PANEL_WIDTH / 2.0, top + 20, "text-anchor=\"middle\" font-weight=\"bold\"",
             p->title);
    for (size_t i = 0; i != x->n_ticks; i++) {
        double at = x_at(x, left, x->ticks[i]);
        put(s, "<path d=\"M%.1f %.1fV%.1f\" stroke=\"#ddd\"/>\n", at, y0, y1);
        snprintf(label, sizeof label, "%g", x->ticks[i]);
        put_text(s, at, y0 + 16, "text-anchor=\"middle\"", label);
    }
    for (size_t i = 0; i != y->n_ticks; i++) {
        double at = y_at(y, top, y->ticks[i]);
        put(s, "<path d=\"M%.1f %.1fH%.1f\" stroke=\"#ddd\"/>\n", x0, at, x1);
        snprintf(label, sizeof label, "%g", y->ticks[i]);
        put_text(s, x0 - 6, at + 4, "text-anchor=\"end\"", label);
    }
    put(s, "<path d=\"M%.1f %.1fV%.1fH%.1f\" stroke=\"#444\" fill=\"none\"/>\n", x0, y1, y0, x1);
    put_text(s, (x0 + x1) / 2, y0 + 34, "text-anchor=\"middle\"", p->x_label);
    snprintf(attributes, sizeof attributes,
             "text-anchor=\"middle\" transform=\"rotate(-90 %.1f %.1f)\"", left + 14,
             (y0 + y1) / 2);
    put_text(s, left + 14, (y0 + y1) / 2, attributes, p->y_label);
}

/* ---- series ---- */

static void put_series(struct svg *s, const struct plot *p, const struct plot_series *series,
                       const char *colour, const struct axis *x, const struct axis *y, double left,
                       double top)
{
    bool begun = false;
    for (size_t i = 0; i != series->n; i++) {
        if (!drawable(p, series->x[i], series->y[i]))
            continue;
        if (!begun)
            put(s, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"", colour);
        begun = true;
        put(s, "%.1f,%.1f ", x_at(x, left, series->x[i]), y_at(y, top, series->y[i]));
    }
    if (begun)
        put(s, "\"/>\n");
    for (size_t i = 0; p->points && i != series->n; i++)
        if (drawable(p, series->x[i], series->y[i]))
            put(s, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n",
                x_at(x, left, series->x[i]), y_at(y, top, series->y[i]), colour);
}

static void put_legend(struct svg *s, const struct plot *p, double left, double top)
{
    double at = left + LEFT, y = top + PANEL_HEIGHT - 10;
    for (size_t i = 0; i != p->n_series; i++) {
        put(s, "<rect x=\"%.1f\" y=\"%.1f\" width=\"14\" height=\"4\" fill=\"%s\"/>\n", at, y - 6,
            colours[i % ARRAY_LEN(colours)]);
        put_text(s, at + 18, y, "", p->series[i].name);
        at += 30 + 6.5 * (double)strlen(p->series[i].name);
    }
    if (p->y_mark > 0) {
        put(s, "<path d=\"M%.1f %.1fh14\" stroke=\"#888\" stroke-dasharray=\"4 3\"/>\n", at, y - 4);
        put_text(s, at + 18, y, "", p->y_mark_name);
    }
}

static void put_panel(struct svg *s, const struct plot *p, double left, double top)
{
    struct axis x, y;
    find_axes(p, &x, &y);
    put_axes(s, p, &x, &y, left, top);
    if (p->y_mark > 0)
        put(s, "<path d=\"M%.1f %.1fH%.1f\" stroke=\"#888\" stroke-dasharray=\"4 3\"/>\n",
            left + LEFT, y_at(&y, top, p->y_mark), left + PANEL_WIDTH - RIGHT);
    for (size_t i = 0; i != p->n_series; i++)
        put_series(s, p, &p->series[i], colours[i % ARRAY_LEN(colours)], &x, &y, left, top);
    put_legend(s, p, left, top);
}

int plot_svg(const struct plot *panels, size_t n, struct buf *ret)
{
    struct svg s = {.out = ret};
    size_t columns = MIN(n, (size_t)2), rows = columns ? (n + columns - 1) / columns : 0;
    double width = (double)columns * PANEL_WIDTH, height = (double)rows * PANEL_HEIGHT;
    put(&s,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
        "viewBox=\"0 0 %.0f %.0f\" font-family=\"sans-serif\" font-size=\"12\">\n"
        "<rect width=\"%.0f\" height=\"%.0f\" fill=\"#fff\"/>\n",
        width, height, width, height, width, height);
    for (size_t i = 0; i != n; i++) {
        size_t row = i / 2, column = i % 2;
        put_panel(&s, &panels[i], (double)column * PANEL_WIDTH, (double)row * PANEL_HEIGHT);
    }
    put(&s, "</svg>\n");
    return s.error;
}

int bench_write_plot(const char *path, const struct plot *panels, size_t n, struct err *e)
{
    struct buf out = {0};
    int r = plot_svg(panels, n, &out);
    r = r < 0 ? err_set(e, r, "%s: %s", path, err_name(r))
              : bench_write(path, out.data, out.size, e);
    buf_deinit(&out);
    return r;
}
