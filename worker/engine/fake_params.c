/* fake_params.c: what a fake device is told: its string, its time, its model's ids (fake.h). */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/engine/fake.h"

bool fake_is_device(const char *device)
{
    return strcmp(device, "fake") == 0 || strncmp(device, "fake:", 5) == 0;
}

/* A decimal number within [0, max]; nothing around it. */
static int parse_number(const char *key, const char *text, double max, double *ret, struct err *e)
{
    char *end;
    double x = strtod(text, &end);
    if (end == text || *end || !(x >= 0.0 && x <= max))
        return err_set(e, -EINVAL, "device fake: %s: expected a number from 0 to %g, found \"%s\"",
                       key, max, text);
    *ret = x;
    return 0;
}

static int parse_pair(char *pair, struct fake_params *p, struct err *e)
{
    static const double max_us = 3.6e9;
    char *value = strchr(pair, '=');
    if (!value)
        return err_set(e, -EINVAL, "device fake: expected KEY=VALUE, found \"%s\"", pair);
    *value++ = '\0';
    double x = 0.0;
    int r;
    if (strcmp(pair, "step_us") == 0) {
        r = parse_number(pair, value, max_us, &x, e);
        p->step_ns = (int64_t)(x * 1e3);
    } else if (strcmp(pair, "prefill_us") == 0) {
        r = parse_number(pair, value, max_us, &x, e);
        p->prefill_token_ns = (int64_t)(x * 1e3);
    } else if (strcmp(pair, "decode_us") == 0) {
        r = parse_number(pair, value, max_us, &x, e);
        p->decode_seq_ns = (int64_t)(x * 1e3);
    } else if (strcmp(pair, "end") == 0) {
        r = parse_number(pair, value, 1.0, &p->end_probability, e);
    } else if (strcmp(pair, "seed") == 0) {
        r = parse_number(pair, value, 4294967295.0, &x, e);
        p->seed = (uint64_t)x;
    } else {
        r = err_set(e, -EINVAL,
                    "device fake: expected step_us, prefill_us, decode_us, end or seed, found "
                    "\"%s\"",
                    pair);
    }
    return r;
}

int fake_parse(const char *device, struct fake_params *ret, struct err *e)
{
    char text[256];
    *ret = (struct fake_params){0};
    assert(fake_is_device(device));
    if (snprintf(text, sizeof text, "%s", device + 4 + (device[4] == ':')) >= (int)sizeof text)
        return err_set(e, -EINVAL, "device fake: more than %zu bytes", sizeof text - 1);
    char *rest = text;
    int r = 0;
    for (char *pair; r == 0 && *text && (pair = strsep(&rest, ",:"));)
        r = parse_pair(pair, ret, e);
    return r;
}

void fake_config_set_arch(struct fake_config *c, const struct arch *a)
{
    c->text_begin = (int32_t)a->tokens.n_image_tokens;
    c->text_end = (int32_t)a->tokens.special_base;
    c->limits.max_seq = a->max_seq;
    c->limits.vocab = a->vocab;
    c->limits.n_layers = c->params.n_layers = a->n_layers;
    c->n_end_tokens = 0;
    if (a->tokens.eop >= 0)
        c->end_tokens[c->n_end_tokens++] = a->tokens.eop;
    if (a->tokens.eos >= 0)
        c->end_tokens[c->n_end_tokens++] = a->tokens.eos;
}

int64_t fake_step_ns(const struct fake_params *p, const struct plan *plan)
{
    int64_t ns = p->step_ns;
    for (uint32_t i = 0; i != plan->n_items; i++) {
        const struct plan_item *it = &plan->items[i];
        int64_t own = it->n_tokens == 1 ? p->decode_seq_ns : it->n_tokens * p->prefill_token_ns;
        if (it->sliced && p->n_layers)
            own = own * (plan->layer_end - plan->layer_begin) / p->n_layers;
        ns += own;
    }
    return ns;
}
