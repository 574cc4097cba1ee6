/* comm_peer.c: mailboxes that the ranks of a host write into (sums.h): in the memory of their
 * devices, reached by peer access within a process and by shared handles between processes, or one
 * for all in page-locked host memory, where devices do not reach each other. Whatever is opened is
 * tested with sums whose result is known before anyone relies on it.
 */
#include "kernels/cuda/comm_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/half.h"
#include "kernels/cuda/mailbox.h"

enum {
    SHARED_CTAS = 2,     /* of a rank whose device others share: they must get on, too */
    MAX_SPINS = 1 << 28, /* some minutes; the host gives up much earlier */
    NAME_BYTES = 64,
};

/* ---- mailboxes ---- */

/* Rows of one sum: more go in pieces, or through NCCL. */
static uint32_t row_cap(const struct k_comm *m)
{
    uint32_t cap = m->nccl_follows ? MEMORY_PEER_ROWS : MEMORY_PEER_ROWS_ALONE;
    return m->max_rows < cap ? m->max_rows : cap;
}

static bool device_is_shared(const struct k_comm *m)
{
    const struct comm_facts *mine = &m->facts[m->group.rank];
    for (int r = 0; r < m->group.size; r++)
        if (r != m->group.rank && !strcmp(m->facts[r].host, mine->host) &&
            !strcmp(m->facts[r].pci_bus, mine->pci_bus))
            return true;
    return false;
}

static void describe_boxes(struct k_comm *m)
{
    struct sums_mailboxes *b = &m->peer.boxes;
    *b = (struct sums_mailboxes){.rank = (uint32_t)m->group.rank,
                                 .size = (uint32_t)m->group.size,
                                 .row_cap = row_cap(m),
                                 .cols = m->cols,
                                 .control = m->control,
                                 .signals = m->signals,
                                 .max_ctas = (uint32_t)m->c->n_multiprocessors,
                                 .max_spins = MAX_SPINS};
    if (!device_is_shared(m))
        b->n_free_sms = b->max_ctas;
    else if (b->max_ctas > SHARED_CTAS)
        b->max_ctas = SHARED_CTAS;
}

static size_t mailbox_bytes(const struct k_comm *m)
{
    return memory_mailbox((uint32_t)m->group.size, row_cap(m), m->cols);
}

/* The slot of `rank` in the mailbox at `box`. */
static uint16_t *slot(const struct k_comm *m, void *box, int rank)
{
    return (uint16_t *)box + (size_t)rank * row_cap(m) * m->cols;
}

static uint32_t *slot_flags(const struct k_comm *m, void *box, int rank)
{
    const struct sums_mailboxes *b = &m->peer.boxes;
    char *flags = (char *)box + 2 * sums_mailbox_parity(b->size, b->row_cap, b->cols) * 2;
    return (uint32_t *)(void *)flags + (size_t)rank * b->row_cap;
}

static void add_target(struct k_comm *m, void *box)
{
    struct sums_mailboxes *b = &m->peer.boxes;
    b->target[b->n_targets] = slot(m, box, m->group.rank);
    b->target_flags[b->n_targets++] = slot_flags(m, box, m->group.rank);
}

static void read_from(struct k_comm *m, void *box)
{
    struct sums_mailboxes *b = &m->peer.boxes;
    for (int r = 0; r < m->group.size; r++) {
        b->source[r] = slot(m, box, r);
        b->source_flags[r] = slot_flags(m, box, r);
    }
}

/* ---- in the memory of devices ---- */

struct device_offer {
    int32_t code; /* of the mailbox */
    int32_t not_shared;
    uint64_t address; /* for ranks of the same process */
    uint64_t key;     /* rank 0's is the group's */
    struct cuda_shared_memory memory;
    char name[NAME_BYTES]; /* of the file that who opens the memory locks */
};

static int random_key(uint64_t *ret)
{
    return getrandom(ret, sizeof *ret, 0) == sizeof *ret ? 0 : -EIO;
}

