/* bench_cluster.c: see bench_cluster.h. */
#include "cli/bench_cluster.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "cli/bench_model.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "model/file.h"
#include "model/synthetic.h"
#include "proto/rpc/wire_cluster.h"

enum { MAX_ARGS = 96, MAX_SETS = 40, LOG_TAIL = 300 };

#define START_NS (60 * NSEC_PER_SEC)
#define STOP_NS  (20 * NSEC_PER_SEC)

/* ---- the temporary folder ---- */

static int make_folder(struct cluster *c, struct err *e)
{
    const char *base = getenv("TMPDIR");
    struct buf path = {0};
    if (buf_printf(&path, "%s/glmd-bench-XXXXXX", base && *base ? base : "/tmp") < 0 ||
        buf_append(&path, "", 1) < 0)
        return err_set(e, -ENOMEM, "out of memory");
    if (!mkdtemp(path.data)) {
        int r = err_set(e, -errno, "%s: %s", path.data, err_name(-errno));
        buf_deinit(&path);
        return r;
    }
    c->folder = path.data;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st;
    (void)type;
    (void)f;
    return remove(path);
}

/* The small one can be split among 64 ranks. */
static int make_model(const struct cluster *c, const char *synthetic, const char *like,
                      struct err *e)
{
    struct arch a;
    const struct quant_scheme scheme = {.weights = QUANT_INT4};
    char *out = file_join(c->folder, "model");
    int r = synthetic_arch(synthetic ? synthetic : "glm-tiny", 0, &a);
    if (r < 0)
        err_set(e, r, "--synthetic %s: expected %s", synthetic, synthetic_names);
    if (!out)
        return err_set(e, -ENOMEM, "out of memory");
    if (r == 0)
        r = bench_model_adopt(&a, like, e);
    if (r == 0)
        r = bench_model_write(&a, &scheme, 1, like, out, e);
    free(out);
    return r;
}

/* ---- the process ---- */

/* Argument list of the coordinator; texts owned. */
struct command {
    char *texts[MAX_ARGS];
    size_t n;
};

static void command_deinit(struct command *k)
{
    for (size_t i = 0; i != k->n; i++)
        free(k->texts[i]);
}

static int add_text(struct command *k, const char *text)
{
    if (k->n + 1 >= MAX_ARGS)
        return -E2BIG;
    char *copy = strdup(text);
    if (!copy)
        return -ENOMEM;
    k->texts[k->n++] = copy;
    return 0;
}

static int add_set(struct command *k, const char *key, const char *value)
{
    struct buf pair = {0};
    int r = buf_printf(&pair, "%s=%s", key, value);
    if (r == 0)
        r = add_text(k, "--set");
    if (r == 0)
        r = add_text(k, pair.data);
    buf_deinit(&pair);
    return r;
}

static int add_number(struct command *k, const char *key, uint32_t value)
{
    char text[16];
    snprintf(text, sizeof text, "%u", value);
    return add_set(k, key, text);
}

/* The coordinator beside this program. */
static int add_program(struct command *k, const struct cluster_config *config)
{
    char path[4096];
    if (config->program)
        return add_text(k, config->program);
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 32);
    if (n < 0)
        return -errno;
    path[n] = '\0';
    char *slash = strrchr(path, '/');
    snprintf(slash ? slash + 1 : path, 32, "glmd-coordinator");
    return add_text(k, path);
}

static int make_command(const struct cluster *c, const struct cluster_config *config,
                        struct command *k)
{
    char *model = file_join(c->folder, "model"), *state = file_join(c->folder, "state");
    int r = model && state ? add_program(k, config) : -ENOMEM;
    const struct {
        const char *key, *value;
    } sets[] = {{"model.dir", model},
                {"coordinator.listen", "127.0.0.1:0"},
                {"coordinator.http.listen", ""},
                {"coordinator.state_dir", state},
                {"group.devices", config->device},
                {"worker.health_listen", ""},
                {"log.level", "warn"}};
    for (size_t i = 0; i != ARRAY_LEN(sets) && r == 0; i++)
        r = add_set(k, sets[i].key, sets[i].value);
    if (r == 0)
        r = add_number(k, "group.tensor_parallel", config->ranks);
    if (r == 0)
        r = add_number(k, "worker.slots", config->slots);
    for (size_t i = 0; config->sets && config->sets[i] && r == 0; i++) {
        r = add_text(k, "--set");
        if (r == 0)
            r = add_text(k, config->sets[i]);
    }
    free(model);
    free(state);
    return r;
}

