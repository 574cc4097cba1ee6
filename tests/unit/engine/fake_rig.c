/* fake_rig.c: see fake_rig.h. */
#include "tests/unit/engine/fake_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/util.h"

const struct fake_config rig_config = {
    .limits = {.n_slots = N_SLOTS,
               .n_blocks = N_BLOCKS,
               .max_tokens = 512,
               .max_seq = MAX_SEQ,
               .vocab = 1000,
               .n_top_logprobs = 5,
               .n_layers = 10},
    .text_begin = TEXT_BEGIN,
    .text_end = TEXT_END,
    .end_tokens = {EOP},
    .n_end_tokens = 1,
};

void rig_init(struct rig *r)
{
    *r = (struct rig){0};
    assert_int_equal(fake_new(&rig_config, &r->fake), 0);
    for (uint32_t i = 0; i != MAX_SEQ; i++) {
        r->tokens[i] = (int32_t)(TEXT_BEGIN + i * 7 % (TEXT_END - TEXT_BEGIN));
        r->positions[i] = (int32_t)i;
    }
    for (uint32_t i = 0; i != ARRAY_LEN(r->blocks); i++)
        r->blocks[i] = i;
    r->item = (struct plan_item){.tokens = r->tokens,
                                 .positions = r->positions,
                                 .blocks = r->blocks,
                                 .n_blocks = ARRAY_LEN(r->blocks),
                                 .output = PLAN_OUTPUT_SAMPLE,
                                 .sampling = {.temperature = 1.0f, .top_k = 1}};
}

const struct result_item *run_plan(struct rig *r, struct plan *p)
{
    const struct step_result *result;
    struct err e = ERR_INIT;
    p->step = ++r->step;
    if (fake_step(r->fake, p, &result, &e) < 0)
        fail_msg("step %u: %s", (unsigned)r->step, e.message);
    return result->items;
}

int32_t run_item(struct rig *r)
{
    struct plan p = {.items = &r->item, .n_items = 1};
    return run_plan(r, &p)->token;
}

int32_t run_tokens(struct rig *r, uint32_t start, uint32_t n)
{
    r->item.start = start;
    r->item.n_tokens = n;
    r->item.tokens = r->tokens + start;
    r->item.positions = r->positions + start;
    return run_item(r);
}

int32_t expected(const struct rig *r, uint32_t n, uint32_t prefix_len)
{
    struct fake_context x;
    fake_context_init(&x, &rig_config, r->tokens, r->positions, prefix_len);
    for (uint32_t i = prefix_len; i != n; i++)
        fake_context_add(&x, r->tokens[i], r->positions[i]);
    return fake_choose(&rig_config, fake_context_state(&x), &r->item.sampling, -1);
}
