/* convert_quant.c: see convert_quant.h. Threads live for one chunk: they share nothing but disjoint
 * rows of the buffers. */
#include "model/convert_quant.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/util.h"

enum { MAX_THREADS = 64 };

struct job {
    const struct convert_quant *q;
    uint64_t chunk_row, tensor_row, n_rows;
    uint64_t n_broken;
    pthread_t thread;
    bool started;
};

uint64_t convert_count_broken(const uint16_t *values, size_t n)
{
    enum { BLOCK = 1 << 15 }; /* a 16-bit counter holds this many, which keeps the loop narrow */
    uint64_t total = 0;
    for (size_t i = 0; i < n; i += BLOCK) {
        size_t end = MIN(i + BLOCK, n);
        uint16_t count = 0;
        for (size_t j = i; j < end; j++)
            count = (uint16_t)(count + ((int16_t)(values[j] & 0x7fff) >= 0x7c00));
        total += count;
    }
    return total;
}

int convert_quant_init(struct convert_quant *q, const struct quant_scheme *s,
                       const struct shard_tensor *t, uint64_t chunk_rows, unsigned n_threads)
{
    *q = (struct convert_quant){.scheme = *s,
                                .cols = t->cols,
                                .n_groups = quant_n_groups(s, t),
                                .row_bytes = quant_row_bytes(s->weights, t->cols),
                                .n_threads = MIN(MAX(n_threads, 1u), (unsigned)MAX_THREADS)};
    q->scale_bytes = (size_t)t->rows * q->n_groups * sizeof *q->scales;
    q->weights = malloc((size_t)(chunk_rows * t->cols) * sizeof *q->weights);
    q->values = malloc((size_t)(chunk_rows * q->row_bytes));
    q->scales = malloc(q->scale_bytes);
    if (!q->weights || !q->values || !q->scales) {
        convert_quant_deinit(q);
        return -ENOMEM;
    }
    return 0;
}

void convert_quant_deinit(struct convert_quant *q)
{
    free(q->weights);
    free(q->values);
    free(q->scales);
    q->weights = q->scales = NULL;
    q->values = NULL;
}

static void *run_job(void *context)
{
    struct job *j = context;
    const struct convert_quant *q = j->q;
    const uint16_t *w = q->weights + j->chunk_row * q->cols;
    j->n_broken = convert_count_broken(w, (size_t)(j->n_rows * q->cols));
    quant_rows(&q->scheme, w, j->n_rows, q->cols, q->n_groups,
               q->values + j->chunk_row * q->row_bytes, q->scales + j->tensor_row * q->n_groups);
    return NULL;
}

void convert_quantize(struct convert_quant *q, uint64_t row0, uint64_t n_rows)
{
    struct job jobs[MAX_THREADS];
    uint64_t per_job = (n_rows + q->n_threads - 1) / q->n_threads;
    unsigned n_jobs = 0;
    for (uint64_t row = 0; row < n_rows; row += per_job) {
        struct job *j = &jobs[n_jobs++];
        *j = (struct job){.q = q,
                          .chunk_row = row,
                          .tensor_row = row0 + row,
                          .n_rows = MIN(per_job, n_rows - row)};
        bool last = row + per_job >= n_rows; /* this thread does the last one itself */
        j->started = !last && pthread_create(&j->thread, NULL, run_job, j) == 0;
        if (!j->started)
            run_job(j);
    }
    for (unsigned i = 0; i < n_jobs; i++) {
        if (jobs[i].started)
            pthread_join(jobs[i].thread, NULL);
        q->n_broken += jobs[i].n_broken;
    }
}
