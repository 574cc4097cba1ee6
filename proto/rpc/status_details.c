/* status_details.c: see status_details.h. */
#include "proto/rpc/status_details.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/utf8.h"
#include "glmd/status/details.pb-c.h"
#include "proto/rpc/wire_bytes.h"
#include "proto/rpc/wire_map.h"

static const char retry_info_url[] = "type.googleapis.com/google.rpc.RetryInfo";
static const char bad_request_url[] = "type.googleapis.com/google.rpc.BadRequest";

/* Google's Duration ends at 10,000 years; whoever says more than a day means "not soon". */
#define MAX_RETRY_SECONDS INT64_C(86400)

enum { MAX_MESSAGE_BYTES = 512, N_DETAILS = 2 };

#define DETAILS_MAP(name, message, T)                                                              \
    static const struct wire_map name = {&glmd__status__##message##__descriptor, sizeof(T),        \
                                         name##_fields,                                            \
                                         sizeof name##_fields / sizeof name##_fields[0]}

struct any {
    const char *type_url;
    struct wire_bytes value;
};
#define T struct any
static const struct wire_field any_fields[] = {F_VALUE(T, type_url), F_VALUE(T, value)};
DETAILS_MAP(any, any, T);
#undef T

struct status {
    int32_t code;
    const char *message;
    const struct any *details;
    uint32_t n_details;
};
#define T struct status
static const struct wire_field status_fields[] = {
    F_VALUE(T, code),
    F_VALUE(T, message),
    F_MESSAGES(T, details, &any),
};
DETAILS_MAP(status, status, T);
#undef T

struct duration {
    int64_t seconds;
    int32_t nanos;
};
#define T struct duration
static const struct wire_field duration_fields[] = {F_VALUE(T, seconds), F_VALUE(T, nanos)};
DETAILS_MAP(duration, duration, T);
#undef T

struct retry_info {
    const struct duration *retry_delay;
};
#define T struct retry_info
static const struct wire_field retry_info_fields[] = {F_POINTER(T, retry_delay, &duration)};
DETAILS_MAP(retry_info, retry_info, T);
#undef T

struct violation {
    const char *field, *description;
};
#define T struct violation
static const struct wire_field violation_fields[] = {F_VALUE(T, field), F_VALUE(T, description)};
DETAILS_MAP(violation, field_violation, T);
#undef T

struct bad_request {
    const struct violation *field_violations;
    uint32_t n_field_violations;
};
#define T struct bad_request
static const struct wire_field bad_request_fields[] = {F_MESSAGES(T, field_violations, &violation)};
DETAILS_MAP(bad_request, bad_request, T);
#undef T

const struct wire_map *const wire_details_maps[] = {&status, &retry_info, &bad_request, NULL};

/* ---- packing ---- */

static struct wire_bytes bytes_of(const struct buf *b)
{
    return (struct wire_bytes){b->size, (const uint8_t *)b->data};
}

static int pack_retry(int64_t after_ns, struct buf *out)
{
    const struct duration delay = {after_ns / NSEC_PER_SEC, (int32_t)(after_ns % NSEC_PER_SEC)};
    return wire_map_pack(&retry_info, &(struct retry_info){.retry_delay = &delay}, out);
}

static int pack_violation(const char *field, const char *message, struct buf *out)
{
    const struct violation v = {field, message};
    return wire_map_pack(
        &bad_request, &(struct bad_request){.field_violations = &v, .n_field_violations = 1}, out);
}

int status_details_pack(enum rpc_status code, const char *message, const struct status_details *d,
                        struct buf *out)
{
    struct buf retry = {0}, bad = {0};
    struct any details[N_DETAILS];
    uint32_t n = 0;
    int r = 0;
    char text[MAX_MESSAGE_BYTES];
    snprintf(text, sizeof text, "%s", message);
    utf8_repair(text, strlen(text)); /* it may have been cut inside a character */
    if (d->retry_after_ns > 0) {
        r = pack_retry(d->retry_after_ns, &retry);
        details[n++] = (struct any){retry_info_url, bytes_of(&retry)};
    }
    if (r == 0 && *d->field) {
        r = pack_violation(d->field, text, &bad);
        details[n++] = (struct any){bad_request_url, bytes_of(&bad)};
    }
    if (r == 0 && n)
        r = wire_map_pack(&status, &(struct status){(int32_t)code, text, details, n}, out);
    buf_deinit(&retry);
    buf_deinit(&bad);
    return r;
}

/* ---- unpacking ---- */

static void take_retry(struct wire_bytes bytes, struct status_details *ret)
{
    struct retry_info *r;
    void *object;
    if (wire_map_unpack(&retry_info, bytes.data, bytes.size, &object, NULL) < 0)
        return;
    r = object;
    const struct duration *d = r->retry_delay;
    if (d && d->seconds >= 0 && d->nanos >= 0 && d->nanos < NSEC_PER_SEC) {
        int64_t seconds = d->seconds < MAX_RETRY_SECONDS ? d->seconds : MAX_RETRY_SECONDS;
        ret->retry_after_ns = seconds * NSEC_PER_SEC + d->nanos;
    }
    wire_map_free(object);
}

static void take_violation(struct wire_bytes bytes, struct status_details *ret)
{
    void *object;
    if (wire_map_unpack(&bad_request, bytes.data, bytes.size, &object, NULL) < 0)
        return;
    const struct bad_request *b = object;
    if (b->n_field_violations) {
        snprintf(ret->field, sizeof ret->field, "%s", b->field_violations[0].field);
        utf8_repair(ret->field, strlen(ret->field));
    }
    wire_map_free(object);
}

int status_details_unpack(const uint8_t *data, size_t size, struct status_details *ret,
                          struct err *e)
{
    *ret = (struct status_details){0};
    void *object;
    int r = wire_map_unpack(&status, data, size, &object, e);
    if (r < 0)
        return r;
    const struct status *s = object;
    for (uint32_t i = 0; i != s->n_details; i++) {
        const struct any *a = &s->details[i];
        if (strcmp(a->type_url, retry_info_url) == 0)
            take_retry(a->value, ret);
        else if (strcmp(a->type_url, bad_request_url) == 0)
            take_violation(a->value, ret);
    }
    wire_map_free(object);
    return 0;
}
