/* staged_device.c: see staged_device.h. Engines of several ranks live in one process, each on its
 * thread: the table of allocations is under a lock, a context belongs to one thread. */
#include "tests/support/staged_device.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { MAX_CONTEXTS = 64, MAX_BUFFERS = 1024, PAGE = 4096 };

static const size_t region_bytes = (size_t)64 << 30; /* of addresses */

struct buffer {
    char *address; /* in the region */
    char *real;
    size_t bytes;
};

/* What begin_step copied. */
struct announced {
    struct k_step given;
    int32_t *ids, *positions;
    struct k_seq *seqs;
    uint32_t **blocks;
    uint32_t *n_blocks;
    uint32_t cap_rows, cap_seqs;
};

struct context {
    struct k_ctx *cpu; /* NULL = free */
    struct announced step;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *region;                          /* under the lock, as all up to contexts */
static size_t region_used;                    /* addresses are not used twice */
static struct buffer buffers[MAX_BUFFERS];    /* address NULL = free */
static struct context contexts[MAX_CONTEXTS]; /* found under the lock, used by its thread */
static _Atomic bool staged = true;
static _Atomic uint64_t n_uploads, n_downloads, memory_free, memory_total;
static struct k_ops ops; /* filled in under the lock */
static const struct k_ops *cpu;

/* ---- addresses ---- */

static void *real_of(const void *address)
{
    char *real = NULL;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_BUFFERS && !real; i++) {
        const struct buffer *b = &buffers[i];
        if (b->address && (const char *)address >= b->address &&
            (const char *)address < b->address + b->bytes)
            real = b->real + ((const char *)address - b->address);
    }
    pthread_mutex_unlock(&lock);
    if (!real) {
        fprintf(stderr, "staged device: %p is not in its memory\n", address);
        abort();
    }
    return real;
}

static void *staged_alloc(struct k_ctx *c, size_t bytes)
{
    char *real = cpu->alloc(c, bytes);
    if (!real)
        return NULL;
    pthread_mutex_lock(&lock);
    if (!region) {
        region =
            mmap(NULL, region_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        assert(region != MAP_FAILED);
    }
    int i = 0;
    while (i < MAX_BUFFERS && buffers[i].address)
        i++;
    assert(i < MAX_BUFFERS);
    char *address = region + region_used;
    region_used += (bytes + 2 * PAGE - 1) / PAGE * PAGE; /* and a gap */
    assert(region_used <= region_bytes);
    buffers[i] = (struct buffer){address, real, bytes};
    pthread_mutex_unlock(&lock);
    return address;
}

static void staged_free(struct k_ctx *c, void *p)
{
    char *real = NULL;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_BUFFERS; i++)
        if (buffers[i].address == p) {
            real = buffers[i].real;
            buffers[i] = (struct buffer){0};
            break;
        }
    pthread_mutex_unlock(&lock);
    assert(real); /* of this device, and once */
    cpu->free(c, real);
}

static float *staged_host_view(struct k_ctx *c, void *buffer)
{
    (void)c;
    (void)real_of(buffer);
    return NULL;
}

static void staged_upload(struct k_ctx *c, void *dst, const float *src, size_t n)
{
    atomic_fetch_add(&n_uploads, 1);
    cpu->upload(c, real_of(dst), src, n);
}

static void staged_download(struct k_ctx *c, float *dst, const void *src, size_t n)
{
    atomic_fetch_add(&n_downloads, 1);
    cpu->download(c, dst, real_of(src), n);
}

static int staged_memory(struct k_ctx *c, uint64_t *ret_free, uint64_t *ret_total)
{
    (void)c;
    *ret_free = atomic_load(&memory_free);
    *ret_total = atomic_load(&memory_total);
    return *ret_total ? 0 : -EIO;
}

void staged_device_set_memory(uint64_t free_bytes, uint64_t total)
{
    atomic_store(&memory_free, free_bytes);
    atomic_store(&memory_total, total);
}

/* ---- contexts ---- */

