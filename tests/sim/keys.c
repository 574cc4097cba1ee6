/* keys.c: a file of API keys with limits, which of them a request has, and whether the coordinator
 * holds to the limits. What a client knows is enough to judge: every refusal needs its cause, with
 * the code and the hint that it should have, and nobody gets more than a key allows.
 *
 * The file is memory of this process, so that a run leaves nothing behind. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "clients.h"
#include "coordinator/auth.h"
#include "coordinator/front_internal.h"
#include "coordinator/sched_internal.h"

enum { MAX_KEYS = 4 };
#define NSEC_PER_MINUTE (60 * NSEC_PER_SEC)
#define LATE_NS         NSEC_PER_SEC /* longer than the coordinator takes to hear of anything */

struct sim_key {
    char name[16];
    char header[32]; /* what its clients send */
    struct auth_limits limits;
    uint64_t tenant;
};

struct sim_keys {
    int fd;
    int64_t start_ns;
    uint32_t n;
    struct sim_key keys[MAX_KEYS];
};

/* ---- the file ---- */

static struct auth_limits draw_limits(struct rng *r)
{
    struct auth_limits l = {0};
    if (rng_chance(r, 50))
        l.requests = 1 + rng_below(r, 6);
    if (rng_chance(r, 40))
        l.tokens_per_minute = (uint64_t)rng_between(r, 100, rng_chance(r, 50) ? 1000 : 10000);
    if (rng_chance(r, 30))
        l.context = (uint32_t)rng_between(r, 20, 400);
    if (rng_chance(r, 30))
        l.choices = 1 + rng_below(r, 4);
    l.priority = rng_chance(r, 60) ? 100 : (int32_t)rng_between(r, -10, 60);
    return l;
}

static void write_text(const struct sim_keys *k, const char *text)
{
    size_t size = strlen(text);
    if (write(k->fd, text, size) != (ssize_t)size)
        abort();
}

static void write_key(const struct sim_keys *k, const char *name, const char *secret,
                      const char *options)
{
    char line[320];
    uint8_t hash[AUTH_HASH_BYTES];
    if (auth_hash(secret, strlen(secret), hash) < 0)
        abort();
    int n = snprintf(line, sizeof line, "%s sha256:", name);
    for (size_t i = 0; i != sizeof hash; i++)
        n += snprintf(line + n, sizeof line - (size_t)n, "%02x", hash[i]);
    snprintf(line + n, sizeof line - (size_t)n, " %s\n", options);
    write_text(k, line);
}

static void add_option(char *options, size_t size, const char *name, int64_t value)
{
    size_t n = strlen(options);
    if (value)
        snprintf(options + n, size - n, " %s=%lld", name, (long long)value);
}

static void add_key(struct sim *s, struct sim_keys *k)
{
    struct rng *r = &s->world.keys;
    struct sim_key *key = &k->keys[k->n];
    char secret[16], options[160] = "";
    snprintf(key->name, sizeof key->name, "key-%u", k->n);
    snprintf(secret, sizeof secret, "secret-%u", k->n);
    snprintf(key->header, sizeof key->header, "%s%s", rng_chance(r, 70) ? "Bearer " : "", secret);
    key->limits = draw_limits(r);
    key->tenant = admit_tenant(key->name);
    const struct auth_limits *l = &key->limits;
    add_option(options, sizeof options, "requests", l->requests);
    add_option(options, sizeof options, "tokens_per_minute", (int64_t)l->tokens_per_minute);
    add_option(options, sizeof options, "context", l->context);
    add_option(options, sizeof options, "choices", l->choices);
    add_option(options, sizeof options, "priority", l->priority);
    write_key(k, key->name, secret, options);
    trace(&s->world, "plan: %s:%s", key->name, options);
    k->n++;
}

void sim_keys_start(struct sim *s)
{
    struct rng *r = &s->world.keys;
    char path[64];
    struct err e = ERR_INIT;
    if (s->plan.generator < SIM_GENERATOR_KEYS || !rng_chance(r, 60))
        return;
    struct sim_keys *k = calloc(1, sizeof *k);
    assert(k);
    k->fd = memfd_create("keys", MFD_CLOEXEC);
    k->start_ns = s->world.now_ns;
    if (k->fd < 0 || fchmod(k->fd, 0600) < 0)
        world_fail(&s->world, "no memory for a file of keys");
    uint32_t n = 1 + rng_below(r, MAX_KEYS);
    for (uint32_t i = 0; i != n; i++)
        add_key(s, k);
    write_key(k, "operator", SIM_OPERATOR_KEY, "admin");
    snprintf(path, sizeof path, "/proc/self/fd/%d", k->fd);
    if (config_set(&s->config, "coordinator.keys", path, "keys", &e) < 0)
        world_fail(&s->world, "configuration: %s", e.message);
    s->keys = k;
}

