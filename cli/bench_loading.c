/* bench_loading.c: `glmd bench loading`: how fast a rank's weights come from files to where the
 * device keeps them, beside what the same threads read from the same files into a buffer that they
 * use again, beside what it costs to get that much memory from the kernel, and beside what the bus
 * carries from page-locked memory to a device that has memory of its own. All take turns in one
 * run.
 *
 * --cold drops the files from the page cache before every measurement: then it is the disk that
 * counts, read past the page cache (O_DIRECT) for the yardstick.
 */
#include <assert.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "cli/bench.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "cli/options.h"
#include "kernels/feed.h"
#include "model/file.h"
#include "model/manifest.h"
#include "worker/engine/weights.h"

static const char verb[] = "bench loading";

static const char usage[] =
    "usage: glmd bench loading --model DIR [OPTIONS]\n"
    "\n"
    "Loads the weights of one rank, several times over, and reads the same files with as many\n"
    "threads into buffers that are used again, and into memory that is as fresh as that of "
    "weights:\n"
    "bytes per second, and the one as a share of the others.\n"
    "\n"
    "  -m, --model DIR     model directory\n"
    "      --device DEVICE     cpu (default) or cuda:N\n"
    "      --threads N         of the CPU backend; default: the CPUs that it may use\n"
    "      --tp N              load the first of so many ranks' share; default 1\n"
    "      --readers N         threads that read; default: as many as feed the device well\n"
    "      --rounds N          default 5\n"
    "      --no-verify         without checksums\n"
    "      --cold              drop the files from the page cache before every measurement\n"
    "      --json FILE         results as JSON (- = standard output)\n"
    "  -h, --help\n";

enum {
    MAX_FILES = 256,
    MAX_READERS = 64,
    DISK_READERS = 16, /* at least, for the disk's own rate */
    BLOCK_BYTES = 256 << 10,
    DIRECT_BLOCK_BYTES = 4 << 20
};

struct bench {
    /* options */
    const char *model, *device, *json;
    uint32_t tp, n_threads, rounds, n_readers;
    bool no_verify, cold;
    /* owned */
    struct model_dir *dir;
    int fds[MAX_FILES];
    size_t n_files;
    const struct k_ops *ops;
    struct k_ctx *ctx;
    /* state */
    uint64_t bytes[MAX_FILES], total;
    struct weights_report last;
    struct bench_samples load, read, touch, fresh, bus; /* GB/s */
    struct bench_samples share, share_both, share_fresh, share_bus;
};

/* -1: go on; otherwise an exit code. */
static int parse_args(void *state, int argc, char **argv)
{
    struct bench *b = state;
    *b = (struct bench){.device = "cpu", .tp = 1, .rounds = 5};
    const struct cli_option own[] = {
        {.name = "model", .letter = 'm', .kind = CLI_OPTION_TEXT, .value = &b->model},
        CLI_TEXT("device", &b->device),
        CLI_U32("threads", &b->n_threads, 1, 4096),
        CLI_U32("tp", &b->tp, 1, 1024),
        CLI_U32("readers", &b->n_readers, 1, MAX_READERS),
        CLI_U32("rounds", &b->rounds, 1, 1000),
        CLI_FLAG("no-verify", &b->no_verify),
        CLI_FLAG("cold", &b->cold),
        CLI_TEXT("json", &b->json),
    };
    const struct cli_options tables[] = {CLI_OWN(own)};
    int code = cli_parse(argc, argv, usage, tables, ARRAY_LEN(tables));
    if (code >= 0)
        return code;
    if (optind != argc || !b->model)
        return cli_usage_error(verb, "expected --model DIR");
    return -1;
}

/* ---- setting up ---- */

static int open_files(struct bench *b, struct err *e)
{
    const struct manifest *m = model_dir_manifest(b->dir);
    if (m->files.n > MAX_FILES)
        return err_set(e, -E2BIG, "expected at most %d files", MAX_FILES);
    for (size_t i = 0; i != m->files.n; i++) {
        char *path = file_join(b->model, m->files.entries[i].name);
        int r = path ? file_open(path, &b->fds[i], &b->bytes[i], e) : -ENOMEM;
        free(path);
        if (r < 0)
            return r;
        b->n_files++;
        b->total += b->bytes[i];
    }
    return 0;
}

