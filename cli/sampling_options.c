/* sampling_options.c: see sampling_options.h. The server checks the values once more; here they
 * only have to be numbers that fit. */
#include "cli/sampling_options.h"

#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "cli/cli.h"
#include "cli/common.h"

void sampling_options_init(struct sampling_options *o)
{
    *o = (struct sampling_options){0};
    o->wire.logit_bias = o->bias;
    o->wire.stop = o->stop;
    o->wire.stop_token_ids = o->stop_ids;
}

/* Any beam option selects beam search. */
static struct wire_beam_parameters *beam(struct sampling_options *o)
{
    o->wire.strategy = WIRE_STRATEGY_BEAM;
    o->wire.beam = &o->beam;
    return &o->beam;
}

static int add_bias(struct sampling_options *o, const char *verb, const char *value)
{
    char id_text[16];
    uint64_t id;
    double bias;
    const char *equals = strchr(value, '=');
    if (!equals || (size_t)(equals - value) >= sizeof id_text)
        return cli_usage_error(verb, "--logit-bias %s: expected ID=BIAS", value);
    snprintf(id_text, sizeof id_text, "%.*s", (int)(equals - value), value);
    if (cli_parse_u64(id_text, 0, INT32_MAX, &id) < 0 ||
        cli_parse_double(equals + 1, -100, 100, &bias) < 0)
        return cli_usage_error(verb,
                               "--logit-bias %s: expected ID=BIAS with a BIAS from -100 to "
                               "100",
                               value);
    if (o->wire.n_logit_bias == SAMPLING_MAX_BIAS)
        return cli_usage_error(verb, "--logit-bias: at most %d", SAMPLING_MAX_BIAS);
    o->bias[o->wire.n_logit_bias++] = (struct plan_bias){(int32_t)id, (float)bias};
    return 0;
}

static int add_stop(struct sampling_options *o, const char *verb, const char *value)
{
    size_t n = strlen(value);
    if (n < 1 || n > 256 || utf8_check(value, n) != n)
        return cli_usage_error(verb, "--stop: expected 1 to 256 bytes of UTF-8");
    if (o->wire.n_stop == SAMPLING_MAX_STOP)
        return cli_usage_error(verb, "--stop: at most %d", SAMPLING_MAX_STOP);
    o->stop[o->wire.n_stop++] = value;
    return 0;
}

static int add_stop_id(struct sampling_options *o, const char *verb, const char *value)
{
    uint32_t id = 0;
    if (o->wire.n_stop_token_ids == SAMPLING_MAX_STOP_IDS)
        return cli_usage_error(verb, "--stop-id: at most %d", SAMPLING_MAX_STOP_IDS);
    int code = cli_option_u32(verb, "--stop-id", value, 0, INT32_MAX, &id);
    if (code == 0)
        o->stop_ids[o->wire.n_stop_token_ids++] = (int32_t)id;
    return code;
}

static int float_option(const char *verb, const char *name, const char *value, double min,
                        double max, float *ret)
{
    double number = 0;
    int code = cli_option_double(verb, name, value, min, max, &number);
    *ret = (float)number;
    return code;
}

/* Where an output ends, and what it should not repeat. */
static int end_option(struct sampling_options *o, const char *verb, int option, const char *value)
{
    struct wire_sampling_parameters *s = &o->wire;
    switch (option) {
    case 13:
        s->ignore_end = true;
        return 0;
    case 14:
        return float_option(verb, "--min-p", value, 0, 1, &s->min_p);
    case 15:
        return float_option(verb, "--repetition-penalty", value, 0.01, 100, &s->repetition_penalty);
    case 16:
        return float_option(verb, "--presence-penalty", value, -2, 2, &s->presence_penalty);
    case 17:
        return float_option(verb, "--frequency-penalty", value, -2, 2, &s->frequency_penalty);
    case 18:
        return add_stop(o, verb, value);
    case 19:
        return add_stop_id(o, verb, value);
    case 20:
        s->include_stop = true;
        return 0;
    default:
        return -1;
    }
}

static int beam_option(struct sampling_options *o, const char *verb, int option, const char *value)
{
    struct wire_beam_parameters *b = beam(o);
    switch (option) {
    case 8:
        return cli_option_u32(verb, "--beams", value, 1, 64, &b->num_beams);
    case 9:
        b->has_length_penalty = true;
        return cli_option_double(verb, "--length-penalty", value, -100, 100, &b->length_penalty);
    case 10:
        return cli_option_u32(verb, "--no-repeat-ngram", value, 0, UINT32_MAX,
                              &b->no_repeat_ngram_size);
    case 11:
        b->sampled = true;
        return 0;
    case 12:
        b->has_consider_end = true;
        b->consider_end = false;
        return 0;
    default:
        return -1;
    }
}

int sampling_option(struct sampling_options *o, const char *verb, int c, const char *value)
{
    struct wire_sampling_parameters *s = &o->wire;
    int option = c - SAMPLING_OPTION_FIRST;
    switch (option) {
    case 0:
        s->has_temperature = true;
        return float_option(verb, "--temperature", value, 0, 10, &s->temperature);
    case 1:
        return cli_option_u32(verb, "--top-k", value, 0, UINT32_MAX, &s->top_k);
    case 2:
        s->has_top_p = true;
        return float_option(verb, "--top-p", value, 0, 1, &s->top_p);
    case 3:
        s->has_seed = true;
        if (cli_parse_u64(value, 0, UINT64_MAX, &s->seed) < 0)
            return cli_usage_error(verb, "--seed %s: expected a whole number", value);
        return 0;
    case 4:
        s->top_k = 1;
        return 0;
    case 5:
        return cli_option_u32(verb, "--min-tokens", value, 0, UINT32_MAX, &s->min_tokens);
    case 6:
        return add_bias(o, verb, value);
    case 7:
        s->invalid_ids = &o->any_id;
        return 0;
    case 8:
    case 9:
    case 10:
    case 11:
    case 12:
        return beam_option(o, verb, option, value);
    default:
        return end_option(o, verb, option, value);
    }
}

int sampling_options_check(const struct sampling_options *o, const char *verb)
{
    const struct wire_sampling_parameters *s = &o->wire;
    if (s->strategy == WIRE_STRATEGY_BEAM && o->beam.num_beams == 0)
        return cli_usage_error(verb, "options of beam search need --beams");
    if (s->strategy == WIRE_STRATEGY_BEAM && !o->beam.sampled &&
        (s->has_temperature || s->has_top_p || s->top_k))
        return cli_usage_error(verb, "--temperature, --top-k and --top-p do not go with --beams");
    if (s->strategy == WIRE_STRATEGY_BEAM && (s->min_p != 0 || s->n_stop))
        return cli_usage_error(verb, "--min-p and --stop do not go with --beams");
    return 0;
}
