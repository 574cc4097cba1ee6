/* cpuid.c: which kernels this processor can run. The answer is found once per process. */
#include "cpu.h"

#ifdef CPU_HAVE_X86
#include <cpuid.h>
#endif
#include <pthread.h>
#include <string.h>

struct candidate {
    const struct cpu_kernels *kernels;
    bool usable;
};

/* Best first. */
static struct candidate candidates[] = {
#ifdef CPU_HAVE_X86
    {&cpu_kernels_avx512vnni, false},
    {&cpu_kernels_avx512, false},
    {&cpu_kernels_avx2, false},
#endif
    {&cpu_kernels_c, true},
};
enum { N_CANDIDATES = sizeof candidates / sizeof *candidates };

static pthread_once_t once = PTHREAD_ONCE_INIT;

#ifdef CPU_HAVE_X86
/* Not a name that every compiler's __builtin_cpu_supports knows. */
static bool have_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

static void detect(void)
{
#ifdef CPU_HAVE_X86
    /* these ask the operating system for the register state, too */
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && have_f16c();
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    candidates[0].usable = avx512 && __builtin_cpu_supports("avx512vnni");
    candidates[1].usable = avx512;
    candidates[2].usable = avx2;
#endif
}

const struct cpu_kernels *cpu_kernels_find(const char *name)
{
    pthread_once(&once, detect);
    for (int i = 0; i < N_CANDIDATES; i++)
        if (candidates[i].usable && (!name || !strcmp(name, candidates[i].kernels->name)))
            return candidates[i].kernels;
    return NULL;
}

const char *cpu_kernels_name(uint32_t idx)
{
    pthread_once(&once, detect);
    for (int i = 0; i < N_CANDIDATES; i++)
        if (candidates[i].usable && !idx--)
            return candidates[i].kernels->name;
    return NULL;
}
