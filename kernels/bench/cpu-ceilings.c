/* cpu-ceilings.c: see cpu-ceilings.h. */
#include "cpu-ceilings.h"

#include "kernels/cpu/mem.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

enum { BUFFER_BYTES = 768 << 20, READ_BYTES = 48 << 20 };

static double clock_seconds(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double bench_now(uint32_t n_threads)
{
    return clock_seconds(n_threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC);
}

/* --- reading --- */

struct read_job {
    const uint64_t *data;
    bool wide; /* AVX-512 */
    uint64_t sums[1024];
};

static uint64_t read_plain(const uint64_t *data, uint64_t first, uint64_t end)
{
    uint64_t sum[8] = {0};
    for (uint64_t i = first; i < end; i++) {
        __builtin_prefetch(data + i * 8 + 512);
        for (uint64_t k = 0; k < 8; k++)
            sum[k] += data[i * 8 + k];
    }
    return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
}

#ifdef __x86_64__
__attribute__((target("avx512f"))) static uint64_t read_512(const uint64_t *data, uint64_t first,
                                                            uint64_t end)
{
    __m512i sum[4] = {{0}, {0}, {0}, {0}};
    for (uint64_t i = first; i + 4 <= end; i += 4) {
#pragma GCC unroll 4
        for (uint64_t k = 0; k < 4; k++) {
            __builtin_prefetch(data + (i + k) * 8 + 512);
            sum[k] = _mm512_add_epi64(sum[k], _mm512_load_si512(data + (i + k) * 8));
        }
    }
    sum[0] = _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3]));
    return (uint64_t)_mm512_reduce_add_epi64(sum[0]);
}
#else
#define read_512 read_plain
#endif

static void read_share(void *arg, uint32_t thread, uint32_t n_threads)
{
    struct read_job *j = arg;
    uint64_t first, end; /* cache lines */
    pool_share(READ_BYTES / 64, thread, n_threads, &first, &end);
    j->sums[thread] = (j->wide ? read_512 : read_plain)(j->data, first, end);
}

/* --- arithmetic in registers --- */

/* Returns the operations of one call. Results go to *sink, so that nothing is left out. */
typedef double (*peak_fn)(float *sink);

enum { PEAK_LOOPS = 1 << 18, PEAK_SUMS = 12 };

#ifdef __x86_64__
__attribute__((target("avx512f"))) static double peak_fma_512(float *sink)
{
    __m512 sum[PEAK_SUMS], a = _mm512_set1_ps(*sink), b = _mm512_set1_ps(0.5f);
    for (int i = 0; i < PEAK_SUMS; i++)
        sum[i] = _mm512_set1_ps((float)i);
    for (int n = 0; n < PEAK_LOOPS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++)
            sum[i] = _mm512_fmadd_ps(sum[i], b, a);
    for (int i = 1; i < PEAK_SUMS; i++)
        sum[0] = _mm512_add_ps(sum[0], sum[i]);
    *sink = _mm512_reduce_add_ps(sum[0]);
    return 32.0 * PEAK_SUMS * PEAK_LOOPS;
}

__attribute__((target("avx512f,avx512vnni"))) static double peak_dot_512(float *sink)
{
    __m512i sum[PEAK_SUMS], a = _mm512_set1_epi32((int)*sink);
    for (int i = 0; i < PEAK_SUMS; i++)
        sum[i] = _mm512_set1_epi32(i);
    for (int n = 0; n < PEAK_LOOPS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++)
            sum[i] = _mm512_dpbusd_epi32(sum[i], a, a);
    for (int i = 1; i < PEAK_SUMS; i++)
        sum[0] = _mm512_add_epi32(sum[0], sum[i]);
    *sink = (float)_mm512_reduce_add_epi32(sum[0]);
    return 128.0 * PEAK_SUMS * PEAK_LOOPS;
}

__attribute__((target("avx2,fma"))) static double peak_fma_256(float *sink)
{
    __m256 sum[PEAK_SUMS], a = _mm256_set1_ps(*sink), b = _mm256_set1_ps(0.5f);
    for (int i = 0; i < PEAK_SUMS; i++)
        sum[i] = _mm256_set1_ps((float)i);
    for (int n = 0; n < PEAK_LOOPS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++)
            sum[i] = _mm256_fmadd_ps(sum[i], b, a);
    for (int i = 1; i < PEAK_SUMS; i++)
        sum[0] = _mm256_add_ps(sum[0], sum[i]);
    float lanes[8];
    _mm256_storeu_ps(lanes, sum[0]);
    *sink = lanes[0] + lanes[7];
    return 16.0 * PEAK_SUMS * PEAK_LOOPS;
}

