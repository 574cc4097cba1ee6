/* request.h: one client request, from admission to its last token.
 *
 * Pure state: no sockets, no clock of its own. The front fills in a request and submits it; the
 * scheduler moves it; the front reads `outputs` whenever the scheduler says that a request was
 * touched, and frees it after REQUEST_DONE.
 *
 *   NEW --submit--> QUEUED --admit--> RUNNING --last token, failure, cancellation--> DONE
 *                     ^                  |
 *                     +-- group is lost -+   outputs stay, the cache is computed again
 *
 * A running request executes *rounds*: one prompt and its outputs. Generate and Score have one;
 * Fill has one for each blank, each starting from the text that the previous round filled. Within a
 * round:
 *
 *   CONTEXT  several choices: prompt without its last token, run once, then shared by all
 *   RUN      every sequence runs whatever of prompt + output is not in its cache yet
 *
 * so that the first step of a single sequence, a decode step and the replay of a sequence in a new
 * epoch are the same thing. A prefix runs as one item, what is behind it may be cut into parts.
 * Prompt and output token ids stay here for the request's whole life.
 */
#ifndef GLMD_COORDINATOR_REQUEST_H
#define GLMD_COORDINATOR_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/blocks.h"
#include "coordinator/stop.h"
#include "model/beam.h"
#include "model/prompt.h"
#include "proto/plan.h"
#include "proto/rpc/rpc.h"

enum {
    REQUEST_MAX_CHOICES = 16,
    REQUEST_ID_BYTES = 129,
    REQUEST_SLOT_NONE = -1,
};

enum request_kind { REQUEST_GENERATE, REQUEST_FILL, REQUEST_SCORE };
enum request_state { REQUEST_NEW, REQUEST_QUEUED, REQUEST_RUNNING, REQUEST_DONE };
enum request_phase { REQUEST_CONTEXT, REQUEST_RUN };
enum finish { FINISH_NONE, FINISH_STOP, FINISH_LENGTH };

/* Checked at admission; constant afterwards. */
struct request_params {
    bool beam; /* beam search; otherwise sampling */
    float temperature;
    uint32_t top_k;
    float top_p;
    float min_p;
    float repetition_penalty; /* 1 = off */
    float presence_penalty, frequency_penalty;
    uint64_t seed;
    struct plan_bias *bias; /* owned */
    uint32_t n_bias;
    struct plan_range *forbidden; /* owned */
    uint32_t n_forbidden;
    uint32_t n_top_logprobs;
    bool logprobs;
    uint32_t min_tokens;
    bool ignore_end;
    int32_t *stop_ids; /* owned; end an output as end tokens do, whatever ignore_end says */
    uint32_t n_stop_ids;
    struct stop_set *stops; /* owned; stop texts, NULL = none: see `watch` */
    bool include_stop;      /* the output keeps the text that ended it */
    uint32_t n_choices;     /* sequences sampled; with beams: results returned */
    uint32_t n_best;        /* best_of: so many of the choices are returned; 0 = all */
    uint32_t max_new;       /* tokens of an output; Fill: bounded by max_length instead */

    uint32_t n_beams;
    double length_penalty;
    uint32_t no_repeat_ngram;
    bool beam_sampled;
    bool consider_end;

    uint32_t max_length; /* Fill: tokens of the sequence, prompt with sop included */
    uint32_t max_rounds; /* Fill: blanks that are filled at most */
};

struct output_logprob {
    float logprob;
    uint32_t n_top;
    struct result_logprob *top; /* owned */
};

/* What one choice, beam or Score choice has produced in the current round. */
struct output {
    struct token_list tokens;        /* the end token is not in it */
    struct output_logprob *logprobs; /* [tokens.n] when the request asks for them */
    size_t logprobs_capacity;
    bool has_end_logprob; /* logprobs[tokens.n] is there, too: of the end token */
    int32_t end_token;    /* the token that ended it, -1 = none */
    int32_t stop;         /* the stop text that ended it, -1 = none */
    enum finish finish;
    double logprob_sum;   /* of the n_sampled tokens that were chosen, the last one included */
    uint32_t n_sampled;   /* without beams */
    double score;         /* beams: penalized; Score: sum of log-probabilities */
    float *token_scores;  /* Score: [n_target], n_scored of them known */
    int32_t *best_tokens; /* Score: [n_target, n_top_logprobs]; NULL when not asked for */
    float *best_logprobs; /* likewise */
    uint32_t n_scored;
    const int32_t *target; /* Score: borrowed from the request */
    uint32_t n_target;
};

/* A finished round of a Fill. */
struct fill_round {
    struct token_list input;    /* ends in sop */
    struct token_list *outputs; /* [n_outputs], end tokens not included */
    int32_t *end_tokens;        /* [n_outputs], -1 = none */
    int32_t *stops;             /* [n_outputs], -1 = none */
    enum finish *finishes;      /* [n_outputs] */
    double *scores;             /* [n_outputs] */
    uint32_t n_outputs;
    int32_t mask_index; /* the blank's place in `input` */
};

/* One sequence in the ranks' cache. */
struct seq {
    int64_t slot; /* REQUEST_SLOT_NONE while it has none */
    uint32_t slot_gen;
    struct block_table table;
    struct block_table next; /* beams: the table after this step's reordering */
    uint32_t n_cached;       /* tokens of prompt + output that are in the cache, or on their way */
    uint32_t output;         /* index into outputs */
    uint32_t n_history;      /* ids of its history that the ranks have, */
    uint32_t n_blocks_told;  /* entries of its table: 0 where it has become another one, */
    bool sampling_told;      /* and its parameters */
    bool live;               /* takes part in the steps */
    uint32_t n_samples_out;  /* its items in steps that are out and choose a token */
};

