/* test_fleet.c: ranks and epochs over a fake transport and a virtual clock. */
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
#include "coordinator/dispatch.h"
#include "coordinator/fleet.h"
#include "fake_rpc.h"
#include "proto/rpc/wire.h"

static const struct arch arch = {.name = "test", .vocab = 640, .max_seq = 256};
static int64_t now;

static int64_t virtual_clock(void *context)
{
    (void)context;
    return now;
}

/* ---- a coordinator's side ---- */

struct world {
    char dir[64];
    struct config config;
    struct epoch_store epochs;
    struct fleet *fleet;
    unsigned n_ready, n_down, n_results;
    struct plan_limits limits;
    uint64_t epoch;
    char why[600];
    bool refuse_result;
};

static bool on_ready(void *context, const struct plan_limits *limits, uint64_t epoch)
{
    struct world *w = context;
    assert_true(epoch > w->epoch);
    w->n_ready++;
    w->limits = *limits;
    w->epoch = epoch;
    return true;
}

static bool on_result(void *context, const struct step_result *result, struct err *e)
{
    struct world *w = context;
    assert_true(result->epoch == w->epoch);
    w->n_results++;
    if (w->refuse_result)
        err_set(e, -EBADMSG, "a result for another plan");
    return !w->refuse_result;
}

static void on_down(void *context, const char *why)
{
    struct world *w = context;
    w->n_down++;
    snprintf(w->why, sizeof w->why, "%s", why);
}

static const struct fleet_ops ops = {on_ready, on_result, on_down};

static void start_fleet(struct world *w)
{
    struct err e = ERR_INIT;
    if (epoch_open(w->dir, &w->epochs, &e) < 0)
        fail_msg("%s", e.message);
    const struct fleet_config fc = {
        .config = &w->config,
        .arch = &arch,
        .model_digest = "0123456789abcdef0123456789abcdef",
        .scheme = "int4",
        .epochs = &w->epochs,
        .ops = &ops,
        .context = w,
    };
    assert_int_equal(fleet_new(&fc, &w->fleet), 0);
}

static struct world *new_world(unsigned tp)
{
    struct world *w = calloc(1, sizeof *w);
    snprintf(w->dir, sizeof w->dir, "fleet-test-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    assert_int_equal(config_init(&w->config), 0);
    w->config.group.tensor_parallel = tp;
    w->config.log.level = LOG_LEVEL_ERROR;
    start_fleet(w);
    return w;
}

static void stop_fleet(struct world *w)
{
    fleet_free(w->fleet);
    epoch_close(&w->epochs);
}

static void free_world(struct world *w)
{
    stop_fleet(w);
    char path[128];
    snprintf(path, sizeof path, "%s/epoch", w->dir);
    unlink(path);
    rmdir(w->dir);
    config_deinit(&w->config);
    free(w);
}

static void pass(struct world *w, int64_t ns)
{
    now += ns;
    fleet_tick(w->fleet, now);
}

/* ---- a rank's side ---- */

struct fake_rank {
    struct rpc_call *call;
    struct wire_hello hello;
    uint8_t instance[16];
    struct wire_loaded loaded;
};

static void init_rank(struct fake_rank *r, unsigned rank, unsigned tp)
{
    *r = (struct fake_rank){0};
    memset(r->instance, (int)(rank + 1), sizeof r->instance);
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
        .model_digest = "0123456789abcdef0123456789abcdef",
        .scheme = "int4",
        .device = "cpu",
        .activations = "fp16",
        .shm_domain = "domain",
    };
    r->loaded = (struct wire_loaded){
        .limits = {.n_slots = 8 + rank,
                   .n_blocks = 100 - rank,
                   .max_tokens = 256,
                   .max_seq = 256,
                   .vocab = 640,
                   .n_top_logprobs = 20,
                   .n_layers = 3},
        .block_tokens = PLAN_KV_BLOCK_TOKENS,
        .description = "a fake",
    };
}

static void say(struct fake_rank *r, const struct wire_worker_message *m)
{
    struct buf bytes = {0};
    assert_int_equal(wire_pack_worker_message(m, &bytes), 0);
    fake_rpc_receive(r->call, &bytes);
    buf_deinit(&bytes);
}

