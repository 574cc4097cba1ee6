/* spawn.c: see spawn.h. */
#include "coordinator/spawn.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/log.h"
#include "base/util.h"

enum {
    PERMANENT_FIRST = 64, /* exit codes that a restart will hardly change: configuration, */
    PERMANENT_LAST = 65,  /* weights */
    MAX_ARGS = 18 + 2 * CONF_MAX_LIST,
};
/* A rank that lived this long starts with the short pause again. */
#define LONG_LIFE_NS (60 * NSEC_PER_SEC)

struct child {
    struct spawn *spawn;
    char group[CONFIG_MAX_GROUP_NAME + 8];
    uint32_t rank; /* within the group */
    const char *device;
    uv_process_t process;
    bool open; /* the process handle is in use */
    bool alive;
    uv_timer_t restart;
    int64_t started_ns;
    int64_t pause_ns; /* before the next start */
};

struct spawn {
    struct spawn_config config;
    char *program;          /* owned */
    struct child *children; /* owned, [n] */
    uint32_t n;
    uv_timer_t kill;
    bool stopping, killing_over;
    uint32_t n_open; /* libuv handles that are not closed yet */
    void (*on_stopped)(void *context);
    void *stopped_context;
};

/* ---- starting ---- */

/* glmd-worker beside our own executable, unless the configuration says otherwise. */
static char *find_program(const struct options *o)
{
    const char *path = o->config.group.spawn.worker_path;
    if (*path)
        return strdup(path);
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0)
        return NULL;
    self[n] = '\0';
    char *slash = strrchr(self, '/');
    struct buf text = {0};
    if (!slash || buf_append(&text, self, (size_t)(slash - self)) < 0 ||
        buf_append_str(&text, "/glmd-worker") < 0) {
        buf_deinit(&text);
        return NULL;
    }
    return text.data;
}

static unsigned threads_per_rank(const struct options *o)
{
    const struct config *c = &o->config;
    if (c->group.spawn.threads_per_rank)
        return (unsigned)c->group.spawn.threads_per_rank;
    if (c->worker.threads)
        return (unsigned)c->worker.threads;
    unsigned n = cpus_usable() / (config_group_ranks(c) * (unsigned)c->group.replicas);
    return MAX(n, 1u);
}

/* "worker.cpus=...": the NUMA nodes of the index-th rank of this host. False: it may run anywhere.
 */
static bool near_cpus(const struct spawn *s, uint32_t index, char *out, size_t size)
{
    static const char key[] = "worker.cpus=";
    struct cpus allowed, near;
    if (*s->config.options->config.worker.cpus)
        return false; /* the operator has said */
    cpus_allowed(&allowed);
    cpus_near(CPUS_NODES, &allowed, index, s->n, &near);
    if (near.n == allowed.n || size < sizeof key)
        return false;
    if (cpus_bind(&allowed) < 0)
        return false; /* it changes nothing, but where it is forbidden ranks could not do it either
                       */
    memcpy(out, key, sizeof key);
    return cpus_print(&near, out + sizeof key - 1, size - sizeof key + 1) == 0;
}

/* The arguments point into `texts` and the options. */
struct arguments {
    char *argv[MAX_ARGS];
    size_t n;
    char rank[16], threads[48], group[CONFIG_MAX_GROUP_NAME + 24], cpus[CPUS_TEXT_BYTES + 16];
};

static void add(struct arguments *a, const char *text)
{
    assert(a->n + 1 < MAX_ARGS);
    a->argv[a->n++] = (char *)text; /* uv_spawn does not write to it */
    a->argv[a->n] = NULL;
}

