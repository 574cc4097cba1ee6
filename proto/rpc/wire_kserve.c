/* wire_kserve.c: the tables of inference/kserve.proto. See wire_map.h. A member of
 * InferParameter's oneof is a scalar, which the tables call optional. */
#include "proto/rpc/wire_kserve.h"

#include "inference/kserve.pb-c.h"
#include "proto/rpc/wire_map.h"

#define KSERVE_MAP(name, message, T)                                                               \
    static const struct wire_map name = {&inference__##message##__descriptor, sizeof(T),           \
                                         name##_fields,                                            \
                                         sizeof name##_fields / sizeof name##_fields[0]}
#define KSERVE_MAP_EMPTY(name, message, T)                                                         \
    static const struct wire_map name = {&inference__##message##__descriptor, sizeof(T), NULL, 0}

/* ---- the server and its models ---- */

#define T struct wire_kserve_empty
KSERVE_MAP_EMPTY(live_request, server_live_request, T);
WIRE_DEFINE(kserve_live_request, T, live_request)
KSERVE_MAP_EMPTY(ready_request, server_ready_request, T);
WIRE_DEFINE(kserve_ready_request, T, ready_request)
KSERVE_MAP_EMPTY(server_metadata_request, server_metadata_request, T);
WIRE_DEFINE(kserve_server_metadata_request, T, server_metadata_request)
#undef T

#define T struct wire_kserve_live
static const struct wire_field live_response_fields[] = {F_VALUE(T, live)};
KSERVE_MAP(live_response, server_live_response, T);
WIRE_DEFINE(kserve_live_response, T, live_response)
#undef T

#define T struct wire_kserve_ready
static const struct wire_field ready_response_fields[] = {F_VALUE(T, ready)};
KSERVE_MAP(ready_response, server_ready_response, T);
WIRE_DEFINE(kserve_ready_response, T, ready_response)
static const struct wire_field model_ready_response_fields[] = {F_VALUE(T, ready)};
KSERVE_MAP(model_ready_response, model_ready_response, T);
WIRE_DEFINE(kserve_model_ready_response, T, model_ready_response)
#undef T

#define T struct wire_kserve_model
static const struct wire_field model_ready_request_fields[] = {
    F_VALUE(T, name),
    F_VALUE(T, version),
};
KSERVE_MAP(model_ready_request, model_ready_request, T);
WIRE_DEFINE(kserve_model_ready_request, T, model_ready_request)
static const struct wire_field model_metadata_request_fields[] = {
    F_VALUE(T, name),
    F_VALUE(T, version),
};
KSERVE_MAP(model_metadata_request, model_metadata_request, T);
WIRE_DEFINE(kserve_model_metadata_request, T, model_metadata_request)
#undef T

#define T struct wire_kserve_server_metadata
static const struct wire_field server_metadata_fields[] = {
    F_VALUE(T, name),
    F_VALUE(T, version),
    F_ARRAY(T, extensions),
};
KSERVE_MAP(server_metadata, server_metadata_response, T);
WIRE_DEFINE(kserve_server_metadata, T, server_metadata)
#undef T

#define T struct wire_kserve_tensor_metadata
static const struct wire_field tensor_metadata_fields[] = {
    F_VALUE(T, name),
    F_VALUE(T, datatype),
    F_ARRAY(T, shape),
};
KSERVE_MAP(tensor_metadata, model_metadata_response__tensor_metadata, T);
#undef T

#define T struct wire_kserve_model_metadata
static const struct wire_field model_metadata_fields[] = {
    F_VALUE(T, name),
    F_ARRAY(T, versions),
    F_VALUE(T, platform),
    F_MESSAGES(T, inputs, &tensor_metadata),
    F_MESSAGES(T, outputs, &tensor_metadata),
};
KSERVE_MAP(model_metadata, model_metadata_response, T);
WIRE_DEFINE(kserve_model_metadata, T, model_metadata)
#undef T

/* ---- parameters: the entries of each map are messages of their own ---- */

#define T struct wire_kserve_parameter
static const struct wire_field parameter_fields[] = {
    F_OPTIONAL(T, bool_param),   F_OPTIONAL(T, int64_param),  F_OPTIONAL(T, string_param),
    F_OPTIONAL(T, double_param), F_OPTIONAL(T, uint64_param),
};
KSERVE_MAP(parameter, infer_parameter, T);
#undef T

#define T struct wire_kserve_entry
#define entry_fields                                                                               \
    {                                                                                              \
        F_VALUE(T, key), F_POINTER(T, value, &parameter)                                           \
    }
static const struct wire_field request_entry_fields[] = entry_fields;
KSERVE_MAP(request_entry, model_infer_request__parameters_entry, T);
static const struct wire_field input_entry_fields[] = entry_fields;
KSERVE_MAP(input_entry, model_infer_request__infer_input_tensor__parameters_entry, T);
static const struct wire_field requested_entry_fields[] = entry_fields;
KSERVE_MAP(requested_entry, model_infer_request__infer_requested_output_tensor__parameters_entry,
           T);
static const struct wire_field response_entry_fields[] = entry_fields;
KSERVE_MAP(response_entry, model_infer_response__parameters_entry, T);
static const struct wire_field output_entry_fields[] = entry_fields;
KSERVE_MAP(output_entry, model_infer_response__infer_output_tensor__parameters_entry, T);
#undef T

/* ---- tensors ---- */

#define T struct wire_kserve_contents
static const struct wire_field contents_fields[] = {
    F_ARRAY(T, bool_contents), F_ARRAY(T, int_contents),    F_ARRAY(T, int64_contents),
    F_ARRAY(T, uint_contents), F_ARRAY(T, uint64_contents), F_ARRAY(T, fp32_contents),
    F_ARRAY(T, fp64_contents), F_ARRAY(T, bytes_contents),
};
KSERVE_MAP(contents, infer_tensor_contents, T);
#undef T

#define T struct wire_kserve_tensor
static const struct wire_field input_fields[] = {
    F_VALUE(T, name),
    F_VALUE(T, datatype),
    F_ARRAY(T, shape),
    F_MESSAGES(T, parameters, &input_entry),
    F_POINTER(T, contents, &contents),
};
KSERVE_MAP(input, model_infer_request__infer_input_tensor, T);
static const struct wire_field output_fields[] = {
    F_VALUE(T, name),
    F_VALUE(T, datatype),
    F_ARRAY(T, shape),
    F_MESSAGES(T, parameters, &output_entry),
    F_POINTER(T, contents, &contents),
};
KSERVE_MAP(output, model_infer_response__infer_output_tensor, T);
#undef T

#define T struct wire_kserve_output
static const struct wire_field requested_fields[] = {
    F_VALUE(T, name),
    F_MESSAGES(T, parameters, &requested_entry),
};
KSERVE_MAP(requested, model_infer_request__infer_requested_output_tensor, T);
#undef T

/* ---- inference ---- */

#define T struct wire_kserve_infer_request
static const struct wire_field infer_request_fields[] = {
    F_VALUE(T, model_name),
    F_VALUE(T, model_version),
    F_VALUE(T, id),
    F_MESSAGES(T, parameters, &request_entry),
    F_MESSAGES(T, inputs, &input),
    F_MESSAGES(T, outputs, &requested),
    F_ARRAY(T, raw_input_contents),
};
KSERVE_MAP(infer_request, model_infer_request, T);
WIRE_DEFINE(kserve_infer_request, T, infer_request)
#undef T

#define T struct wire_kserve_infer_response
static const struct wire_field infer_response_fields[] = {
    F_VALUE(T, model_name),
    F_VALUE(T, model_version),
    F_VALUE(T, id),
    F_MESSAGES(T, parameters, &response_entry),
    F_MESSAGES(T, outputs, &output),
    F_ARRAY(T, raw_output_contents),
};
KSERVE_MAP(infer_response, model_infer_response, T);
WIRE_DEFINE(kserve_infer_response, T, infer_response)
#undef T

#define T struct wire_kserve_stream_response
static const struct wire_field stream_response_fields[] = {
    F_VALUE(T, error_message),
    F_POINTER(T, infer_response, &infer_response),
};
KSERVE_MAP(stream_response, model_stream_infer_response, T);
WIRE_DEFINE(kserve_stream_response, T, stream_response)
#undef T

const struct wire_map *const wire_kserve_maps[] = {
    &live_request,           &live_response,
    &ready_request,          &ready_response,
    &model_ready_request,    &model_ready_response,
    &server_metadata,        &server_metadata_request,
    &model_metadata_request, &model_metadata,
    &infer_request,          &infer_response,
    &stream_response,        NULL,
};