/* Of the context, or with NULL one that is free. Under the lock. */
static struct context *find_context(const struct k_ctx *c)
{
    for (int i = 0; i < MAX_CONTEXTS; i++)
        if (contexts[i].cpu == c)
            return &contexts[i];
    return NULL;
}

static struct context *context_of(const struct k_ctx *c)
{
    pthread_mutex_lock(&lock);
    struct context *found = find_context(c);
    pthread_mutex_unlock(&lock);
    assert(found);
    return found;
}

static int staged_open(const struct k_open_params *p, struct k_ctx **ret, char *message,
                       size_t size)
{
    int e = cpu->open(p, ret, message, size);
    if (e)
        return e;
    pthread_mutex_lock(&lock); /* the ranks of a group open at the same time */
    struct context *x = find_context(NULL);
    if (x)
        x->cpu = *ret;
    pthread_mutex_unlock(&lock);
    assert(x);
    return 0;
}

static void forget_step(struct announced *s)
{
    for (uint32_t i = 0; i < s->given.n_seqs; i++)
        free(s->blocks[i]);
    free(s->ids);
    free(s->positions);
    free(s->seqs);
    free(s->blocks);
    free(s->n_blocks);
    *s = (struct announced){0};
}

static void staged_close(struct k_ctx *c)
{
    if (c) {
        struct context *x = context_of(c);
        forget_step(&x->step);
        pthread_mutex_lock(&lock);
        x->cpu = NULL;
        pthread_mutex_unlock(&lock);
    }
    cpu->close(c);
}

/* ---- steps ---- */

static void *copied(const void *from, size_t n, size_t size)
{
    void *to = calloc(n ? n : 1, size);
    assert(to);
    if (n)
        memcpy(to, from, n * size);
    return to;
}

static void staged_begin_step(struct k_ctx *c, const struct k_step *given)
{
    struct announced *s = &context_of(c)->step;
    forget_step(s);
    s->given = *given;
    s->ids = copied(given->ids, given->n_rows, sizeof *given->ids);
    s->positions = copied(given->positions, given->n_rows, sizeof *given->positions);
    s->seqs = copied(given->seqs, given->n_seqs, sizeof *given->seqs);
    s->blocks = calloc(given->n_seqs + 1, sizeof *s->blocks);
    s->n_blocks = calloc(given->n_seqs + 1, sizeof *s->n_blocks);
    assert(s->blocks && s->n_blocks && given->block_tokens);
    for (uint32_t i = 0; i < given->n_seqs; i++) {
        const struct k_seq *q = &given->seqs[i];
        uint32_t n = (q->start + q->n_rows + given->block_tokens - 1) / given->block_tokens;
        s->blocks[i] = copied(q->blocks, n, sizeof *q->blocks);
        s->n_blocks[i] = n;
        s->seqs[i].blocks = s->blocks[i];
    }
}

/* The copy of the first `n_seqs` sequences and of all rows; nothing was changed behind our back. */
static const struct announced *step_of(struct k_ctx *c, const int32_t *ids,
                                       const int32_t *positions, const struct k_seq *seqs,
                                       uint32_t n_rows, uint32_t n_seqs)
{
    const struct announced *s = &context_of(c)->step;
    if (ids) {
        assert(ids == s->given.ids && n_rows <= s->given.n_rows);
        assert(!memcmp(ids, s->ids, n_rows * sizeof *ids));
    }
    if (positions) {
        assert(positions == s->given.positions);
        assert(!memcmp(positions, s->positions, s->given.n_rows * sizeof *positions));
    }
    if (seqs) {
        assert(seqs == s->given.seqs && n_seqs <= s->given.n_seqs);
        for (uint32_t i = 0; i < n_seqs; i++) {
            assert(seqs[i].row0 == s->seqs[i].row0 && seqs[i].n_rows == s->seqs[i].n_rows);
            assert(seqs[i].start == s->seqs[i].start);
            assert(!memcmp(seqs[i].blocks, s->blocks[i], s->n_blocks[i] * sizeof **s->blocks));
        }
    }
    return s;
}