static void dial(struct world *w, struct fake_rank *r)
{
    r->call = fake_rpc_new();
    fleet_on_session(r->call, w->fleet);
    r->hello.instance_id.data = r->instance;
    say(r, &(struct wire_worker_message){.hello = &r->hello});
}

static void say_loaded(struct fake_rank *r)
{
    say(r, &(struct wire_worker_message){.loaded = &r->loaded});
}

static void beat(struct fake_rank *r)
{
    const struct wire_heartbeat h = {.state = WIRE_WORKER_LOADED};
    say(r, &(struct wire_worker_message){.heartbeat = &h});
}

static void say_ready(struct fake_rank *r, uint64_t epoch, uint64_t answer)
{
    const struct wire_ready m = {.epoch = epoch, .known_answer = answer};
    say(r, &(struct wire_worker_message){.ready = &m});
}

static void say_done(struct fake_rank *r, uint64_t epoch, uint64_t step, uint64_t hash)
{
    const struct step_result m = {.epoch = epoch, .step = step, .state_hash = hash};
    say(r, &(struct wire_worker_message){.step_done = &m});
}

static void hang_up(struct fake_rank *r)
{
    fake_rpc_end(r->call);
    fake_rpc_free(r->call);
    r->call = NULL;
}

/* The newest message of a kind that the rank was sent; NULL when there is none. The caller frees
 * it. */
enum kind { GRANT, STEP, ABORT, REFUSE };

static struct wire_coordinator_message *find_sent(const struct fake_rank *r, enum kind kind)
{
    for (unsigned i = r->call->n_sent; i-- != 0;) {
        struct wire_coordinator_message *m;
        struct err e = ERR_INIT;
        const struct buf *b = &r->call->sent[i];
        if (wire_unpack_coordinator_message((const uint8_t *)b->data, b->size, &m, &e) < 0)
            fail_msg("%s", e.message);
        bool hit = kind == GRANT   ? m->grant != NULL
                   : kind == STEP  ? m->step != NULL
                   : kind == ABORT ? m->abort != NULL
                                   : m->refuse != NULL;
        if (hit)
            return m;
        wire_free_coordinator_message(m);
    }
    return NULL;
}

static uint64_t granted_epoch(const struct fake_rank *r)
{
    struct wire_coordinator_message *m = find_sent(r, GRANT);
    uint64_t epoch = m ? m->grant->epoch : 0;
    wire_free_coordinator_message(m);
    return epoch;
}

static bool was_aborted(const struct fake_rank *r, uint64_t epoch)
{
    struct wire_coordinator_message *m = find_sent(r, ABORT);
    bool hit = m && m->abort->epoch == epoch;
    wire_free_coordinator_message(m);
    return hit;
}

/* Both ranks up to a ready group. */
static uint64_t form(struct world *w, struct fake_rank *ranks, unsigned tp)
{
    for (unsigned i = 0; i != tp; i++) {
        init_rank(&ranks[i], i, tp);
        dial(w, &ranks[i]);
        say_loaded(&ranks[i]);
    }
    pass(w, 1);
    uint64_t epoch = granted_epoch(&ranks[0]);
    assert_true(epoch > 0);
    for (unsigned i = 0; i != tp; i++)
        say_ready(&ranks[i], epoch, 7);
    assert_true(fleet_is_ready(w->fleet));
    return epoch;
}

static void send_step(struct world *w, uint64_t step)
{
    static const int32_t token = 1, position = 0;
    static const uint32_t block = 0;
    const struct plan_item item = {.n_tokens = 1,
                                   .tokens = &token,
                                   .positions = &position,
                                   .blocks = &block,
                                   .n_blocks = 1,
                                   .sampling.temperature = 1};
    const struct plan p = {.epoch = w->epoch, .step = step, .items = &item, .n_items = 1};
    fleet_send_step(w->fleet, &p, 1, now);
}

/* ---- tests ---- */