/* Whether a rank of the group is in another process. */
static bool has_processes(const struct k_comm *m)
{
    for (int r = 0; r < m->group.size; r++)
        if (m->facts[r].process != m->facts[m->group.rank].process)
            return true;
    return false;
}

/* Peers may write into a mailbox until they have left the group, too: it stays with the context and
 * is used again when all of them have closed it. */
static int make_own(struct k_comm *m, struct device_offer *o, char *why, size_t size)
{
    static_assert(sizeof o->name == sizeof m->peer.own->name, "a name of a file");
    struct k_ctx *c = m->c;
    struct peer_group *p = &m->peer;
    size_t bytes = mailbox_bytes(m);
    int r = mailbox_get(c, bytes, has_processes(m), &p->own);
    if (r == -ENOMEM) {
        snprintf(why, size, "out of memory: a mailbox for peers");
        return r;
    }
    if (r) {
        snprintf(why, size, "a mailbox for peers: %s",
                 r == -EBUSY ? "peers that have left have not closed theirs" : strerror(-r));
        return -ENODEV;
    }
    cuda_check(c, c->driver->clear(p->own->memory, bytes, c->stream), "clearing a mailbox");
    cuda_wait(c, "clearing a mailbox"); /* before peers write */
    o->address = (uintptr_t)p->own->memory;
    o->not_shared = c->driver->share(p->own->memory, &o->memory);
    memcpy(o->name, p->own->name, sizeof o->name);
    (void)c->driver->last_error();
    return random_key(&o->key);
}

/* The mailbox of rank `r`, in another process. */
static int open_shared(struct k_comm *m, int r, const struct device_offer *o, char *why,
                       size_t size)
{
    const struct cuda_driver *d = m->c->driver;
    struct peer_group *p = &m->peer;
    int fd = -1, failed = mailbox_hold(o->name, &fd);
    if (failed) {
        snprintf(why, size, "the mailbox of rank %d cannot be held: %s", r, strerror(-failed));
        return -ENODEV;
    }
    int error = o->not_shared;
    if (!error)
        error = d->share_open(&o->memory, &p->opened[r]);
    if (!error) {
        p->held[r] = fd;
        add_target(m, p->opened[r]);
        return 0;
    }
    close(fd);
    p->opened[r] = NULL;
    snprintf(why, size, "%s does not reach the memory of rank %d on %.15s: %s",
             m->facts[m->group.rank].pci_bus, r, m->facts[r].pci_bus, d->error_text(error));
    (void)d->last_error();
    return -ENODEV;
}

/* A peer's mailbox as this device sees it. */
static int reach(struct k_comm *m, int r, const struct device_offer *o, char *why, size_t size)
{
    const struct cuda_driver *d = m->c->driver;
    const struct comm_facts *peer = &m->facts[r];
    if (peer->process != m->facts[m->group.rank].process)
        return open_shared(m, r, o, why, size);
    bool can = false;
    int error = d->reach(m->c->device, peer->device, &can);
    if (!error && can) {
        add_target(m, (void *)(uintptr_t)o->address);
        return 0;
    }
    snprintf(why, size, "cuda:%d does not reach the memory of cuda:%d%s%s", m->c->device,
             peer->device, error ? ": " : "", error ? d->error_text(error) : "");
    (void)d->last_error();
    return -ENODEV;
}

