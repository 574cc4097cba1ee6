/* cpus.c: see cpus.h. */
#include "base/cpus.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"

/* ---- lists ---- */

/* A number below CPUS_MAX at *at, which moves behind it. */
static int parse_cpu(const char **at, uint32_t *ret)
{
    *ret = 0;
    if (**at < '0' || **at > '9')
        return -EINVAL;
    for (; **at >= '0' && **at <= '9'; ++*at) {
        *ret = 10 * *ret + (uint32_t)(**at - '0');
        if (*ret >= CPUS_MAX)
            return -EINVAL;
    }
    return 0;
}

static int parse_range(const char **at, uint32_t *ret_first, uint32_t *ret_last)
{
    int r = parse_cpu(at, ret_first);
    *ret_last = *ret_first;
    if (r == 0 && **at == '-') {
        ++*at;
        r = parse_cpu(at, ret_last);
    }
    return r == 0 && *ret_first <= *ret_last ? 0 : -EINVAL;
}

int cpus_parse(const char *text, struct cpus *ret, struct err *e)
{
    bool has[CPUS_MAX] = {false};
    const char *at = text;
    while (*at) {
        uint32_t first, last;
        if (parse_range(&at, &first, &last) < 0 || (*at && *at != ',') || (*at && !at[1]))
            return err_set(e, -EINVAL,
                           "expected a list of processors as 0-7,16-23, none above %d, found "
                           "\"%.64s\"",
                           CPUS_MAX - 1, text);
        memset(&has[first], true, last - first + 1);
        at += *at == ',';
    }
    ret->n = 0;
    for (uint32_t cpu = 0; cpu != CPUS_MAX; cpu++)
        if (has[cpu])
            ret->ids[ret->n++] = (uint16_t)cpu;
    return 0;
}

int cpus_print(const struct cpus *c, char *out, size_t size)
{
    size_t at = 0;
    assert(size > 0);
    out[0] = '\0';
    for (uint32_t i = 0, end; i != c->n; i = end) {
        for (end = i + 1; end != c->n && c->ids[end] == c->ids[end - 1] + 1; end++)
            continue;
        const char *comma = i ? "," : "";
        int n = end - i == 1
                    ? snprintf(out + at, size - at, "%s%u", comma, c->ids[i])
                    : snprintf(out + at, size - at, "%s%u-%u", comma, c->ids[i], c->ids[end - 1]);
        at += (size_t)n;
        if (at >= size)
            return -ENOSPC;
    }
    return 0;
}

/* ---- the kernel's sets ---- */

void cpus_allowed(struct cpus *ret)
{
    ret->n = 0;
    cpu_set_t *set = CPU_ALLOC(CPUS_MAX);
    size_t bytes = CPU_ALLOC_SIZE(CPUS_MAX);
    if (set && sched_getaffinity(0, bytes, set) == 0)
        for (uint32_t cpu = 0; cpu != CPUS_MAX; cpu++)
            if (CPU_ISSET_S(cpu, bytes, set))
                ret->ids[ret->n++] = (uint16_t)cpu;
    if (set)
        CPU_FREE(set);
}

int cpus_bind(const struct cpus *c)
{
    cpu_set_t *set = CPU_ALLOC(CPUS_MAX);
    size_t bytes = CPU_ALLOC_SIZE(CPUS_MAX);
    if (!set)
        return -ENOMEM;
    CPU_ZERO_S(bytes, set);
    for (uint32_t i = 0; i != c->n; i++)
        CPU_SET_S(c->ids[i], bytes, set);
    int r = sched_setaffinity(0, bytes, set) < 0 ? -errno : 0;
    CPU_FREE(set);
    return r;
}

/* ---- nodes ---- */

/* A list that the kernel keeps in a file; empty where it fails. -ENOENT and others; -EINVAL: not a
 * list. */
static int read_list(const char *folder, const char *name, struct cpus *ret)
{
    char path[512], text[CPUS_TEXT_BYTES];
    struct err e = ERR_INIT;
    ret->n = 0;
    if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, name) >= sizeof path)
        return -ENAMETOOLONG;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n < 0 || n == (ssize_t)sizeof text - 1)
        return -EINVAL;
    text[n] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return cpus_parse(text, ret, &e);
}

/* Processors in the order of their nodes, and where the node of each begins and ends. */
struct line_up {
    uint32_t n, n_nodes;
    uint16_t ids[CPUS_MAX], first[CPUS_MAX], end[CPUS_MAX];
};

/* Those of `list` that wait in `has`, as one node. */
static void add_node(struct line_up *l, bool *has, const struct cpus *list)
{
    uint32_t first = l->n;
    for (uint32_t i = 0; i != list->n; i++)
        if (has[list->ids[i]]) {
            has[list->ids[i]] = false;
            l->ids[l->n++] = list->ids[i];
        }
    for (uint32_t i = first; i != l->n; i++) {
        l->first[i] = (uint16_t)first;
        l->end[i] = (uint16_t)l->n;
    }
    l->n_nodes += l->n != first;
}

static void line_up(const char *folder, const struct cpus *allowed, struct line_up *ret)
{
    struct cpus nodes, of_node;
    bool has[CPUS_MAX] = {false};
    ret->n = ret->n_nodes = 0;
    for (uint32_t i = 0; i != allowed->n; i++)
        has[allowed->ids[i]] = true;
    if (read_list(folder, "online", &nodes) == 0)
        for (uint32_t i = 0; i != nodes.n; i++) {
            char name[32];
            snprintf(name, sizeof name, "node%u/cpulist", nodes.ids[i]);
            if (read_list(folder, name, &of_node) == 0) /* none: memory without processors */
                add_node(ret, has, &of_node);
        }
    add_node(ret, has, allowed); /* what no node claims */
}

static int by_number(const void *a, const void *b)
{
    return *(const uint16_t *)a - *(const uint16_t *)b;
}

void cpus_near(const char *folder, const struct cpus *allowed, uint32_t rank, uint32_t n_ranks,
               struct cpus *ret)
{
    assert(rank < n_ranks);
    struct line_up *l = malloc(sizeof *l);
    *ret = *allowed;
    if (!l || !allowed->n) {
        free(l);
        return;
    }
    line_up(folder, allowed, l);
    if (l->n_nodes > 1) {
        /* at least one, of ranks that have less than that */
        uint32_t first = (uint32_t)((uint64_t)l->n * rank / n_ranks);
        uint32_t last = MAX((uint32_t)((uint64_t)l->n * (rank + 1) / n_ranks), first + 1) - 1;
        ret->n = l->end[last] - l->first[first];
        memcpy(ret->ids, &l->ids[l->first[first]], ret->n * sizeof *ret->ids);
        qsort(ret->ids, ret->n, sizeof *ret->ids, by_number);
    }
    free(l);
}