static int set_up(struct bench *b, struct err *e)
{
    int r = model_dir_open(b->model, &b->dir, e);
    if (r == 0)
        r = open_files(b, e);
    if (r < 0)
        return r;
    const struct arch *a = model_dir_arch(b->dir);
    r = arch_check_tp(a, b->tp, e);
    if (r < 0)
        return r;
    char message[256] = "";
    b->ops = k_backend(b->device, message, sizeof message);
    if (!b->ops)
        return err_set(e, -ENODEV, "backend %s: %s", b->device, message);
    const struct k_open_params p = {.device = b->device,
                                    .mode = K_MODE_FP16,
                                    .n_threads = b->n_threads,
                                    .max_rows = 1,
                                    .max_cols = MAX(a->hidden, a->inner / b->tp),
                                    .max_seq = 1};
    r = b->ops->open(&p, &b->ctx, message, sizeof message);
    if (r < 0)
        return err_set(e, r, "device %s: %s", b->device, message);
    if (!b->n_readers)
        b->n_readers = MIN(b->ops->feed->n_threads(b->ctx), (uint32_t)MAX_READERS);
    return 0;
}

static void tear_down(void *state)
{
    struct bench *b = state;
    if (b->ctx)
        b->ops->close(b->ctx);
    for (size_t i = 0; i != b->n_files; i++)
        close(b->fds[i]);
    model_dir_close(b->dir);
    bench_samples_deinit(&b->load);
    bench_samples_deinit(&b->read);
    bench_samples_deinit(&b->touch);
    bench_samples_deinit(&b->fresh);
    bench_samples_deinit(&b->bus);
    bench_samples_deinit(&b->share);
    bench_samples_deinit(&b->share_both);
    bench_samples_deinit(&b->share_fresh);
    bench_samples_deinit(&b->share_bus);
}

static void drop_files(const struct bench *b)
{
    for (size_t i = 0; i != b->n_files; i++)
        (void)posix_fadvise(b->fds[i], 0, 0, POSIX_FADV_DONTNEED);
}

/* ---- yardsticks ---- */

/* Threads that share the blocks of all files, or a piece of memory, or read the one into the
 * other. */
struct yardstick {
    const struct bench *b;
    _Atomic uint64_t next;
    _Atomic int result;
    char *memory;
    size_t memory_bytes;
    pthread_t threads[MAX_READERS];
};

static int read_block(const struct bench *b, size_t file, int direct_fd, uint64_t at, size_t n,
                      char *buffer)
{
    struct err e;
    void *data;
    return direct_fd >= 0 ? file_read_direct(direct_fd, buffer, n, at, "", &data, &e)
                          : file_read_at(b->fds[file], buffer, n, at, "", &e);
}

static void *read_main(void *context)
{
    struct yardstick *y = context;
    const struct bench *b = y->b;
    const size_t block = b->cold ? DIRECT_BLOCK_BYTES : BLOCK_BYTES;
    char *buffer = aligned_alloc(K_FEED_ALIGN, block + 2 * FILE_DIRECT_ALIGN);
    int r = buffer ? 0 : -ENOMEM, direct_fd = -1;
    uint64_t before = 0, base = 0, i = 0; /* blocks and bytes of the files before */
    for (size_t file = 0; file != b->n_files && r == 0; file++) {
        uint64_t n = (b->bytes[file] + block - 1) / block;
        char link[32];
        snprintf(link, sizeof link, "/proc/self/fd/%d", b->fds[file]);
        direct_fd = b->cold ? open(link, O_RDONLY | O_DIRECT | O_CLOEXEC) : -1;
        if (file == 0)
            i = atomic_fetch_add(&y->next, 1);
        while (i < before + n && r == 0) {
            uint64_t at = (i - before) * block;
            r = read_block(b, file, direct_fd, at, (size_t)MIN(block, b->bytes[file] - at),
                           y->memory ? y->memory + base + at : buffer);
            i = atomic_fetch_add(&y->next, 1);
        }
        before += n;
        base += b->bytes[file];
        if (direct_fd >= 0)
            close(direct_fd);
    }
    free(buffer);
    if (r < 0)
        atomic_store(&y->result, r);
    return NULL;
}

/* Writes every page, in areas that no two threads share a huge page of. */
static void *touch_main(void *context)
{
    enum { AREA = 32 << 20 };
    struct yardstick *y = context;
    for (uint64_t i; (i = atomic_fetch_add(&y->next, 1)) * AREA < y->memory_bytes;) {
        size_t at = (size_t)i * AREA;
        memset(y->memory + at, 1, MIN((size_t)AREA, y->memory_bytes - at));
    }
    return NULL;
}

static int run_threads(struct yardstick *y, uint32_t want, void *(*fn)(void *), double *ret_seconds)
{
    uint32_t n = 0;
    int64_t begin = clock_now_ns();
    for (; n != want; n++)
        if (pthread_create(&y->threads[n], NULL, fn, y) != 0)
            break;
    if (n == 0)
        return -EAGAIN;
    for (uint32_t i = 0; i != n; i++)
        pthread_join(y->threads[i], NULL);
    *ret_seconds = (double)(clock_now_ns() - begin) / (double)NSEC_PER_SEC;
    return atomic_load(&y->result);
}

