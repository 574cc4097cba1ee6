/* comm.c: sums over ranks on the device (contract: kernels/comm.h): opening and the choice, waiting
 * with an eye on the others, failing.
 *
 * The choice is made from what all ranks have said, so that all of them make the same one; every
 * attempt ends with a round in which the ranks say how it went (comm_agree).
 */
#include "kernels/cuda/comm_internal.h"
#include "kernels/cuda/nccl_log.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SPIN_NS      INT64_C(2000000) /* of a wait: a step's end is met without sleeping */
#define SLEEP_NS     INT64_C(50000)
#define GIVE_UP_NS   INT64_C(30000000000) /* what was given up must come to its end within this */
#define FACTS_LAYOUT 0x676c6402u

extern char **environ;

int64_t comm_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void comm_pause(int64_t ns)
{
    nanosleep(&(struct timespec){ns / 1000000000, ns % 1000000000}, NULL);
}

/* ---- failing ---- */

int comm_fail(struct k_comm *m, int code, const char *format, ...)
{
    assert(code < 0);
    if (m->failed)
        return m->failed;
    va_list args;
    va_start(args, format);
    vsnprintf(m->failure, sizeof m->failure, format, args);
    va_end(args);
    m->failed = code;
    cuda_graph_hold(m->c); /* NCCL waits for records of its calls to be dropped */
    if (m->signals)
        __atomic_store_n(&m->signals->stop, 1, __ATOMIC_RELEASE);
    if (m->nccl.comm) {
        struct ncclComm *comm = m->nccl.comm;
        m->nccl.comm = NULL;
        (void)m->nccl.library->abort(comm);
    }
    return code;
}

int comm_look(struct k_comm *m)
{
    if (m->failed)
        return m->failed;
    int ended = m->group.state(m->group.context);
    if (ended)
        return comm_fail(m, ended, "the group has ended");
    if (__atomic_load_n(&m->signals->failed, __ATOMIC_ACQUIRE))
        return comm_fail(m, -ETIMEDOUT, "a peer's part of a sum did not come");
    return nccl_look(m);
}

void comm_watch(struct k_comm *m)
{
    struct k_ctx *c = m->c;
    int64_t began_ns = comm_now_ns(), progress_ns = began_ns;
    uint32_t number = 0;
    bool had_failed = m->failed != 0;
    for (bool ready = false; !c->error;) {
        cuda_check(c, c->driver->stream_ready(c->stream, &ready), "sums over ranks");
        if (ready)
            break;
        int64_t now_ns = comm_now_ns();
        uint32_t reached = __atomic_load_n(&m->signals->number, __ATOMIC_ACQUIRE);
        if (reached != number) {
            number = reached;
            progress_ns = now_ns;
        }
        if (!comm_look(m) && now_ns - progress_ns > m->group.timeout_ns)
            comm_fail(m, -ETIMEDOUT, "no sum has ended for %.1f s",
                      (double)m->group.timeout_ns / 1e9);
        if (m->failed && !had_failed) {
            had_failed = true;
            progress_ns = now_ns;
        }
        if (had_failed && now_ns - progress_ns > GIVE_UP_NS)
            cuda_check(c, c->driver->timed_out, "sums over ranks that were given up");
        if (now_ns - began_ns > SPIN_NS)
            comm_pause(SLEEP_NS);
    }
    (void)comm_look(m);
}

int comm_agree(struct k_comm *m, int code, const char *why, char *ret_why, size_t size)
{
    struct verdict {
        int32_t code;
        char why[COMM_WHY_BYTES];
    } mine = {.code = code}, all[COMM_MAX_SIZE];
    if (m->failed)
        return m->failed;
    if (code)
        snprintf(mine.why, sizeof mine.why, "%s", why);
    int r = m->group.all_gather(m->group.context, &mine, sizeof mine, all);
    if (r) {
        snprintf(ret_why, size, "the group ended while it was joined");
        return comm_fail(m, r, "the group ended while it was joined");
    }
    for (int i = 0; i < m->group.size; i++) {
        if (!all[i].code)
            continue;
        snprintf(ret_why, size, "rank %d: %.*s", i, COMM_WHY_BYTES - 1, all[i].why);
        return all[i].code < 0 ? all[i].code : -EIO;
    }
    return 0;
}

