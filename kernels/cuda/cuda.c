/* cuda.c: the context of the CUDA backend: opening, memory, errors. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/mailbox.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Peers close as soon as they see that an epoch ends. */
#define MAILBOX_WAIT_NS INT64_C(3000000000)

/* ---- errors ---- */

void cuda_check(struct k_ctx *c, int error, const char *what)
{
    bool recording = c->graphs.recording;
    int *first = recording ? &c->graphs.error : &c->error;
    if (!error || *first)
        return;
    *first = error;
    char *text = recording ? c->graphs.why : c->error_text;
    size_t size = recording ? sizeof c->graphs.why : sizeof c->error_text;
    snprintf(text, size, "cuda:%d: %s (%s), first seen at %s", c->device,
             c->driver->error_text(error), c->driver->error_name(error), what);
}

void cuda_enter(struct k_ctx *c)
{
    cuda_check(c, c->driver->use(c->device), "choosing the device");
}

void cuda_wait(struct k_ctx *c, const char *what)
{
    assert(!c->graphs.recording); /* it would wait for what does not run */
    if (c->before_wait)
        c->before_wait(c->comm);
    if (!c->error) /* nothing else ends for certain */
        cuda_check(c, c->driver->stream_wait(c->stream), what);
    c->step.in_flight = false;
}

int cuda_sync(struct k_ctx *c, char *message, size_t size)
{
    cuda_enter(c);
    cuda_wait(c, "the end of a step");
    cuda_check(c, c->driver->last_error(), "a launch");
    if (!c->error)
        return 0;
    snprintf(message, size, "%s", c->error_text);
    return -EIO;
}

/* ---- opening ---- */

/* "cuda" or "cuda:N". */
static int parse_device(const char *text, int *ret)
{
    *ret = 0;
    if (!strcmp(text, "cuda"))
        return 0;
    char *end;
    if (strncmp(text, "cuda:", 5) != 0 || text[5] < '0' || text[5] > '9')
        return -EINVAL;
    errno = 0;
    long n = strtol(text + 5, &end, 10);
    if (errno || *end || n > 1023)
        return -EINVAL;
    *ret = (int)n;
    return 0;
}

static int check_params(const struct k_open_params *p, int *ret_device, char *message, size_t size)
{
    if (!p->device || parse_device(p->device, ret_device)) {
        snprintf(message, size, "device \"%s\": expected cuda or cuda:N",
                 p->device ? p->device : "");
        return -EINVAL;
    }
    if (p->mode != K_MODE_FP16) {
        snprintf(message, size,
                 "activation mode %s: the CUDA backend computes with fp16 activations only; set "
                 "worker.activations to fp16",
                 p->mode == K_MODE_FP32 ? "fp32" : "a8");
        return -EINVAL;
    }
    if (!p->max_rows || !p->max_cols || !p->max_seq) {
        snprintf(message, size, "max_rows %u, max_cols %u, max_seq %u: all must be at least 1",
                 p->max_rows, p->max_cols, p->max_seq);
        return -EINVAL;
    }
    return 0;
}

static int refuse(const struct cuda_driver *d, int error, const char *what, char *message,
                  size_t size)
{
    int driver = 0, runtime = 0;
    (void)d->versions(&driver, &runtime);
    char version[64] = "there is no NVIDIA driver";
    if (driver)
        snprintf(version, sizeof version, "the driver's CUDA version is %d.%d", driver / 1000,
                 driver % 1000 / 10);
    snprintf(message, size, "%s: %s (%s); %s, this program needs %d.%d", what, d->error_text(error),
             d->error_name(error), version, runtime / 1000, runtime % 1000 / 10);
    (void)d->last_error();
    return error == d->out_of_memory ? -ENOMEM : -ENODEV;
}

