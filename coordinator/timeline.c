/* timeline.c: see timeline.h. */
#include "coordinator/timeline.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/config.h"
#include "base/utf8.h"
#include "base/util.h"

struct timeline {
    uint64_t last; /* serial of the newest entry */
    uint32_t n_groups;
    char groups[TIMELINE_GROUPS][CONFIG_MAX_GROUP_NAME + 1];
    struct timeline_entry entries[TIMELINE_ENTRIES]; /* that of `serial` at serial % ENTRIES */
};

int timeline_new(struct timeline **ret)
{
    *ret = calloc(1, sizeof **ret);
    return *ret ? 0 : -ENOMEM;
}

void timeline_free(struct timeline *t)
{
    free(t);
}

static struct timeline_entry *entry_of(struct timeline *t, uint64_t serial)
{
    struct timeline_entry *e = &t->entries[serial % TIMELINE_ENTRIES];
    return serial && e->serial == serial ? e : NULL;
}

/* Names of more groups than there is room for are not told apart. */
static uint16_t group_index(struct timeline *t, const char *name)
{
    uint32_t i = 0;
    if (!name)
        return TIMELINE_GROUPS;
    while (i != t->n_groups && strcmp(t->groups[i], name) != 0)
        i++;
    if (i == TIMELINE_GROUPS)
        return TIMELINE_GROUPS;
    if (i == t->n_groups)
        snprintf(t->groups[t->n_groups++], sizeof t->groups[0], "%s", name);
    return (uint16_t)i;
}

const char *timeline_group(const struct timeline *t, const struct timeline_event *e)
{
    return e->group < t->n_groups ? t->groups[e->group] : "";
}

uint64_t timeline_open(struct timeline *t, const struct request *r, const char *trace)
{
    struct timeline_entry *e = &t->entries[++t->last % TIMELINE_ENTRIES];
    *e = (struct timeline_entry){
        .serial = t->last,
        .kind = r->kind,
        .priority = r->priority,
        .arrived_ns = r->arrived_ns,
        .n_prompt_tokens = r->n_prompt_tokens,
    };
    snprintf(e->id, sizeof e->id, "%s", r->client_id);
    snprintf(e->trace, sizeof e->trace, "%s", trace);
    return t->last;
}

void timeline_add(struct timeline *t, uint64_t serial, enum wire_event_kind kind, const char *group,
                  uint64_t epoch, uint32_t n, int64_t now_ns)
{
    struct timeline_entry *e = entry_of(t, serial);
    if (!e)
        return;
    uint16_t idx = group_index(t, group);
    struct timeline_event *last = e->n_events ? &e->events[e->n_events - 1] : NULL;
    if (last && kind == WIRE_EVENT_PREFILL && last->kind == (uint16_t)kind && last->group == idx) {
        last->until_ns = now_ns;
        last->n += n;
        return;
    }
    if (e->n_events == TIMELINE_EVENTS - (kind != WIRE_EVENT_ENDED)) { /* the end has room */
        e->n_lost++;
        return;
    }
    e->events[e->n_events++] = (struct timeline_event){.at_ns = now_ns,
                                                       .until_ns = now_ns,
                                                       .epoch = epoch,
                                                       .n = n,
                                                       .kind = (uint16_t)kind,
                                                       .group = idx};
}

void timeline_end(struct timeline *t, uint64_t serial, const struct request *r,
                  enum metrics_end end, int64_t now_ns)
{
    struct timeline_entry *e = entry_of(t, serial);
    if (!e)
        return;
    timeline_add(t, serial, WIRE_EVENT_ENDED, NULL, 0, 0, now_ns);
    e->ended = true;
    e->status = r->status;
    e->end = end;
    e->n_prompt_tokens = r->n_prompt_tokens;
    e->n_completion_tokens = r->n_completion_tokens;
    snprintf(e->message, sizeof e->message, "%s", r->message);
}

void timeline_refuse(struct timeline *t, const struct request *r, const char *trace,
                     enum metrics_reject reject, const char *message, int64_t now_ns)
{
    struct timeline_entry *e = entry_of(t, timeline_open(t, r, trace));
    timeline_add(t, e->serial, WIRE_EVENT_REFUSED, NULL, 0, 0, now_ns);
    e->arrived_ns = e->arrived_ns ? e->arrived_ns : now_ns;
    e->ended = e->refused = true;
    e->reject = reject;
    e->n_prompt_tokens = (uint32_t)r->prompt.ids.n;
    snprintf(e->message, sizeof e->message, "%s", message);
    utf8_repair(e->message, strlen(e->message));
}

const struct timeline_entry *timeline_find(const struct timeline *t, const char *id,
                                           uint64_t before)
{
    uint64_t serial = before ? before - 1 : t->last;
    for (; serial && t->last - serial < TIMELINE_ENTRIES; serial--) {
        const struct timeline_entry *e = &t->entries[serial % TIMELINE_ENTRIES];
        if (e->serial == serial && strcmp(e->id, id) == 0)
            return e;
    }
    return NULL;
}

/* ---- traceparent: VERSION "-" TRACE "-" PARENT "-" FLAGS ---- */

/* n lower-case hexadecimal digits, not all of them 0 unless that is allowed. */
static bool is_hex(const char *p, size_t n, bool zero)
{
    bool any = zero;
    for (size_t i = 0; i != n; i++) {
        if (!((p[i] >= '0' && p[i] <= '9') || (p[i] >= 'a' && p[i] <= 'f')))
            return false;
        any = any || p[i] != '0';
    }
    return any;
}

void timeline_trace(const char *traceparent, char ret[TIMELINE_TRACE_BYTES])
{
    const char *p = traceparent;
    ret[0] = '\0';
    if (!p || strnlen(p, 56) < 55 || p[2] != '-' || p[35] != '-' || p[52] != '-')
        return;
    if (!is_hex(p, 2, true) || memcmp(p, "ff", 2) == 0 || !is_hex(p + 3, 32, false) ||
        !is_hex(p + 36, 16, false) || !is_hex(p + 53, 2, true))
        return;
    if (p[55] != '\0' &&
        (memcmp(p, "00", 2) == 0 || p[55] != '-')) /* later versions may have more */
        return;
    memcpy(ret, p + 3, 32);
    ret[32] = '\0';
}