/* ---- facts ---- */

static void read_host(char *ret, size_t size)
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    ret[0] = '\0';
    if (f && fgets(ret, (int)size, f))
        ret[strcspn(ret, "\n")] = '\0';
    if (f)
        fclose(f);
}

static int exchange_facts(struct k_comm *m, enum k_comm_choice choice, char *message, size_t size)
{
    struct k_ctx *c = m->c;
    struct cuda_properties p = {0};
    struct comm_facts mine = {.layout = FACTS_LAYOUT,
                              .choice = choice,
                              .max_rows = m->max_rows,
                              .cols = m->cols,
                              .device = c->device,
                              .process = c->driver->process()};
    cuda_check(c, c->driver->properties(c->device, &p), "sums over ranks");
    memcpy(mine.pci_bus, p.pci_bus, sizeof mine.pci_bus);
    read_host(mine.host, sizeof mine.host);
    const struct nccl_library *nccl = nccl_find(mine.nccl_missing, sizeof mine.nccl_missing);
    if (nccl)
        (void)nccl->version(&mine.nccl_version);
    int r = m->group.all_gather(m->group.context, &mine, sizeof mine, m->facts);
    if (r) {
        snprintf(message, size, "the group ended while it was joined");
        return r;
    }
    for (int i = 0; i < m->group.size; i++) {
        struct comm_facts *f = &m->facts[i];
        f->host[sizeof f->host - 1] = f->pci_bus[sizeof f->pci_bus - 1] = '\0';
        f->nccl_missing[sizeof f->nccl_missing - 1] = '\0';
        const struct comm_facts *first = &m->facts[0];
        if (f->layout == FACTS_LAYOUT && f->choice == first->choice &&
            f->max_rows == first->max_rows && f->cols == first->cols)
            continue;
        snprintf(message, size,
                 "rank 0 wants collectives %s for %u rows of %u, rank %d %s for %u of %u: give all "
                 "ranks of a group the same version and configuration",
                 k_comm_choice_name((enum k_comm_choice)(first->choice & 3)), first->max_rows,
                 first->cols, i, k_comm_choice_name((enum k_comm_choice)(f->choice & 3)),
                 f->max_rows, f->cols);
        return -EINVAL;
    }
    return 0;
}

/* ---- the choice ---- */

/* Why these ranks cannot use NCCL; false: they may be able to. */
static bool without_nccl(const struct k_comm *m, char *why, size_t size)
{
    for (int i = 0; i < m->group.size; i++) {
        const struct comm_facts *f = &m->facts[i];
        if (!f->nccl_version) {
            snprintf(why, size, "rank %d has no NCCL: %s", i, f->nccl_missing);
            return true;
        }
        for (int j = 0; j < i; j++) {
            if (strcmp(f->host, m->facts[j].host) != 0 ||
                strcmp(f->pci_bus, m->facts[j].pci_bus) != 0)
                continue;
            snprintf(why, size, "ranks %d and %d share the GPU %s, which NCCL refuses", j, i,
                     f->pci_bus);
            return true;
        }
        if (f->nccl_version != m->facts[0].nccl_version) {
            snprintf(why, size, "rank 0 has NCCL %d, rank %d has %d: install one version",
                     m->facts[0].nccl_version, i, f->nccl_version);
            return true;
        }
    }
    return false;
}

static bool without_peers(const struct k_comm *m, char *why, size_t size)
{
    for (int i = 1; i < m->group.size; i++)
        if (strcmp(m->facts[i].host, m->facts[0].host) != 0 || !*m->facts[i].host) {
            snprintf(why, size, "ranks 0 and %d are on different hosts", i);
            return true;
        }
    if (m->group.size > SUMS_MAX_PEERS || m->cols > SUMS_MAX_COLS) {
        snprintf(why, size, "%d ranks with rows of %u: at most %d with rows of %d", m->group.size,
                 m->cols, SUMS_MAX_PEERS, SUMS_MAX_COLS);
        return true;
    }
    return false;
}