/* The device is there and of a kind that this backend knows. */
static int find_device(const struct cuda_driver *d, int device, struct cuda_properties *ret,
                       char *message, size_t size)
{
    int n = 0;
    int e = d->device_count(&n);
    if (e)
        return refuse(d, e, "no usable GPU", message, size);
    if (device >= n) {
        snprintf(message, size, "this host has %d CUDA device%s, cuda:0 to cuda:%d", n,
                 n == 1 ? "" : "s", n - 1);
        return -ENODEV;
    }
    e = d->properties(device, ret);
    if (e)
        return refuse(d, e, "the device does not say what it is", message, size);
    if (ret->major * 10 + ret->minor < CUDA_MIN_ARCH) {
        snprintf(message, size, "%s has compute capability %d.%d, expected at least %d.%d",
                 ret->name, ret->major, ret->minor, CUDA_MIN_ARCH / 10, CUDA_MIN_ARCH % 10);
        return -ENODEV;
    }
    return 0;
}

static int make_buffers(struct k_ctx *c)
{
    int e = c->driver->use(c->device);
    if (!e)
        e = c->driver->stream_new(&c->stream);
    if (!e)
        e = c->driver->alloc_host(&c->stage_host, CUDA_STAGE_BYTES);
    if (!e)
        e = c->driver->alloc(&c->stage_device, CUDA_STAGE_BYTES);
    return e;
}

void cuda_close(struct k_ctx *c)
{
    if (!c)
        return;
    const struct cuda_driver *d = c->driver;
    (void)d->use(c->device);
    if (c->stream)
        (void)d->stream_wait(c->stream);
    cuda_graph_hold(c);
    if (c->close_products)
        c->close_products(c);
    cuda_step_deinit(c);
    cuda_free(c, c->attention);
    cuda_free(c, c->attention_counters);
    cuda_free(c, c->stage_device);
    mailbox_free_all(c);
    if (c->stage_host)
        (void)d->free_host(c->stage_host);
    if (c->stream)
        (void)d->stream_free(c->stream);
    free(c);
}