static void test_group_forms(void **state)
{
    (void)state;
    struct world *w = new_world(2);
    struct fake_rank r[2];
    init_rank(&r[0], 0, 2);
    init_rank(&r[1], 1, 2);
    dial(w, &r[0]);
    say_loaded(&r[0]);
    pass(w, NSEC_PER_SEC);
    assert_int_equal(granted_epoch(&r[0]), 0); /* rank 1 is missing */
    dial(w, &r[1]);
    pass(w, NSEC_PER_SEC);
    assert_int_equal(granted_epoch(&r[1]), 0); /* it has not loaded */
    say_loaded(&r[1]);
    pass(w, 1);
    struct wire_coordinator_message *a = find_sent(&r[0], GRANT), *b = find_sent(&r[1], GRANT);
    assert_non_null(a);
    assert_non_null(b);
    assert_int_equal(a->grant->epoch, 1);
    assert_int_equal(b->grant->epoch, 1);
    assert_int_equal(a->grant->comm, WIRE_COMM_SHM);
    assert_string_equal(a->grant->comm_name, b->grant->comm_name);
    assert_int_equal(a->grant->token.size, 16);
    assert_memory_equal(a->grant->token.data, b->grant->token.data, 16);
    assert_int_equal(b->grant->rank, 1);
    wire_free_coordinator_message(a);
    wire_free_coordinator_message(b);
    say_ready(&r[1], 1, 5);
    assert_int_equal(w->n_ready, 0);
    say_ready(&r[0], 1, 5);
    assert_int_equal(w->n_ready, 1);
    assert_int_equal(w->limits.n_slots, 8); /* what both can take */
    assert_int_equal(w->limits.n_blocks, 99);
    hang_up(&r[0]);
    hang_up(&r[1]);
    free_world(w);
}

struct bad_hello {
    const char *what;
    void (*spoil)(struct wire_hello *h);
    enum wire_refuse_code code;
    const char *word;
};

static void bad_protocol(struct wire_hello *h)
{
    h->protocol_min = h->protocol_max = WIRE_PROTOCOL_MAX + 1;
}
static void bad_cluster(struct wire_hello *h)
{
    h->cluster = "other";
}
static void bad_tp(struct wire_hello *h)
{
    h->tp_size = 4;
}
static void bad_rank(struct wire_hello *h)
{
    h->rank = 2;
}
static void bad_digest(struct wire_hello *h)
{
    h->model_digest = "ffffffffffffffffffffffffffffffff";
}
static void bad_activations(struct wire_hello *h)
{
    h->activations = "fp32";
}
static void bad_instance(struct wire_hello *h)
{
    h->instance_id.size = 3;
}
static void bad_epoch(struct wire_hello *h)
{
    h->last_epoch = UINT64_MAX;
}

static void test_wrong_ranks_are_refused(void **state)
{
    (void)state;
    static const struct bad_hello cases[] = {
        {"protocol", bad_protocol, WIRE_REFUSE_PROTOCOL, "same version"},
        {"cluster", bad_cluster, WIRE_REFUSE_CLUSTER, "cluster.name"},
        {"tp", bad_tp, WIRE_REFUSE_RANK, "group.tensor_parallel"},
        {"rank", bad_rank, WIRE_REFUSE_RANK, "rank 2 of 2"},
        {"digest", bad_digest, WIRE_REFUSE_MODEL, "digest"},
        {"activations", bad_activations, WIRE_REFUSE_MODEL, "worker.activations"},
        {"instance", bad_instance, WIRE_REFUSE_PROTOCOL, "instance_id"},
        {"last epoch", bad_epoch, WIRE_REFUSE_PROTOCOL, "last_epoch"},
    };
    struct world *w = new_world(2);
    for (size_t i = 0; i != ARRAY_LEN(cases); i++) {
        struct fake_rank r;
        init_rank(&r, 1, 2);
        cases[i].spoil(&r.hello);
        dial(w, &r);
        struct wire_coordinator_message *m = find_sent(&r, REFUSE);
        if (!m) {
            fail_msg("%s: not refused", cases[i].what);
            return;
        }
        if (m->refuse->code != cases[i].code || !strstr(m->refuse->reason, cases[i].word))
            fail_msg("%s: expected code %d and \"%s\", found %d and \"%s\"", cases[i].what,
                     (int)cases[i].code, cases[i].word, (int)m->refuse->code, m->refuse->reason);
        assert_true(r.call->finished);
        assert_int_equal(r.call->status, RPC_FAILED_PRECONDITION);
        wire_free_coordinator_message(m);
        hang_up(&r);
    }
    /* the rank is still free for the right one */
    struct fake_rank r[2];
    form(w, r, 2);
    hang_up(&r[0]);
    hang_up(&r[1]);
    free_world(w);
}