static bool shares_devices(const struct k_comm *m)
{
    for (int i = 1; i < m->group.size; i++)
        for (int j = 0; j < i; j++)
            if (!strcmp(m->facts[i].host, m->facts[j].host) &&
                !strcmp(m->facts[i].pci_bus, m->facts[j].pci_bus))
                return true;
    return false;
}

/* 0; -ENODEV: they cannot; or a failure. */
static int try_nccl(struct k_comm *m, char *why, size_t size)
{
    if (without_nccl(m, why, size))
        return -ENODEV;
    int r = nccl_join(m, why, size);
    m->has_nccl = r == 0;
    return r;
}

static int try_peers(struct k_comm *m, char *why, size_t size)
{
    char pinned[COMM_WHY_BYTES];
    if (without_peers(m, why, size))
        return -ENODEV;
    int r = peer_join(m, false, why, size);
    if (r != -ENODEV || m->failed)
        return r;
    r = peer_join(m, true, pinned, sizeof pinned);
    if (r) {
        size_t at = strlen(why);
        snprintf(why + at, size - at, "; %s", pinned);
    }
    return r;
}

/* As k_comm_ops.open. */
static int choose(struct k_comm *m, enum k_comm_choice choice, char *message, size_t size)
{
    char nccl[2 * COMM_WHY_BYTES] = "", peers[2 * COMM_WHY_BYTES] = "";
    if (m->cols % SUMS_PIECE) {
        snprintf(message, size, "rows of %u values are no multiple of %d", m->cols, SUMS_PIECE);
        return choice == K_COMM_AUTO ? -ENOTSUP : -EINVAL;
    }
    if (choice == K_COMM_NCCL || choice == K_COMM_PEER) {
        int r = choice == K_COMM_NCCL ? try_nccl(m, nccl, sizeof nccl)
                                      : try_peers(m, peers, sizeof peers);
        if (r)
            snprintf(message, size, "collectives %s: %s%s", k_comm_choice_name(choice), nccl,
                     peers);
        return r;
    }
    if (shares_devices(m)) {
        (void)without_nccl(m, nccl, sizeof nccl);
        snprintf(message, size, "ranks share a GPU (%s)", nccl);
        return -ENOTSUP;
    }
    m->nccl_follows = !without_nccl(m, nccl, sizeof nccl);
    int with_peers = try_peers(m, peers, sizeof peers);
    if (m->failed)
        return m->failed;
    int with_nccl = try_nccl(m, nccl, sizeof nccl);
    if (m->failed)
        return m->failed;
    if (with_peers && with_nccl)
        snprintf(message, size, "neither NCCL (%s) nor peers' memory (%s)", nccl, peers);
    else
        snprintf(message, size, "%s%s%s%s", with_nccl ? "; no NCCL: " : "", nccl,
                 with_peers ? "; no peers' memory: " : "", peers);
    return with_peers && with_nccl ? -ENOTSUP : 0;
}

/* Appends " (network NAME, via WAYS)", as far as it is known. */
static void append_network(char *to, size_t size)
{
    struct nccl_log_facts f;
    nccl_log_read(&f);
    if (*f.network)
        snprintf(to + strlen(to), size - strlen(to), " (network %s", f.network);
    for (int i = 0; *f.network && i < f.n_ways; i++)
        snprintf(to + strlen(to), size - strlen(to), "%s%s", i ? ", " : ", via ", f.ways[i]);
    if (*f.network)
        snprintf(to + strlen(to), size - strlen(to), ")");
}

