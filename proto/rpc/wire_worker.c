/* wire_worker.c: the tables of worker.proto. See wire_map.h. */
#include "proto/rpc/wire_worker.h"

#include "glmd/v1/worker.pb-c.h"
#include "proto/rpc/wire_map.h"
#include "proto/rpc/wire_step.h"

/* ---- worker to coordinator ---- */

#define T struct wire_hello
static const struct wire_field hello_fields[] = {
    F_VALUE(T, protocol_min),  F_VALUE(T, protocol_max),
    F_VALUE(T, build_version), F_VALUE(T, cluster),
    F_VALUE(T, instance_id),   F_VALUE(T, boot_id),
    F_VALUE(T, hostname),      F_VALUE(T, pid),
    F_VALUE(T, rank),          F_VALUE(T, tp_size),
    F_VALUE(T, model_name),    F_VALUE(T, model_digest),
    F_VALUE(T, scheme),        F_VALUE(T, device),
    F_VALUE(T, activations),   F_ARRAY(T, listen_addresses),
    F_VALUE(T, shm_domain),    F_VALUE(T, last_epoch),
    F_VALUE(T, group),         F_VALUE(T, pp_size),
    F_VALUE(T, layer_begin),   F_VALUE(T, layer_end),
};
WIRE_MAP(hello, hello, T);
#undef T

#define T struct plan_limits
static const struct wire_field limits_fields[] = {
    F_VALUE(T, n_slots), F_VALUE(T, n_blocks),       F_VALUE(T, max_tokens), F_VALUE(T, max_seq),
    F_VALUE(T, vocab),   F_VALUE(T, n_top_logprobs), F_VALUE(T, n_layers),
};
WIRE_MAP(limits, limits, T);
#undef T

#define T struct wire_memory
static const struct wire_field memory_fields[] = {
    F_VALUE(T, weights),
    F_VALUE(T, kv),
    F_VALUE(T, scratch),
};
WIRE_MAP(memory, memory, T);
#undef T

#define T struct wire_loaded
static const struct wire_field loaded_fields[] = {
    F_EMBED(T, limits, &limits),
    F_EMBED(T, memory, &memory),
    F_VALUE(T, block_tokens),
    F_VALUE(T, description),
};
WIRE_MAP(loaded, loaded, T);
#undef T

#define T struct wire_ready
static const struct wire_field ready_fields[] = {F_VALUE(T, epoch), F_VALUE(T, known_answer),
                                                 F_VALUE(T, collectives)};
WIRE_MAP(ready, ready, T);
#undef T

#define T struct result_logprob
static const struct wire_field result_logprob_fields[] = {F_VALUE(T, token), F_VALUE(T, logprob)};
WIRE_MAP(result_logprob, result_logprob, T);
#undef T

#define T struct result_item
static const struct wire_field result_item_fields[] = {
    F_VALUE(T, slot),
    F_VALUE(T, slot_gen),
    F_VALUE(T, token),
    F_VALUE(T, logprob),
    F_MESSAGES(T, top, &result_logprob),
    F_ARRAY(T, scores),
    F_ARRAY(T, score_tokens),
    F_SAME(T, score_logprobs, n_score_tokens),
};
WIRE_MAP(result_item, result_item, T);
#undef T

#define T struct result_candidate
static const struct wire_field result_candidate_fields[] = {
    F_VALUE(T, item),
    F_VALUE(T, token),
    F_VALUE(T, score),
};
WIRE_MAP(result_candidate, result_candidate, T);
#undef T

#define T struct result_group
static const struct wire_field result_group_fields[] = {
    F_MESSAGES(T, candidates, &result_candidate),
};
WIRE_MAP(result_group, result_group, T);
#undef T

#define T struct step_result
static const struct wire_field step_done_fields[] = {
    F_VALUE(T, epoch),
    F_VALUE(T, step),
    F_MESSAGES(T, items, &result_item),
    F_MESSAGES(T, groups, &result_group),
    F_VALUE(T, state_hash),
    F_VALUE(T, compute_ns),
};
WIRE_MAP(step_done, step_done, T);
#undef T