static void staged_embed(struct k_ctx *c, const struct k_linear *table, uint32_t first_row,
                         const int32_t *ids, uint32_t n_rows, void *y)
{
    const struct announced *s = step_of(c, ids, NULL, NULL, n_rows, 0);
    cpu->embed(c, table, first_row, s->ids, n_rows, real_of(y));
}

static void staged_rope_kv(struct k_ctx *c, const struct k_attn_params *p, const struct k_rope *r,
                           const void *qkv, const int32_t *positions, const struct k_seq *seqs,
                           uint32_t n_seqs, struct k_kv *kv, void *q)
{
    const struct announced *s = step_of(c, NULL, positions, seqs, 0, n_seqs);
    cpu->rope_kv(c, p, r, real_of(qkv), s->positions, s->seqs, n_seqs, kv, real_of(q));
}

static void staged_attention(struct k_ctx *c, const struct k_attn_params *p, const void *q,
                             const struct k_seq *seqs, uint32_t n_seqs, const struct k_kv *kv,
                             void *out)
{
    const struct announced *s = step_of(c, NULL, NULL, seqs, 0, n_seqs);
    cpu->attention(c, p, real_of(q), s->seqs, n_seqs, kv, real_of(out));
}

/* ---- operations on activations only ---- */

static void staged_linear(struct k_ctx *c, const struct k_linear *l, const void *x, uint32_t n_rows,
                          void *y)
{
    cpu->linear(c, l, real_of(x), n_rows, real_of(y));
}

static void staged_norm(struct k_ctx *c, const struct k_norm *n, float eps, const void *x,
                        uint32_t n_rows, void *y)
{
    cpu->norm(c, n, eps, real_of(x), n_rows, real_of(y));
}

static void staged_residual_norm(struct k_ctx *c, const struct k_norm *n, float eps, float alpha,
                                 const void *a, void *r, const struct k_bias *bias, uint32_t n_rows,
                                 void *y)
{
    cpu->residual_norm(c, n, eps, alpha, real_of(a), real_of(r), bias, n_rows, real_of(y));
}

static void staged_glu(struct k_ctx *c, enum k_glu glu, const void *u, uint32_t n_rows,
                       uint32_t inner, void *g)
{
    cpu->glu(c, glu, real_of(u), n_rows, inner, real_of(g));
}

static void staged_gather(struct k_ctx *c, const void *x, uint32_t cols, const uint32_t *rows,
                          uint32_t n, void *y)
{
    cpu->gather(c, real_of(x), cols, rows, n, real_of(y));
}

/* ---- the table ---- */

static void fill_in(void)
{
    ops = *cpu;
    ops.open = staged_open;
    ops.close = staged_close;
    ops.alloc = staged_alloc;
    ops.free = staged_free;
    ops.memory = staged_memory;
    ops.upload = staged_upload;
    ops.download = staged_download;
    ops.host_view = staged_host_view;
    ops.begin_step = staged_begin_step;
    ops.linear = staged_linear;
    ops.embed = staged_embed;
    ops.norm = staged_norm;
    ops.residual_norm = staged_residual_norm;
    ops.rope_kv = staged_rope_kv;
    ops.attention = staged_attention;
    ops.glu = staged_glu;
    ops.linear_glu = NULL;
    ops.linear_rope_kv = NULL;
    ops.gather = staged_gather;
}

void staged_device_use(bool on)
{
    atomic_store(&staged, on);
}

uint64_t staged_device_uploads(void)
{
    return atomic_load(&n_uploads);
}

uint64_t staged_device_downloads(void)
{
    return atomic_load(&n_downloads);
}

const struct k_ops *__real_k_backend(const char *name, char *message, size_t size);
const struct k_ops *__wrap_k_backend(const char *name, char *message, size_t size);

const struct k_ops *__wrap_k_backend(const char *name, char *message, size_t size)
{
    const struct k_ops *real = __real_k_backend(name, message, size);
    if (!atomic_load(&staged) || strcmp(name, "cpu") != 0)
        return real;
    pthread_mutex_lock(&lock);
    if (!cpu) {
        cpu = real;
        fill_in();
    }
    pthread_mutex_unlock(&lock);
    return &ops;
}
