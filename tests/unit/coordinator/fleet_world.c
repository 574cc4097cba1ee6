/* fleet_world.c: see fleet_world.h. */
#include "fleet_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"

static const char digest[] = "0123456789abcdef0123456789abcdef";
static const struct arch arch = {
    .name = "test", .vocab = 640, .max_seq = 256, .n_layers = WORLD_LAYERS};

int64_t world_now;

static int64_t virtual_clock(void *context)
{
    (void)context;
    return world_now;
}

void world_start_clock(void)
{
    world_now = NSEC_PER_SEC;
    clock_set_source(virtual_clock, NULL);
}

/* ---- a coordinator's side ---- */

static struct seen *seen(void *context, uint32_t group)
{
    struct world *w = context;
    assert_true(group < WORLD_GROUPS);
    return &w->seen[group];
}

static bool on_ready(void *context, uint32_t group, const struct plan_limits *limits,
                     uint32_t n_stages, uint64_t epoch)
{
    struct world *w = context;
    struct seen *s = seen(w, group);
    assert_true(epoch > s->epoch); /* and every one is used once */
    assert_int_equal(s->n_ready, s->n_down);
    w->last_epoch = MAX(w->last_epoch, epoch);
    s->n_ready++;
    s->limits = *limits;
    s->n_stages = n_stages;
    s->epoch = epoch;
    return true;
}

static bool on_result(void *context, uint32_t group, const struct step_result *result,
                      struct err *e)
{
    struct world *w = context;
    struct seen *s = seen(w, group);
    assert_true(result->epoch == s->epoch);
    s->n_results++;
    s->last_hash = (uint32_t)result->state_hash;
    if (w->refuse_result)
        err_set(e, -EBADMSG, "a result for another plan");
    return !w->refuse_result;
}

static void on_down(void *context, uint32_t group, const char *why)
{
    struct seen *s = seen(context, group);
    s->n_down++;
    assert_int_equal(s->n_ready, s->n_down);
    snprintf(s->why, sizeof s->why, "%s", why);
}

static void on_gone(void *context, uint32_t group, const char *name)
{
    struct seen *s = seen(context, group);
    assert_true(*name != '\0');
    assert_int_equal(s->n_ready, s->n_down);
    s->n_gone++;
}

/* Of a rank that there is. */
static void on_rank(void *context, uint32_t group, uint32_t rank)
{
    struct world *w = context;
    assert_true(rank < fleet_n_ranks(w->fleet, group));
    seen(w, group)->n_rank_changes++;
}

void world_start_fleet(struct world *w)
{
    static const struct fleet_ops ops = {on_ready, on_result, on_down, on_gone, on_rank};
    struct err e = ERR_INIT;
    if (epoch_open(w->dir, &w->epochs, &e) < 0)
        fail_msg("%s", e.message);
    const struct fleet_config fc = {
        .config = &w->config,
        .arch = &arch,
        .model_digest = digest,
        .scheme = "int4",
        .epochs = &w->epochs,
        .ops = &ops,
        .context = w,
    };
    assert_int_equal(fleet_new(&fc, &w->fleet), 0);
}