static int measure_read(const struct bench *b, double *ret_seconds)
{
    struct yardstick y = {.b = b};
    if (b->cold)
        drop_files(b);
    uint32_t n = b->cold ? MAX(b->n_readers, (uint32_t)DISK_READERS) : b->n_readers;
    return run_threads(&y, n, read_main, ret_seconds);
}

/* Runs the threads on memory that is fresh from the kernel. Takes as long as nothing where the
 * device has memory of its own. */
static int measure_memory(const struct bench *b, void *(*fn)(void *), double *ret_seconds)
{
    enum { HUGE_PAGE = 2 << 20 };
    struct yardstick y = {.b = b, .memory_bytes = b->total};
    *ret_seconds = 0;
    if (b->ops->feed->direct)
        return 0;
    size_t mapped = y.memory_bytes + HUGE_PAGE;
    char *map = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return -ENOMEM;
    y.memory = map + (HUGE_PAGE - (uintptr_t)map % HUGE_PAGE) % HUGE_PAGE;
    madvise(map, mapped, MADV_HUGEPAGE);
    int r = run_threads(&y, b->n_readers, fn, ret_seconds);
    munmap(map, mapped);
    return r;
}

static int measure_touch(const struct bench *b, double *ret_seconds)
{
    return measure_memory(b, touch_main, ret_seconds);
}

/* The page cache into memory as fresh as that of the weights; nothing of the sort from a disk. */
static int measure_fresh(const struct bench *b, double *ret_seconds)
{
    *ret_seconds = 0;
    return b->cold ? 0 : measure_memory(b, read_main, ret_seconds);
}

/* GB/s from page-locked memory to the device's; 0: it has none of its own. */
static int measure_bus(const struct bench *b, double *ret_rate, struct err *e)
{
    const uint64_t bytes = MIN(MAX(b->total, UINT64_C(256) << 20), UINT64_C(4) << 30);
    int64_t ns = 0;
    *ret_rate = 0;
    if (!b->ops->feed->copy_time)
        return 0;
    int r = b->ops->feed->copy_time(b->ctx, bytes, &ns);
    if (r < 0) {
        char message[256] = "out of memory";
        (void)b->ops->sync(b->ctx, message, sizeof message);
        return err_set(e, r, "the bus: %s", message);
    }
    *ret_rate = (double)bytes / (double)MAX(ns, INT64_C(1));
    return 0;
}

static int measure_load(struct bench *b, double *ret_seconds, struct err *e)
{
    const struct weights_load load = {.model = b->dir,
                                      .ops = b->ops,
                                      .ctx = b->ctx,
                                      .tp_size = b->tp,
                                      .layer_end = model_dir_arch(b->dir)->n_layers,
                                      .n_threads = b->n_readers,
                                      .verify = !b->no_verify};
    struct glm_weights w;
    if (b->cold)
        drop_files(b);
    int r = weights_load(&load, &w, e);
    if (r < 0)
        return r;
    b->last = w.loaded;
    *ret_seconds = (double)w.loaded.ns / (double)NSEC_PER_SEC;
    weights_free(b->ops, b->ctx, &w);
    return 0;
}

/* ---- results ---- */

static int run_round(struct bench *b, FILE *out, struct err *e)
{
    double load = 0, read[2] = {0}, touch[2] = {0}, fresh[2] = {0}, bus_rate = 0;
    int r = measure_read(b, &read[0]);
    if (r == 0)
        r = measure_touch(b, &touch[0]);
    if (r == 0)
        r = measure_fresh(b, &fresh[0]);
    if (r < 0)
        return err_set(e, r, "the yardstick: %s", err_name(r));
    r = measure_load(b, &load, e);
    if (r == 0)
        r = measure_bus(b, &bus_rate, e);
    if (r < 0)
        return r;
    r = measure_fresh(b, &fresh[1]);
    if (r == 0)
        r = measure_touch(b, &touch[1]);
    if (r == 0)
        r = measure_read(b, &read[1]);
    if (r < 0)
        return err_set(e, r, "the yardstick: %s", err_name(r));
    double total = (double)b->total, read_s = (read[0] + read[1]) / 2;
    double touch_s = (touch[0] + touch[1]) / 2, fresh_s = (fresh[0] + fresh[1]) / 2;
    /* a rank of several reads less, unless it checks everything */
    double read_rate = total / read_s, load_rate = (double)b->last.read_bytes / load;
    double both_rate = total / (read_s + touch_s);
    double fresh_rate = fresh_s > 0 ? total / fresh_s : 0;
    fprintf(out, "%10.3f %10.2f %10.2f %10.2f %10.2f %10.2f %7.1f%% %8.1f%% %8.1f%%\n", load,
            load_rate / 1e9, read_rate / 1e9, touch_s > 0 ? total / touch_s / 1e9 : 0.0,
            fresh_rate / 1e9, bus_rate, 100 * load_rate / read_rate, 100 * load_rate / both_rate,
            fresh_s > 0 ? 100 * load_rate / fresh_rate : 0.0);
    fflush(out);
    r = bench_samples_add(&b->load, load_rate / 1e9);
    if (r == 0)
        r = bench_samples_add(&b->read, read_rate / 1e9);
    if (r == 0 && touch_s > 0)
        r = bench_samples_add(&b->touch, total / touch_s / 1e9);
    if (r == 0 && fresh_s > 0)
        r = bench_samples_add(&b->fresh, fresh_rate / 1e9);
    if (r == 0 && fresh_s > 0)
        r = bench_samples_add(&b->share_fresh, load_rate / fresh_rate);
    if (r == 0 && bus_rate > 0)
        r = bench_samples_add(&b->bus, bus_rate);
    if (r == 0 && bus_rate > 0)
        r = bench_samples_add(&b->share_bus, load_rate / 1e9 / bus_rate);
    if (r == 0)
        r = bench_samples_add(&b->share, load_rate / read_rate);
    if (r == 0)
        r = bench_samples_add(&b->share_both, load_rate / both_rate);
    return r < 0 ? err_set(e, r, "out of memory") : 0;
}