void sim_keys_free(struct sim *s)
{
    if (!s->keys)
        return;
    close(s->keys->fd);
    free(s->keys);
    s->keys = NULL;
}

/* ---- a request ---- */

static const struct sim_key *key_of(const struct sim_request *q)
{
    const struct sim_keys *k = q->sim->keys;
    return k && q->key_idx < k->n ? &k->keys[q->key_idx] : NULL;
}

/* What it may need at most, as the coordinator reckons. */
static struct auth_cost cost_of(const struct sim_request *q)
{
    const struct request *first = q->echo ? q->echo : q->fresh;
    const struct request *main = q->fresh ? q->fresh : q->echo;
    return (struct auth_cost){
        .tokens = (uint32_t)(request_cost(main) + (first != main ? request_cost(first) : 0)),
        .context = request_max_tokens(main),
        .choices = main->params.beam ? main->params.n_beams : main->params.n_choices,
        .priority = main->priority,
    };
}

void sim_keys_choose(struct sim_request *q)
{
    const struct sim_keys *k = q->sim->keys;
    struct rng *r = &q->sim->world.keys;
    if (!k)
        return;
    if (q->admitted)
        q->cost = cost_of(q);
    q->wants_retry = rng_chance(r, 60);
    if (rng_chance(r, 8)) {
        q->key_idx = UINT32_MAX;
        q->key = rng_chance(r, 50) ? NULL : "Bearer secret";
        return;
    }
    q->key_idx = rng_chance(r, 40) ? 0 : rng_below(r, k->n);
    q->key = k->keys[q->key_idx].header;
}

uint64_t sim_keys_tenant(const struct sim_request *q)
{
    const struct sim_key *key = key_of(q);
    return key ? key->tenant : 0;
}

/* ---- refusals ---- */

static bool never_allowed(const struct sim_key *key, const struct auth_cost *c)
{
    const struct auth_limits *l = &key->limits;
    return (l->context && c->context > l->context) || (l->choices && c->choices > l->choices) ||
           c->priority > l->priority || (l->tokens_per_minute && c->tokens > l->tokens_per_minute);
}

/* Whether the coordinator may still have had q when x came. */
static bool overlaps(const struct sim_request *q, const struct sim_request *x)
{
    if (!q->sent_ns || q->sent_ns > x->done_ns)
        return false;
    return !q->done || q->done_ns + LATE_NS >= x->sent_ns || q->sim->last_fault_ns >= q->sent_ns;
}

/* Requests of x's key that may have been in flight with it. */
static uint32_t count_overlaps(const struct sim_request *x)
{
    uint32_t n = 0, n_made;
    struct sim_request *const *all = sim_clients_requests(x->sim, &n_made);
    for (uint32_t i = 0; i != n_made; i++)
        n += all[i] != x && all[i]->key_idx == x->key_idx && overlaps(all[i], x);
    return n;
}

/* What others of x's key have used that had ended when x came. */
static double tokens_used(const struct sim_request *x)
{
    double n = 0;
    uint32_t n_made;
    struct sim_request *const *all = sim_clients_requests(x->sim, &n_made);
    for (uint32_t i = 0; i != n_made; i++) {
        const struct sim_request *q = all[i];
        if (q != x && q->key_idx == x->key_idx && q->sent_ns && q->done && !overlaps(q, x))
            n += q->n_used;
    }
    return n;
}

/* The most that is taken for a request whose end its client does not know: of a Fill that has ended
 * at the coordinator also what it used beyond its cost (the ends of blanks, what stop texts cut
 * off), for which there is no sharper bound than as much again. */
static double most_charged(const struct sim_request *q)
{
    double most = MAX(q->n_used, (double)q->cost.tokens);
    return q->kind == REQUEST_FILL ? 2 * most : most;
}

/* The most that x's key can have had taken from it when x came, without what comes back each
 * minute: what others have used, and all that those may need that were in flight. */
static double most_taken(const struct sim_request *x)
{
    double n = 0;
    uint32_t n_made;
    struct sim_request *const *all = sim_clients_requests(x->sim, &n_made);
    for (uint32_t i = 0; i != n_made; i++) {
        const struct sim_request *q = all[i];
        if (q == x || q->key_idx != x->key_idx || !q->sent_ns || !q->admitted)
            continue;
        bool settled = q->done && q->has_usage && !overlaps(q, x);
        n += settled ? q->n_used : most_charged(q);
    }
    return n;
}

/* Nobody but x has asked for tokens of its key since it was refused, so that they must be there. */
static bool was_alone(const struct sim_request *x)
{
    uint32_t n_made;
    struct sim_request *const *all = sim_clients_requests(x->sim, &n_made);
    for (uint32_t i = 0; i != n_made; i++) {
        const struct sim_request *q = all[i];
        if (q != x && q->key_idx == x->key_idx && q->sent_ns &&
            (q->sent_ns + LATE_NS >= x->first_sent_ns))
            return false;
    }
    return x->sim->last_fault_ns < x->first_sent_ns;
}