struct world *world_new(unsigned tp)
{
    struct world *w = calloc(1, sizeof *w);
    snprintf(w->dir, sizeof w->dir, "fleet-test-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    assert_int_equal(config_init(&w->config), 0);
    w->config.group.tensor_parallel = MAX(tp, 1u);
    w->config.group.workers = tp ? CONFIG_WORKERS_SPAWN : CONFIG_WORKERS_EXTERNAL;
    w->config.coordinator.limits.max_groups = WORLD_GROUPS;
    w->config.log.level = LOG_LEVEL_ERROR;
    world_start_fleet(w);
    return w;
}

void world_stop_fleet(struct world *w)
{
    fleet_free(w->fleet);
    epoch_close(&w->epochs);
}

void world_free(struct world *w)
{
    world_stop_fleet(w);
    char path[128];
    snprintf(path, sizeof path, "%s/epoch", w->dir);
    unlink(path);
    rmdir(w->dir);
    config_deinit(&w->config);
    free(w);
}

void world_pass(struct world *w, int64_t ns)
{
    world_now += ns;
    fleet_tick(w->fleet, world_now);
}

void world_send_step(struct world *w, uint32_t group, uint64_t step)
{
    static const int32_t token = 1, position = 0;
    static const uint32_t block = 0;
    const struct plan_item item = {.n_tokens = 1,
                                   .tokens = &token,
                                   .positions = &position,
                                   .blocks = &block,
                                   .n_blocks = 1,
                                   .sampling.temperature = 1};
    const struct plan p = {
        .epoch = w->seen[group].epoch, .step = step, .items = &item, .n_items = 1};
    fleet_send_step(w->fleet, group, &p, 1, world_now);
}

/* ---- a rank's side ---- */

void rank_init_in(struct fake_rank *r, const char *group, unsigned rank, unsigned tp, unsigned pp)
{
    unsigned stage = rank / tp;
    *r = (struct fake_rank){0};
    memset(r->instance, (int)(rank + 1), sizeof r->instance);
    snprintf((char *)r->instance, sizeof r->instance, "%s", group);
    r->hello = (struct wire_hello){
        .protocol_min = WIRE_PROTOCOL_MIN,
        .protocol_max = WIRE_PROTOCOL_MAX,
        .build_version = "1",
        .cluster = "glmd",
        .instance_id = {16, r->instance},
        .boot_id = "boot",
        .hostname = "host",
        .pid = 100 + rank,
        .rank = rank,
        .tp_size = tp,
        .model_name = "test",
        .model_digest = digest,
        .scheme = "int4",
        .device = "cpu",
        .activations = "fp16",
        .shm_domain = "domain",
        .group = group,
        .pp_size = pp,
        .layer_begin = stage * WORLD_LAYERS / pp,
        .layer_end = (stage + 1) * WORLD_LAYERS / pp,
    };
    r->loaded = (struct wire_loaded){
        .limits = {.n_slots = 8 + rank,
                   .n_blocks = 100 - rank,
                   .max_tokens = 256,
                   .max_seq = 256,
                   .vocab = 640,
                   .n_top_logprobs = 20,
                   .n_layers = WORLD_LAYERS},
        .block_tokens = PLAN_KV_BLOCK_TOKENS,
        .description = "a fake",
    };
}

void rank_init(struct fake_rank *r, unsigned rank, unsigned tp)
{
    rank_init_in(r, "0", rank, tp, 1);
}

void rank_say(struct fake_rank *r, const struct wire_worker_message *m)
{
    struct buf bytes = {0};
    assert_int_equal(wire_pack_worker_message(m, &bytes), 0);
    fake_rpc_receive(r->call, &bytes);
    buf_deinit(&bytes);
}

void rank_dial(struct world *w, struct fake_rank *r)
{
    r->call = fake_rpc_new();
    fleet_on_session(r->call, w->fleet);
    r->hello.instance_id.data = r->instance;
    rank_say(r, &(struct wire_worker_message){.hello = &r->hello});
}

void rank_loaded(struct fake_rank *r)
{
    rank_say(r, &(struct wire_worker_message){.loaded = &r->loaded});
}

void rank_beat(struct fake_rank *r)
{
    const struct wire_heartbeat h = {.state = WIRE_WORKER_LOADED};
    rank_say(r, &(struct wire_worker_message){.heartbeat = &h});
}

void rank_ready(struct fake_rank *r, uint64_t epoch, uint64_t answer)
{
    const struct wire_ready m = {
        .epoch = epoch, .known_answer = answer, .collectives = "host: tests"};
    rank_say(r, &(struct wire_worker_message){.ready = &m});
}

void rank_done(struct fake_rank *r, uint64_t epoch, uint64_t step, uint64_t hash)
{
    const struct step_result m = {.epoch = epoch, .step = step, .state_hash = hash};
    rank_say(r, &(struct wire_worker_message){.step_done = &m});
}

void rank_hang_up(struct fake_rank *r)
{
    fake_rpc_end(r->call);
    fake_rpc_free(r->call);
    r->call = NULL;
}

static bool is_kind(const struct wire_coordinator_message *m, enum sent_kind kind)
{
    switch (kind) {
    case SENT_GRANT:
        return m->grant != NULL;
    case SENT_STEP:
        return m->step != NULL;
    case SENT_ABORT:
        return m->abort != NULL;
    case SENT_REFUSE:
        return m->refuse != NULL;
    case SENT_DRAIN:
        return m->drain != NULL;
    }
    return false;
}

struct wire_coordinator_message *rank_find_sent(const struct fake_rank *r, enum sent_kind kind)
{
    for (unsigned i = r->call->n_sent; i-- != 0;) {
        struct wire_coordinator_message *m;
        struct err e = ERR_INIT;
        const struct buf *b = &r->call->sent[i];
        if (wire_unpack_coordinator_message((const uint8_t *)b->data, b->size, &m, &e) < 0)
            fail_msg("%s", e.message);
        if (is_kind(m, kind))
            return m;
        wire_free_coordinator_message(m);
    }
    return NULL;
}

uint64_t rank_granted(const struct fake_rank *r)
{
    struct wire_coordinator_message *m = rank_find_sent(r, SENT_GRANT);
    uint64_t epoch = m ? m->grant->epoch : 0;
    wire_free_coordinator_message(m);
    return epoch;
}

bool rank_was_aborted(const struct fake_rank *r, uint64_t epoch)
{
    struct wire_coordinator_message *m = rank_find_sent(r, SENT_ABORT);
    bool hit = m && m->abort->epoch == epoch;
    wire_free_coordinator_message(m);
    return hit;
}

bool rank_was_drained(const struct fake_rank *r)
{
    struct wire_coordinator_message *m = rank_find_sent(r, SENT_DRAIN);
    wire_free_coordinator_message(m);
    return m != NULL;
}

uint64_t world_form_in(struct world *w, struct fake_rank *ranks, const char *group, unsigned tp,
                       unsigned pp)
{
    for (unsigned i = 0; i != tp * pp; i++) {
        rank_init_in(&ranks[i], group, i, tp, pp);
        rank_dial(w, &ranks[i]);
        rank_loaded(&ranks[i]);
    }
    world_pass(w, 1);
    uint64_t epoch = rank_granted(&ranks[0]);
    assert_true(epoch > 0);
    for (unsigned i = 0; i != tp * pp; i++)
        rank_ready(&ranks[i], epoch, 7);
    int64_t number = fleet_find(w->fleet, group);
    assert_true(number >= 0 && fleet_is_ready(w->fleet, (uint32_t)number));
    return epoch;
}

uint64_t world_form(struct world *w, struct fake_rank *ranks, unsigned tp)
{
    return world_form_in(w, ranks, "0", tp, 1);
}