static void test_lost_rank_ends_the_epoch(void **state)
{
    (void)state;
    struct world *w = new_world(2);
    struct fake_rank r[2];
    uint64_t epoch = form(w, r, 2);
    send_step(w, 1);
    hang_up(&r[1]);
    assert_int_equal(w->n_down, 1);
    assert_string_equal(w->why, "rank 1 was lost");
    assert_true(was_aborted(&r[0], epoch));
    assert_false(fleet_is_ready(w->fleet));
    /* the late answer of the other rank changes nothing */
    say_done(&r[0], epoch, 1, 1);
    assert_int_equal(w->n_results, 0);
    /* it comes back; the other one is heard of again */
    now += NSEC_PER_MSEC;
    beat(&r[0]);
    dial(w, &r[1]);
    say_loaded(&r[1]);
    pass(w, NSEC_PER_SEC);
    assert_int_equal(granted_epoch(&r[1]), epoch + 1);
    assert_int_equal(granted_epoch(&r[0]), epoch + 1);
    say_ready(&r[0], epoch, 7); /* of the old epoch */
    say_ready(&r[1], epoch + 1, 7);
    assert_int_equal(w->n_ready, 1);
    say_ready(&r[0], epoch + 1, 7);
    assert_int_equal(w->n_ready, 2);
    hang_up(&r[0]);
    hang_up(&r[1]);
    free_world(w);
}

static void test_epochs_grow_over_restarts(void **state)
{
    (void)state;
    struct world *w = new_world(1);
    struct fake_rank r;
    assert_int_equal(form(w, &r, 1), 1);
    hang_up(&r);
    stop_fleet(w);
    start_fleet(w);
    assert_int_equal(form(w, &r, 1), 2);
    hang_up(&r);
    stop_fleet(w);
    /* the file was lost: the ranks remember */
    char path[128];
    snprintf(path, sizeof path, "%s/epoch", w->dir);
    unlink(path);
    start_fleet(w);
    init_rank(&r, 0, 1);
    r.hello.last_epoch = 41;
    dial(w, &r);
    say_loaded(&r);
    pass(w, NSEC_PER_SEC);
    assert_int_equal(granted_epoch(&r), 42);
    hang_up(&r);
    free_world(w);
}

static void test_steps(void **state)
{
    (void)state;
    struct world *w = new_world(2);
    struct fake_rank r[2];
    uint64_t epoch = form(w, r, 2);
    send_step(w, 1);
    struct wire_coordinator_message *m = find_sent(&r[1], STEP);
    assert_non_null(m);
    assert_int_equal(m->step->step, 1);
    wire_free_coordinator_message(m);
    say_done(&r[1], epoch, 1, 99);
    assert_int_equal(w->n_results, 0);
    say_done(&r[0], epoch, 1, 99);
    assert_int_equal(w->n_results, 1);
    send_step(w, 2);
    say_done(&r[0], epoch, 2, 5);
    say_done(&r[1], epoch, 2, 6);
    assert_int_equal(w->n_results, 1);
    assert_int_equal(w->n_down, 1);
    assert_non_null(strstr(w->why, "disagree about step 2"));
    hang_up(&r[0]);
    hang_up(&r[1]);
    free_world(w);
}

static void test_unexpected_answers(void **state)
{
    (void)state;
    for (int how = 0; how != 3; how++) {
        struct world *w = new_world(2);
        struct fake_rank r[2];
        uint64_t epoch = form(w, r, 2);
        send_step(w, 1);
        w->refuse_result = how == 2;
        say_done(&r[0], epoch, how == 0 ? 2 : 1, 5); /* a step that is not out */
        if (how == 1)
            say_done(&r[0], epoch, 1, 5); /* twice */
        if (how == 2)
            say_done(&r[1], epoch, 1, 5); /* agreed, but no answer to the plan */
        if (w->n_down != 1)
            fail_msg("case %d: expected the group to be down", how);
        hang_up(&r[0]);
        hang_up(&r[1]);
        free_world(w);
    }
}

