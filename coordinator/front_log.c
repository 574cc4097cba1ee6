/* front_log.c: see front_log.h. The only place that writes prompts and outputs to the log. */
#include "coordinator/front_log.h"

#include "base/log.h"
#include "base/util.h"
#include "coordinator/stream.h"

enum { MAX_TOKENS = 512 }; /* of a text; a line of the log is no longer */

static void log_text(const struct tokenizer *t, const struct request *r, const char *trace,
                     const char *what, const struct token_list *ids)
{
    struct buf text = {0};
    size_t n = MIN(ids->n, (size_t)MAX_TOKENS);
    if (n && stream_decode(t, ids->ids, n, &text) == 0)
        log_event(LOG_LEVEL_INFO, LOG(.request = r->client_id, .trace = trace), "%s %s: %s%s",
                  r->client_id, what, text.data, n == ids->n ? "" : " ...");
    buf_deinit(&text);
}

void front_log_texts(const struct tokenizer *t, const struct request *r, const char *trace)
{
    log_text(t, r, trace, "prompt", r->n_rounds ? &r->rounds[0].input : &r->prompt.ids);
    for (uint32_t i = 0; i != r->n_choices_scored; i++)
        log_text(t, r, trace, "scored", &r->choices[i]);
    for (uint32_t i = 0; i != r->n_rounds; i++)
        log_text(t, r, trace, "filled", &r->rounds[i].outputs[0]);
    for (uint32_t i = 0; r->kind != REQUEST_SCORE && i != r->n_outputs; i++)
        log_text(t, r, trace, "output", &r->outputs[i].tokens);
}
