/* wire_inference.c: the tables of inference.proto. See wire_map.h. */
#include "proto/rpc/wire_inference.h"

#include "glmd/v1/inference.pb-c.h"
#include "proto/rpc/wire_map.h"

#define T struct plan_bias
static const struct wire_field logit_bias_fields[] = {F_VALUE(T, token), F_VALUE(T, bias)};
WIRE_MAP(logit_bias, logit_bias, T);
#undef T

#define T struct plan_range
static const struct wire_field id_range_fields[] = {F_VALUE(T, begin), F_VALUE(T, end)};
WIRE_MAP(id_range, id_range, T);
#undef T

#define T struct wire_id_ranges
static const struct wire_field id_ranges_fields[] = {F_MESSAGES(T, ranges, &id_range)};
WIRE_MAP(id_ranges, id_ranges, T);
#undef T

#define T struct wire_beam_parameters
static const struct wire_field beam_fields[] = {
    F_VALUE(T, num_beams), F_OPTIONAL(T, length_penalty), F_VALUE(T, no_repeat_ngram_size),
    F_VALUE(T, sampled),   F_OPTIONAL(T, consider_end),
};
WIRE_MAP(beam, beam_parameters, T);
#undef T

#define T struct wire_sampling_parameters
static const struct wire_field sampling_fields[] = {
    F_VALUE(T, strategy),
    F_OPTIONAL(T, temperature),
    F_VALUE(T, top_k),
    F_OPTIONAL(T, top_p),
    F_OPTIONAL(T, seed),
    F_MESSAGES(T, logit_bias, &logit_bias),
    F_POINTER(T, invalid_ids, &id_ranges),
    F_POINTER(T, beam, &beam),
    F_VALUE(T, min_tokens),
    F_VALUE(T, ignore_end),
    F_VALUE(T, top_logprobs),
    F_VALUE(T, logprobs),
    F_VALUE(T, min_p),
    F_VALUE(T, repetition_penalty),
    F_VALUE(T, presence_penalty),
    F_VALUE(T, frequency_penalty),
    F_ARRAY(T, stop),
    F_ARRAY(T, stop_token_ids),
    F_VALUE(T, include_stop),
};
WIRE_MAP(sampling, sampling_parameters, T);
#undef T

#define T struct wire_token_ids
static const struct wire_field token_ids_fields[] = {F_ARRAY(T, ids)};
WIRE_MAP(token_ids, token_ids, T);
#undef T

#define T struct wire_generate_request
static const struct wire_field generate_request_fields[] = {
    F_VALUE(T, model),
    F_ONEOF(T, text, NULL),
    F_ONEOF(T, tokens, &token_ids),
    F_POINTER(T, sampling, &sampling),
    F_VALUE(T, max_tokens),
    F_VALUE(T, n),
    F_VALUE(T, unidirectional),
    F_VALUE(T, return_token_ids),
    F_VALUE(T, request_id),
    F_VALUE(T, best_of),
    F_VALUE(T, priority),
    F_VALUE(T, user),
    F_OPTIONAL(T, prompt_logprobs),
    F_VALUE(T, prompt_only),
};
WIRE_MAP(generate_request, generate_request, T);
WIRE_DEFINE(generate_request, T, generate_request)
#undef T

#define T struct wire_top_logprob
static const struct wire_field top_logprob_fields[] = {
    F_VALUE(T, token),
    F_VALUE(T, logprob),
    F_VALUE(T, text),
};
WIRE_MAP(top_logprob, top_logprob, T);
#undef T

#define T struct wire_token_logprob
static const struct wire_field token_logprob_fields[] = {
    F_VALUE(T, token),
    F_VALUE(T, logprob),
    F_MESSAGES(T, top, &top_logprob),
};
WIRE_MAP(token_logprob, token_logprob, T);
#undef T

#define T struct wire_choice_delta
static const struct wire_field choice_delta_fields[] = {
    F_VALUE(T, index),
    F_VALUE(T, text),
    F_ARRAY(T, tokens),
    F_MESSAGES(T, logprobs, &token_logprob),
    F_VALUE(T, finish_reason),
    F_OPTIONAL(T, score),
    F_VALUE(T, stop),
    F_OPTIONAL(T, stop_token),
    F_POINTER(T, stop_logprob, &token_logprob),
};
WIRE_MAP(choice_delta, choice_delta, T);
#undef T

#define T struct wire_usage
static const struct wire_field usage_fields[] = {
    F_VALUE(T, prompt_tokens),  F_VALUE(T, completion_tokens), F_VALUE(T, prefill_seconds),
    F_VALUE(T, decode_seconds), F_VALUE(T, scored_tokens),     F_VALUE(T, cached_tokens),
};
WIRE_MAP(usage, usage, T);
#undef T

#define T struct wire_generate_response
static const struct wire_field generate_response_fields[] = {
    F_MESSAGES(T, choices, &choice_delta),
    F_POINTER(T, usage, &usage),
    F_OPTIONAL(T, seed),
    F_VALUE(T, request_id),
    F_MESSAGES(T, prompt_logprobs, &token_logprob),
};
WIRE_MAP(generate_response, generate_response, T);
WIRE_DEFINE(generate_response, T, generate_response)
#undef T

#define T struct wire_fill_request
static const struct wire_field fill_request_fields[] = {
    F_VALUE(T, model),
    F_ONEOF(T, text, NULL),
    F_ONEOF(T, tokens, &token_ids),
    F_POINTER(T, sampling, &sampling),
    F_VALUE(T, max_length),
    F_VALUE(T, request_id),
    F_VALUE(T, return_token_ids),
    F_VALUE(T, priority),
    F_VALUE(T, user),
};
WIRE_MAP(fill_request, fill_request, T);
WIRE_DEFINE(fill_request, T, fill_request)
#undef T