static void test_known_answers_must_agree(void **state)
{
    (void)state;
    struct world *w = new_world(2);
    struct fake_rank r[2];
    for (unsigned i = 0; i != 2; i++) {
        init_rank(&r[i], i, 2);
        dial(w, &r[i]);
        say_loaded(&r[i]);
    }
    pass(w, 1);
    uint64_t epoch = granted_epoch(&r[0]);
    say_ready(&r[0], epoch, 7);
    say_ready(&r[1], epoch, 8);
    assert_int_equal(w->n_ready, 0);
    assert_true(was_aborted(&r[0], epoch));
    struct wire_group_status g = {0};
    struct wire_rank_status ranks[2];
    fleet_status(w->fleet, now, &g, ranks);
    assert_non_null(strstr(g.last_error, "known answers differ"));
    hang_up(&r[0]);
    hang_up(&r[1]);
    free_world(w);
}

static void test_step_deadline(void **state)
{
    (void)state;
    struct world *w = new_world(2);
    struct fake_rank r[2];
    uint64_t epoch = form(w, r, 2);
    send_step(w, 1);
    say_done(&r[0], epoch, 1, 9);
    for (int i = 0; i != 99; i++) {
        beat(&r[0]);
        beat(&r[1]);
        pass(w, NSEC_PER_SEC / 10);
    }
    assert_int_equal(w->n_down, 0);
    beat(&r[0]);
    beat(&r[1]);
    pass(w, NSEC_PER_SEC / 5);
    assert_int_equal(w->n_down, 1);
    assert_non_null(strstr(w->why, "no answer from rank 1"));
    assert_true(was_aborted(&r[1], epoch));
    /* who has not been heard of since gets no new grant */
    beat(&r[0]);
    pass(w, NSEC_PER_SEC);
    assert_int_equal(granted_epoch(&r[0]), epoch);
    beat(&r[0]);
    beat(&r[1]);
    pass(w, 1);
    assert_int_equal(granted_epoch(&r[0]), epoch + 1);
    hang_up(&r[0]);
    hang_up(&r[1]);
    free_world(w);
}

static void test_silent_rank(void **state)
{
    (void)state;
    struct world *w = new_world(2);
    struct fake_rank r[2];
    form(w, r, 2);
    for (int i = 0; i != 60; i++) {
        beat(&r[0]);
        pass(w, NSEC_PER_SEC / 10);
    }
    assert_int_equal(w->n_down, 1);
    assert_non_null(strstr(w->why, "rank 1: nothing was heard of it"));
    assert_true(r[1].call->cancelled);
    assert_false(r[0].call->cancelled);
    hang_up(&r[0]);
    hang_up(&r[1]);
    free_world(w);
}

static void test_peer_failure_finds_the_cause(void **state)
{
    (void)state;
    struct world *w = new_world(2);
    struct fake_rank r[2];
    uint64_t epoch = form(w, r, 2);
    const struct wire_failed failed = {
        .epoch = epoch, .step = 1, .code = WIRE_FAILURE_PEER, .message = "connection lost"};
    say(&r[0], &(struct wire_worker_message){.failed = &failed});
    assert_int_equal(w->n_down, 0); /* somebody else's fault: whose? */
    hang_up(&r[1]);
    assert_int_equal(w->n_down, 1);
    assert_string_equal(w->why, "rank 1 was lost");
    hang_up(&r[0]);
    free_world(w);

    w = new_world(2); /* nobody goes: the rank's own word counts after a moment */
    epoch = form(w, r, 2);
    struct wire_failed again = failed;
    again.epoch = epoch;
    say(&r[0], &(struct wire_worker_message){.failed = &again});
    pass(w, NSEC_PER_SEC / 10);
    assert_int_equal(w->n_down, 0);
    pass(w, NSEC_PER_SEC / 2);
    assert_int_equal(w->n_down, 1);
    assert_string_equal(w->why, "rank 0: a peer failed"); /* no text of the rank for clients */
    hang_up(&r[0]);
    hang_up(&r[1]);
    free_world(w);
}

