/* weights_stream.c: see weights_stream.h. */
#include "worker/engine/weights_stream.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "model/checksum.h"
#include "model/file.h"

enum {
    MAX_THREADS = 64,
    DISK_THREADS = 16,            /* for a disk: as many requests are under way */
    RANGE_BYTES = 32 << 20,       /* of a tensor that is cut, about */
    AHEAD_BYTES = 8 << 20,        /* how far the kernel is asked to read ahead of a reader */
    THROUGH_SHARE = 4,            /* rows are read whole when this share of them is wanted, */
    THROUGH_BYTES = 2 << 10,      /* or when the wanted part of a row is shorter */
    WAIT_NS = 50 * 1000 * 1000,   /* between two looks at the progress */
    SLACK = 4 * FILE_DIRECT_ALIGN /* of a buffer: for direct reads at any place of a file */
};

struct stream {
    /* set once */
    const struct weights_load *load;
    const struct k_feed_ops *ops;
    size_t buffer_bytes;
    bool verify;
    /* owned */
    struct k_feed *feed;
    struct reader *readers; /* [max_readers]; how many there are is the driver's */
    uint32_t n_readers, max_readers;
    struct stream_job *jobs; /* guarded by lock, as all up to changed */
    size_t n_jobs, cap_jobs;
    size_t next_job, n_done; /* jobs taken, jobs finished */
    bool closing;
    int result;
    struct err error;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* any thread */
    _Atomic bool stop;
    _Atomic uint64_t done_bytes, read_bytes;
};

/* One thread and its job. */
struct reader {
    struct stream *s;
    pthread_t thread;
    uint32_t idx;
    struct checksum_state *sum; /* owned */
    /* of the job */
    struct stream_job job;
    size_t full, want; /* bytes of a stored row, and of the part that is this rank's */
    size_t skip;       /* bytes in front of that part */
    bool whole;        /* rows are read whole */
    bool direct, ahead;
    uint64_t ahead_to; /* byte of the tensor */
    /* the piece in the making */
    char *buffer; /* the feed's; NULL = none */
    size_t begin; /* where its rows lie in the buffer, dense */
    uint32_t n_rows, max_rows;
    uint32_t first_row; /* in the matrix */
};

/* ---- reading ---- */

static void read_ahead(struct reader *r, uint64_t at)
{
    const struct st_tensor *t = r->job.tensor;
    uint64_t to = MIN(at + AHEAD_BYTES, t->bytes);
    if (!r->ahead || to < r->ahead_to + AHEAD_BYTES / 2)
        return;
    uint64_t from = MAX(at, r->ahead_to);
    model_dir_read_ahead(r->s->load->model, t, from, to - from);
    r->ahead_to = to;
}

/* Rows [row, row + n) whole, to behind the rows that the buffer has; *ret: where exactly. */
static int read_whole_rows(struct reader *r, uint64_t row, uint64_t n, char **ret, struct err *e)
{
    const struct model_dir *d = r->s->load->model;
    uint64_t at = row * r->full;
    size_t bytes = (size_t)n * r->full, place = r->begin + r->n_rows * r->want;
    int rc;
    read_ahead(r, at);
    if (r->direct) {
        void *data = NULL;
        place = round_up(place, FILE_DIRECT_ALIGN);
        rc = model_dir_read_direct(d, r->job.tensor, at, bytes, r->buffer + place, &data, e);
        *ret = data;
    } else {
        *ret = r->buffer + place;
        rc = model_dir_read_bytes(d, r->job.tensor, at, bytes, *ret, e);
    }
    if (rc < 0)
        return rc;
    atomic_fetch_add_explicit(&r->s->read_bytes, bytes, memory_order_relaxed);
    if (r->s->verify)
        checksum_update(r->sum, *ret, bytes);
    return 0;
}

/* Keeps the wanted part of n rows, behind what the buffer has. Nothing moves where whole rows are
 * wanted and were read to where they belong. */
static void keep_rows(struct reader *r, char *rows, uint64_t n)
{
    if (r->n_rows == 0)
        r->begin = (size_t)(rows - r->buffer);
    char *to = r->buffer + r->begin + r->n_rows * r->want;
    if (r->want == r->full) {
        if (rows != to)
            memmove(to, rows, (size_t)n * r->full);
    } else {
        for (uint64_t i = 0; i != n; i++)
            memmove(to + i * r->want, rows + i * r->full + r->skip, r->want);
    }
    r->n_rows += (uint32_t)n;
}