struct request {
    /* set by the front */
    uint64_t id; /* for logs and status; drawn by the scheduler */
    char client_id[REQUEST_ID_BYTES];
    enum request_kind kind;
    struct request_params params;
    int64_t arrived_ns;
    int64_t deadline_ns; /* monotonic; 0 = none */
    void *user;          /* the front's call */
    int32_t priority;    /* greater ones first; 0 = usual */
    uint64_t tenant;     /* who shares fairly with others; 0 = nobody in particular */
    /* Called when a sampled output has grown or ended, before anything is done about it; may end it
     * with output_stop. NULL = nobody looks. -ENOMEM ends the request. */
    int (*watch)(void *context, struct request *r, uint32_t output);
    void *watch_context;

    /* what the current round runs, owned */
    struct prompt prompt;
    struct token_list ids;      /* Fill: the sequence without sop, of the current round */
    enum mask_kind mask;        /* Fill: the kind that is filled */
    struct token_list *choices; /* Score: [n_choices_scored] */
    uint32_t n_choices_scored;

    /* the scheduler's */
    enum request_state state;
    enum request_phase phase;
    int64_t retry_after_ns; /* refused: when to try again */
    uint32_t group;         /* where it runs */
    uint32_t n_losses;      /* groups that were lost while a step of it was out */
    uint32_t n_preempted;
    uint32_t tenant_idx;
    uint32_t n_queue_tokens;    /* prompt and Score choices: what it counts for in the queue */
    uint32_t n_blocks_reserved; /* when it started */
    int64_t blocked_ns;         /* waits in vain for room since; 0 = it does not */
    bool requeued;              /* has run before, and waits in front of its class */
    bool victim;                /* is about to make room for another one */
    bool paused;                /* the reader is behind: the sequences keep their memory and wait */
    uint32_t round;
    uint32_t n_context; /* tokens that all sequences of the round share */
    struct block_lease lease;
    uint32_t n_slots_reserved;
    struct seq *seqs; /* [n_seqs] */
    uint32_t n_seqs;
    /* Score: the shared context while choices run. Others: a cached context, until the copies of
     * its last block have run. */
    struct block_table context;
    uint64_t context_hash; /* of the current prompt */
    uint32_t n_hit;        /* tokens of the prompt that the cache had when it started */
    bool context_cached;   /* the context of this round was given to the cache */
    uint32_t next_choice;  /* Score: those in front of it have been started */
    struct beam_search *search;
    uint32_t beam_step;
    struct plan_copy copies[BEAM_MAX]; /* to run before the next step of this request */
    uint32_t n_copies;
    struct output *outputs; /* [n_outputs] */
    uint32_t n_outputs;
    struct fill_round *rounds; /* Fill: [n_rounds] finished ones */
    uint32_t n_rounds;
    bool touched;
    struct request *next_touched;
    struct request *prev, *next; /* the queue, or the running list */

    /* outcome */
    enum rpc_status status;
    char message[256];
    uint32_t n_prompt_tokens;
    uint32_t n_cached_tokens; /* of these; before its first step */
    uint64_t n_completion_tokens;
    int64_t started_ns, first_token_ns, last_token_ns;
};

struct request *request_new(enum request_kind kind);
/* Not while the scheduler has it. */
void request_free(struct request *r);

/* Sequences that run at once from here on. Score: bounded by what the group has. */
uint32_t request_slots(const struct request *r, uint32_t n_slots_total);
/* Largest number of tokens that one sequence can have in the cache. */
uint32_t request_max_tokens(const struct request *r);
/* Tokens that it can use in all: its prompt, and as many as its outputs may have. A Fill can use
 * somewhat more: ends of blanks, and what stop texts cut off, are not in its length. */
uint64_t request_cost(const struct request *r);
/* KV blocks that the whole life can need, with this many slots. */
uint64_t request_blocks(const struct request *r, uint32_t n_slots);

/* Token `index` of a sequence: prompt, then output (or beam, or target). */
int32_t request_token(const struct request *r, const struct seq *s, uint32_t index);
/* Tokens of the sequence that must be in the cache before the next output. */
uint32_t request_n_tokens(const struct request *r, const struct seq *s);

/* What answers over HTTP write in front of a request's id, by kind. */
#define REQUEST_ID_COMPLETION "cmpl-"
#define REQUEST_ID_CHAT       "chatcmpl-"
#define REQUEST_ID_FILL       "fill-"

/* The id behind such a prefix; NULL: there is none. A request may have been given an id that begins
 * like that, so the whole one is to be tried first. */
const char *request_id_behind_prefix(const char *id);

/* New tokens that the current round may produce. */
uint32_t request_max_new(const struct request *r);

/* One of the client's own stop ids. */
bool request_is_stop_id(const struct request *r, int32_t token);

/* Appends a sampled token to an output. -ENOMEM. */
int output_append(struct output *o, int32_t token, const struct result_item *item, bool logprobs);
/* Ends an output with an end token, or a stop id, that was sampled. -ENOMEM. */
int output_end(struct output *o, int32_t token, const struct result_item *item, bool logprobs);
/* Ends an output with its first n_keep tokens: a stop text is complete. Also one that has ended in
 * the same step for another reason. */
void output_stop(struct output *o, size_t n_keep, uint32_t stop);
void output_deinit(struct output *o);

/* Fill: stores the finished round and prepares the next prompt. 1: there is one; 0: every blank is
 * filled (ids holds the result of the best output); -ENOMEM. */
int request_next_round(struct request *r, const struct arch *a);

/* Outputs of the current round, zeroed: what a round starts with. */
int request_begin_round(struct request *r);

#endif
