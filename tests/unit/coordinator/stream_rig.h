/* stream_rig.h: requests that run on the scheduler with the hash engine, and a client that reads
 * their streams. */
#ifndef GLMD_TESTS_COORDINATOR_STREAM_RIG_H
#define GLMD_TESTS_COORDINATOR_STREAM_RIG_H

#include "coordinator/stream.h"
#include "proto/rpc/wire_inference.h"

/* What a client gathers. */
struct reader {
    struct buf text[16]; /* by choice or blank */
    struct token_list tokens[16];
    uint32_t n_logprobs;
    uint32_t n_messages, n_seeds, n_usages;
    enum wire_finish_reason finish[16];
    char stop[16][300]; /* what ended it */
    int32_t stop_token[16];
    double score[16];
    struct wire_usage usage;         /* Generate */
    struct wire_fill_response *fill; /* the last message */
    struct wire_score_response *scored;
};
void reader_deinit(struct reader *x);

/* A request for 60 tokens at most of text tokens and ends. */
struct request *rig_request(const struct tokenizer *tokenizer, enum request_kind kind,
                            const char *text, uint64_t seed);

/* Runs the request to its end; looks for news after every `stride` steps. */
void rig_run(const struct tokenizer *tokenizer, struct request *r, bool return_ids, unsigned stride,
             struct reader *x);

#endif
