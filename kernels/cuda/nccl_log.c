/* nccl_log.c: see nccl_log.h. The log is a memfd that NCCL opens by its path in /proc; what has
 * been read is given back to the system, so that it stays small however many communicators come. */
#include "kernels/cuda/nccl_log.h"

#include <ctype.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FILE_PREFIX "/proc/self/fd/"

enum { LINE_BYTES = 512, READ_BYTES = 16 << 10, MOST_READS = 256 };

static const char *const variables[][2] = {{"NCCL_DEBUG", "INFO"},
                                           {"NCCL_DEBUG_SUBSYS", "INIT,NET"}};

/* ---- the environment ---- */

void nccl_log_prepare(void)
{
    char path[32];
    if (getenv("NCCL_DEBUG") || getenv("NCCL_DEBUG_SUBSYS") || getenv("NCCL_DEBUG_FILE"))
        return;
    int fd = memfd_create("nccl-log", MFD_CLOEXEC);
    if (fd < 0)
        return;
    snprintf(path, sizeof path, FILE_PREFIX "%d", fd);
    int again = open(path, O_WRONLY | O_CLOEXEC); /* as NCCL will, or else it logs to stdout */
    if (again < 0) {
        close(fd);
        return;
    }
    close(again);
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++)
        (void)setenv(variables[i][0], variables[i][1], 0);
    (void)setenv("NCCL_DEBUG_FILE", path, 0);
}

/* The descriptor of the log, or -1. */
static int log_fd(void)
{
    const char *path = getenv("NCCL_DEBUG_FILE");
    if (!path || strncmp(path, FILE_PREFIX, sizeof FILE_PREFIX - 1) != 0)
        return -1;
    const char *digits = path + sizeof FILE_PREFIX - 1;
    char *end;
    long fd = strtol(digits, &end, 10);
    /* A seal tells memory from whatever else may have that number. */
    return isdigit((unsigned char)*digits) && !*end && fd < 1 << 20 &&
                   fcntl((int)fd, F_GET_SEALS) >= 0
               ? (int)fd
               : -1;
}

bool nccl_log_is_own(const char *variable)
{
    if (log_fd() < 0)
        return false;
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        size_t n = strlen(variables[i][0]);
        if (!strncmp(variable, variables[i][0], n) && variable[n] == '=' &&
            !strcmp(variable + n + 1, variables[i][1]))
            return true;
    }
    return !strncmp(variable, "NCCL_DEBUG_FILE=" FILE_PREFIX,
                    sizeof "NCCL_DEBUG_FILE=" FILE_PREFIX - 1);
}

/* ---- lines ---- */

/* The word behind `lead`, if the line has it and it is one. */
static bool find_word(const char *line, const char *lead, char ret[NCCL_LOG_WORD])
{
    const char *at = strstr(line, lead);
    if (!at)
        return false;
    at += strlen(lead);
    size_t n = 0;
    while (at[n] && (isalnum((unsigned char)at[n]) || strchr("/_-.", at[n])))
        n++;
    if (!n || n >= NCCL_LOG_WORD)
        return false;
    memcpy(ret, at, n);
    ret[n] = '\0';
    return true;
}

void nccl_log_line(struct nccl_log_facts *f, const char *line)
{
    char word[NCCL_LOG_WORD];
    if (find_word(line, "Using network ", word)) {
        memcpy(f->network, word, sizeof word);
        return;
    }
    bool way = strstr(line, "Channel ") && find_word(line, " via ", word);
    for (int i = 0; way && i < f->n_ways; i++)
        way = strcmp(f->ways[i], word) != 0;
    if (way && f->n_ways < NCCL_LOG_WAYS)
        memcpy(f->ways[f->n_ways++], word, sizeof word);
}

/* ---- reading ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct nccl_log_facts facts; /* under the lock, and all below */
static off_t at;                    /* read until here */
static char line[LINE_BYTES];
static size_t n_line; /* of a line whose end has not come; LINE_BYTES: it is too long */

static void take(const char *data, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (data[i] != '\n') {
            if (n_line < LINE_BYTES)
                line[n_line++] = data[i] ? data[i] : ' ';
            continue;
        }
        if (n_line < LINE_BYTES) {
            line[n_line] = '\0';
            nccl_log_line(&facts, line);
        }
        n_line = 0;
    }
}

static void read_on(void)
{
    static char data[READ_BYTES];
    int fd = log_fd();
    off_t from = at;
    ssize_t n = 0;
    for (int i = 0; fd >= 0 && i < MOST_READS && (n = pread(fd, data, sizeof data, at)) > 0; i++) {
        take(data, (size_t)n);
        at += n;
    }
    if (at > from)
        (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, at);
}

void nccl_log_restart(void)
{
    pthread_mutex_lock(&lock);
    read_on();
    facts = (struct nccl_log_facts){.n_ways = 0};
    pthread_mutex_unlock(&lock);
}

void nccl_log_read(struct nccl_log_facts *ret)
{
    pthread_mutex_lock(&lock);
    read_on();
    *ret = facts;
    pthread_mutex_unlock(&lock);
}