#define T struct wire_blank_delta
static const struct wire_field blank_delta_fields[] = {
    F_VALUE(T, index),         F_VALUE(T, text), F_ARRAY(T, tokens),
    F_VALUE(T, finish_reason), F_VALUE(T, stop), F_OPTIONAL(T, stop_token),
};
WIRE_MAP(blank_delta, blank_delta, T);
#undef T

#define T struct wire_filled_text
static const struct wire_field filled_text_fields[] = {
    F_VALUE(T, text),
    F_ARRAY(T, blanks),
    F_ARRAY(T, tokens),
    F_OPTIONAL(T, score),
};
WIRE_MAP(filled_text, filled_text, T);
#undef T

#define T struct wire_fill_call
static const struct wire_field fill_call_fields[] = {
    F_ARRAY(T, input),
    F_MESSAGES(T, outputs, &token_ids),
};
WIRE_MAP(fill_call, fill_call, T);
#undef T

#define T struct wire_fill_response
static const struct wire_field fill_response_fields[] = {
    F_MESSAGES(T, blanks, &blank_delta),
    F_MESSAGES(T, results, &filled_text),
    F_MESSAGES(T, calls, &fill_call),
    F_POINTER(T, usage, &usage),
    F_OPTIONAL(T, seed),
    F_VALUE(T, request_id),
};
WIRE_MAP(fill_response, fill_response, T);
WIRE_DEFINE(fill_response, T, fill_response)
#undef T

#define T struct wire_score_request
static const struct wire_field score_request_fields[] = {
    F_VALUE(T, model),
    F_ONEOF(T, text, NULL),
    F_ONEOF(T, tokens, &token_ids),
    F_MESSAGES(T, choice_tokens, &token_ids),
    F_ARRAY(T, choices),
    F_VALUE(T, use_gmask),
    F_VALUE(T, request_id),
    F_VALUE(T, priority),
    F_VALUE(T, user),
};
WIRE_MAP(score_request, score_request, T);
WIRE_DEFINE(score_request, T, score_request)
#undef T

#define T struct wire_choice_score
static const struct wire_field choice_score_fields[] = {
    F_VALUE(T, logprob),
    F_ARRAY(T, token_logprobs),
};
WIRE_MAP(choice_score, choice_score, T);
#undef T

#define T struct wire_score_response
static const struct wire_field score_response_fields[] = {
    F_MESSAGES(T, choices, &choice_score),
    F_VALUE(T, best),
    F_POINTER(T, usage, &usage),
};
WIRE_MAP(score_response, score_response, T);
WIRE_DEFINE(score_response, T, score_response)
#undef T

#define T struct wire_tokenize_request
static const struct wire_field tokenize_request_fields[] = {
    F_VALUE(T, model),
    F_VALUE(T, text),
    F_VALUE(T, keep_linebreak),
    F_VALUE(T, parse_masks),
};
WIRE_MAP(tokenize_request, tokenize_request, T);
WIRE_DEFINE(tokenize_request, T, tokenize_request)
#undef T

#define T struct wire_tokenize_response
static const struct wire_field tokenize_response_fields[] = {F_ARRAY(T, ids), F_ARRAY(T, pieces)};
WIRE_MAP(tokenize_response, tokenize_response, T);
WIRE_DEFINE(tokenize_response, T, tokenize_response)
#undef T

#define T struct wire_detokenize_request
static const struct wire_field detokenize_request_fields[] = {F_VALUE(T, model), F_ARRAY(T, ids)};
WIRE_MAP(detokenize_request, detokenize_request, T);
WIRE_DEFINE(detokenize_request, T, detokenize_request)
#undef T

#define T struct wire_detokenize_response
static const struct wire_field detokenize_response_fields[] = {F_VALUE(T, text)};
WIRE_MAP(detokenize_response, detokenize_response, T);
WIRE_DEFINE(detokenize_response, T, detokenize_response)
#undef T

WIRE_MAP_EMPTY(list_models_request, list_models_request, struct wire_list_models_request);
WIRE_DEFINE(list_models_request, struct wire_list_models_request, list_models_request)

#define T struct wire_model_info
static const struct wire_field model_info_fields[] = {
    F_VALUE(T, id),         F_VALUE(T, architecture), F_VALUE(T, context_length),
    F_VALUE(T, vocab_size), F_VALUE(T, weights),      F_VALUE(T, digest),
    F_VALUE(T, layers),     F_VALUE(T, hidden_size),
};
const struct wire_map wire_model_info_map = {
    &glmd__v1__model_info__descriptor, sizeof(T), model_info_fields,
    sizeof model_info_fields / sizeof model_info_fields[0]};
#undef T

#define T struct wire_list_models_response
static const struct wire_field list_models_response_fields[] = {
    F_MESSAGES(T, models, &wire_model_info_map),
};
WIRE_MAP(list_models_response, list_models_response, T);
WIRE_DEFINE(list_models_response, T, list_models_response)
#undef T

const struct wire_map *const wire_inference_maps[] = {
    &generate_request,
    &generate_response,
    &fill_request,
    &fill_response,
    &score_request,
    &score_response,
    &tokenize_request,
    &tokenize_response,
    &detokenize_request,
    &detokenize_response,
    &list_models_request,
    &list_models_response,
    NULL,
};