/* In the child: never returns. */
static void become(const struct command *k, int out_fd, const char *log)
{
    int log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* do not outlive the benchmark */
    signal(SIGINT, SIG_IGN);          /* Ctrl-C is the benchmark's */
    if (log_fd < 0 || dup2(out_fd, STDOUT_FILENO) < 0 || dup2(log_fd, STDERR_FILENO) < 0)
        _exit(127);
    execv(k->texts[0], (char *const *)k->texts);
    dprintf(STDERR_FILENO, "%s: %s\n", k->texts[0], err_name(-errno));
    _exit(127);
}

static int spawn_in(struct cluster *c, const struct command *k, const char *log, const char *state,
                    struct err *e)
{
    int fds[2] = {-1, -1};
    if (mkdir(state, 0700) < 0)
        return err_set(e, -errno, "%s: %s", state, err_name(-errno));
    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_set(e, -errno, "pipe: %s", err_name(-errno));
    pid_t pid = fork();
    if (pid == 0)
        become(k, fds[1], log);
    int r = pid < 0 ? err_set(e, -errno, "fork: %s", err_name(-errno)) : 0;
    close(fds[1]);
    if (pid < 0) {
        close(fds[0]);
        return r;
    }
    c->pid = pid;
    c->out_fd = fds[0];
    return 0;
}

static int spawn(struct cluster *c, const struct command *k, struct err *e)
{
    char *log = file_join(c->folder, "log"), *state = file_join(c->folder, "state");
    int r = -ENOMEM;
    if (log && state)
        r = spawn_in(c, k, log, state, e);
    else
        err_set(e, r, "out of memory");
    free(log);
    free(state);
    return r;
}

/* Puts the end of the coordinator's log behind the message. */
static int with_log(const struct cluster *c, struct err *e, int code, const char *what)
{
    struct buf text = {0};
    char *log = file_join(c->folder, "log");
    if (!log || file_read_all(log, 1 << 20, &text, NULL) < 0)
        buf_clear(&text);
    while (text.size && text.data[text.size - 1] == '\n')
        text.size--;
    size_t n = MIN(text.size, (size_t)LOG_TAIL);
    err_set(e, code, "%s: %.*s", what, (int)n, n ? text.data + text.size - n : "");
    buf_deinit(&text);
    free(log);
    return code;
}

/* Reads the coordinator's output up to its "ready" line. */
static int wait_ready(struct cluster *c, struct err *e)
{
    static const char mark[] = "glmd-coordinator ready: grpc=";
    char text[4096];
    size_t n = 0;
    int64_t end = clock_now_ns() + START_NS;
    for (;;) {
        int64_t left = end - clock_now_ns();
        struct pollfd p = {.fd = c->out_fd, .events = POLLIN};
        if (left <= 0 || n + 1 == sizeof text || poll(&p, 1, (int)(left / NSEC_PER_MSEC) + 1) == 0)
            return with_log(c, e, -ETIMEDOUT, "the coordinator was not ready within a minute");
        ssize_t got = read(c->out_fd, text + n, sizeof text - n - 1);
        if (got <= 0)
            return with_log(c, e, -EIO, "the coordinator ended");
        n += (size_t)got;
        text[n] = '\0';
        char *line = strstr(text, mark), *newline = line ? strchr(line, '\n') : NULL;
        if (!newline)
            continue;
        line += sizeof mark - 1;
        c->address = text_dup(line, strcspn(line, " \n")); /* other addresses follow */
        return c->address ? 0 : err_set(e, -ENOMEM, "out of memory");
    }
}

int cluster_start(struct cluster *c, const struct cluster_config *config, struct err *e)
{
    struct command k = {.n = 0};
    int r = make_folder(c, e);
    if (r == 0)
        r = make_model(c, config->synthetic, config->like, e);
    if (r == 0) {
        r = make_command(c, config, &k);
        if (r < 0)
            err_set(e, r, "starting a coordinator: %s", err_name(r));
    }
    if (r == 0)
        r = spawn(c, &k, e);
    command_deinit(&k);
    return r == 0 ? wait_ready(c, e) : r;
}

/* Whether it has ended within the time. */
static bool reap(struct cluster *c, int64_t wait_ns)
{
    int64_t end = clock_now_ns() + wait_ns;
    char ignored[256];
    /* its output ends with it; what is still in the pipe is of no interest */
    for (int64_t left; (left = end - clock_now_ns()) > 0;) {
        struct pollfd p = {.fd = c->out_fd, .events = POLLIN};
        if (poll(&p, 1, (int)(left / NSEC_PER_MSEC) + 1) > 0 &&
            read(c->out_fd, ignored, sizeof ignored) <= 0)
            break;
    }
    return waitpid(c->pid, NULL, end - clock_now_ns() > 0 ? 0 : WNOHANG) == c->pid;
}