/* The wanted part of n rows alone. */
static int read_parts(struct reader *r, uint64_t row, uint64_t n, struct err *e)
{
    char *to = r->buffer + r->begin + r->n_rows * r->want;
    const size_t element = st_dtype_bytes(r->job.tensor->dtype);
    const struct model_slice part = {row, n, r->skip / element, r->want / element};
    read_ahead(r, row * r->full);
    int rc = model_dir_read(r->s->load->model, r->job.tensor, &part, to, e);
    if (rc < 0)
        return rc;
    atomic_fetch_add_explicit(&r->s->read_bytes, n * r->want, memory_order_relaxed);
    r->n_rows += (uint32_t)n;
    return 0;
}

/* A buffer to read into. */
static int need_buffer(struct reader *r, struct err *e)
{
    if (r->buffer)
        return 0;
    r->buffer = r->s->ops->buffer(r->s->feed, r->idx);
    r->begin = 0;
    r->n_rows = 0;
    return r->buffer ? 0 : err_set(e, -EIO, "the device failed while weights were loaded");
}

/* The piece as INT8 rows and, in a buffer of their own, a scale for each. */
static int hand_over_int8(struct reader *r, struct err *e)
{
    static const struct quant_scheme scheme = {.weights = QUANT_INT8, .group = QUANT_GROUP_ROW};
    struct stream *s = r->s;
    const size_t cols = r->want / sizeof(uint16_t), n = r->n_rows;
    assert(n && cols);
    uint8_t *values = malloc(n * cols);
    uint16_t *scale = malloc(n * sizeof *scale);
    if (!values || !scale) {
        free(values);
        free(scale);
        return err_set(e, -ENOMEM, "out of memory for an INT8 head");
    }
    quant_rows(&scheme, (const uint16_t *)(const void *)(r->buffer + r->begin), n, cols, 1, values,
               scale);
    memcpy(r->buffer, values, n * cols);
    s->ops->rows(s->feed, r->idx, r->job.to, r->first_row, r->n_rows, r->buffer);
    r->buffer = NULL;
    int rc = need_buffer(r, e);
    if (rc == 0) {
        memcpy(r->buffer, scale, n * sizeof *scale);
        s->ops->scales(s->feed, r->idx, r->job.to, r->first_row, (uint32_t)n,
                       (const uint16_t *)(const void *)r->buffer);
    }
    free(values);
    free(scale);
    r->n_rows = (uint32_t)n; /* need_buffer has begun anew */
    return rc;
}

static int hand_over(struct reader *r, struct err *e)
{
    struct stream *s = r->s;
    const char *data = r->buffer + r->begin;
    if (r->job.to_int8) {
        int rc = hand_over_int8(r, e);
        if (rc < 0)
            return rc;
    } else if (r->job.scales) {
        s->ops->scales(s->feed, r->idx, r->job.to, r->first_row, r->n_rows,
                       (const uint16_t *)(const void *)data);
    } else {
        s->ops->rows(s->feed, r->idx, r->job.to, r->first_row, r->n_rows, data);
    }
    atomic_fetch_add_explicit(&s->done_bytes, (uint64_t)r->n_rows * r->want, memory_order_relaxed);
    r->first_row += r->n_rows;
    r->buffer = NULL;
    return 0;
}

/* Rows that other ranks own: for the checksum only. */
static int pass_over(struct reader *r, uint64_t row, uint64_t end, struct err *e)
{
    while (row != end) {
        if (atomic_load(&r->s->stop))
            return -ECANCELED;
        int rc = need_buffer(r, e);
        uint64_t n = rc == 0 ? MIN(end - row, (uint64_t)(r->max_rows - r->n_rows)) : 0;
        char *rows;
        if (rc == 0)
            rc = read_whole_rows(r, row, n, &rows, e);
        if (rc < 0)
            return rc;
        row += n;
    }
    return 0;
}

