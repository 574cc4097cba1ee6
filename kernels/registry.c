/* registry.c: finds a backend by name. The CUDA table is in a shared object of its own, so that
 * this program starts on hosts without a GPU driver; nothing ever falls back to another backend.
 */
#include "kernels.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define CUDA_LIBRARY "libglmd_cuda.so"
#define CUDA_SYMBOL  "glmd_cuda_ops"

extern const struct k_ops cpu_ops;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const struct k_ops *cuda_ops; /* under the lock; the library stays open */

/* <directory of the executable>/../lib/<library>; false when it cannot be told. */
static bool library_beside_program(char *path, size_t size)
{
    char program[3072];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n <= 0)
        return false;
    program[n] = '\0';
    char *slash = strrchr(program, '/');
    if (!slash)
        return false;
    *slash = '\0';
    int written = snprintf(path, size, "%s/../lib/%s", program, CUDA_LIBRARY);
    return written > 0 && (size_t)written < size;
}

static const struct k_ops *open_cuda(char *message, size_t size)
{
    char path[4096];
    bool have_path = library_beside_program(path, sizeof path);
    void *library = NULL;
    char reason[512] = "";
    if (have_path && access(path, F_OK) == 0) {
        library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!library)
            snprintf(reason, sizeof reason, "%s", dlerror());
    } else {
        library = dlopen(CUDA_LIBRARY, RTLD_NOW | RTLD_LOCAL);
        if (!library)
            snprintf(reason, sizeof reason, "%s", dlerror());
    }
    if (!library) {
        snprintf(message, size,
                 "backend cuda: cannot open %s, looked for as %s and on the library path: %s. "
                 "Install the glmd build with CUDA (cmake -DGLMD_CUDA=ON) and the NVIDIA driver, "
                 "or choose backend cpu",
                 CUDA_LIBRARY, have_path ? path : "../lib beside the program", reason);
        return NULL;
    }
    const struct k_ops *ops = dlsym(library, CUDA_SYMBOL);
    if (!ops) {
        snprintf(message, size,
                 "backend cuda: %s has no symbol %s; install the library of the same glmd version",
                 CUDA_LIBRARY, CUDA_SYMBOL);
        dlclose(library);
    }
    return ops;
}

const struct k_ops *k_backend(const char *name, char *message, size_t size)
{
    if (size)
        message[0] = '\0';
    if (!strcmp(name, "cpu"))
        return &cpu_ops;
    if (strcmp(name, "cuda") != 0) {
        snprintf(message, size, "backend \"%s\" is unknown; choose cpu or cuda", name);
        return NULL;
    }
    pthread_mutex_lock(&lock);
    if (!cuda_ops)
        cuda_ops = open_cuda(message, size);
    const struct k_ops *ops = cuda_ops;
    pthread_mutex_unlock(&lock);
    return ops;
}
