/* kserve.h: requests of the Open Inference Protocol as those of inference.proto, and answers back.
 *
 * Tensors and parameters have the names that Triton's vLLM backend gave them, so that its clients
 * work: text_input, stream, exclude_input_in_output, sampling_parameters in; text_output out.
 * Everything that a request may say stands in two tables of kserve.c. Pure functions of their
 * input; no sockets.
 *
 *   kserve_read -> kserve_request.generate -> front_open ... stream_message
 *                                          -> kserve_take ... kserve_pack -> ModelInferResponse
 */
#ifndef GLMD_COORDINATOR_KSERVE_H
#define GLMD_COORDINATOR_KSERVE_H

#include <jansson.h>

#include "base/buf.h"
#include "base/err.h"
#include "coordinator/request.h"
#include "model/text_join.h"
#include "proto/rpc/wire_inference.h"
#include "proto/rpc/wire_kserve.h"

enum {
    KSERVE_MAX_STOPS = STOP_MAX_TEXTS,
    KSERVE_MAX_STOP_IDS = 64,
    KSERVE_MAX_JSON_BYTES = 65536, /* of sampling_parameters */
};

/* The tensors of an answer. */
enum kserve_output {
    KSERVE_TEXT,
    KSERVE_FINISH_REASON,
    KSERVE_LOGPROB,
    KSERVE_INPUT_TOKENS,
    KSERVE_OUTPUT_TOKENS,
    KSERVE_N_OUTPUTS,
};

/* What a request said. Borrows from the message that it was read from. */
struct kserve_request {
    struct wire_generate_request generate; /* points into this struct: it must not move */
    struct wire_sampling_parameters sampling;
    bool stream;         /* an answer for each piece of text */
    bool echo;           /* the text in front of what continues it */
    bool raw;            /* answers as raw_output_contents */
    uint64_t timeout_us; /* 0 = none */
    bool outputs[KSERVE_N_OUTPUTS];

    /* owned */
    char *text;
    json_t *json[4]; /* strings of `stops` may live here */
    unsigned n_json;
    const char *stops[KSERVE_MAX_STOPS];
    int32_t stop_ids[KSERVE_MAX_STOP_IDS];
};

/* -EINVAL: the message starts with the tensor or parameter at fault and a colon; -ENOENT: another
 * version of the model; -ENOMEM. Call kserve_request_deinit in any case. */
int kserve_read(const struct wire_kserve_infer_request *w, struct kserve_request *ret,
                struct err *e);
void kserve_request_deinit(struct kserve_request *r);

struct kserve_choice {
    struct buf text;
    struct text_join join; /* streams: what is not settled is not told */
    const char *finish;    /* "" = not finished */
    double logprob;        /* of its tokens together */
    uint32_t n_tokens;     /* since the last answer */
};

/* What is to be answered, collected from the request's messages. */
struct kserve_answer {
    char *id, *prompt;                                     /* owned; prompt NULL: not echoed */
    const char *(*piece)(const void *context, int32_t id); /* of a token */
    const void *piece_context;                             /* borrowed */
    bool stream, raw;
    bool outputs[KSERVE_N_OUTPUTS];
    struct kserve_choice *choices; /* owned, [n_choices] */
    uint32_t n_choices;
    uint32_t n_prompt_tokens;
    bool last; /* the last message was taken */
};

/* From a request that was read; `id` is the client's, `piece` looks a token up. -ENOMEM, with
 * nothing to undo. */
int kserve_answer_init(struct kserve_answer *a, const struct kserve_request *r, const char *id,
                       const char *(*piece)(const void *context, int32_t id), const void *context);
void kserve_answer_deinit(struct kserve_answer *a);

/* Takes the next message in. 1: an answer is due (always with `stream`, else at the end); 0: not
 * yet; -ENOMEM. */
int kserve_take(struct kserve_answer *a, const struct wire_generate_response *m);

/* Appends the answer as ModelInferResponse, or within ModelStreamInferResponse; what it told is
 * forgotten. -ENOMEM. */
int kserve_pack(struct kserve_answer *a, const char *model, bool in_stream, struct buf *out);
/* A ModelStreamInferResponse that says what went wrong. */
int kserve_pack_error(const char *id, const char *message, struct buf *out);

/* The tensors of a request and an answer, for ModelMetadata. */
extern const struct wire_kserve_tensor_metadata kserve_inputs[], kserve_outputs[KSERVE_N_OUTPUTS];
extern const uint32_t kserve_n_inputs;

#endif