static int take_slice(struct reader *r, const struct model_slice *slice, struct err *e)
{
    uint64_t row = slice->row0, end = slice->row0 + slice->n_rows;
    while (row != end) {
        if (atomic_load(&r->s->stop))
            return -ECANCELED;
        int rc = need_buffer(r, e);
        uint64_t n = rc == 0 ? MIN(end - row, (uint64_t)(r->max_rows - r->n_rows)) : 0;
        char *rows = NULL;
        if (rc == 0)
            rc = r->whole ? read_whole_rows(r, row, n, &rows, e) : read_parts(r, row, n, e);
        if (rc < 0)
            return rc;
        if (r->whole)
            keep_rows(r, rows, n);
        row += n;
        rc = r->n_rows == r->max_rows ? hand_over(r, e) : 0;
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* ---- a job ---- */

static void begin_job(struct reader *r)
{
    const struct stream *s = r->s;
    const struct st_tensor *t = r->job.tensor;
    const size_t element = st_dtype_bytes(t->dtype), align = s->ops->piece_rows;
    r->full = (size_t)st_cols(t) * element;
    r->want = (size_t)r->job.slices[0].n_cols * element;
    r->skip = (size_t)r->job.slices[0].col0 * element;
    bool cached = model_dir_is_cached(s->load->model, t);
    r->direct = s->ops->direct && !cached;
    r->ahead = !r->direct && !cached;
    r->ahead_to = 0;
    r->whole = s->verify || r->direct ||
               (!model_dir_is_synthetic(s->load->model) &&
                (r->want * THROUGH_SHARE >= r->full || r->want < THROUGH_BYTES));
    size_t bytes = MIN(s->ops->piece_bytes, s->buffer_bytes - SLACK);
    size_t rows = bytes / r->full / align * align;
    r->max_rows = (uint32_t)MAX(rows, align);
    assert(r->max_rows * r->full + SLACK <= s->buffer_bytes);
    r->n_rows = 0;
    r->begin = 0;
    if (s->verify)
        checksum_reset(r->sum);
}

/* -ECANCELED without a message: the stream was stopped. */
static int run_job(struct reader *r, struct err *e)
{
    const struct stream *s = r->s;
    const struct stream_job *j = &r->job;
    uint64_t row = 0;
    int rc = 0;
    begin_job(r);
    for (size_t i = 0; i != j->n_slices && rc == 0; i++) {
        if (s->verify)
            rc = pass_over(r, row, j->slices[i].row0, e);
        if (rc == 0)
            rc = take_slice(r, &j->slices[i], e);
        row = j->slices[i].row0 + j->slices[i].n_rows;
    }
    if (rc == 0 && r->buffer && r->n_rows)
        rc = hand_over(r, e);
    if (rc < 0 || !s->verify)
        return rc;
    rc = pass_over(r, row, st_rows(j->tensor), e);
    if (rc < 0)
        return rc;
    struct checksum found;
    checksum_final(r->sum, &found);
    return model_dir_check_sum(s->load->model, j->tensor, &found, e);
}

static void *reader_main(void *context)
{
    struct reader *r = context;
    struct stream *s = r->s;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->closing && !s->result && s->next_job == s->n_jobs)
            pthread_cond_wait(&s->changed, &s->lock);
        if (s->closing || s->result)
            break;
        r->job = s->jobs[s->next_job++];
        r->first_row = r->job.first_row;
        pthread_mutex_unlock(&s->lock);

        struct err error = ERR_INIT;
        int result = run_job(r, &error);

        pthread_mutex_lock(&s->lock);
        s->n_done++;
        if (result < 0 && !s->result) {
            s->result = result;
            s->error = error;
            atomic_store(&s->stop, true);
        }
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- the stream ---- */

/* Room for the longest rows of any matrix. */
static size_t buffer_bytes(const struct weights_load *load)
{
    const struct k_feed_ops *ops = load->ops->feed;
    size_t longest = 0, largest = 0;
    for (size_t i = 0; i != model_dir_n_tensors(load->model); i++) {
        const struct st_tensor *t = model_dir_tensor_at(load->model, i);
        size_t row = (size_t)st_cols(t) * st_dtype_bytes(t->dtype);
        if (st_rows(t) > 1) {
            longest = MAX(longest, row * ops->piece_rows);
            largest = MAX(largest, (size_t)t->bytes);
        }
    }
    size_t bytes = MAX(MIN(ops->piece_bytes, largest), longest);
    return round_up(bytes, FILE_DIRECT_ALIGN) + SLACK;
}

static int start_readers(struct stream *s, uint32_t n)
{
    for (; s->n_readers != n; s->n_readers++) {
        struct reader *r = &s->readers[s->n_readers];
        *r = (struct reader){.s = s, .idx = s->n_readers, .sum = checksum_new()};
        int rc = r->sum ? -pthread_create(&r->thread, NULL, reader_main, r) : -ENOMEM;
        if (rc < 0) {
            checksum_free(r->sum);
            return rc;
        }
    }
    return 0;
}

int stream_open(const struct weights_load *load, struct stream **ret, struct err *e)
{
    const struct k_feed_ops *ops = load->ops->feed;
    static_assert((int)FILE_DIRECT_ALIGN <= (int)K_FEED_ALIGN, "buffers are fit for direct reads");
    uint32_t n = load->n_threads ? load->n_threads : ops->n_threads(load->ctx);
    n = MIN(MAX(n, 1u), (uint32_t)MAX_THREADS);
    uint32_t max = ops->direct ? n : MAX(n, (uint32_t)DISK_THREADS);
    struct stream *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, -ENOMEM, "out of memory");
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, &clock);
    pthread_condattr_destroy(&clock);
    s->load = load;
    s->ops = ops;
    s->verify = load->verify && !model_dir_is_synthetic(load->model);
    s->buffer_bytes = buffer_bytes(load);
    s->max_readers = max;
    s->readers = alloc_array(max, sizeof *s->readers);
    s->feed = s->readers ? ops->feed_new(load->ctx, max, s->buffer_bytes) : NULL;
    int r = s->feed ? start_readers(s, n) : -ENOMEM;
    if (r < 0) {
        r = r == -ENOMEM
                ? err_set(e, r, "out of memory: %u buffers of %zu bytes to read the weights with",
                          max, s->buffer_bytes)
                : err_set(e, r, "cannot start a thread to read the weights: %s", err_name(r));
        stream_close(s);
        return r;
    }
    *ret = s;
    return 0;
}

