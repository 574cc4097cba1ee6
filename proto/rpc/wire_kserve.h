/* wire_kserve.h: the messages of inference/kserve.proto as plain structs. Conventions: wire.h; what
 * the fields mean: kserve.proto. A map is a list of entries; a later entry of the same key counts.
 */
#ifndef GLMD_PROTO_RPC_WIRE_KSERVE_H
#define GLMD_PROTO_RPC_WIRE_KSERVE_H

#include "proto/rpc/wire_bytes.h"
#include "proto/rpc/wire_declare.h"

struct wire_kserve_empty {
    char empty;
};

struct wire_kserve_live {
    bool live;
};

struct wire_kserve_ready {
    bool ready;
};

struct wire_kserve_model { /* asks for a model */
    const char *name, *version;
};

struct wire_kserve_server_metadata {
    const char *name, *version;
    const char *const *extensions;
    uint32_t n_extensions;
};

struct wire_kserve_tensor_metadata {
    const char *name, *datatype;
    const int64_t *shape;
    uint32_t n_shape;
};

struct wire_kserve_model_metadata {
    const char *name;
    const char *const *versions;
    uint32_t n_versions;
    const char *platform;
    const struct wire_kserve_tensor_metadata *inputs;
    uint32_t n_inputs;
    const struct wire_kserve_tensor_metadata *outputs;
    uint32_t n_outputs;
};

struct wire_kserve_parameter { /* at most one */
    bool has_bool_param;
    bool bool_param;
    bool has_int64_param;
    int64_t int64_param;
    bool has_string_param;
    const char *string_param;
    bool has_double_param;
    double double_param;
    bool has_uint64_param;
    uint64_t uint64_param;
};

struct wire_kserve_entry {
    const char *key;
    const struct wire_kserve_parameter *value; /* may be NULL */
};

struct wire_kserve_contents {
    const uint32_t *bool_contents; /* 0 or 1 */
    uint32_t n_bool_contents;
    const int32_t *int_contents;
    uint32_t n_int_contents;
    const int64_t *int64_contents;
    uint32_t n_int64_contents;
    const uint32_t *uint_contents;
    uint32_t n_uint_contents;
    const uint64_t *uint64_contents;
    uint32_t n_uint64_contents;
    const float *fp32_contents;
    uint32_t n_fp32_contents;
    const double *fp64_contents;
    uint32_t n_fp64_contents;
    const struct wire_bytes *bytes_contents;
    uint32_t n_bytes_contents;
};

struct wire_kserve_tensor { /* of a request or a response */
    const char *name, *datatype;
    const int64_t *shape;
    uint32_t n_shape;
    const struct wire_kserve_entry *parameters;
    uint32_t n_parameters;
    const struct wire_kserve_contents *contents;
};

struct wire_kserve_output { /* one that is asked for */
    const char *name;
    const struct wire_kserve_entry *parameters;
    uint32_t n_parameters;
};

struct wire_kserve_infer_request {
    const char *model_name, *model_version, *id;
    const struct wire_kserve_entry *parameters;
    uint32_t n_parameters;
    const struct wire_kserve_tensor *inputs;
    uint32_t n_inputs;
    const struct wire_kserve_output *outputs;
    uint32_t n_outputs;
    const struct wire_bytes *raw_input_contents;
    uint32_t n_raw_input_contents;
};

struct wire_kserve_infer_response {
    const char *model_name, *model_version, *id;
    const struct wire_kserve_entry *parameters;
    uint32_t n_parameters;
    const struct wire_kserve_tensor *outputs;
    uint32_t n_outputs;
    const struct wire_bytes *raw_output_contents;
    uint32_t n_raw_output_contents;
};

struct wire_kserve_stream_response {
    const char *error_message;
    const struct wire_kserve_infer_response *infer_response;
};

WIRE_DECLARE(kserve_live_request, struct wire_kserve_empty);
WIRE_DECLARE(kserve_live_response, struct wire_kserve_live);
WIRE_DECLARE(kserve_ready_request, struct wire_kserve_empty);
WIRE_DECLARE(kserve_ready_response, struct wire_kserve_ready);
WIRE_DECLARE(kserve_model_ready_request, struct wire_kserve_model);
WIRE_DECLARE(kserve_model_ready_response, struct wire_kserve_ready);
WIRE_DECLARE(kserve_server_metadata_request, struct wire_kserve_empty);
WIRE_DECLARE(kserve_server_metadata, struct wire_kserve_server_metadata);
WIRE_DECLARE(kserve_model_metadata_request, struct wire_kserve_model);
WIRE_DECLARE(kserve_model_metadata, struct wire_kserve_model_metadata);
WIRE_DECLARE(kserve_infer_request, struct wire_kserve_infer_request);
WIRE_DECLARE(kserve_infer_response, struct wire_kserve_infer_response);
WIRE_DECLARE(kserve_stream_response, struct wire_kserve_stream_response);

#endif