/* Appends " NAME=VALUE" of every variable that NCCL reads and somebody has set. */
static void append_variables(char *to, size_t size)
{
    for (char **v = environ; *v; v++) {
        size_t at = strlen(to);
        if (!strncmp(*v, "NCCL_", 5) && at < size && !nccl_log_is_own(*v))
            snprintf(to + at, size - at, " %.80s", *v);
    }
}

static void describe(struct k_comm *m)
{
    char *to = m->description;
    size_t size = sizeof m->description;
    if (m->peer_rows)
        snprintf(to, size, "%s%s", m->peer.pinned ? "page-locked host memory" : "peers' memory",
                 m->has_nccl ? "" : " for all sums");
    if (m->peer_rows && m->has_nccl)
        snprintf(to + strlen(to), size - strlen(to), " up to %u rows, ", m->peer_rows);
    if (m->has_nccl) {
        int v = m->nccl.version;
        snprintf(to + strlen(to), size - strlen(to), "NCCL %d.%d.%d", v / 10000, v / 100 % 100,
                 v % 100);
        append_network(to, size);
        append_variables(to, size);
    }
    snprintf(to + strlen(to), size - strlen(to), "%s", m->reasons);
}

/* ---- the table ---- */

static void comm_close(struct k_comm *m)
{
    if (!m)
        return;
    struct k_ctx *c = m->c;
    cuda_enter(c);
    if (m->control && m->signals) {
        comm_fail(m, -ECANCELED, "closed"); /* nothing is waited for any more */
        comm_watch(m);
    }
    c->comm = NULL;
    c->before_wait = NULL;
    cuda_graph_hold(c);
    nccl_leave(m);
    peer_leave(m);
    cuda_graph_release(c);
    cuda_free(c, m->control);
    if (m->signals)
        (void)c->driver->free_host(m->signals);
    free(m->facts);
    free(m);
}

static int make_memory(struct k_comm *m)
{
    struct k_ctx *c = m->c;
    m->facts = calloc((size_t)m->group.size, sizeof *m->facts);
    m->control = cuda_new(c, sizeof *m->control);
    void *signals = NULL;
    if (!m->facts || !m->control || c->driver->alloc_host(&signals, sizeof *m->signals))
        return -ENOMEM;
    memset(signals, 0, sizeof *m->signals);
    m->signals = signals;
    return 0;
}

static int comm_open(struct k_ctx *c, enum k_comm_choice choice, const struct k_comm_group *group,
                     uint32_t max_rows, uint32_t cols, struct k_comm **ret, char *message,
                     size_t size)
{
    assert(group->size > 1 && group->size <= COMM_MAX_SIZE && group->rank >= 0 &&
           group->rank < group->size && group->timeout_ns > 0 && group->join_timeout_ns > 0 &&
           max_rows && cols && !c->comm);
    message[0] = '\0';
    struct k_comm *m = calloc(1, sizeof *m);
    if (!m) {
        snprintf(message, size, "out of memory");
        return -ENOMEM;
    }
    m->c = c;
    m->group = *group;
    m->max_rows = max_rows;
    m->cols = cols;
    char why[COMM_WHY_BYTES] = "";
    int r = make_memory(m);
    if (m->facts) /* the others hear of it */
        r = exchange_facts(m, choice, message, size)
                ?: comm_agree(m, r, "out of memory", why, sizeof why);
    if (!r) {
        cuda_graph_hold(c); /* records without it */
        c->comm = m;
        c->before_wait = comm_watch;
        r = choice == K_COMM_HOST ? -ENOTSUP : choose(m, choice, message, size);
    }
    if (!r) {
        snprintf(m->reasons, sizeof m->reasons, "%s", message);
        cuda_graph_release(c);
        *ret = m;
        return 0;
    }
    if (!*message)
        snprintf(message, size, "%s", m->failed ? m->failure : *why ? why : "as configured");
    r = m->failed ? m->failed : r;
    comm_close(m);
    return r;
}

static const char *comm_describe(struct k_comm *m)
{
    describe(m); /* NCCL may have connected since it was asked last */
    return m->description;
}

