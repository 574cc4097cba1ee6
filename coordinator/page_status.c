/* page_status.c: the state of the cluster as JSON. See page.h. */
#include "base/clock.h"
#include "base/util.h"
#include "coordinator/coordinator.h"
#include "coordinator/json_out.h"
#include "coordinator/page.h"

static void key(struct json_out *o, const char *name)
{
    json_text(o, name);
    json_raw(o, ":");
}

static void text(struct json_out *o, const char *name, const char *value)
{
    key(o, name);
    json_text(o, value ? value : "");
    json_raw(o, ",");
}

static void number(struct json_out *o, const char *name, uint64_t value)
{
    key(o, name);
    json_u64(o, value);
    json_raw(o, ",");
}

static void real(struct json_out *o, const char *name, double value)
{
    key(o, name);
    json_double(o, value);
    json_raw(o, ",");
}

static void flag(struct json_out *o, const char *name, bool value)
{
    key(o, name);
    json_bool(o, value);
    json_raw(o, ",");
}

static void put_rank(struct json_out *o, const struct wire_rank_status *r)
{
    json_raw(o, "{");
    number(o, "rank", r->rank);
    number(o, "stage", r->stage);
    text(o, "state", wire_rank_state_name(r->state));
    text(o, "host", r->host);
    number(o, "pid", r->pid);
    text(o, "device", r->device);
    text(o, "description", r->description);
    text(o, "collectives", r->collectives);
    number(o, "weights_bytes", r->weights_bytes);
    number(o, "kv_bytes", r->kv_bytes);
    number(o, "scratch_bytes", r->scratch_bytes);
    number(o, "loaded_bytes", r->loaded_bytes);
    number(o, "total_bytes", r->total_bytes);
    number(o, "step", r->step);
    number(o, "step_age_ms", r->step_age_ms);
    real(o, "compute_ms_avg", r->compute_ms_avg);
    text(o, "last_error", r->last_error);
    number(o, "fenced_messages", r->fenced_messages);
    key(o, "restarts");
    json_u64(o, r->restarts);
    json_raw(o, "}");
}

static void put_group(struct json_out *o, const struct wire_group_status *g)
{
    json_raw(o, "{");
    text(o, "id", g->id);
    number(o, "epoch", g->epoch);
    text(o, "state", wire_group_state_name(g->state));
    number(o, "tp_size", g->tp_size);
    number(o, "pp_size", g->pp_size);
    number(o, "kv_blocks_total", g->kv_blocks_total);
    number(o, "kv_blocks_free", g->kv_blocks_free);
    number(o, "running", g->running);
    number(o, "waiting", g->waiting);
    real(o, "prefill_tokens_per_second", g->prefill_tokens_per_second);
    real(o, "decode_tokens_per_second", g->decode_tokens_per_second);
    number(o, "steps", g->steps);
    number(o, "prefill_tokens", g->prefill_tokens);
    number(o, "decode_tokens", g->decode_tokens);
    number(o, "slots_total", g->slots_total);
    number(o, "slots_used", g->slots_used);
    text(o, "last_error", g->last_error);
    key(o, "stage_layers");
    for (uint32_t i = 0; i != g->n_stage_layers; i++) {
        json_raw(o, i ? "," : "[");
        json_u64(o, g->stage_layers[i]);
    }
    json_raw(o, g->n_stage_layers ? "]," : "[],");
    key(o, "ranks");
    json_raw(o, "[");
    for (uint32_t i = 0; i != g->n_ranks; i++) {
        json_raw(o, i ? "," : "");
        put_rank(o, &g->ranks[i]);
    }
    json_raw(o, "]}");
}

static void put_model(struct json_out *o, const struct wire_model_info *m)
{
    key(o, "model");
    json_raw(o, "{");
    text(o, "id", m->id);
    text(o, "architecture", m->architecture);
    number(o, "context_length", m->context_length);
    number(o, "vocab_size", m->vocab_size);
    text(o, "weights", m->weights);
    text(o, "digest", m->digest);
    number(o, "layers", m->layers);
    key(o, "hidden_size");
    json_u64(o, m->hidden_size);
    json_raw(o, "},");
}

static void put_requests(struct json_out *o, const struct wire_request_counters *q)
{
    key(o, "requests");
    json_raw(o, "{");
    number(o, "total", q->total);
    number(o, "finished", q->finished);
    number(o, "failed", q->failed);
    number(o, "cancelled", q->cancelled);
    number(o, "rejected", q->rejected);
    number(o, "resumed", q->resumed);
    key(o, "aborted");
    json_u64(o, q->aborted);
    json_raw(o, "},");
}

/* ---- history ---- */

static double prefill_rate(const struct history_sample *s)
{
    return s->prefill_tokens_per_second;
}
static double decode_rate(const struct history_sample *s)
{
    return s->decode_tokens_per_second;
}
static double kv_usage(const struct history_sample *s)
{
    return s->kv_usage;
}
static double running(const struct history_sample *s)
{
    return s->running;
}
static double waiting(const struct history_sample *s)
{
    return s->waiting;
}

static void put_history(struct json_out *o, const struct history *h)
{
    static const struct {
        const char *name;
        double (*of)(const struct history_sample *s);
    } columns[] = {
        {"prefill_tokens_per_second", prefill_rate},
        {"decode_tokens_per_second", decode_rate},
        {"kv_usage", kv_usage},
        {"running", running},
        {"waiting", waiting},
    };
    key(o, "history");
    json_raw(o, "{");
    real(o, "interval_seconds", (double)HISTORY_INTERVAL_NS / (double)NSEC_PER_SEC);
    for (size_t k = 0; k != ARRAY_LEN(columns); k++) {
        key(o, columns[k].name);
        json_raw(o, "[");
        for (uint32_t i = 0; i != h->n; i++) {
            json_raw(o, i ? "," : "");
            json_float(o, (float)columns[k].of(history_get(h, i)));
        }
        json_raw(o, "],");
    }
    key(o, "capacity");
    json_u64(o, HISTORY_CAPACITY);
    json_raw(o, "}");
}

/* ---- all of it ---- */

struct put {
    const struct coordinator *c;
    struct json_out out;
};

static int put_status(void *context, const struct wire_status_response *r)
{
    struct put *p = context;
    struct json_out *o = &p->out;
    json_raw(o, "{");
    flag(o, "healthy", wire_status_healthy(r));
    text(o, "version", r->version);
    real(o, "uptime_seconds", r->uptime_seconds);
    text(o, "cluster", r->cluster);
    flag(o, "draining", r->draining);
    number(o, "waiting", r->waiting);
    put_model(o, r->model);
    put_requests(o, r->requests);
    key(o, "groups");
    json_raw(o, "[");
    for (uint32_t i = 0; i != r->n_groups; i++) {
        json_raw(o, i ? "," : "");
        put_group(o, &r->groups[i]);
    }
    json_raw(o, "],");
    put_history(o, &p->c->history);
    json_raw(o, "}");
    return o->error;
}

int page_status(const struct coordinator *c, struct buf *out)
{
    struct put p = {.c = c, .out = {.buf = out}};
    return status_collect(c, put_status, &p);
}