static void make_arguments(const struct child *k, struct arguments *a)
{
    const struct spawn *s = k->spawn;
    const struct options *o = s->config.options;
    a->n = 0;
    snprintf(a->rank, sizeof a->rank, "%u", k->rank);
    snprintf(a->group, sizeof a->group, "group.name=%s", k->group);
    snprintf(a->threads, sizeof a->threads, "worker.threads=%u", threads_per_rank(o));
    add(a, s->program);
    add(a, "--spawned");
    if (o->config_file) {
        add(a, "--config");
        add(a, o->config_file);
    }
    for (size_t i = 0; i != o->sets.n; i++) {
        add(a, "--set");
        add(a, o->sets.items[i]);
    }
    add(a, "--set");
    add(a, a->threads);
    add(a, "--set");
    add(a, a->group);
    if (near_cpus(s, (uint32_t)(k - s->children), a->cpus, sizeof a->cpus)) {
        add(a, "--set");
        add(a, a->cpus);
    }
    add(a, "--rank");
    add(a, a->rank);
    add(a, "--device");
    add(a, k->device);
    add(a, "--coordinator");
    add(a, s->config.coordinator);
}

/* ---- the end of handles ---- */

static void check_stopped(struct spawn *s)
{
    if (!s->stopping || s->n_open)
        return;
    void (*on_stopped)(void *context) = s->on_stopped;
    void *context = s->stopped_context;
    free(s->children);
    free(s->program);
    free(s);
    if (on_stopped)
        on_stopped(context);
}

static void on_kill_closed(uv_handle_t *h)
{
    struct spawn *s = h->data;
    s->n_open--;
    check_stopped(s);
}

static void on_timer_closed(uv_handle_t *h)
{
    struct spawn *s = ((struct child *)h->data)->spawn;
    s->n_open--;
    check_stopped(s);
}

/* Nobody is left to be killed. */
static void end_killing(struct spawn *s)
{
    for (uint32_t i = 0; i != s->n; i++) {
        if (s->children[i].open)
            return;
    }
    if (!s->stopping || s->killing_over)
        return;
    s->killing_over = true;
    uv_close((uv_handle_t *)&s->kill, on_kill_closed);
}

static void on_process_closed(uv_handle_t *h)
{
    struct child *k = h->data;
    struct spawn *s = k->spawn;
    k->open = false;
    s->n_open--;
    end_killing(s);
    check_stopped(s);
}

/* ---- life of a process ---- */

static void on_restart(uv_timer_t *t);

static void schedule(struct child *k, int64_t pause_ns)
{
    if (!k->spawn->stopping)
        uv_timer_start(&k->restart, on_restart, (uint64_t)(pause_ns / NSEC_PER_MSEC), 0);
}

static void on_exit_of(uv_process_t *p, int64_t code, int signal_number)
{
    struct child *k = p->data;
    struct spawn *s = k->spawn;
    const struct config *c = &s->config.options->config;
    char what[64];
    if (signal_number)
        snprintf(what, sizeof what, "killed by signal %d", signal_number);
    else
        snprintf(what, sizeof what, "ended with exit code %d", (int)code);
    k->alive = false;
    uv_close((uv_handle_t *)p, on_process_closed);
    bool again = s->config.on_exit(s->config.context, k->group, k->rank, what);
    if (!s->stopping && !again) {
        log_event(LOG_LEVEL_INFO, LOG(.group = k->group, .rank = &k->rank),
                  "group %s: rank %u (pid %d) %s", k->group, k->rank, p->pid, what);
    } else if (!s->stopping) {
        bool permanent = !signal_number && code >= PERMANENT_FIRST && code <= PERMANENT_LAST;
        if (clock_now_ns() - k->started_ns > LONG_LIFE_NS)
            k->pause_ns = c->group.spawn.restart_min;
        int64_t pause = permanent ? c->group.spawn.restart_max : k->pause_ns;
        k->pause_ns = MIN(2 * k->pause_ns, c->group.spawn.restart_max);
        log_event(LOG_LEVEL_WARN, LOG(.group = k->group, .rank = &k->rank),
                  "group %s: rank %u (pid %d) %s; starting it again in %lld ms", k->group, k->rank,
                  p->pid, what, (long long)(pause / NSEC_PER_MSEC));
        schedule(k, pause);
    }
}

