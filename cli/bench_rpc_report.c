/* bench_rpc_report.c: the results of `glmd bench rpc` as text, JSON and a plot (bench_rpc.h). */
#include <stdlib.h>

#include "base/util.h"
#include "cli/bench_rpc.h"

/* Targets of this project, on one core. */
static const double target_step_us = 100, target_message_us = 15, target_idle_percent = 1;
static const double target_open_bytes = 100e6;

static void print_window(FILE *out, const char *name, const struct rpc_window *w)
{
    fprintf(out, "%-10s %9.1f %10.1f %12.1f %10.1f %10.1f %11.2f %8.1f%%\n", name,
            w->steps / w->seconds, w->messages / w->seconds, w->messages_per_step,
            w->cpu_us_per_step, w->loop_us_per_step, w->cpu_us_per_message, 100 * w->cpu_share);
}

static void print_target(FILE *out, const char *what, double found, const char *unit, double target)
{
    fprintf(out, "%-52s %10.2f %-3s (target %g: %s)\n", what, found, unit, target,
            found <= target ? "met" : "missed");
}

static void print_value(FILE *out, const char *what, double found, const char *unit)
{
    fprintf(out, "%-52s %10.2f %s\n", what, found, unit);
}

void rpc_report_print(const struct rpc_result *r, FILE *out)
{
    char what[80];
    fprintf(out,
            "coordinator with %u rank%s on fake devices, step %g us + %g us per sequence\n\n"
            "%-10s %9s %10s %12s %10s %10s %11s %9s\n",
            r->ranks, r->ranks > 1 ? "s" : "", r->step_us, r->decode_us, "phase", "steps/s",
            "messages/s", "messages/step", "us/step", "of it loop", "us/message", "one core");
    print_window(out, "streamed", &r->streamed);
    print_window(out, "silent", &r->silent);
    if (r->streams)
        print_window(out, "open", &r->open);
    fprintf(out, "\n");
    snprintf(what, sizeof what, "planning and dispatch of a step at batch %u", r->batch);
    print_target(out, what, r->streamed.plan_us_per_step, "us", target_step_us);
    print_target(out, "a streamed token message", r->message_cost_us, "us", target_message_us);
    print_target(out, "idle, before any request", r->idle_percent, "%", target_idle_percent);
    print_target(out, "idle, at the end", r->idle_after_percent, "%", target_idle_percent);
    if (r->streams) {
        snprintf(what, sizeof what, "memory with %u open streams", r->max_open);
        print_target(out, what, (double)r->rss_open / 1e6, "MB", target_open_bytes / 1e6);
    }
    fprintf(out, "\nbeside them:\n");
    print_value(out, "reading and committing the results of such a step",
                r->streamed.result_us_per_step, "us");
    print_value(out, "all of the process for such a step but its messages", r->step_cost_us, "us");
    print_value(out, "of a message, the loop's part", r->streamed.update_us_per_message, "us");
    print_value(out, "memory at the start", (double)r->rss_start / 1e6, "MB");
    if (!r->streams)
        return;
    print_value(out, "memory before the streams were opened", (double)r->rss_before / 1e6, "MB");
    snprintf(what, sizeof what, "memory after %.0f s of them", r->open.seconds);
    print_value(out, what, (double)r->rss_end / 1e6, "MB");
    print_value(out, "memory when they are closed", (double)r->rss_closed / 1e6, "MB");
}

static json_t *window_json(const struct rpc_window *w)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "seconds",
                     w->seconds, "cpu_share", w->cpu_share, "steps", w->steps, "messages",
                     w->messages, "tokens", w->tokens, "messages_per_step", w->messages_per_step,
                     "cpu_us_per_step", w->cpu_us_per_step, "loop_us_per_step", w->loop_us_per_step,
                     "cpu_us_per_message", w->cpu_us_per_message, "plan_us_per_step",
                     w->plan_us_per_step, "result_us_per_step", w->result_us_per_step,
                     "update_us_per_message", w->update_us_per_message);
}

json_t *rpc_report_json(const struct rpc_result *r)
{
    json_t *root = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:o, s:o, s:f, s:f, s:I}", "bench", "rpc",
        "version", GLMD_VERSION, "ranks", (json_int_t)r->ranks, "batch", (json_int_t)r->batch,
        "best_of", (json_int_t)r->best_of, "step_us", r->step_us, "decode_us", r->decode_us,
        "idle_cpu_percent", r->idle_percent, "idle_after_cpu_percent", r->idle_after_percent,
        "streamed", window_json(&r->streamed), "silent", window_json(&r->silent), "step_cpu_us",
        r->step_cost_us, "message_cpu_us", r->message_cost_us, "rss_start_bytes",
        (json_int_t)r->rss_start);
    if (root)
        json_object_set_new(root, "rss_closed_bytes", json_integer((json_int_t)r->rss_closed));
    if (!root || !r->streams)
        return root;
    json_object_set_new(root, "open", window_json(&r->open));
    json_object_set_new(root, "open_streams", json_integer(r->max_open));
    json_object_set_new(root, "rss_before_bytes", json_integer((json_int_t)r->rss_before));
    json_object_set_new(root, "rss_open_bytes", json_integer((json_int_t)r->rss_open));
    json_object_set_new(root, "rss_end_bytes", json_integer((json_int_t)r->rss_end));
    return root;
}

int rpc_report_plot(const struct rpc_result *r, const char *path, struct err *e)
{
    double *columns = alloc_array(3 * r->n_trace, sizeof *columns);
    if (!columns)
        return err_set(e, -ENOMEM, "out of memory");
    double *at = columns, *cpu = columns + r->n_trace, *rss = columns + 2 * r->n_trace;
    for (size_t i = 0; i != r->n_trace; i++) {
        at[i] = r->trace[i].at;
        cpu[i] = r->trace[i].cpu_percent;
        rss[i] = r->trace[i].rss_mb;
    }
    const struct plot_series series[] = {{"coordinator", at, cpu, r->n_trace},
                                         {"coordinator", at, rss, r->n_trace}};
    const struct plot panels[] = {
        {"processor time", "seconds", "percent of a core", false, false, 0, NULL, &series[0], 1},
        {"memory", "seconds", "MB resident", false, false, target_open_bytes / 1e6, "target",
         &series[1], 1},
    };
    int code = bench_write_plot(path, panels, ARRAY_LEN(panels), e);
    free(columns);
    return code;
}