#define T struct wire_failed
static const struct wire_field failed_fields[] = {
    F_VALUE(T, epoch),
    F_VALUE(T, step),
    F_VALUE(T, code),
    F_VALUE(T, message),
};
WIRE_MAP(failed, failed, T);
#undef T

#define T struct wire_heartbeat
static const struct wire_field heartbeat_fields[] = {
    F_VALUE(T, state),          F_VALUE(T, epoch),           F_VALUE(T, step),
    F_VALUE(T, busy_ns),        F_VALUE(T, loaded_bytes),    F_VALUE(T, total_bytes),
    F_VALUE(T, steps),          F_VALUE(T, prefill_tokens),  F_VALUE(T, decode_tokens),
    F_VALUE(T, compute_ns),     F_VALUE(T, fenced_messages), F_VALUE(T, all_reduces),
    F_VALUE(T, all_reduce_ns),  F_VALUE(T, all_gathers),     F_VALUE(T, all_gather_ns),
    F_VALUE(T, link_messages),  F_VALUE(T, link_ns),         F_VALUE(T, cpu_ns),
    F_VALUE(T, resident_bytes), F_VALUE(T, shared_rows),     F_VALUE(T, wide_rows),
};
WIRE_MAP(heartbeat, heartbeat, T);
#undef T

#define T struct wire_worker_message
static const struct wire_field worker_message_fields[] = {
    F_ONEOF(T, hello, &hello),   F_ONEOF(T, loaded, &loaded),
    F_ONEOF(T, ready, &ready),   F_ONEOF(T, step_done, &step_done),
    F_ONEOF(T, failed, &failed), F_ONEOF(T, heartbeat, &heartbeat),
};
WIRE_MAP(worker_message, worker_message, T);

int wire_unpack_worker_message(const uint8_t *data, size_t size, T **ret, struct err *e)
{
    if (wire_step_unpack(data, size, ret))
        return 0;
    void *object = NULL;
    int r = wire_map_unpack(&worker_message, data, size, &object, e);
    *ret = object;
    return r;
}

void wire_free_worker_message(T *object)
{
    wire_map_free(object);
}

int wire_pack_worker_message(const T *object, struct buf *out)
{
    return wire_map_pack(&worker_message, object, out);
}
#undef T

/* ---- coordinator to worker ---- */

#define T struct wire_grant
static const struct wire_field grant_fields[] = {
    F_VALUE(T, group),        F_VALUE(T, epoch),           F_VALUE(T, protocol),
    F_VALUE(T, rank),         F_VALUE(T, tp_size),         F_VALUE(T, comm),
    F_VALUE(T, comm_name),    F_VALUE(T, token),           F_ARRAY(T, peers),
    F_VALUE(T, comm_id),      F_VALUE(T, comm_timeout_ms), F_VALUE(T, lease_ms),
    F_VALUE(T, heartbeat_ms), F_VALUE(T, pp_size),         F_VALUE(T, link_comm),
};
WIRE_MAP(grant, grant, T);
#undef T

#define T struct plan_copy
static const struct wire_field copy_fields[] = {F_VALUE(T, src), F_VALUE(T, dst)};
WIRE_MAP(copy, block_copy, T);
#undef T

#define T struct plan_bias
static const struct wire_field bias_fields[] = {F_VALUE(T, token), F_VALUE(T, bias)};
WIRE_MAP(bias, token_bias, T);
#undef T

#define T struct plan_range
static const struct wire_field range_fields[] = {F_VALUE(T, begin), F_VALUE(T, end)};
WIRE_MAP(range, token_range, T);
#undef T