static bool through_peers(const struct k_comm *m, uint32_t n_rows)
{
    return m->peer_rows && (n_rows <= m->peer_rows || !m->has_nccl);
}

static void comm_sum(struct k_comm *m, void *x, uint32_t n_rows, uint32_t cols)
{
    assert(cols == m->cols && n_rows && n_rows <= m->max_rows);
    cuda_enter(m->c);
    if (m->failed || m->c->error)
        return;
    if (!through_peers(m, n_rows)) {
        nccl_sum(m, x, (size_t)n_rows * cols);
        return;
    }
    for (uint32_t row = 0; row < n_rows; row += m->peer_rows) {
        uint32_t n = n_rows - row < m->peer_rows ? n_rows - row : m->peer_rows;
        cuda_check(
            m->c,
            sums_of_peers(&m->peer.boxes, (uint16_t *)x + (size_t)row * cols, n, m->c->stream),
            "a sum over peers");
    }
}

static void comm_sum_residual_norm(struct k_comm *m, const struct k_norm *n, float eps, float alpha,
                                   const void *a, void *r, const struct k_bias *bias,
                                   uint32_t n_rows, void *y)
{
    struct k_ctx *c = m->c;
    struct sums_mailboxes boxes = m->peer.boxes;
    boxes.next = c->next;
    boxes.next_bytes = c->next_bytes;
    c->next = NULL;
    if (n_rows <= m->peer_rows && !m->failed) {
        cuda_enter(m->c);
        cuda_check(m->c,
                   sums_of_peers_norm(&boxes, n, eps, alpha, a, r, bias, n_rows, y, m->c->stream),
                   "a sum over peers, residual and norm");
        return;
    }
    comm_sum(m, r, n_rows, m->cols);
    cuda_residual_norm(c, n, eps, alpha, a, r, bias, n_rows, y);
}

/* Through the peers in pieces of what a mailbox holds. */
static void comm_gather(struct k_comm *m, const void *own, size_t bytes, void *all)
{
    assert(bytes && bytes % (SUMS_PIECE * sizeof(uint16_t)) == 0);
    cuda_enter(m->c);
    if (m->failed || m->c->error)
        return;
    if (m->has_nccl) {
        nccl_gather(m, own, bytes, all);
        return;
    }
    const size_t n = bytes / sizeof(uint16_t), most = (size_t)m->peer_rows * m->cols;
    for (size_t at = 0; at < n; at += most) {
        const struct sums_gather g = {.own = (const uint16_t *)own + at,
                                      .all = (uint16_t *)all + at,
                                      .n = n - at < most ? n - at : most,
                                      .stride = n};
        cuda_check(m->c, sums_gather_peers(&m->peer.boxes, &g, m->c->stream),
                   "gathering from peers");
    }
}

static void comm_times(struct k_comm *m, struct k_comm_times *ret)
{
    const struct sums_times *t = &m->signals->times;
    *ret = (struct k_comm_times){
        .n_sums = __atomic_load_n(&t->n[SUMS_SUM], __ATOMIC_RELAXED),
        .sum_ns = __atomic_load_n(&t->ticks[SUMS_SUM], __ATOMIC_RELAXED) * SUMS_TICK_NS,
        .n_gathers = __atomic_load_n(&t->n[SUMS_GATHER], __ATOMIC_RELAXED),
        .gather_ns = __atomic_load_n(&t->ticks[SUMS_GATHER], __ATOMIC_RELAXED) * SUMS_TICK_NS};
}

static int comm_wait(struct k_comm *m, char *message, size_t size)
{
    cuda_enter(m->c);
    comm_watch(m);
    if (m->failed)
        snprintf(message, size, "%s", m->failure);
    return m->failed;
}

const struct k_comm_ops cuda_comm_ops = {
    .open = comm_open,
    .close = comm_close,
    .describe = comm_describe,
    .sum = comm_sum,
    .sum_residual_norm = comm_sum_residual_norm,
    .gather = comm_gather,
    .times = comm_times,
    .wait = comm_wait,
};
