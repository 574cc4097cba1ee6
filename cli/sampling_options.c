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

static int add_bias(void *context, const char *verb, const char *value)
{
    struct sampling_options *o = context;
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

static int add_stop(void *context, const char *verb, const char *value)
{
    struct sampling_options *o = context;
    size_t n = strlen(value);
    if (n < 1 || n > 256 || utf8_check(value, n) != n)
        return cli_usage_error(verb, "--stop: expected 1 to 256 bytes of UTF-8");
    if (o->wire.n_stop == SAMPLING_MAX_STOP)
        return cli_usage_error(verb, "--stop: at most %d", SAMPLING_MAX_STOP);
    o->stop[o->wire.n_stop++] = value;
    return 0;
}

static int add_stop_id(void *context, const char *verb, const char *value)
{
    struct sampling_options *o = context;
    uint32_t id = 0;
    if (o->wire.n_stop_token_ids == SAMPLING_MAX_STOP_IDS)
        return cli_usage_error(verb, "--stop-id: at most %d", SAMPLING_MAX_STOP_IDS);
    int code = cli_option_u32(verb, "--stop-id", value, 0, INT32_MAX, &id);
    if (code == 0)
        o->stop_ids[o->wire.n_stop_token_ids++] = (int32_t)id;
    return code;
}

struct cli_options sampling_options(struct sampling_options *o,
                                    struct cli_option ret[SAMPLING_N_OPTIONS])
{
    static const char help[] =
        "How tokens are chosen:\n"
        "      --temperature T       0 = greedy, up to 10 (default 1)\n"
        "      --top-k K             among the K best; 0 = off (default), 1 = greedy\n"
        "      --top-p P             among the best that make up P; 0 or 1 = off (default 0.7)\n"
        "      --min-p P             among those at least P times as likely as the best; 0 = off\n"
        "      --repetition-penalty R  0.01 to 100: divides the logits of tokens that were there\n"
        "      --presence-penalty P  -2 to 2: taken from the logits of tokens of the output\n"
        "      --frequency-penalty F  -2 to 2: as often as the token is there\n"
        "      --seed N              the same seed gives the same output (default: drawn)\n"
        "      --greedy              the best token always: --top-k 1\n"
        "      --min-tokens N        no end before N tokens\n"
        "      --ignore-end          end tokens neither end the text nor appear\n"
        "      --stop TEXT           ends in front of this text; may be repeated, up to 16 times\n"
        "      --stop-id ID          ends at this token; may be repeated, up to 64 times\n"
        "      --include-stop        keep the text of --stop\n"
        "      --logit-bias ID=B     add B (-100 to 100) to a token's logit; may be repeated\n"
        "      --any-token           also tokens that are no text (image codes, other specials)\n"
        "      --beams B             beam search with B beams (1 to 64) instead of sampling\n"
        "      --length-penalty P    of beam search (default 1)\n"
        "      --no-repeat-ngram N   of beam search: no N-gram twice; 0 = off (default)\n"
        "      --sampled-beams       of beam search: draw candidates instead of taking the best\n"
        "      --no-consider-end     of beam search: unfinished beams do not compete at the end\n";
    struct wire_sampling_parameters *s = &o->wire;
    struct wire_beam_parameters *b = &o->beam;
    const struct cli_option options[SAMPLING_N_OPTIONS] = {
        CLI_FLOAT("temperature", &s->temperature, 0, 10, .given = &s->has_temperature),
        CLI_U32("top-k", &s->top_k, 0, UINT32_MAX),
        CLI_FLOAT("top-p", &s->top_p, 0, 1, .given = &s->has_top_p),
        CLI_FLOAT("min-p", &s->min_p, 0, 1),
        CLI_FLOAT("repetition-penalty", &s->repetition_penalty, 0.01, 100),
        CLI_FLOAT("presence-penalty", &s->presence_penalty, -2, 2),
        CLI_FLOAT("frequency-penalty", &s->frequency_penalty, -2, 2),
        CLI_U64("seed", &s->seed, 0, 0x1p64, .given = &s->has_seed),
        CLI_FLAG("greedy", &o->greedy),
        CLI_U32("min-tokens", &s->min_tokens, 0, UINT32_MAX),
        CLI_FLAG("ignore-end", &s->ignore_end),
        CLI_TAKE("stop", add_stop, o),
        CLI_TAKE("stop-id", add_stop_id, o),
        CLI_FLAG("include-stop", &s->include_stop),
        CLI_TAKE("logit-bias", add_bias, o),
        CLI_FLAG("any-token", &o->any_token),
        CLI_U32("beams", &b->num_beams, 1, 64, .given = &o->any_beam_option),
        CLI_DOUBLE("length-penalty", &b->length_penalty, -100, 100,
                   .given = &b->has_length_penalty),
        CLI_U32("no-repeat-ngram", &b->no_repeat_ngram_size, 0, UINT32_MAX,
                .given = &o->any_beam_option),
        CLI_FLAG("sampled-beams", &b->sampled),
        CLI_FLAG("no-consider-end", &o->no_consider_end),
    };
    memcpy(ret, options, sizeof options);
    return (struct cli_options){ret, SAMPLING_N_OPTIONS, help};
}

int sampling_options_check(struct sampling_options *o, const char *verb)
{
    struct wire_sampling_parameters *s = &o->wire;
    if (o->greedy)
        s->top_k = 1;
    if (o->any_token)
        s->invalid_ids = &o->any_id;
    o->beam.has_consider_end = o->no_consider_end; /* which is false then */
    if (o->any_beam_option || o->beam.has_length_penalty || o->beam.sampled || o->no_consider_end) {
        s->strategy = WIRE_STRATEGY_BEAM;
        s->beam = &o->beam;
    }
    if (s->strategy == WIRE_STRATEGY_BEAM && o->beam.num_beams == 0)
        return cli_usage_error(verb, "options of beam search need --beams");
    if (s->strategy == WIRE_STRATEGY_BEAM && !o->beam.sampled &&
        (s->has_temperature || s->has_top_p || s->top_k))
        return cli_usage_error(verb, "--temperature, --top-k and --top-p do not go with --beams");
    if (s->strategy == WIRE_STRATEGY_BEAM && (s->min_p != 0 || s->n_stop))
        return cli_usage_error(verb, "--min-p and --stop do not go with --beams");
    return 0;
}
