/* cpuid.c: which kernels this processor can run. The answer is found once per process. */
#include "cpu.h"

#ifdef CPU_HAVE_X86
#include <cpuid.h>
#endif
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

struct candidate {
    const struct cpu_kernels *kernels;
    bool usable;
};

/* Best first. */
static struct candidate candidates[] = {
#ifdef CPU_HAVE_X86
    {&cpu_kernels_avx512gfni, false}, {&cpu_kernels_avx512vnni, false},
    {&cpu_kernels_avx512, false},     {&cpu_kernels_avxvnni, false},
    {&cpu_kernels_avx2, false},
#endif
    {&cpu_kernels_c, true},
};
enum { N_CANDIDATES = sizeof candidates / sizeof *candidates };

static pthread_once_t once = PTHREAD_ONCE_INIT;

#ifdef CPU_HAVE_X86
/* Not names that every compiler's __builtin_cpu_supports knows. */
static bool have_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static bool have_gfni(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & 1u << 8);
}

static bool have_avxvnni(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
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
    bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    const bool usable[] = {vnni && have_gfni(), vnni, avx512, avx2 && have_avxvnni(), avx2};
    for (size_t i = 0; i < sizeof usable; i++)
        candidates[i].usable = usable[i];
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