static void test_second_process_waits_for_its_turn(void **state)
{
    (void)state;
    struct world *w = new_world(1);
    struct fake_rank first, second, third;
    form(w, &first, 1);
    init_rank(&second, 0, 1);
    second.instance[0] = 77;
    dial(w, &second);
    say_loaded(&second);
    pass(w, NSEC_PER_SEC);
    assert_true(fleet_is_ready(w->fleet));
    assert_int_equal(granted_epoch(&second), 0);
    init_rank(&third, 0, 1);
    third.instance[0] = 78;
    dial(w, &third);
    struct wire_coordinator_message *m = find_sent(&third, REFUSE);
    assert_non_null(m);
    wire_free_coordinator_message(m);
    hang_up(&third);
    hang_up(&first);
    now += NSEC_PER_MSEC;
    beat(&second);
    pass(w, NSEC_PER_SEC);
    assert_int_equal(granted_epoch(&second), 2);
    /* the same process over a new stream replaces its old one at once */
    struct fake_rank again = second;
    again.hello.instance_id.data = again.instance;
    dial(w, &again);
    assert_true(second.call->finished);
    now += NSEC_PER_MSEC;
    say_loaded(&again);
    hang_up(&second);
    pass(w, NSEC_PER_SEC);
    assert_int_equal(granted_epoch(&again), 3);
    hang_up(&again);
    free_world(w);
}

static void test_hostile_messages(void **state)
{
    (void)state;
    static const char *const bytes[] = {"\xff\xff\xff", "\x0a\x05zz", "\x22\x02\x08\x01"};
    for (size_t i = 0; i != ARRAY_LEN(bytes); i++) {
        struct world *w = new_world(1);
        struct fake_rank r;
        form(w, &r, 1);
        struct buf b = {0};
        buf_append_str(&b, bytes[i]);
        fake_rpc_receive(r.call, &b);
        buf_deinit(&b);
        if (i < 2 && !r.call->finished)
            fail_msg("message %zu was accepted", i);
        hang_up(&r);
        free_world(w);
    }
    /* before Hello nothing else counts */
    struct world *w = new_world(1);
    struct fake_rank r;
    init_rank(&r, 0, 1);
    r.call = fake_rpc_new();
    fleet_on_session(r.call, w->fleet);
    say_loaded(&r);
    assert_true(r.call->finished);
    hang_up(&r);
    /* limits that are not the model's */
    init_rank(&r, 0, 1);
    dial(w, &r);
    r.loaded.limits.vocab = 641;
    say_loaded(&r);
    struct wire_coordinator_message *m = find_sent(&r, REFUSE);
    assert_non_null(m);
    assert_non_null(strstr(m->refuse->reason, "641"));
    wire_free_coordinator_message(m);
    hang_up(&r);
    free_world(w);
}

/* ---- random interleavings of ranks, epochs and time ---- */

static uint64_t random_state;

