/* known_answer.c: a fixed greedy generation whose tokens prove that a rank has loaded the right
 * weights, computes right and is joined to the right peers (engine_known_answer in engine.h). */
#include "worker/engine/known_answer.h"

#include <assert.h>
#include <xxhash.h>

#include "base/util.h"

enum { N_CONTEXT = 8, MAX_PROMPT = N_CONTEXT + 2, N_SAMPLES = 6, N_BLOCKS = 1 };
static_assert(MAX_PROMPT + N_SAMPLES <= N_BLOCKS * PLAN_KV_BLOCK_TOKENS, "fits the blocks");

/* Eight ids spread over the text ids, then [gMASK] and sop where the model has them. */
static uint32_t make_prompt(const struct arch *a, int32_t ids[MAX_PROMPT])
{
    uint32_t n = 0;
    uint32_t first = a->tokens.n_image_tokens;
    uint32_t n_text = a->tokens.special_base - first;
    for (; n != N_CONTEXT; n++)
        ids[n] = (int32_t)(first + (uint32_t)((uint64_t)n_text * (2 * n + 1) / (2 * N_CONTEXT)));
    if (a->tokens.gmask >= 0)
        ids[n++] = a->tokens.gmask;
    if (a->tokens.sop >= 0)
        ids[n++] = a->tokens.sop;
    return n;
}

/* The last stage's token becomes every stage's: around the column, as far as the last but one. */
static int share_token(struct comm *comm, int32_t *token, struct err *e)
{
    bool last = comm->stage + 1 == comm->n_stages;
    int r = last ? 0 : comm->ops->recv(comm, token, sizeof *token);
    if (r == 0 && comm->stage + 2 != comm->n_stages)
        r = comm->ops->send(comm, token, sizeof *token);
    return r < 0 ? err_set(e, r, "token for the other stages: %s", err_name(r)) : 0;
}

int known_answer_run(struct engine *g, const struct arch *a, struct comm *comm, uint64_t *ret_hash,
                     struct err *e)
{
    bool shared = comm->n_stages > 1;
    int32_t tokens[MAX_PROMPT];
    int32_t positions[MAX_PROMPT];
    uint32_t blocks[N_BLOCKS] = {0};
    int32_t samples[N_SAMPLES] = {0};
    uint32_t n_prompt = make_prompt(a, tokens);
    if (a->max_seq < MAX_PROMPT + N_SAMPLES)
        return err_set(e, -EINVAL, "sequences of %u tokens are too short, expected %d", a->max_seq,
                       MAX_PROMPT + N_SAMPLES);
    uint32_t length = 0;
    for (uint32_t i = 0; i != N_SAMPLES; i++) {
        uint32_t n = i ? 1 : n_prompt;
        for (uint32_t j = 0; j != n; j++)
            positions[j] = (int32_t)(length + j);
        if (i)
            tokens[0] = shared ? samples[i - 1] : PLAN_TOKEN_PREVIOUS;
        struct plan_item item = {
            .start = length,
            .n_tokens = n,
            .prefix_len = a->context == ARCH_CONTEXT_BIDIRECTIONAL ? n_prompt - 1 : 0,
            .tokens = tokens,
            .positions = positions,
            .blocks = blocks,
            .n_blocks = N_BLOCKS,
            .output = PLAN_OUTPUT_SAMPLE,
            .sampling = {.temperature = 1.0f, .top_k = 1, .output_index = i},
        };
        struct plan plan = {.step = i + 1, .items = &item, .n_items = 1};
        const struct step_result *result;
        int r = engine_step(g, &plan, &result, e);
        if (r < 0)
            return r;
        samples[i] = result->items[0].token;
        if (shared)
            r = share_token(comm, &samples[i], e);
        if (r < 0)
            return r;
        length += n;
    }
    *ret_hash = XXH3_64bits(samples, sizeof samples);
    return 0;
}