#define T struct plan_sampling
static const struct wire_field sampling_fields[] = {
    F_VALUE(T, temperature),
    F_VALUE(T, top_k),
    F_VALUE(T, top_p),
    F_VALUE(T, seed),
    F_VALUE(T, request),
    F_VALUE(T, choice),
    F_VALUE(T, output_index),
    F_VALUE(T, n_top_logprobs),
    F_MESSAGES(T, bias, &bias),
    F_MESSAGES(T, forbidden, &range),
    F_ARRAY(T, banned),
    F_VALUE(T, min_p),
    F_VALUE(T, repetition_penalty),
    F_VALUE(T, presence_penalty),
    F_VALUE(T, frequency_penalty),
    F_ARRAY(T, history),
    F_VALUE(T, n_history_prompt),
    F_VALUE(T, n_history_kept),
    F_VALUE(T, kept),
};
WIRE_MAP(sampling, step_sampling, T);
#undef T

#define T struct plan_item
static const struct wire_field item_fields[] = {
    F_VALUE(T, slot),       F_VALUE(T, slot_gen),         F_VALUE(T, start),
    F_VALUE(T, prefix_len), F_ARRAY(T, tokens),           F_SAME(T, positions, n_tokens),
    F_ARRAY(T, blocks),     F_VALUE(T, output),           F_VALUE(T, beam_group),
    F_VALUE(T, beam_score), F_SAME(T, targets, n_tokens), F_EMBED(T, sampling, &sampling),
    F_VALUE(T, sliced),     F_VALUE(T, n_blocks_kept),
};
WIRE_MAP(item, step_item, T);
#undef T

#define T struct plan_beam_group
static const struct wire_field beam_group_fields[] = {
    F_VALUE(T, width),   F_VALUE(T, deterministic), F_VALUE(T, seed),
    F_VALUE(T, request), F_VALUE(T, output_index),
};
WIRE_MAP(beam_group, step_beam_group, T);
#undef T

#define T struct plan
static const struct wire_field step_fields[] = {
    F_VALUE(T, epoch),
    F_VALUE(T, step),
    F_MESSAGES(T, copies, &copy),
    F_MESSAGES(T, items, &item),
    F_MESSAGES(T, groups, &beam_group),
    F_VALUE(T, layer_begin),
    F_VALUE(T, layer_end),
};
WIRE_MAP(step, step, T);
#undef T

#define T struct wire_abort
static const struct wire_field abort_map_fields[] = {F_VALUE(T, epoch), F_VALUE(T, reason)};
WIRE_MAP(abort_map, abort, T);
#undef T

#define T struct wire_refuse
static const struct wire_field refuse_fields[] = {F_VALUE(T, code), F_VALUE(T, reason)};
WIRE_MAP(refuse, refuse, T);
#undef T

#define T struct wire_drain
static const struct wire_field drain_fields[] = {F_VALUE(T, reason)};
WIRE_MAP(drain, drain, T);
#undef T

#define T struct wire_lease
static const struct wire_field lease_fields[] = {F_VALUE(T, epoch), F_VALUE(T, lease_ms)};
WIRE_MAP(lease, lease, T);
#undef T

#define T struct wire_coordinator_message
static const struct wire_field coordinator_message_fields[] = {
    F_ONEOF(T, grant, &grant),   F_ONEOF(T, step, &step),   F_ONEOF(T, abort, &abort_map),
    F_ONEOF(T, refuse, &refuse), F_ONEOF(T, drain, &drain), F_ONEOF(T, lease, &lease),
};
WIRE_MAP(coordinator_message, coordinator_message, T);

static bool is_step(const T *m)
{
    return m->step && !m->grant && !m->abort && !m->refuse && !m->drain && !m->lease;
}

int wire_unpack_coordinator_message(const uint8_t *data, size_t size, T **ret, struct err *e)
{
    void *object = NULL;
    int r = wire_map_unpack(&coordinator_message, data, size, &object, e);
    *ret = object;
    return r;
}

void wire_free_coordinator_message(T *object)
{
    wire_map_free(object);
}

int wire_pack_coordinator_message(const T *object, struct buf *out)
{
    return is_step(object) ? wire_step_pack(object->step, out)
                           : wire_map_pack(&coordinator_message, object, out);
}
#undef T

const struct wire_map *const wire_worker_maps[] = {&worker_message, &coordinator_message, NULL};