static int start(struct child *k)
{
    struct spawn *s = k->spawn;
    struct arguments *a = calloc(1, sizeof *a);
    if (!a)
        return -ENOMEM;
    make_arguments(k, a);
    uv_stdio_container_t stdio[3] = {
        {.flags = UV_IGNORE},
        {.flags = UV_INHERIT_FD, .data.fd = STDERR_FILENO}, /* our stdout is for the ready line */
        {.flags = UV_INHERIT_FD, .data.fd = STDERR_FILENO},
    };
    const uv_process_options_t options = {
        .exit_cb = on_exit_of,
        /* Ctrl-C is for us: we drain, then we stop the ranks. */
        .flags = UV_PROCESS_DETACHED,
        .file = s->program,
        .args = a->argv,
        .stdio_count = 3,
        .stdio = stdio,
    };
    k->process.data = k;
    k->started_ns = clock_now_ns();
    k->open = true; /* to be closed even when it did not start */
    s->n_open++;
    int r = uv_spawn(s->config.loop, &k->process, &options);
    k->alive = r == 0;
    free(a);
    if (r == 0)
        log_event(LOG_LEVEL_INFO, LOG(.group = k->group, .rank = &k->rank),
                  "group %s: rank %u: started as pid %d", k->group, k->rank, k->process.pid);
    else
        uv_close((uv_handle_t *)&k->process, on_process_closed);
    return r;
}

static void on_restart(uv_timer_t *t)
{
    struct child *k = t->data;
    const struct config *c = &k->spawn->config.options->config;
    if (k->open) { /* the old handle is not closed yet */
        schedule(k, c->group.spawn.restart_min);
        return;
    }
    int r = start(k);
    if (r < 0) {
        log_event(LOG_LEVEL_ERROR, LOG(.group = k->group, .rank = &k->rank),
                  "group %s: rank %u: cannot start %s: %s", k->group, k->rank, k->spawn->program,
                  err_name(r));
        schedule(k, c->group.spawn.restart_max);
    }
}

int spawn_new(const struct spawn_config *config, struct spawn **ret, struct err *e)
{
    const struct config *c = &config->options->config;
    struct spawn *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, -ENOMEM, "out of memory");
    s->config = *config;
    uint32_t n_ranks = config_group_ranks(c);
    s->n = n_ranks * (uint32_t)c->group.replicas;
    s->program = find_program(config->options);
    s->children = alloc_array(s->n, sizeof *s->children);
    int r = 0;
    if (!s->program || !s->children)
        r = err_set(e, -ENOMEM, "out of memory");
    else if (access(s->program, X_OK) < 0)
        r = err_set(e, -errno, "cannot run %s (group.spawn.worker_path): %s", s->program,
                    err_name(-errno));
    if (r < 0) {
        free(s->program);
        free(s->children);
        free(s);
        return r;
    }
    uv_timer_init(config->loop, &s->kill);
    s->kill.data = s;
    s->n_open = 1;
    for (uint32_t i = 0; i != s->n; i++) {
        struct child *k = &s->children[i];
        *k = (struct child){.spawn = s,
                            .rank = i % n_ranks,
                            .device = config_device(c, i),
                            .pause_ns = c->group.spawn.restart_min};
        config_replica_name(c, i / n_ranks, k->group);
        uv_timer_init(config->loop, &k->restart);
        k->restart.data = k;
        s->n_open++;
        uv_timer_start(&k->restart, on_restart, 0, 0);
    }
    *ret = s;
    return 0;
}

static void kill_all(struct spawn *s, int signal_number)
{
    for (uint32_t i = 0; i != s->n; i++) {
        if (s->children[i].alive)
            uv_process_kill(&s->children[i].process, signal_number);
    }
}

static void on_kill(uv_timer_t *t)
{
    struct spawn *s = t->data;
    log_warn("ranks did not stop in time: killing them");
    kill_all(s, SIGKILL);
}

void spawn_stop(struct spawn *s, int64_t grace_ns, void (*on_stopped)(void *context), void *context)
{
    assert(!s->stopping);
    s->stopping = true;
    s->on_stopped = on_stopped;
    s->stopped_context = context;
    for (uint32_t i = 0; i != s->n; i++)
        uv_close((uv_handle_t *)&s->children[i].restart, on_timer_closed);
    uv_timer_start(&s->kill, on_kill, (uint64_t)(grace_ns / NSEC_PER_MSEC), 0);
    kill_all(s, SIGTERM);
    end_killing(s);
}
