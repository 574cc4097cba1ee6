/* admit.h: from what a client sent to a request that can run, or to the reason why not.
 *
 * Every field of every message has a limit, checked here once; whatever passes is safe for the
 * scheduler and the ranks. Messages say what is allowed and hold neither text of the client nor
 * anything of the server. Pure apart from drawing a seed; any thread.
 */
#ifndef GLMD_COORDINATOR_ADMIT_H
#define GLMD_COORDINATOR_ADMIT_H

#include "coordinator/request.h"
#include "model/arch.h"
#include "model/tokenizer/tokenizer.h"
#include "proto/rpc/wire_inference.h"

struct admit {
    const struct arch *arch;           /* borrowed */
    const struct tokenizer *tokenizer; /* borrowed */
    const char *model;                 /* borrowed: the served name */
    size_t max_input_bytes;
    uint32_t max_tokens;
    uint32_t max_masks;
    uint32_t max_choices;
    /* Forbidden unless a request says otherwise: whatever is neither text nor an end token. */
    struct plan_range default_forbidden[PLAN_MAX_RANGES];
    uint32_t n_default_forbidden;
};

/* Fills in default_forbidden from arch and tokenizer. -E2BIG: the ids without text are scattered
 * over more than PLAN_MAX_RANGES ranges. */
int admit_init(struct admit *a, struct err *e);

/* -EINVAL (any kind of bad input; the message starts with the field at fault and a colon, where
 * there is one), -ENOENT (no such model) or -ENOMEM, with a message for the client. */
/* Whether a request may have this id. */
int admit_request_id(const char *id, struct err *e);

int admit_generate(const struct admit *a, const struct wire_generate_request *w,
                   struct request **ret, struct err *e);
/* prompt_logprobs: the Score request whose only choice is the input as it was sent. */
int admit_echo(const struct admit *a, const struct wire_generate_request *w, struct request **ret,
               struct err *e);
int admit_fill(const struct admit *a, const struct wire_fill_request *w, struct request **ret,
               struct err *e);
int admit_score(const struct admit *a, const struct wire_score_request *w, struct request **ret,
                struct err *e);
int admit_tokenize(const struct admit *a, const struct wire_tokenize_request *w,
                   struct token_list *ret_ids, struct err *e);
int admit_detokenize(const struct admit *a, const struct wire_detokenize_request *w,
                     struct buf *ret_text, struct err *e);

/* request.tenant of an API key or a user's name. */
uint64_t admit_tenant(const char *key);

#endif