static int report(struct bench *b, FILE *out, struct err *e)
{
    struct bench_summary load = bench_summarize(&b->load), read = bench_summarize(&b->read),
                         touch = bench_summarize(&b->touch), share = bench_summarize(&b->share),
                         both = bench_summarize(&b->share_both), bus = bench_summarize(&b->bus),
                         of_bus = bench_summarize(&b->share_bus),
                         fresh = bench_summarize(&b->fresh),
                         of_fresh = bench_summarize(&b->share_fresh);
    bool has_bus = b->ops->feed->copy_time != NULL;
    fprintf(out,
            "\nmedian: %.2f GB/s; reading alone %.2f GB/s, getting memory alone %.2f GB/s; "
            "share of reading %.2f, of reading and getting memory %.2f\n",
            load.median, read.median, touch.median, share.median, both.median);
    if (b->fresh.n)
        fprintf(out, "reading into such memory %.2f GB/s; share of it %.2f\n", fresh.median,
                of_fresh.median);
    if (has_bus)
        fprintf(out, "the bus alone, from page-locked memory: %.2f GB/s; share of it %.2f\n",
                bus.median, of_bus.median);
    else
        fprintf(out, "the bus: not measured, this device works in the host's memory\n");
    if (!b->json)
        return 0;
    return bench_write_json(
        b->json,
        json_pack("{s:s, s:s, s:I, s:I, s:b, s:b, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}",
                  "bench", "loading", "version", GLMD_VERSION, "file_bytes", (json_int_t)b->total,
                  "readers", (json_int_t)b->n_readers, "checksums", !b->no_verify, "cold", b->cold,
                  "load_gb_per_s", bench_summary_json(&load, 1), "read_gb_per_s",
                  bench_summary_json(&read, 1), "memory_gb_per_s", bench_summary_json(&touch, 1),
                  "share_of_read", bench_summary_json(&share, 1), "share_of_read_and_memory",
                  bench_summary_json(&both, 1), "read_into_memory_gb_per_s",
                  b->fresh.n ? bench_summary_json(&fresh, 1) : json_null(),
                  "share_of_read_into_memory",
                  b->fresh.n ? bench_summary_json(&of_fresh, 1) : json_null(), "bus_gb_per_s",
                  has_bus ? bench_summary_json(&bus, 1) : json_null(), "share_of_bus",
                  has_bus ? bench_summary_json(&of_bus, 1) : json_null()),
        e);
}

static int run(void *state, struct err *e)
{
    struct bench *b = state;
    FILE *out = bench_report_file(b->json);
    int r = set_up(b, e);
    if (r < 0)
        return r;
    fprintf(out, "%s: %.3f GB in files; %s; %u readers; %s checksums; %s\n\n", b->model,
            (double)b->total / 1e9, b->ops->describe(b->ctx), b->n_readers,
            b->no_verify ? "without" : "with",
            b->cold ? "from the disk" : "from the page cache, if it holds them");
    fprintf(out, "%10s %10s %10s %10s %10s %10s %8s %9s %9s\n", "loading, s", "GB/s",
            b->cold ? "disk" : "cache", "memory", "into it", "bus", "of read", "of both",
            "of into");
    double warm;
    if (!b->cold)
        r = measure_read(b, &warm);
    for (uint32_t i = 0; i != b->rounds && r == 0; i++)
        r = run_round(b, out, e);
    if (r < 0)
        return r;
    return report(b, out, e);
}

int bench_loading(int argc, char **argv)
{
    static const struct bench_verb v = {verb, sizeof(struct bench), parse_args, run, tear_down};
    return bench_main(&v, argc, argv);
}
