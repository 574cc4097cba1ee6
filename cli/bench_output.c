/* bench_output.c: the frame, files, lists of numbers and the machine (bench.h). */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/util.h"
#include "cli/bench.h"
#include "cli/cli.h"
#include "cli/common.h"

int bench_main(const struct bench_verb *v, int argc, char **argv)
{
    struct err e = ERR_INIT;
    void *state = calloc(1, v->bytes);
    if (!state) {
        err_set(&e, -ENOMEM, "out of memory");
        return cli_failed(v->name, &e);
    }
    int code = v->parse(state, argc, argv);
    if (code < 0)
        code = v->run(state, &e) < 0 ? cli_failed(v->name, &e) : EXIT_OK;
    v->tear_down(state);
    free(state);
    return code;
}

FILE *bench_report_file(const char *json)
{
    return json && strcmp(json, "-") == 0 ? stderr : stdout;
}

int bench_write(const char *path, const void *data, size_t size, struct err *e)
{
    bool standard = strcmp(path, "-") == 0;
    FILE *f = standard ? stdout : fopen(path, "w");
    if (!f)
        return err_set(e, -errno, "%s: %s", path, err_name(-errno));
    errno = 0;
    size_t n = fwrite(data, 1, size, f);
    int end = standard ? fflush(f) : fclose(f);
    if (n != size || end == EOF)
        return err_set(e, errno ? -errno : -EIO, "%s: %s", path, err_name(errno ? -errno : -EIO));
    return 0;
}

int bench_write_json(const char *path, json_t *value, struct err *e)
{
    char *text = value ? json_dumps(value, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(value);
    if (!text)
        return err_set(e, -ENOMEM, "out of memory");
    size_t n = strlen(text);
    text[n] = '\n'; /* in place of the NUL */
    int r = bench_write(path, text, n + 1, e);
    free(text);
    return r;
}

int bench_parse_list(const char *text, uint32_t min, uint32_t max, uint32_t *ret, size_t capacity,
                     size_t *ret_n)
{
    *ret_n = 0;
    for (;;) {
        char number[16];
        size_t n = strcspn(text, ",");
        uint64_t value;
        if (n >= sizeof number || *ret_n == capacity)
            return -EINVAL;
        memcpy(number, text, n);
        number[n] = '\0';
        if (cli_parse_u64(number, min, max, &value) < 0)
            return -EINVAL;
        ret[(*ret_n)++] = (uint32_t)value;
        if (!text[n])
            return 0;
        text += n + 1;
    }
}

/* ---- reading memory ---- */

enum { READ_BYTES = 384 << 20, READ_ROUNDS = 6, MAX_THREADS = 1024 };

struct reader {
    pthread_t thread;
    const uint64_t *data;
    size_t n; /* words, a multiple of 8 */
    uint64_t sum;
};

static void *read_words(void *context)
{
    struct reader *r = context;
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < r->n; i += 8) {
        __builtin_prefetch(r->data + i + 512);
        for (size_t k = 0; k != 8; k++)
            sum[k] += r->data[i + k];
    }
    r->sum = sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
    return NULL;
}

/* One round; seconds. */
static double read_round(struct reader *readers, uint32_t n_threads)
{
    int64_t begin = clock_now_ns();
    uint32_t started = 1;
    while (started != n_threads &&
           pthread_create(&readers[started].thread, NULL, read_words, &readers[started]) == 0)
        started++;
    read_words(&readers[0]);
    for (uint32_t i = started; i != n_threads; i++)
        read_words(&readers[i]);
    for (uint32_t i = 1; i != started; i++)
        pthread_join(readers[i].thread, NULL);
    return (double)(clock_now_ns() - begin) / (double)NSEC_PER_SEC;
}

double bench_read_ceiling(uint32_t n_threads)
{
    if (!n_threads)
        n_threads = cpus_usable();
    n_threads = MIN(n_threads, (uint32_t)MAX_THREADS);
    uint64_t *data = aligned_alloc(64, READ_BYTES);
    struct reader *readers = alloc_array(n_threads, sizeof *readers);
    double best = 0;
    if (data && readers) {
        memset(data, 1, READ_BYTES); /* pages of its own, not the shared zero page */
        size_t share = READ_BYTES / sizeof *data / n_threads / 8 * 8;
        for (uint32_t i = 0; i != n_threads; i++)
            readers[i] = (struct reader){.data = data + i * share, .n = share};
        for (int round = 0; round != READ_ROUNDS; round++) {
            double rate =
                (double)(share * sizeof *data * n_threads) / read_round(readers, n_threads);
            best = rate > best ? rate : best;
        }
    }
    free(data);
    free(readers);
    return best;
}
