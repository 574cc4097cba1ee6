/* fuzz_proto.c: one message type per program (FUZZ_MESSAGE, FUZZ_TYPE): bytes from outside are
 * refused or become an object, and an object survives another round trip. Steps also go through
 * plan_validate and, when they pass, through the state hash. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>

#include "proto/plan.h"
#include "proto/rpc/wire.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b)  JOIN_(a, b)
#define UNPACK      JOIN(wire_unpack_, FUZZ_MESSAGE)
#define PACK        JOIN(wire_pack_, FUZZ_MESSAGE)
#define FREE        JOIN(wire_free_, FUZZ_MESSAGE)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#ifdef FUZZ_STEPS
static void check_plan(const struct plan *plan)
{
    const struct plan_limits limits = {.n_slots = 64,
                                       .n_blocks = 4096,
                                       .max_tokens = 2048,
                                       .max_seq = 2048,
                                       .vocab = 150528,
                                       .n_top_logprobs = PLAN_MAX_TOP_LOGPROBS,
                                       .n_layers = 70};
    struct err e = ERR_INIT;
    int r = plan_validate(plan, &limits, &e);
    assert(r == e.code);
    if (r)
        return;
    struct result_item *items = calloc(plan->n_items, sizeof *items);
    struct result_group *groups = calloc(plan->n_groups + 1, sizeof *groups);
    assert(items && groups);
    uint64_t hash = plan_state_hash(1, plan, items, groups);
    assert(hash == plan_state_hash(1, plan, items, groups));
    free(items);
    free(groups);
}
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    FUZZ_TYPE *first, *second;
    struct err e = ERR_INIT;
    int r = UNPACK(data, size, &first, &e);
    assert(r == e.code);
    if (r) {
        assert(!first && e.message[0]);
        return 0;
    }
#ifdef FUZZ_STEPS
    if (first->step)
        check_plan(first->step);
#endif
    struct buf bytes = {0};
    r = PACK(first, &bytes);
    assert(!r);
    r = UNPACK((const uint8_t *)bytes.data, bytes.size, &second, &e);
    assert(!r || r == -E2BIG); /* fewer bytes, the same heap: over the limit now */
    FREE(second);
    FREE(first);
    buf_deinit(&bytes);
    return 0;
}
