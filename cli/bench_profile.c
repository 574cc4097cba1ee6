/* bench_profile.c: see bench_profile.h. */
#include "cli/bench_profile.h"

#include <assert.h>

#include "base/util.h"

static const char *const names[PROFILE_N_PARTS] = {
    [K_PART_PRODUCTS] = "products",
    [K_PART_HEAD] = "head",
    [K_PART_ACTIVATIONS] = "inputs",
    [K_PART_ATTENTION] = "attention",
    [K_PART_ROPE] = "rotary",
    [K_PART_NORM] = "norm",
    [K_PART_GLU] = "glu",
    [K_PART_EMBED] = "embed",
    [PROFILE_SUMS] = "sums",
    [PROFILE_SAMPLING] = "sampling",
    [PROFILE_REST] = "rest",
};

void bench_counts_read(struct local_group *g, uint32_t n_ranks, struct bench_counts *ret)
{
    *ret = (struct bench_counts){.counted = true};
    for (uint32_t i = 0; i != n_ranks; i++) {
        const struct engine *engine = local_group_engine(g, i);
        struct k_profile p;
        struct engine_stats s;
        ret->counted = ret->counted && engine_profile(engine, &p);
        if (!ret->counted)
            return;
        engine_stats(engine, &s);
        for (int part = 0; part != K_N_PARTS; part++)
            ret->ns[part] += (double)p.ns[part] / n_ranks;
        ret->ns[PROFILE_SUMS] += (double)s.sum_ns / n_ranks;
        ret->ns[PROFILE_SAMPLING] += (double)s.sample_ns / n_ranks;
        ret->wait_ns += (double)p.wait_ns / n_ranks;
        ret->sections += (double)p.n_sections / n_ranks;
    }
}

void bench_profile_make(const struct bench_counts *begin, const struct bench_counts *end, double ns,
                        uint64_t n_steps, struct bench_profile *ret)
{
    assert(ns > 0 && n_steps);
    *ret = (struct bench_profile){.counted = begin->counted && end->counted};
    if (!ret->counted)
        return;
    double known = 0;
    for (int part = 0; part != PROFILE_REST; part++) {
        ret->share[part] = (end->ns[part] - begin->ns[part]) / ns;
        known += ret->share[part];
    }
    ret->share[PROFILE_REST] = MAX(1 - known, 0.0);
    ret->waiting = (end->wait_ns - begin->wait_ns) / ns;
    ret->outside =
        1 - ret->share[K_PART_PRODUCTS] - ret->share[K_PART_HEAD] - ret->share[K_PART_ACTIVATIONS];
    ret->sections = (end->sections - begin->sections) / (double)n_steps;
}

void bench_profile_print_header(FILE *out)
{
    fprintf(out, "\n%-8s %6s", "% of it", "tokens");
    for (int part = 0; part != PROFILE_N_PARTS; part++)
        fprintf(out, " %9s", names[part]);
    fprintf(out, " %8s %8s %9s\n", "outside", "waiting", "sections");
}

void bench_profile_print(FILE *out, const char *phase, uint32_t n, const struct bench_profile *p)
{
    fprintf(out, "%-8s %6u", phase, n);
    if (!p->counted) {
        fprintf(out, " (not counted on this device)\n");
        return;
    }
    for (int part = 0; part != PROFILE_N_PARTS; part++)
        fprintf(out, " %9.1f", 100 * p->share[part]);
    fprintf(out, " %8.1f %8.1f %9.0f\n", 100 * p->outside, 100 * p->waiting, p->sections);
}

json_t *bench_profile_json(const struct bench_profile *p)
{
    if (!p->counted)
        return NULL;
    json_t *o = json_object();
    for (int part = 0; part != PROFILE_N_PARTS; part++)
        json_object_set_new(o, names[part], json_real(p->share[part]));
    json_object_set_new(o, "outside", json_real(p->outside));
    json_object_set_new(o, "waiting", json_real(p->waiting));
    json_object_set_new(o, "sections", json_real(p->sections));
    return o;
}

void bench_profile_plot(const struct bench_profile *profiles, size_t stride, const double *x,
                        size_t n, struct bench_profile_series *ret)
{
    static const char *const series[PROFILE_N_SERIES] = {"products", "head", "inputs", "attention",
                                                         "others"};
    static const int parts[PROFILE_N_SERIES - 1] = {K_PART_PRODUCTS, K_PART_HEAD,
                                                    K_PART_ACTIVATIONS, K_PART_ATTENTION};
    assert(n <= PROFILE_MAX_ROWS);
    for (size_t row = 0; row != n; row++) {
        const struct bench_profile *p =
            (const struct bench_profile *)((const char *)profiles + row * stride);
        double others = 100;
        for (size_t i = 0; i != ARRAY_LEN(parts); i++) {
            ret->percent[i][row] = 100 * p->share[parts[i]];
            others -= ret->percent[i][row];
        }
        ret->percent[PROFILE_N_SERIES - 1][row] = others;
    }
    for (size_t i = 0; i != PROFILE_N_SERIES; i++)
        ret->series[i] = (struct plot_series){series[i], x, ret->percent[i], n};
}
