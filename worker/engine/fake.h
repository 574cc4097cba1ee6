/* fake.h: a device that computes nothing. It takes the plans of a real engine, checks them as one
 * does, and answers with made-up tokens at no cost, so that everything around an engine can be run,
 * measured and simulated: sixteen ranks and a thousand streams on two cores.
 *
 * Its cache is honest. Every column that a plan runs leaves an entry in the KV block where the plan
 * puts it, copies move whole blocks, and the next token is a hash of what is read back through the
 * slot's block table. An entry depends on everything that its row could see, as keys and values
 * above the first layer do: a column of a bidirectional context on the whole context, every other
 * column on all columns in front of it. A wrong table, a missing copy, a block that was given away
 * too early, a context reused for another one, a wrong position: each shows as a wrong token.
 *
 *   entry[j] = hash(token, position, everything visible to row j)
 *   state[j] = hash(entry[0 .. j])           row j >= prefix_len
 *            = hash(entry[0 .. prefix_len), j)               < prefix_len
 *   token    = hash(state, sampling parameters)
 *
 * struct fake_context is the same function without a cache: what a test compares with.
 *
 * Sliced items leave entries that say how many layers they have run: until the last slice, whoever
 * reads them reads something else, and what is written over them between two slices stays wrong. In
 * a pipeline every stage has the whole model; only the last one chooses.
 *
 * No threads, no clock, no sleeping: how long a step would take is a number (fake_step_ns) for the
 * caller to wait. One thread drives a fake.
 */
#ifndef GLMD_WORKER_ENGINE_FAKE_H
#define GLMD_WORKER_ENGINE_FAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "model/arch.h"
#include "proto/plan.h"

enum { FAKE_MAX_END_TOKENS = 2 };

/* What a device string says: "fake" or "fake:KEY=VALUE,...". */
struct fake_params {
    int64_t step_ns;          /* step_us: every step takes this long, */
    int64_t prefill_token_ns; /* prefill_us: plus this per token of an item with several, */
    int64_t decode_seq_ns;    /* decode_us: plus this per item with one */
    double end_probability;   /* end: of an end token, where one may be chosen */
    uint64_t seed;            /* seed: another one is another model */
    uint32_t n_layers;        /* not in the string: a slice takes its layers' share of the time;
                                 0 = the whole time */
};

/* Separators are ',' or ':' (lists in configurations are cut at commas). -EINVAL names the key. */
int fake_parse(const char *device, struct fake_params *ret, struct err *e);
bool fake_is_device(const char *device); /* "fake" or "fake:..." */

struct fake_config {
    struct fake_params params;
    struct plan_limits limits;
    int32_t text_begin, text_end; /* ids that may be chosen, half-open, beside the end tokens */
    int32_t end_tokens[FAKE_MAX_END_TOKENS];
    uint32_t n_end_tokens;
    uint32_t n_stages, stage; /* n_stages 0 = 1 */
};

/* Text ids and end tokens of an architecture; max_seq, vocab and layers come from it, too. */
void fake_config_set_arch(struct fake_config *c, const struct arch *a);

struct fake; /* opaque */

int fake_new(const struct fake_config *config, struct fake **ret); /* -ENOMEM */
void fake_free(struct fake *f);                                    /* NULL is fine */

/* As engine_step and engine_reset. -EINVAL: the plan contradicts the slots, or asks for logits. */
int fake_step(struct fake *f, const struct plan *plan, const struct step_result **ret,
              struct err *e);
void fake_reset(struct fake *f);

/* What the step would take on the device that is being faked. */
int64_t fake_step_ns(const struct fake_params *p, const struct plan *plan);
uint64_t fake_bytes(const struct fake *f); /* KV entries */

/* ---- the same function, without a cache ---- */

struct fake_context {
    uint64_t state;
    uint64_t last; /* entry of the last column of the prefix; 0 behind it */
};

/* A sequence that begins with a bidirectional context of n_prefix tokens (0: causal). */
void fake_context_init(struct fake_context *x, const struct fake_config *c, const int32_t *tokens,
                       const int32_t *positions, uint32_t n_prefix);
void fake_context_add(struct fake_context *x, int32_t token, int32_t position);
/* State of the last row that was added. */
uint64_t fake_context_state(const struct fake_context *x);

/* Greedy (top_k = 1) depends on the state, bias, penalties with their history, and what is
 * forbidden; sampling on all parameters but n_top_logprobs. `previous`: a token behind the history
 * that the plan did not know yet, -1 = none; as if it stood at the history's end. */
int32_t fake_choose(const struct fake_config *c, uint64_t state, const struct plan_sampling *s,
                    int32_t previous);
/* In (-18, 0); the largest one belongs to the greedy choice without bias and restrictions. */
float fake_token_logprob(const struct fake_config *c, uint64_t state, int32_t token);
/* Best first; ties: lower id. Returns how many, at most n. */
uint32_t fake_top(const struct fake_config *c, uint64_t state, uint32_t n,
                  struct result_logprob *ret);
/* What a row offers to its beam group, in no order: end tokens now and then, and text tokens that
 * stand side by side, as many as the group could keep. Searches that are not deterministic look
 * from another place. `ret` has room for the group's width. */
uint32_t fake_offers(const struct fake_config *c, uint64_t state, const struct plan_beam_group *g,
                     const struct plan_sampling *s, struct result_logprob *ret);

#endif
