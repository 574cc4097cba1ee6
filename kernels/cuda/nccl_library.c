/* nccl_library.c: opens libnccl.so.2, once per process; it stays open. */
#include "kernels/cuda/nccl.h"

#include <assert.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define LIBRARY "libnccl.so.2"

#if __has_include(<nccl.h>)
#include <nccl.h>
static_assert((int)ncclSuccess == NCCL_OK && (int)ncclInProgress == NCCL_IN_PROGRESS, "results");
static_assert((int)ncclHalf == NCCL_HALF && sizeof(ncclUniqueId) == sizeof(struct nccl_id),
              "types");
static_assert(offsetof(ncclConfig_t, magic) == offsetof(struct nccl_config, magic) &&
                  offsetof(ncclConfig_t, version) == offsetof(struct nccl_config, version) &&
                  offsetof(ncclConfig_t, blocking) == offsetof(struct nccl_config, blocking),
              "the head of a configuration");
#endif

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct nccl_library library; /* under the lock until it is complete */
static void *opened;

/* A function's address by way of memory: the two kinds of pointers do not convert. */
static void find(const char *name, void *ret, const char **missing)
{
    void *p = dlsym(opened, name);
    if (!p && missing)
        *missing = name;
    memcpy(ret, &p, sizeof p);
}

static const char *load(void)
{
    const char *missing = NULL;
    find("ncclGetVersion", &library.version, &missing);
    find("ncclGetUniqueId", &library.unique_id, &missing);
    find("ncclCommInitRankConfig", &library.init, &missing);
    find("ncclCommGetAsyncError", &library.async_error, &missing);
    find("ncclCommAbort", &library.abort, &missing);
    find("ncclGroupStart", &library.group_start, &missing);
    find("ncclGroupEnd", &library.group_end, &missing);
    find("ncclAllGather", &library.all_gather, &missing);
    find("ncclSend", &library.send, &missing);
    find("ncclRecv", &library.recv, &missing);
    find("ncclGetErrorString", &library.error_text, &missing);
    find("ncclGetLastError", &library.last_error, NULL);
    return missing;
}

const struct nccl_library *nccl_find(char *message, size_t size)
{
    const struct nccl_library *ret = NULL;
    const char *missing = NULL;
    int version = 0;
    pthread_mutex_lock(&lock);
    if (!opened && !(opened = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL)))
        snprintf(message, size, "%s", dlerror());
    else if (!library.version && (missing = load()))
        snprintf(message, size, "%s is too old: it has no %s", LIBRARY, missing);
    else if (library.version(&version) != NCCL_OK || version < NCCL_OLDEST)
        snprintf(message, size, "%s is version %d, expected 2.14 or later", LIBRARY, version);
    else
        ret = &library;
    if (missing)
        library.version = NULL; /* as if not loaded */
    pthread_mutex_unlock(&lock);
    return ret;
}
