/* cpus_quota.c: how much processor time control groups allow (see cpus.h). Version 2 has one file
 * per group, "cpu.max": time and period in microseconds, as "400000 100000", or "max 100000".
 * Version 1 has two, of which the time is -1 where there is no limit. A group's limit holds for all
 * below it, so that the least on the way up counts. */
#include "base/cpus.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"

enum { GROUP_PATH_BYTES = 4096, MEMBERSHIP_BYTES = 64 << 10, MAX_US = 1000 * 1000 * 1000 };

/* The beginning of a file; "" = none. */
static void read_text(const char *path, char *out, size_t size)
{
    ssize_t n = 0;
    size_t at = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && at < size - 1 && (n = read(fd, out + at, size - 1 - at)) > 0)
        at += (size_t)n;
    if (fd >= 0)
        close(fd);
    out[n < 0 ? 0 : at] = '\0';
}

/* A number from 1 to MAX_US at *at, which moves behind it; 0: there is none. */
static uint64_t take_us(const char **at)
{
    uint64_t value = 0;
    for (; **at >= '0' && **at <= '9'; ++*at)
        value = value > MAX_US ? value : 10 * value + (uint64_t)(**at - '0');
    return value > MAX_US ? 0 : value;
}

/* Whole processors, at least one; UINT32_MAX: no limit, or not a pair of numbers. */
static uint32_t processors(const char *text, char between)
{
    const char *at = text;
    uint64_t time_us = take_us(&at);
    if (!time_us || *at++ != between)
        return UINT32_MAX;
    uint64_t period_us = take_us(&at);
    if (!period_us || (*at && strcmp(at, "\n") != 0))
        return UINT32_MAX;
    return (uint32_t)MAX(time_us / period_us, 1u);
}

/* The limit of one group; UINT32_MAX: none. */
static uint32_t quota_of(const char *folder, bool v1)
{
    char path[GROUP_PATH_BYTES + 64], text[128];
    if (!v1) {
        snprintf(path, sizeof path, "%s/cpu.max", folder);
        read_text(path, text, sizeof text);
        return processors(text, ' ');
    }
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
    read_text(path, text, sizeof text / 2);
    size_t n = strlen(text); /* the line of the period behind that of the time */
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    read_text(path, text + n, sizeof text - n);
    return processors(text, '\n');
}

/* The least limit on the way from `group` ("/a/b") up to the hierarchy's root, which is a folder of
 * `root`: "", or "/cpu". A group outside of what this process can see ("/..") leaves the root,
 * which in a container is the container's own. */
static uint32_t quota_upwards(const char *root, const char *hierarchy, const char *group, bool v1)
{
    char folder[GROUP_PATH_BYTES];
    size_t at = strlen(root) + strlen(hierarchy); /* where the groups' names begin */
    bool outside = strncmp(group, "/..", 3) == 0;
    if ((size_t)snprintf(folder, sizeof folder, "%s%s%s", root, hierarchy, outside ? "" : group) >=
        sizeof folder)
        return UINT32_MAX;
    uint32_t least = UINT32_MAX;
    for (;;) {
        uint32_t own = quota_of(folder, v1);
        least = MIN(least, own);
        char *last = strrchr(folder + at, '/');
        if (!last)
            return least;
        *last = '\0';
    }
}

/* Whether "cpu" is one of a comma-separated list. */
static bool lists_cpu(const char *list)
{
    for (const char *end; *list; list = *end ? end + 1 : end) {
        end = list + strcspn(list, ",");
        if (end - list == 3 && strncmp(list, "cpu", 3) == 0)
            return true;
    }
    return false;
}

uint32_t cpus_quota(const char *root, const char *membership)
{
    char *text = malloc(MEMBERSHIP_BYTES), *rest = text;
    uint32_t least = UINT32_MAX;
    if (!text)
        return least;
    read_text(membership, text, MEMBERSHIP_BYTES);
    for (char *line; (line = strsep(&rest, "\n"));) {
        /* number:controllers:/group */
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group || group[1] != '/')
            continue;
        *controllers++ = *group++ = '\0';
        uint32_t found = UINT32_MAX;
        if (!*controllers && strcmp(line, "0") == 0)
            found = quota_upwards(root, "", group, false);
        else if (lists_cpu(controllers))
            found = quota_upwards(root, "/cpu", group, true);
        least = MIN(least, found);
    }
    free(text);
    return least;
}

uint32_t cpus_usable(void)
{
    struct cpus allowed;
    cpus_allowed(&allowed);
    uint32_t quota = cpus_quota(CPUS_GROUPS, CPUS_MEMBERSHIP);
    return MIN(MAX(allowed.n, 1u), quota);
}