static int join_devices(struct k_comm *m, char *why, size_t size)
{
    struct device_offer mine = {0}, all[SUMS_MAX_PEERS];
    cuda_enter(m->c);
    char reason[COMM_WHY_BYTES] = "";
    mine.code = make_own(m, &mine, reason, sizeof reason);
    int r = m->group.all_gather(m->group.context, &mine, sizeof mine, all);
    if (r)
        return comm_fail(m, r, "the group ended while mailboxes were opened");
    int code = mine.code;
    for (int i = 0; i < m->group.size && !code; i++) {
        code = all[i].code; /* that rank says why */
        all[i].name[NAME_BYTES - 1] = '\0';
        if (!code && i != m->group.rank)
            code = reach(m, i, &all[i], reason, sizeof reason);
    }
    m->peer.boxes.key = all[0].key;
    if (!code)
        read_from(m, m->peer.own->memory);
    code = comm_agree(m, code, reason, why, size);
    if (m->peer.own)
        mailbox_unlink(m->peer.own); /* all have it open, or it is not used */
    return code;
}

/* ---- in page-locked host memory ---- */

static int map_shared(struct k_comm *m, const char *name, bool create)
{
    struct peer_group *p = &m->peer;
    size_t bytes = mailbox_bytes(m);
    int fd = shm_open(name, O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_EXCL : 0), 0600);
    if (fd < 0)
        return -errno;
    struct stat st;
    int r = create ? -posix_fallocate(fd, 0, (off_t)bytes) : 0; /* zeros */
    if (!r && (fstat(fd, &st) < 0 || st.st_size != (off_t)bytes || st.st_uid != geteuid()))
        r = -EPROTO;
    if (!r) {
        void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        r = at == MAP_FAILED ? -errno : 0;
        if (!r) {
            p->shared = at;
            p->shared_bytes = bytes;
        }
    }
    close(fd);
    return r;
}

static int pin(struct k_comm *m, char *why, size_t size)
{
    struct peer_group *p = &m->peer;
    const struct cuda_driver *d = m->c->driver;
    void *box = NULL;
    cuda_enter(m->c);
    int error = d->pin(p->shared, p->shared_bytes, &box);
    if (error) {
        snprintf(why, size, "page-locking shared memory: %s", d->error_text(error));
        (void)d->last_error();
        return -ENODEV;
    }
    p->pinned = true;
    add_target(m, box);
    read_from(m, box);
    return 0;
}

static int join_pinned(struct k_comm *m, char *why, size_t size)
{
    struct pinned_offer {
        int32_t code;
        char name[NAME_BYTES]; /* nobody guesses it: who has it is of the group */
        uint64_t key;
    } mine = {0}, all[SUMS_MAX_PEERS];
    if (m->group.rank == 0) {
        uint64_t random[2];
        mine.code =
            getrandom(random, sizeof random, 0) == sizeof random ? random_key(&mine.key) : -EIO;
        snprintf(mine.name, sizeof mine.name, "/glmd-sums-%016llx%016llx",
                 (unsigned long long)random[0], (unsigned long long)random[1]);
        if (!mine.code)
            mine.code = map_shared(m, mine.name, true);
    }
    char reason[COMM_WHY_BYTES] = "shared memory";
    int r = m->group.all_gather(m->group.context, &mine, sizeof mine, all);
    int code = r ? r : all[0].code;
    all[0].name[NAME_BYTES - 1] = '\0';
    if (!code && m->group.rank != 0)
        code = map_shared(m, all[0].name, false);
    if (code)
        snprintf(reason, sizeof reason, "shared memory for mailboxes: %s", strerror(-code));
    if (!code)
        code = pin(m, reason, sizeof reason);
    m->peer.boxes.key = all[0].key;
    if (r)
        code = comm_fail(m, r, "the group ended while mailboxes were opened");
    else
        code = comm_agree(m, code, reason, why, size);
    if (m->group.rank == 0 && m->peer.shared)
        (void)shm_unlink(mine.name); /* all have it open, or it is not used */
    return code;
}

/* ---- the test ---- */

static uint16_t test_value(uint32_t row, uint32_t col, uint32_t rank, uint32_t round)
{
    uint32_t v = (row * 2654435761u ^ col * 40503u ^ (rank + 1) * 2246822519u) + round * 77777u;
    v ^= v >> 15;
    /* Both signs, from 2^-8 to 2^7: sums depend on their order. */
    return (uint16_t)((v & 0x83ff) | ((v >> 16) % 15 + 7) << 10);
}

