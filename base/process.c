/* process.c: see process.h. */
#include "base/process.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"

static uint64_t timeval_ns(struct timeval t)
{
    return (uint64_t)t.tv_sec * (uint64_t)NSEC_PER_SEC +
           (uint64_t)t.tv_usec * (uint64_t)NSEC_PER_USEC;
}

/* A small file of the kernel's, as text. */
static bool read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, size - 1);
    close(fd);
    text[n > 0 ? n : 0] = '\0';
    return n > 0;
}

/* Pages, in the order of /proc/self/statm: total, resident, ... */
static void read_memory(struct process_usage *u)
{
    char text[128];
    unsigned long long total = 0, resident = 0;
    if (!read_text("/proc/self/statm", text, sizeof text) ||
        sscanf(text, "%llu %llu", &total, &resident) != 2)
        return;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    u->virtual_bytes = total * page;
    u->resident_bytes = resident * page;
}

/* Field 20 of /proc/self/stat, the 18th behind the command's closing parenthesis. */
static void read_threads(struct process_usage *u)
{
    char text[1024];
    if (!read_text("/proc/self/stat", text, sizeof text))
        return;
    const char *p = strrchr(text, ')');
    for (int i = 0; p && i != 18; i++)
        p = strchr(p + 1, ' ');
    if (p)
        sscanf(p, "%u", &u->n_threads);
}

void process_usage(struct process_usage *ret)
{
    struct rusage r;
    *ret = (struct process_usage){0};
    if (getrusage(RUSAGE_SELF, &r) == 0)
        ret->cpu_ns = timeval_ns(r.ru_utime) + timeval_ns(r.ru_stime);
    read_memory(ret);
    read_threads(ret);
}

uint32_t process_open_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    uint32_t n = 0;
    if (!d)
        return 0;
    while (readdir(d))
        n++;
    closedir(d);
    return n > 3 ? n - 3 : 0; /* ".", ".." and the folder itself */
}

uint64_t process_max_fds(void)
{
    struct rlimit r;
    return getrlimit(RLIMIT_NOFILE, &r) == 0 ? (uint64_t)r.rlim_cur : 0;
}
