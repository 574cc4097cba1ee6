/* clients.h: a client's request: what it asks for, how it behaves, what it has got. Shared by
 * clients.c (the calls), generate.c (random requests) and verify.c (the answers). */
#ifndef GLMD_TESTS_SIM_CLIENTS_H
#define GLMD_TESTS_SIM_CLIENTS_H

#include "base/buf.h"
#include "coordinator/auth.h"
#include "coordinator/request.h"
#include "proto/rpc/wire_inference.h"
#include "sim.h"

enum { SIM_MAX_PARTS = 64, SIM_MAX_STOPS = 3 };

struct sim_logprob {
    int32_t token;
    float logprob;
    uint32_t n_top;
    struct result_logprob top[PLAN_MAX_TOP_LOGPROBS];
};

/* One choice or blank, as it came. */
struct sim_part {
    struct token_list tokens;
    struct buf text;
    uint32_t n_logprobs;
    struct sim_logprob *logprobs; /* [n_logprobs] */
    enum wire_finish_reason finish;
    int32_t stop_token; /* -1 = none */
    char stop[32];      /* the stop text */
    double score;
};

struct sim_request {
    struct sim *sim;
    uint32_t number;
    enum request_kind kind;

    /* what is asked */
    struct buf packed;
    bool return_ids, wants_logprobs;
    const char *stops[SIM_MAX_STOPS];
    uint32_t n_stops;
    int32_t priority;
    const char *user; /* whom fairness counts it for, */
    const char *key;  /* unless there is an authorization; NULL = none */
    uint32_t key_idx; /* where keys are in force: which one; UINT32_MAX = none that is known */
    struct auth_cost cost;
    bool has_seed;
    uint32_t n_parts; /* choices that come back; Fill: blanks */
    bool admitted;
    struct request *fresh; /* as admission reads it; NULL: it refuses it, or nothing is generated */
    struct request *echo;  /* likewise: the scoring of the prompt in front of it, NULL = none */
    bool fits_some;        /* a group of this run can run it at all */
    bool fits_all;         /* every one can */

    /* how the client behaves */
    int64_t deadline_ns;     /* relative, 0 = none */
    int64_t cancel_ns;       /* relative, 0 = never */
    uint32_t cancel_message; /* after that many messages, 0 = never */
    uint32_t pause_message;  /* stops reading after that many messages, 0 = never */
    int64_t pause_ns;
    bool wants_retry; /* comes again, once, when it was told when */

    /* what has come */
    struct rpc_call *call; /* NULL before and after */
    int64_t sent_ns, done_ns;
    uint32_t n_tries;      /* that were refused */
    int64_t first_sent_ns; /* of the first one */
    double n_used;         /* tokens, as its key counts */
    bool cancelled, aborted, paused, done;
    uint32_t n_messages, n_choice_messages;
    int64_t held_ns;  /* the coordinator has stopped for it since; 0 = it has not */
    uint64_t held_id; /* as which of its requests */
    bool has_usage;
    struct wire_usage usage;
    bool seed_known;
    uint64_t seed;
    struct sim_logprob *prompt_logprobs; /* [n_prompt_logprobs] */
    uint32_t n_prompt_logprobs;
    struct sim_part parts[SIM_MAX_PARTS];
    /* Fill and Score: the last message */
    struct wire_fill_response *fill; /* owned, unpacked */
    struct wire_score_response *score;
};

/* generate.c */
void sim_request_make(struct sim_request *q);

/* keys.c: which key it has, and whether that allows an end. */
void sim_keys_choose(struct sim_request *q);
uint64_t sim_keys_tenant(const struct sim_request *q);
bool sim_keys_may_refuse(const struct sim_request *q, enum rpc_status status, const char *message,
                         int64_t retry_ns);
bool sim_keys_wants_retry(const struct sim_request *q, enum rpc_status status, const char *message);
void sim_keys_answered(struct sim_request *q, enum rpc_status status);

/* verify.c */
void sim_request_message(struct sim_request *q, const uint8_t *data, size_t size);
void sim_request_verify(struct sim_request *q, enum rpc_status status, const char *message,
                        int64_t retry_ns);
void sim_request_free_answer(struct sim_request *q);

#endif