static uint32_t rnd(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

static void random_message(struct world *w, struct fake_rank *r)
{
    uint64_t epoch = granted_epoch(r);
    if (rnd(20) == 0)
        epoch = rnd(8); /* another one, old or never granted */
    switch (rnd(8)) {
    case 0:
        if (rnd(10) == 0) /* a second one is an error */
            say_loaded(r);
        break;
    case 1:
    case 2:
    case 3:
        say_ready(r, epoch, rnd(40) ? 7 : 8);
        break;
    case 4:
        say_done(r, epoch, 1 + rnd(3), rnd(10) ? 3 : 4);
        break;
    case 5: {
        if (rnd(4))
            break;
        const struct wire_failed failed = {
            .epoch = epoch, .code = (enum wire_failure_code)rnd(8), .message = "m"};
        say(r, &(struct wire_worker_message){.failed = &failed});
        break;
    }
    default:
        beat(r);
        break;
    }
    (void)w;
}

static unsigned run_random(uint64_t seed)
{
    enum { RANKS = 3, PROCESSES = 6 };
    random_state = seed * 2654435761u + 1;
    struct world *w = new_world(RANKS);
    struct fake_rank p[PROCESSES]; /* two for every rank */
    uint64_t next_step = 1, step_epoch = 0;
    for (unsigned i = 0; i != PROCESSES; i++) {
        init_rank(&p[i], i % RANKS, RANKS);
        p[i].instance[1] = (uint8_t)i;
        p[i].hello.instance_id.data = p[i].instance;
    }
    for (int n = 0; n != 600; n++) {
        struct fake_rank *r = &p[rnd(PROCESSES)];
        if (!r->call) {
            dial(w, r);
            say_loaded(r);
        } else if (rnd(100) == 0 || (r->call->finished && rnd(2))) {
            hang_up(r);
        } else {
            random_message(w, r);
        }
        if (rnd(3) == 0)
            pass(w, (int64_t)rnd(400) * NSEC_PER_MSEC);
        if (fleet_is_ready(w->fleet) && rnd(2)) {
            next_step = w->epoch == step_epoch ? next_step : 1;
            if (next_step <= w->n_results + 1 || next_step == 1) {
                struct wire_group_status g = {0};
                struct wire_rank_status ranks[RANKS];
                fleet_status(w->fleet, now, &g, ranks);
                assert_int_equal(g.state, WIRE_GROUP_READY);
                if (step_epoch != w->epoch) {
                    send_step(w, next_step++);
                    step_epoch = w->epoch;
                }
            }
        }
        assert_true(w->n_down <= w->n_ready && w->n_ready <= w->n_down + 1);
        assert_int_equal(fleet_is_ready(w->fleet), w->n_ready == w->n_down + 1);
    }
    fleet_stop(w->fleet, "end");
    for (unsigned i = 0; i != PROCESSES; i++) {
        if (p[i].call)
            hang_up(&p[i]);
    }
    assert_int_equal(fleet_n_sessions(w->fleet), 0);
    unsigned n_ready = w->n_ready;
    free_world(w);
    return n_ready;
}

static void test_random_interleavings(void **state)
{
    (void)state;
    unsigned n_ready = 0;
    for (uint64_t seed = 1; seed != 25; seed++)
        n_ready += run_random(seed);
    printf("%u groups formed\n", n_ready);
    assert_true(n_ready > 20);
}

/* ---- the epoch file ---- */

static void test_epoch_file(void **state)
{
    (void)state;
    char dir[] = "epoch-test-XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/epoch", dir);
    struct epoch_store a, b;
    struct err e = ERR_INIT;
    uint64_t epoch;
    assert_int_equal(epoch_open(dir, &a, &e), 0);
    assert_int_equal(epoch_open(dir, &b, &e), -EBUSY);
    assert_non_null(strstr(e.message, "another coordinator"));
    assert_int_equal(epoch_next(&a, 0, &epoch, &e), 0);
    assert_int_equal(epoch, 1);
    assert_int_equal(epoch_next(&a, 10, &epoch, &e), 0);
    assert_int_equal(epoch, 11);
    epoch_close(&a);
    static const char *const damaged[] = {"",     "x\n", "12", "-3\n", "99999999999999999999999\n",
                                          "7\n\n"};
    for (size_t i = 0; i != ARRAY_LEN(damaged); i++) {
        FILE *f = fopen(path, "w");
        fputs(damaged[i], f);
        fclose(f);
        if (epoch_open(dir, &a, &e) != -EBADMSG)
            fail_msg("accepted \"%s\"", damaged[i]);
    }
    unlink(path);
    rmdir(dir);
}

int main(void)
{
    log_init("test", LOG_LEVEL_ERROR);
    now = NSEC_PER_SEC;
    clock_set_source(virtual_clock, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group_forms),
        cmocka_unit_test(test_wrong_ranks_are_refused),
        cmocka_unit_test(test_lost_rank_ends_the_epoch),
        cmocka_unit_test(test_epochs_grow_over_restarts),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_unexpected_answers),
        cmocka_unit_test(test_known_answers_must_agree),
        cmocka_unit_test(test_step_deadline),
        cmocka_unit_test(test_silent_rank),
        cmocka_unit_test(test_peer_failure_finds_the_cause),
        cmocka_unit_test(test_second_process_waits_for_its_turn),
        cmocka_unit_test(test_hostile_messages),
        cmocka_unit_test(test_random_interleavings),
        cmocka_unit_test(test_epoch_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