static int add_job(struct stream *s, const struct stream_job *job)
{
    int r = 0;
    pthread_mutex_lock(&s->lock);
    if (s->n_jobs == s->cap_jobs) {
        size_t cap = MAX(2 * s->cap_jobs, (size_t)64);
        struct stream_job *jobs = realloc(s->jobs, cap * sizeof *jobs);
        if (jobs) {
            s->jobs = jobs;
            s->cap_jobs = cap;
        } else {
            r = -ENOMEM;
        }
    }
    if (r == 0) {
        s->jobs[s->n_jobs++] = *job;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

/* What of the slices becomes rows [begin, end) of the matrix. */
static struct stream_job cut_job(const struct stream_job *job, uint64_t begin, uint64_t end)
{
    struct stream_job part = *job;
    uint64_t at = 0;
    part.n_slices = 0;
    part.first_row = (uint32_t)begin;
    for (size_t i = 0; i != job->n_slices; i++) {
        const struct model_slice *from = &job->slices[i];
        uint64_t first = MAX(begin, at), last = MIN(end, at + from->n_rows);
        if (first < last) {
            struct model_slice *to = &part.slices[part.n_slices++];
            *to = *from;
            to->row0 = from->row0 + (first - at);
            to->n_rows = last - first;
        }
        at += from->n_rows;
    }
    return part;
}

int stream_push(struct stream *s, const struct stream_job *job, struct err *e)
{
    /* Threads that wait for a disk do not keep the others from packing, nor those it. That there
     * are so many is a wish. */
    if (s->n_readers != s->max_readers && !model_dir_is_cached(s->load->model, job->tensor))
        (void)start_readers(s, s->max_readers);
    uint64_t rows = 0, per_range = UINT64_MAX;
    for (size_t i = 0; i != job->n_slices; i++)
        rows += job->slices[i].n_rows;
    if (!s->verify) {
        size_t row = (size_t)job->slices[0].n_cols * st_dtype_bytes(job->tensor->dtype);
        per_range =
            MAX(round_up(RANGE_BYTES / row, s->ops->piece_rows), (size_t)s->ops->piece_rows);
    }
    for (uint64_t begin = 0; begin < rows; begin += MIN(per_range, rows)) {
        struct stream_job part = cut_job(job, begin, MIN(rows, begin + MIN(per_range, rows)));
        if (add_job(s, &part) < 0)
            return err_set(e, -ENOMEM, "out of memory");
    }
    return 0;
}

uint64_t stream_done(struct stream *s)
{
    return atomic_load(&s->done_bytes);
}

uint64_t stream_read_bytes(struct stream *s)
{
    return atomic_load(&s->read_bytes);
}

uint32_t stream_n_threads(const struct stream *s)
{
    return s->n_readers;
}

int stream_failed(struct stream *s, struct err *e)
{
    pthread_mutex_lock(&s->lock);
    int r = s->result;
    if (r < 0 && e)
        *e = s->error;
    pthread_mutex_unlock(&s->lock);
    return r;
}

bool stream_wait(struct stream *s)
{
    int64_t until = clock_now_ns() + WAIT_NS;
    const struct timespec t = {until / NSEC_PER_SEC, until % NSEC_PER_SEC};
    pthread_mutex_lock(&s->lock);
    int r = 0;
    while (r == 0 && !s->result && s->n_done != s->n_jobs)
        r = pthread_cond_timedwait(&s->changed, &s->lock, &t);
    bool done = !s->result && s->n_done == s->n_jobs;
    pthread_mutex_unlock(&s->lock);
    return done;
}

void stream_close(struct stream *s)
{
    if (!s)
        return;
    atomic_store(&s->stop, true);
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    for (uint32_t i = 0; i != s->n_readers; i++) {
        pthread_join(s->readers[i].thread, NULL);
        checksum_free(s->readers[i].sum);
    }
    s->ops->feed_free(s->feed);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s->readers);
    free(s->jobs);
    free(s);
}
