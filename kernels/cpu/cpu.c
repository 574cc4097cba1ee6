/* cpu.c: the context of the CPU backend and its table of operations. A context belongs to the one
 * thread that drives it; several contexts (ranks) may live in one process. */
#include "cpu.h"
#include "mem.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *mode_name(enum k_mode mode)
{
    return mode == K_MODE_FP32 ? "fp32" : mode == K_MODE_FP16 ? "fp16" : "a8";
}

static int check_params(const struct k_open_params *p, char *message, size_t size)
{
    if (p->device && strcmp(p->device, "cpu") != 0) {
        snprintf(message, size, "device \"%s\": the CPU backend has one device, \"cpu\"",
                 p->device);
        return -EINVAL;
    }
    if (p->mode != K_MODE_FP32 && p->mode != K_MODE_FP16 && p->mode != K_MODE_A8) {
        snprintf(message, size, "activation mode %d is not one of fp32, fp16, a8", (int)p->mode);
        return -EINVAL;
    }
    if (!p->max_rows || !p->max_cols || !p->max_seq) {
        snprintf(message, size, "max_rows %u, max_cols %u, max_seq %u: all must be at least 1",
                 p->max_rows, p->max_cols, p->max_seq);
        return -EINVAL;
    }
    return 0;
}

static int choose_kernels(const char *isa, const struct cpu_kernels **ret, char *message,
                          size_t size)
{
    *ret = cpu_kernels_find(isa);
    if (*ret)
        return 0;
    char known[128] = "";
    for (uint32_t i = 0; cpu_kernels_name(i); i++) {
        strncat(known, i ? ", " : "", sizeof known - strlen(known) - 1);
        strncat(known, cpu_kernels_name(i), sizeof known - strlen(known) - 1);
    }
    snprintf(message, size, "instruction set \"%s\" is not available here; this CPU can run: %s",
             isa, known);
    return -ENOTSUP;
}

static void cpu_close(struct k_ctx *c)
{
    if (!c)
        return;
    pool_free(c->pool);
    mem_free(c->activations);
    mem_free(c->scores);
    free(c);
}

static int cpu_open(const struct k_open_params *p, struct k_ctx **ret, char *message, size_t size)
{
    const struct cpu_kernels *kernels;
    int e = check_params(p, message, size);
    if (!e)
        e = choose_kernels(p->isa, &kernels, message, size);
    if (e)
        return e;
    struct k_ctx *c = calloc(1, sizeof *c);
    if (c) {
        c->mode = p->mode;
        c->max_rows = p->max_rows;
        c->max_cols = p->max_cols;
        c->max_seq = p->max_seq;
        c->kernels = kernels;
        e = pool_new(p->n_threads, p->pin, &c->pool);
    } else {
        e = -ENOMEM;
    }
    if (e) {
        snprintf(message, size, "cannot start the CPU backend: %s", strerror(-e));
        cpu_close(c);
        return e;
    }
    uint32_t n = pool_threads(c->pool);
    snprintf(c->description, sizeof c->description, "cpu %s, %u thread%s, %s", kernels->name, n,
             n == 1 ? "" : "s", mode_name(c->mode));
    *ret = c;
    return 0;
}

uint64_t cpu_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void cpu_run(struct k_ctx *c, enum k_part part, pool_fn fn, void *arg)
{
    uint64_t begin = cpu_now_ns();
    pool_run(c->pool, fn, arg);
    c->profile.ns[part] += cpu_now_ns() - begin;
    c->profile.n_sections++;
}

void cpu_run_items(struct k_ctx *c, enum k_part part, uint64_t n, uint32_t piece, pool_items_fn fn,
                   void *arg)
{
    uint64_t begin = cpu_now_ns();
    if (n > piece) {
        pool_run_items(c->pool, n, piece, fn, arg);
        c->profile.n_sections++;
    } else if (n) {
        fn(arg, 0, n, n);
    }
    c->profile.ns[part] += cpu_now_ns() - begin;
}

static void cpu_each_thread(struct k_ctx *c, pool_fn fn, void *arg)
{
    pool_run(c->pool, fn, arg);
}

static void cpu_profile(struct k_ctx *c, struct k_profile *ret)
{
    *ret = c->profile;
    ret->wait_ns = pool_wait_ns(c->pool);
}

static const char *cpu_describe(struct k_ctx *c)
{
    return c->description;
}

static int cpu_sync(struct k_ctx *c, char *message, size_t size)
{
    (void)c;
    (void)message;
    (void)size;
    return 0;
}

static size_t cpu_act_bytes(struct k_ctx *c)
{
    (void)c;
    return sizeof(float);
}

static void *cpu_alloc(struct k_ctx *c, size_t bytes)
{
    (void)c;
    return mem_alloc(bytes);
}

static void cpu_free(struct k_ctx *c, void *p)
{
    (void)c;
    mem_free(p);
}

static void cpu_upload(struct k_ctx *c, void *dst, const float *src, size_t n)
{
    (void)c;
    memcpy(dst, src, n * sizeof *src);
}

static void cpu_download(struct k_ctx *c, float *dst, const void *src, size_t n)
{
    (void)c;
    memcpy(dst, src, n * sizeof *dst);
}

static float *cpu_host_view(struct k_ctx *c, void *buffer)
{
    (void)c;
    return buffer;
}

const struct k_ops cpu_ops = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .describe = cpu_describe,
    .sync = cpu_sync,
    .act_bytes = cpu_act_bytes,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_upload,
    .download = cpu_download,
    .host_view = cpu_host_view,
    .linear_bytes = cpu_linear_bytes,
    .product_bytes = cpu_product_bytes,
    .linear_new = cpu_linear_new,
    .linear_free = cpu_linear_free,
    .linear = cpu_linear,
    .embed = cpu_embed,
    .norm_new = cpu_norm_new,
    .norm_free = cpu_norm_free,
    .norm = cpu_norm,
    .bias_new = cpu_bias_new,
    .bias_free = cpu_bias_free,
    .residual_norm = cpu_residual_norm,
    .norm_in_place = true,
    .kv_new = cpu_kv_new,
    .kv_free = cpu_kv_free,
    .kv_block_bytes = cpu_kv_block_bytes,
    .kv_copy = cpu_kv_copy,
    .rope_new = cpu_rope_new,
    .rope_free = cpu_rope_free,
    .rope_kv = cpu_rope_kv,
    .attention = cpu_attention,
    .glu = cpu_glu,
    .linear_glu = cpu_linear_glu,
    .linear_rope_kv = cpu_linear_rope_kv,
    .gather = cpu_gather,
    .feed = &cpu_feed_ops,
    .each_thread = cpu_each_thread,
    .profile = cpu_profile,
};