static void describe(struct k_ctx *c, const struct cuda_properties *p)
{
    int driver = 0, runtime = 0;
    (void)c->driver->versions(&driver, &runtime);
    snprintf(c->description, sizeof c->description,
             "cuda:%d %s (%s), sm_%d, %.1f GiB, driver %d.%d, runtime %d.%d, fp16", c->device,
             p->name, p->pci_bus, c->arch, (double)p->memory_bytes / (1 << 30), driver / 1000,
             driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
}

int cuda_open(const struct k_open_params *p, struct k_ctx **ret, char *message, size_t size)
{
    const struct cuda_driver *d = cuda_driver_table();
    struct cuda_properties properties;
    int device;
    int r = check_params(p, &device, message, size);
    if (!r)
        r = find_device(d, device, &properties, message, size);
    if (r)
        return r;
    struct k_ctx *c = calloc(1, sizeof *c);
    if (!c) {
        snprintf(message, size, "out of memory");
        return -ENOMEM;
    }
    c->driver = d;
    c->device = device;
    c->arch = properties.major * 10 + properties.minor;
    c->n_multiprocessors = properties.n_multiprocessors;
    c->shared_bytes = properties.shared_bytes;
    c->prefetch_most = properties.l2_bytes / 4;
    c->mode = p->mode;
    c->max_rows = p->max_rows;
    c->max_cols = p->max_cols;
    c->max_seq = p->max_seq;
    c->mailbox_wait_ns = MAILBOX_WAIT_NS;
    if (p->no_graphs) {
        c->graphs.off = true;
        snprintf(c->graphs.why, sizeof c->graphs.why, "as configured");
    }
    describe(c, &properties);
    int e = make_buffers(c);
    if (!e)
        e = cuda_probe(c, c->stage_device);
    if (!e)
        e = d->stream_wait(c->stream);
    if (e) {
        r = refuse(d, e, "the device does not compute", message, size);
        cuda_close(c);
        return r;
    }
    *ret = c;
    return 0;
}

const char *cuda_describe(struct k_ctx *c)
{
    return c->description;
}

/* ---- memory ---- */

size_t cuda_act_bytes(struct k_ctx *c)
{
    (void)c;
    return sizeof(uint16_t);
}

void *cuda_new(struct k_ctx *c, size_t bytes)
{
    void *p = NULL;
    cuda_enter(c);
    int e = c->driver->alloc(&p, bytes ? bytes : 1);
    if (e) {
        (void)c->driver->last_error(); /* the caller hears of it; it is none of the kernels' */
        if (e != c->driver->out_of_memory)
            cuda_check(c, e, "allocating memory");
        return NULL;
    }
    cuda_check(c, c->driver->clear(p, bytes, c->stream), "clearing memory");
    return p;
}

void cuda_free(struct k_ctx *c, void *p)
{
    if (!p)
        return;
    (void)c->driver->use(c->device);
    cuda_check(c, c->driver->free(p), "freeing memory");
}

void cuda_context_memory(struct k_ctx *c, struct k_memory *ret)
{
    ret->host = CUDA_STAGE_BYTES + c->step.bytes;
    ret->device = ret->host + c->attention_bytes + c->n_attention_counters * sizeof(uint32_t);
}

int cuda_memory(struct k_ctx *c, uint64_t *ret_free, uint64_t *ret_total)
{
    size_t free_bytes = 0, total = 0;
    cuda_enter(c);
    cuda_check(c, c->driver->memory(&free_bytes, &total), "asking for the memory");
    *ret_free = free_bytes;
    *ret_total = total;
    return c->error ? -EIO : 0;
}

/* Through the page-locked buffer, which is free again when the call returns. */
void cuda_upload_bytes(struct k_ctx *c, void *dst, const void *src, size_t bytes)
{
    cuda_enter(c);
    for (size_t at = 0; at < bytes && !c->error;) {
        size_t n = bytes - at < CUDA_STAGE_BYTES ? bytes - at : CUDA_STAGE_BYTES;
        memcpy(c->stage_host, (const char *)src + at, n);
        cuda_check(c, c->driver->copy((char *)dst + at, c->stage_host, n, c->stream), "upload");
        cuda_wait(c, "upload");
        at += n;
    }
}

void cuda_download_bytes(struct k_ctx *c, void *dst, const void *src, size_t bytes)
{
    cuda_enter(c);
    for (size_t at = 0; at < bytes && !c->error;) {
        size_t n = bytes - at < CUDA_STAGE_BYTES ? bytes - at : CUDA_STAGE_BYTES;
        cuda_check(c, c->driver->copy(c->stage_host, (const char *)src + at, n, c->stream),
                   "download");
        cuda_wait(c, "download");
        if (!c->error)
            memcpy((char *)dst + at, c->stage_host, n);
        at += n;
    }
}

enum { STAGE_FLOATS = CUDA_STAGE_BYTES / sizeof(float) };

/* Activations: the device converts. */
void cuda_upload(struct k_ctx *c, void *dst, const float *src, size_t n)
{
    cuda_enter(c);
    for (size_t at = 0; at < n && !c->error;) {
        size_t m = n - at < STAGE_FLOATS ? n - at : STAGE_FLOATS;
        memcpy(c->stage_host, src + at, m * sizeof *src);
        cuda_check(c, c->driver->copy(c->stage_device, c->stage_host, m * sizeof *src, c->stream),
                   "upload");
        cuda_halves_from_floats(c, (uint16_t *)dst + at, c->stage_device, m);
        cuda_wait(c, "upload");
        at += m;
    }
}

void cuda_download(struct k_ctx *c, float *dst, const void *src, size_t n)
{
    cuda_enter(c);
    for (size_t at = 0; at < n && !c->error;) {
        size_t m = n - at < STAGE_FLOATS ? n - at : STAGE_FLOATS;
        cuda_floats_from_halves(c, c->stage_device, (const uint16_t *)src + at, m);
        cuda_check(c, c->driver->copy(c->stage_host, c->stage_device, m * sizeof *dst, c->stream),
                   "download");
        cuda_wait(c, "download");
        if (!c->error)
            memcpy(dst + at, c->stage_host, m * sizeof *dst);
        at += m;
    }
}

float *cuda_host_view(struct k_ctx *c, void *buffer)
{
    (void)c;
    (void)buffer;
    return NULL;
}