void cluster_stop(struct cluster *c)
{
    if (c->pid) {
        kill(c->pid, SIGTERM);
        if (!reap(c, STOP_NS)) {
            kill(c->pid, SIGKILL);
            waitpid(c->pid, NULL, 0);
        }
    }
    if (c->out_fd >= 0)
        close(c->out_fd);
    if (c->folder)
        nftw(c->folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(c->folder);
    free(c->address);
    *c = (struct cluster)CLUSTER_INIT;
}

/* ---- what it says ---- */

static int on_status(void *context, const uint8_t *data, size_t size, struct err *e)
{
    struct cluster_numbers *n = context;
    struct wire_status_response *m;
    int r = wire_unpack_status_response(data, size, &m, e);
    if (r < 0)
        return r;
    if (m->loop) {
        *n = (struct cluster_numbers){.steps = m->loop->steps,
                                      .plan_ns = m->loop->plan_ns,
                                      .result_ns = m->loop->result_ns,
                                      .update_ns = m->loop->update_ns};
        if (m->n_groups && m->groups[0].n_ranks)
            n->rank_pid = (pid_t)m->groups[0].ranks[0].pid;
    } else {
        r = err_set(e, -EBADMSG, "the coordinator is of an older version");
    }
    wire_free_status_response(m);
    return r;
}

int cluster_numbers(const struct client_target *t, struct cluster_numbers *ret)
{
    const struct wire_status_request request = {0};
    struct buf packed = {0};
    struct err e = ERR_INIT;
    int r = wire_pack_status_request(&request, &packed);
    if (r < 0) {
        err_set(&e, r, "out of memory");
        return cli_failed(t->verb, &e);
    }
    const struct client_call call = {.path = "/glmd.v1.Cluster/Status",
                                     .request = &packed,
                                     .on_message = on_status,
                                     .context = ret};
    int code = client_run(t, &call);
    buf_deinit(&packed);
    return code;
}

/* ---- what it costs ---- */

int process_cpu_ns(pid_t pid, int64_t *ret)
{
    clockid_t id;
    struct timespec t;
    int r = clock_getcpuclockid(pid, &id);
    if (r)
        return -r;
    if (clock_gettime(id, &t) < 0)
        return -errno;
    *ret = t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
    return 0;
}

/* A line of a small file without its end. */
static int read_line(const char *path, char *line, int size)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return -errno;
    bool found = fgets(line, size, f);
    fclose(f);
    if (found)
        line[strcspn(line, "\n")] = '\0';
    return found ? 0 : -EIO;
}

static int thread_times(pid_t pid, pid_t tid, struct thread_times *ret)
{
    char path[64], line[80];
    long long run, queued;
    snprintf(path, sizeof path, "/proc/%d/task/%d/schedstat", (int)pid, (int)tid);
    int r = read_line(path, line, sizeof line);
    if (r < 0)
        return r;
    if (sscanf(line, "%lld %lld", &run, &queued) != 2)
        return -EIO;
    *ret = (struct thread_times){run, queued};
    return 0;
}

int process_loop_ns(pid_t pid, int64_t *ret)
{
    struct thread_times t;
    int r = thread_times(pid, pid, &t);
    if (r == 0)
        *ret = t.run;
    return r;
}

int process_thread_times(pid_t pid, const char *name, struct thread_times *ret)
{
    char path[64], line[80];
    *ret = (struct thread_times){0};
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *d = opendir(path);
    if (!d)
        return -errno;
    int r = -ENOENT;
    for (const struct dirent *entry; (entry = readdir(d));) {
        int tid = (int)strtol(entry->d_name, NULL, 10);
        struct thread_times one;
        snprintf(path, sizeof path, "/proc/%d/task/%d/comm", (int)pid, tid);
        if (tid < 1 || read_line(path, line, sizeof line) < 0 || strcmp(line, name) != 0 ||
            thread_times(pid, tid, &one) < 0)
            continue;
        ret->run += one.run;
        ret->queued += one.queued;
        r = 0;
    }
    closedir(d);
    return r;
}

int process_rss_bytes(pid_t pid, uint64_t *ret)
{
    char path[64];
    unsigned long long size, resident;
    snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return -errno;
    int n = fscanf(f, "%llu %llu", &size, &resident);
    fclose(f);
    if (n != 2)
        return -EIO;
    *ret = resident * (uint64_t)sysconf(_SC_PAGESIZE);
    return 0;
}
