/* wire_inference.h: the messages of inference.proto as plain structs. Conventions: wire.h; what the
 * fields mean: inference.proto. */
#ifndef GLMD_PROTO_RPC_WIRE_INFERENCE_H
#define GLMD_PROTO_RPC_WIRE_INFERENCE_H

#include "proto/plan.h"
#include "proto/rpc/wire_declare.h"

enum wire_strategy { WIRE_STRATEGY_UNSPECIFIED, WIRE_STRATEGY_SAMPLE, WIRE_STRATEGY_BEAM };

enum wire_finish_reason {
    WIRE_FINISH_UNSPECIFIED, /* not finished */
    WIRE_FINISH_STOP,
    WIRE_FINISH_LENGTH,
};

struct wire_id_ranges {
    const struct plan_range *ranges;
    uint32_t n_ranges;
};

struct wire_beam_parameters {
    uint32_t num_beams;
    bool has_length_penalty;
    double length_penalty;
    uint32_t no_repeat_ngram_size;
    bool sampled;
    bool has_consider_end;
    bool consider_end;
};

struct wire_sampling_parameters {
    enum wire_strategy strategy;
    bool has_temperature;
    float temperature;
    uint32_t top_k;
    bool has_top_p;
    float top_p;
    bool has_seed;
    uint64_t seed;
    const struct plan_bias *logit_bias;
    uint32_t n_logit_bias;
    const struct wire_id_ranges *invalid_ids;
    const struct wire_beam_parameters *beam;
    uint32_t min_tokens;
    bool ignore_end;
    uint32_t top_logprobs;
    bool logprobs;
    float min_p;
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    const char *const *stop;
    uint32_t n_stop;
    const int32_t *stop_token_ids;
    uint32_t n_stop_token_ids;
    bool include_stop;
};

struct wire_token_ids {
    const int32_t *ids;
    uint32_t n_ids;
};

struct wire_generate_request {
    const char *model;
    const char *text; /* text or tokens */
    const struct wire_token_ids *tokens;
    const struct wire_sampling_parameters *sampling;
    uint32_t max_tokens;
    uint32_t n;
    bool unidirectional;
    bool return_token_ids;
    const char *request_id;
    uint32_t best_of;
    int32_t priority;
    const char *user;
    bool has_prompt_logprobs;
    uint32_t prompt_logprobs;
    bool prompt_only;
};

struct wire_top_logprob {
    int32_t token;
    float logprob;
    const char *text;
};

struct wire_token_logprob {
    int32_t token;
    float logprob;
    const struct wire_top_logprob *top;
    uint32_t n_top;
};

struct wire_choice_delta {
    uint32_t index;
    const char *text;
    const int32_t *tokens;
    uint32_t n_tokens;
    const struct wire_token_logprob *logprobs;
    uint32_t n_logprobs;
    enum wire_finish_reason finish_reason;
    bool has_score;
    double score;
    const char *stop;
    bool has_stop_token;
    int32_t stop_token;
    const struct wire_token_logprob *stop_logprob;
};

struct wire_usage {
    uint32_t prompt_tokens;
    uint32_t completion_tokens;
    double prefill_seconds;
    double decode_seconds;
    uint32_t scored_tokens;
    uint32_t cached_tokens;
};

struct wire_generate_response {
    const struct wire_choice_delta *choices;
    uint32_t n_choices;
    const struct wire_usage *usage;
    bool has_seed;
    uint64_t seed;
    const char *request_id;
    const struct wire_token_logprob *prompt_logprobs;
    uint32_t n_prompt_logprobs;
};

struct wire_fill_request {
    const char *model;
    const char *text; /* text or tokens */
    const struct wire_token_ids *tokens;
    const struct wire_sampling_parameters *sampling;
    uint32_t max_length;
    const char *request_id;
    bool return_token_ids;
    int32_t priority;
    const char *user;
};

struct wire_blank_delta {
    uint32_t index;
    const char *text;
    const int32_t *tokens;
    uint32_t n_tokens;
    enum wire_finish_reason finish_reason;
    const char *stop;
    bool has_stop_token;
    int32_t stop_token;
};

struct wire_filled_text {
    const char *text;
    const char *const *blanks;
    uint32_t n_blanks;
    const int32_t *tokens;
    uint32_t n_tokens;
    bool has_score;
    double score;
};

struct wire_fill_call {
    const int32_t *input;
    uint32_t n_input;
    const struct wire_token_ids *outputs;
    uint32_t n_outputs;
};

struct wire_fill_response {
    const struct wire_blank_delta *blanks;
    uint32_t n_blanks;
    const struct wire_filled_text *results;
    uint32_t n_results;
    const struct wire_fill_call *calls;
    uint32_t n_calls;
    const struct wire_usage *usage;
    bool has_seed;
    uint64_t seed;
    const char *request_id;
};

struct wire_score_request {
    const char *model;
    const char *text; /* text or tokens */
    const struct wire_token_ids *tokens;
    const struct wire_token_ids *choice_tokens;
    uint32_t n_choice_tokens;
    const char *const *choices;
    uint32_t n_choices;
    bool use_gmask;
    const char *request_id;
    int32_t priority;
    const char *user;
};

struct wire_choice_score {
    double logprob;
    const float *token_logprobs;
    uint32_t n_token_logprobs;
};

struct wire_score_response {
    const struct wire_choice_score *choices;
    uint32_t n_choices;
    uint32_t best;
    const struct wire_usage *usage;
};

struct wire_tokenize_request {
    const char *model;
    const char *text;
    bool keep_linebreak;
    bool parse_masks;
};

struct wire_tokenize_response {
    const int32_t *ids;
    uint32_t n_ids;
    const char *const *pieces;
    uint32_t n_pieces;
};

struct wire_detokenize_request {
    const char *model;
    const int32_t *ids;
    uint32_t n_ids;
};

struct wire_detokenize_response {
    const char *text;
};

struct wire_list_models_request {
    char empty;
};

struct wire_model_info {
    const char *id;
    const char *architecture;
    uint32_t context_length;
    uint32_t vocab_size;
    const char *weights;
    const char *digest;
    uint32_t layers;
    uint32_t hidden_size;
};

struct wire_list_models_response {
    const struct wire_model_info *models;
    uint32_t n_models;
};

WIRE_DECLARE(generate_request, struct wire_generate_request);
WIRE_DECLARE(generate_response, struct wire_generate_response);
WIRE_DECLARE(fill_request, struct wire_fill_request);
WIRE_DECLARE(fill_response, struct wire_fill_response);
WIRE_DECLARE(score_request, struct wire_score_request);
WIRE_DECLARE(score_response, struct wire_score_response);
WIRE_DECLARE(tokenize_request, struct wire_tokenize_request);
WIRE_DECLARE(tokenize_response, struct wire_tokenize_response);
WIRE_DECLARE(detokenize_request, struct wire_detokenize_request);
WIRE_DECLARE(detokenize_response, struct wire_detokenize_response);
WIRE_DECLARE(list_models_request, struct wire_list_models_request);
WIRE_DECLARE(list_models_response, struct wire_list_models_response);

#endif