/* As above, with 8 lanes. */
__attribute__((target("avx2,avxvnni"))) static double peak_dot_256(float *sink)
{
    __m256i sum[PEAK_SUMS], a = _mm256_set1_epi32((int)*sink);
    for (int i = 0; i < PEAK_SUMS; i++)
        sum[i] = _mm256_set1_epi32(i);
    for (int n = 0; n < PEAK_LOOPS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++)
            sum[i] = _mm256_dpbusd_avx_epi32(sum[i], a, a);
    for (int i = 1; i < PEAK_SUMS; i++)
        sum[0] = _mm256_add_epi32(sum[0], sum[i]);
    *sink = (float)_mm256_extract_epi32(sum[0], 3);
    return 64.0 * PEAK_SUMS * PEAK_LOOPS;
}

/* Without dot instructions: products of bytes in pairs, summed in 16 bits, which eight of four bits
 * times eight fit into. */
__attribute__((target("avx2"))) static double peak_pairs_256(float *sink)
{
    __m256i sum[PEAK_SUMS], a = _mm256_set1_epi8((char)*sink);
    for (int i = 0; i < PEAK_SUMS; i++)
        sum[i] = _mm256_set1_epi32(i);
    for (int n = 0; n < PEAK_LOOPS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++) {
            __asm__("" : "+x"(a)); /* not the same product every time */
            sum[i] = _mm256_add_epi16(sum[i], _mm256_maddubs_epi16(a, a));
        }
    for (int i = 1; i < PEAK_SUMS; i++)
        sum[0] = _mm256_add_epi32(sum[0], sum[i]);
    *sink = (float)_mm256_extract_epi32(sum[0], 3);
    return 64.0 * PEAK_SUMS * PEAK_LOOPS;
}

__attribute__((target("avx512f,avx512bw"))) static double peak_pairs_512(float *sink)
{
    __m512i sum[PEAK_SUMS], a = _mm512_set1_epi32((int)*sink);
    for (int i = 0; i < PEAK_SUMS; i++)
        sum[i] = _mm512_set1_epi32(i);
    for (int n = 0; n < PEAK_LOOPS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++) {
            __asm__("" : "+v"(a));
            sum[i] = _mm512_add_epi16(sum[i], _mm512_maddubs_epi16(a, a));
        }
    for (int i = 1; i < PEAK_SUMS; i++)
        sum[0] = _mm512_add_epi32(sum[0], sum[i]);
    *sink = (float)_mm512_reduce_add_epi32(sum[0]);
    return 128.0 * PEAK_SUMS * PEAK_LOOPS;
}
#endif

struct peak_job {
    peak_fn fn;
    float sinks[1024 * 16]; /* a cache line per thread */
    double operations;
};

static void peak_share(void *arg, uint32_t thread, uint32_t n_threads)
{
    struct peak_job *j = arg;
    double operations = j->fn(&j->sinks[(size_t)thread * 16]);
    if (!thread)
        j->operations = operations * n_threads;
}

/* --- all of them --- */

struct probes {
    struct pool *pool;
    struct read_job read;
    struct peak_job peak;
    uint64_t *buffer;
    size_t at; /* bytes */
    peak_fn fma, dot8;
};

/* The widest instructions of a set; none is known for plain C. */
static void choose_peaks(struct probes *p, const char *isa)
{
#ifdef __x86_64__
    if (!strncmp(isa, "avx512", 6)) {
        p->fma = peak_fma_512;
        p->dot8 = strcmp(isa, "avx512") != 0 ? peak_dot_512 : peak_pairs_512;
    } else if (!strncmp(isa, "avx", 3)) {
        p->fma = peak_fma_256;
        p->dot8 = !strcmp(isa, "avxvnni") ? peak_dot_256 : peak_pairs_256;
    }
#else
    (void)p;
    (void)isa;
#endif
}

struct probes *probes_new(struct pool *pool, const char *isa)
{
    struct probes *p = calloc(1, sizeof *p);
    uint64_t *buffer = mem_alloc(BUFFER_BYTES);
    if (!p || !buffer) {
        free(p);
        mem_free(buffer);
        return NULL;
    }
    memset(buffer, 1, BUFFER_BYTES);
    p->pool = pool;
    p->buffer = buffer;
#ifdef __x86_64__
    p->read.wide = __builtin_cpu_supports("avx512f");
#endif
    choose_peaks(p, isa);
    return p;
}

void probes_free(struct probes *p)
{
    if (p)
        mem_free(p->buffer);
    free(p);
}

double probe_read(struct probes *p)
{
    p->read.data = p->buffer + p->at / sizeof *p->buffer;
    p->at = (p->at + READ_BYTES) % BUFFER_BYTES;
    double start = bench_now(pool_threads(p->pool));
    pool_run(p->pool, read_share, &p->read);
    return READ_BYTES / (bench_now(pool_threads(p->pool)) - start) / 1e9;
}

static double probe_peak(struct probes *p, peak_fn fn)
{
    if (!fn)
        return 0;
    p->peak.fn = fn;
    double start = bench_now(pool_threads(p->pool));
    pool_run(p->pool, peak_share, &p->peak);
    return p->peak.operations / (bench_now(pool_threads(p->pool)) - start) / 1e9;
}

double probe_fma(struct probes *p)
{
    return probe_peak(p, p->fma);
}

double probe_dot8(struct probes *p)
{
    return probe_peak(p, p->dot8);
}
