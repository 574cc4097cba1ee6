/* client.c: the library's clients: options, calls with their attempts, errors. See glmd/client.h.
 */
#include "cli/lib/internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/random.h"
#include "base/util.h"

enum {
    MAX_MESSAGE_BYTES = 16 << 20,
    DEFAULT_ATTEMPTS = 3,
    MAX_ATTEMPTS = 5,
};

#define DEFAULT_ADDRESS "127.0.0.1:8130"
/* Waits between attempts when the server did not say how long: doubling from the first. */
#define FIRST_WAIT_NS (100 * NSEC_PER_MSEC)
#define MAX_WAIT_NS   (30 * NSEC_PER_SEC)
#define MAX_TIMEOUT   1e9 /* seconds */

/* ---- errors ---- */

enum glmd_code lib_error(struct glmd_error *error, enum glmd_code code, const char *message)
{
    if (!error)
        return code;
    *error = (struct glmd_error){.code = code};
    snprintf(error->message, sizeof error->message, "%s", message);
    return code;
}

enum glmd_code lib_failure(struct glmd_error *error, const struct err *e)
{
    enum glmd_code code = e->code == -EINVAL || e->code == -E2BIG ? GLMD_INVALID_ARGUMENT
                          : e->code == -ENOMEM                    ? GLMD_RESOURCE_EXHAUSTED
                          : e->code == -EBADMSG                   ? GLMD_DATA_LOSS
                          : e->code == -ECANCELED                 ? GLMD_CANCELLED
                                                                  : GLMD_INTERNAL;
    return lib_error(error, code, e->message[0] ? e->message : err_name(e->code));
}

static enum glmd_code end_error(struct glmd_error *error, const struct call_end *end)
{
    if (end->failure.code)
        return lib_failure(error, &end->failure);
    enum glmd_code code = (enum glmd_code)end->status;
    if (code == GLMD_OK) {
        if (error)
            *error = (struct glmd_error){.code = GLMD_OK};
        return code;
    }
    lib_error(error, code, end->message[0] ? end->message : rpc_status_name(end->status));
    if (error) {
        snprintf(error->field, sizeof error->field, "%s", end->details.field);
        error->retry_seconds = (double)end->details.retry_after_ns / (double)NSEC_PER_SEC;
    }
    return code;
}

/* ---- clients ---- */

static int open_channel(struct glmd_client *c, const struct glmd_options *o, struct err *e)
{
    const struct rpc_limits limits = {.max_message_bytes = MAX_MESSAGE_BYTES};
    const struct rpc_tls tls = {.ca_file = o->ca_file,
                                .cert_file = o->cert_file,
                                .key_file = o->key_file,
                                .target_name = o->server_name};
    bool secure = o->ca_file || o->cert_file || o->key_file || o->server_name;
    const char *from_environment = getenv("GLMD_COORDINATOR"), *key = o->api_key;
    const char *address = o->address                              ? o->address
                          : from_environment && *from_environment ? from_environment
                                                                  : DEFAULT_ADDRESS;
    if (!key)
        key = getenv("GLMD_API_KEY");
    int r = rpc_channel_new(c->caller.runtime, address, secure ? &tls : NULL, &limits,
                            &c->caller.channel, e);
    if (r == 0 && key && *key) {
        r = rpc_channel_authorize(c->caller.channel, key);
        if (r < 0)
            err_set(e, r, "the API key: expected printable ASCII characters");
    }
    return r;
}

/* A library does not write to its program's standard error. */
static void drop_log(void *context, enum log_level level, const char *line)
{
    (void)context, (void)level, (void)line;
}

enum glmd_code glmd_client_open(const struct glmd_options *options, struct glmd_client **ret,
                                struct glmd_error *error)
{
    struct glmd_options o = glmd_options_init();
    struct err e = ERR_INIT;
    *ret = NULL;
    if (options)
        memcpy(&o, options, MIN(options->size, sizeof o));
    if (!(o.timeout_seconds >= 0 && o.timeout_seconds <= MAX_TIMEOUT) ||
        o.max_attempts > MAX_ATTEMPTS)
        return lib_error(error, GLMD_INVALID_ARGUMENT,
                         "options: expected timeout_seconds from 0 and at most 5 max_attempts");
    struct glmd_client *c = calloc(1, sizeof *c);
    if (!c)
        return lib_error(error, GLMD_RESOURCE_EXHAUSTED, "out of memory");
    log_set_sink(drop_log, NULL);
    c->thread = pthread_self();
    c->timeout_ns = (int64_t)(o.timeout_seconds * (double)NSEC_PER_SEC);
    c->max_attempts = o.max_attempts ? o.max_attempts : DEFAULT_ATTEMPTS;
    int r = caller_open(&c->caller, &e);
    if (r == 0)
        r = open_channel(c, &o, &e);
    if (r < 0) {
        caller_close(&c->caller);
        free(c);
        return lib_failure(error, &e);
    }
    *ret = c;
    return lib_error(error, GLMD_OK, "");
}

void glmd_client_close(struct glmd_client *c)
{
    if (!c)
        return;
    caller_close(&c->caller);
    free(c);
}

/* ---- calls ---- */

/* Whether the call may be made again, and after how long. Text that has come is never repeated. */
static bool may_retry(const struct call_end *end, unsigned attempt, int64_t *ret_wait_ns)
{
    bool for_now = end->status == RPC_UNAVAILABLE ||
                   (end->status == RPC_RESOURCE_EXHAUSTED && end->details.retry_after_ns > 0);
    if (!for_now || end->n_messages || end->failure.code)
        return false;
    int64_t wait = MIN(MAX(end->details.retry_after_ns, FIRST_WAIT_NS << attempt), MAX_WAIT_NS);
    uint32_t drawn = 0;
    random_bytes(&drawn, sizeof drawn);
    /* Many clients that were refused together do not come back together. */
    *ret_wait_ns = wait + wait / 4 * (int64_t)(drawn % 1024) / 1024;
    return true;
}

static void wait_ns(int64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / NSEC_PER_SEC), .tv_nsec = ns % NSEC_PER_SEC};
    while (nanosleep(&t, &t) < 0 && errno == EINTR)
        ;
}

enum glmd_code lib_call(struct glmd_client *c, const struct call *call, struct glmd_error *error)
{
    struct call_end end;
    struct err e = ERR_INIT;
    if (!pthread_equal(c->thread, pthread_self()) || c->caller.rpc)
        return lib_error(error, GLMD_FAILED_PRECONDITION,
                         "a client makes one call at a time, on the thread that opened it");
    int64_t give_up = c->timeout_ns ? clock_now_ns() + c->timeout_ns : INT64_MAX;
    for (unsigned attempt = 0;; attempt++) {
        struct call one = *call;
        int64_t left = give_up - clock_now_ns(), wait = 0;
        one.deadline_ns = c->timeout_ns ? MAX(left, INT64_C(1)) : 0;
        int r = caller_run(&c->caller, &one, &end, &e);
        if (r < 0)
            return lib_failure(error, &e);
        bool again = attempt + 1 < c->max_attempts && may_retry(&end, attempt, &wait);
        if (!again || wait >= give_up - clock_now_ns())
            return end_error(error, &end);
        wait_ns(wait);
    }
}

/* ---- this library ---- */

const char *glmd_code_name(enum glmd_code code)
{
    return rpc_status_name((enum rpc_status)code);
}

const char *glmd_client_version(void)
{
    return GLMD_VERSION;
}

void glmd_free(void *memory)
{
    free(memory);
}