static bool is_right(const struct k_comm *m, const uint16_t *got, uint32_t n_rows, uint32_t round)
{
    for (uint32_t row = 0; row < n_rows; row++)
        for (uint32_t col = 0; col < m->cols; col++) {
            float sum = 0;
            for (uint32_t r = 0; r < (uint32_t)m->group.size; r++) {
                float v = half_to_float(test_value(row, col, r, round));
                sum = r == 0 ? v : sum + v;
            }
            if (got[(size_t)row * m->cols + col] != half_from_float(sum))
                return false;
        }
    return true;
}

/* A sum of `n_rows` rows whose result is known. */
static int test_sum(struct k_comm *m, uint16_t *host, uint16_t *device, uint32_t n_rows,
                    uint32_t round)
{
    struct k_ctx *c = m->c;
    size_t n = (size_t)n_rows * m->cols;
    assert(host);
    for (size_t i = 0; i < n; i++)
        host[i] = test_value((uint32_t)(i / m->cols), (uint32_t)(i % m->cols),
                             (uint32_t)m->group.rank, round);
    cuda_upload_bytes(c, device, host, n * sizeof *host);
    cuda_check(c, sums_of_peers(&m->peer.boxes, device, n_rows, c->stream), "a sum over peers");
    comm_watch(m);
    if (m->failed)
        return m->failed;
    memset(host, 0, n * sizeof *host);
    cuda_download_bytes(c, host, device, n * sizeof *host);
    if (c->error)
        return -EIO;
    return is_right(m, host, n_rows, round) ? 0 : -EBADMSG;
}

/* Both parities, one row, some, and all that fit. */
static int self_test(struct k_comm *m, char *why, size_t size)
{
    const uint32_t cap = row_cap(m), rows[] = {1, cap, cap < 3 ? cap : 3, 1, cap};
    size_t bytes = (size_t)cap * m->cols * sizeof(uint16_t);
    uint16_t *host = malloc(bytes), *device = cuda_new(m->c, bytes);
    int r =
        comm_agree(m, host && device ? 0 : -ENOMEM, "out of memory: the test of sums", why, size);
    int code = 0;
    for (uint32_t i = 0; i < sizeof rows / sizeof *rows && !r && !code; i++)
        code = test_sum(m, host, device, rows[i], i);
    if (!r) {
        const char *words = code == -EBADMSG ? "the test of sums gave wrong values"
                            : m->failed      ? m->failure
                                             : "the test of sums failed on the device";
        r = comm_agree(m, code == -EBADMSG ? -ENODEV : code, words, why, size);
    }
    free(host);
    cuda_free(m->c, device);
    return r;
}

/* ---- life cycle ---- */

int peer_join(struct k_comm *m, bool pinned, char *why, size_t size)
{
    assert(m->group.size <= SUMS_MAX_PEERS && m->cols <= SUMS_MAX_COLS);
    describe_boxes(m);
    int r = pinned ? join_pinned(m, why, size) : join_devices(m, why, size);
    if (!r)
        r = self_test(m, why, size);
    if (r)
        peer_leave(m);
    else
        m->peer_rows = row_cap(m);
    return r;
}

void peer_leave(struct k_comm *m)
{
    struct peer_group *p = &m->peer;
    const struct cuda_driver *d = m->c->driver;
    (void)d->use(m->c->device);
    for (int r = 0; r < SUMS_MAX_PEERS; r++) {
        if (!p->opened[r])
            continue;
        (void)d->share_close(p->opened[r]);
        close(p->held[r]); /* behind it: now the owner may free the memory */
    }
    if (p->pinned)
        (void)d->unpin(p->shared);
    if (p->shared)
        (void)munmap(p->shared, p->shared_bytes);
    *p = (struct peer_group){0};
    m->peer_rows = 0;
}
