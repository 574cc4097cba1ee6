/* fake_rig.h: a fake device, and one sequence after the other in its slots. */
#ifndef GLMD_TESTS_ENGINE_FAKE_RIG_H
#define GLMD_TESTS_ENGINE_FAKE_RIG_H

#include "worker/engine/fake.h"

enum { N_SLOTS = 8, N_BLOCKS = 64, MAX_SEQ = 256, TEXT_BEGIN = 100, TEXT_END = 900, EOP = 950 };

extern const struct fake_config rig_config;

struct rig {
    struct fake *fake;
    uint64_t step;
    int32_t tokens[MAX_SEQ], positions[MAX_SEQ];
    uint32_t blocks[MAX_SEQ / PLAN_KV_BLOCK_TOKENS];
    struct plan_item item; /* of the next step */
};

/* Slot 0, blocks in order, greedy. */
void rig_init(struct rig *r);
const struct result_item *run_plan(struct rig *r, struct plan *p);
/* Runs r->item; the token it chose. */
int32_t run_item(struct rig *r);
/* Tokens [start, start + n) of the sequence, on its table. */
int32_t run_tokens(struct rig *r, uint32_t start, uint32_t n);
/* What the function without a cache says about the first n tokens. */
int32_t expected(const struct rig *r, uint32_t n, uint32_t prefix_len);

#endif