static bool tokens_are_used(const struct sim_request *q, int64_t retry_ns)
{
    const struct sim_key *key = key_of(q);
    double full = (double)key->limits.tokens_per_minute, cost = q->cost.tokens;
    double taken = most_taken(q), missing = taken + cost - full;
    if (full == 0 || missing <= 0 || retry_ns <= 0 ||
        (double)retry_ns > missing / full * (double)NSEC_PER_MINUTE + 1)
        return false;
    return !q->n_tries || !was_alone(q); /* it has waited for as long as it was told */
}

bool sim_keys_may_refuse(const struct sim_request *q, enum rpc_status status, const char *message,
                         int64_t retry_ns)
{
    const struct sim_key *key = key_of(q);
    if (!q->sim->keys)
        return false;
    if (status == RPC_UNAUTHENTICATED)
        return !key && retry_ns == 0;
    if (!key || !q->admitted)
        return false;
    if (status == RPC_PERMISSION_DENIED)
        return never_allowed(key, &q->cost) && retry_ns == 0;
    if (status != RPC_RESOURCE_EXHAUSTED || never_allowed(key, &q->cost))
        return false;
    if (strstr(message, "requests in flight, as many as it may"))
        return key->limits.requests && count_overlaps(q) >= key->limits.requests &&
               retry_ns == FRONT_RETRY_NS;
    return strstr(message, "tokens a minute") && tokens_are_used(q, retry_ns);
}

bool sim_keys_wants_retry(const struct sim_request *q, enum rpc_status status, const char *message)
{
    return q->sim->keys && q->wants_retry && q->n_tries == 0 && !q->cancelled &&
           status == RPC_RESOURCE_EXHAUSTED && strstr(message, "tokens a minute");
}

/* ---- answers ---- */

void sim_keys_answered(struct sim_request *q, enum rpc_status status)
{
    struct sim *s = q->sim;
    struct sim_keys *k = s->keys;
    if (!k)
        return;
    const struct sim_key *found = key_of(q);
    bool refused = !found || (q->admitted && never_allowed(found, &q->cost));
    if (refused && (status == RPC_OK || status == RPC_INVALID_ARGUMENT))
        world_fail(&s->world, "request %u: %s, and its key does not allow it", q->number,
                   rpc_status_name(status));
    if (status != RPC_OK && status != RPC_CANCELLED && q->n_messages == 0 && !q->echo &&
        status != RPC_UNAVAILABLE && status != RPC_DEADLINE_EXCEEDED)
        q->cost.tokens = 0; /* refused: nothing was taken, or it was given back at once */
    if (!found || !q->has_usage)
        return;
    q->n_used =
        (double)q->usage.prompt_tokens + q->usage.completion_tokens + q->usage.scored_tokens;
    if (q->echo && q->fresh)
        q->n_used += (double)q->echo->prompt.ids.n;
    if (q->n_used > q->cost.tokens && q->kind != REQUEST_FILL)
        world_fail(&s->world, "request %u: used %.0f tokens, its key was charged for %u", q->number,
                   q->n_used, q->cost.tokens);
    /* A coordinator begins with a full bucket. */
    double full = (double)found->limits.tokens_per_minute, used = tokens_used(q);
    double minutes = (double)(s->world.now_ns - k->start_ns) / (double)NSEC_PER_MINUTE;
    double most = full * (s->n_coordinators + minutes);
    if (full > 0 && status == RPC_OK && used + q->cost.tokens > most + 1)
        world_fail(&s->world, "request %u: runs, and its key has used %.0f of %.0f tokens",
                   q->number, used, most);
}

static uint32_t count_tenant(const struct request_list *l, uint64_t tenant)
{
    uint32_t n = 0;
    for (const struct request *r = l->first; r; r = r->next)
        n += r->tenant == tenant;
    return n;
}

void sim_check_keys(struct sim *s, const struct sched *d)
{
    for (uint32_t i = 0; s->keys && i != s->keys->n; i++) {
        const struct sim_key *key = &s->keys->keys[i];
        uint32_t n = 0;
        if (!key->limits.requests)
            continue;
        for (uint32_t j = 0; queue_list(d, j); j++)
            n += count_tenant(queue_list(d, j), key->tenant);
        for (uint32_t j = 0; j != d->n_groups; j++)
            n += d->groups[j] ? count_tenant(&d->groups[j]->running, key->tenant) : 0;
        if (n > key->limits.requests)
            world_fail(&s->world, "%s has %u requests in flight, expected at most %u", key->name, n,
                       key->limits.requests);
    }
}
