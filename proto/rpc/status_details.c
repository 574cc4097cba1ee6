/* status_details.c: see status_details.h. */
#include "proto/rpc/status_details.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/utf8.h"
#include "glmd/status/details.pb-c.h"
#include "proto/rpc/wire_bytes.h"
#include "proto/rpc/wire_map.h"

static const char retry_info_url[] = "type.googleapis.com/google.rpc.RetryInfo";
static const char bad_request_url[] = "type.googleapis.com/google.rpc.BadRequest";
static const char error_info_url[] = "type.googleapis.com/google.rpc.ErrorInfo";
static const char quota_failure_url[] = "type.googleapis.com/google.rpc.QuotaFailure";

static const char our_domain[] = "glmd";
static const char tokens_key[] = "committed_tokens";

/* Google's Duration ends at 10,000 years; whoever says more than a day means "not soon". */
#define MAX_RETRY_SECONDS INT64_C(86400)

enum { MAX_MESSAGE_BYTES = 512, N_DETAILS = 4 };

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

struct metadatum {
    const char *key, *value;
};
#define T struct metadatum
static const struct wire_field metadatum_fields[] = {F_VALUE(T, key), F_VALUE(T, value)};
DETAILS_MAP(metadatum, metadatum, T);
#undef T

struct error_info {
    const char *reason, *domain;
    const struct metadatum *metadata;
    uint32_t n_metadata;
};
#define T struct error_info
static const struct wire_field error_info_fields[] = {
    F_VALUE(T, reason),
    F_VALUE(T, domain),
    F_MESSAGES(T, metadata, &metadatum),
};
DETAILS_MAP(error_info, error_info, T);
#undef T

struct quota_violation {
    const char *subject, *description;
};
#define T struct quota_violation
static const struct wire_field quota_violation_fields[] = {F_VALUE(T, subject),
                                                           F_VALUE(T, description)};
DETAILS_MAP(quota_violation, quota_violation, T);
#undef T

struct quota_failure {
    const struct quota_violation *violations;
    uint32_t n_violations;
};
#define T struct quota_failure
static const struct wire_field quota_failure_fields[] = {
    F_MESSAGES(T, violations, &quota_violation)};
DETAILS_MAP(quota_failure, quota_failure, T);
#undef T

const struct wire_map *const wire_details_maps[] = {&status,     &retry_info,    &bad_request,
                                                    &error_info, &quota_failure, NULL};

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

static int pack_info(const struct status_details *d, struct buf *out)
{
    char tokens[24];
    snprintf(tokens, sizeof tokens, "%" PRIu64, d->n_tokens);
    const struct metadatum m = {tokens_key, tokens};
    return wire_map_pack(
        &error_info,
        &(struct error_info){
            .reason = d->reason, .domain = our_domain, .metadata = &m, .n_metadata = d->has_tokens},
        out);
}

static int pack_quota(const char *subject, const char *message, struct buf *out)
{
    const struct quota_violation v = {subject, message};
    return wire_map_pack(&quota_failure,
                         &(struct quota_failure){.violations = &v, .n_violations = 1}, out);
}

int status_details_pack(enum rpc_status code, const char *message, const struct status_details *d,
                        struct buf *out)
{
    struct buf info = {0}, retry = {0}, bad = {0}, quota = {0};
    struct any details[N_DETAILS];
    uint32_t n = 0;
    int r = 0;
    char text[MAX_MESSAGE_BYTES];
    snprintf(text, sizeof text, "%s", message);
    utf8_repair(text, strlen(text)); /* it may have been cut inside a character */
    if (*d->reason) {
        r = pack_info(d, &info);
        details[n++] = (struct any){error_info_url, bytes_of(&info)};
    }
    if (r == 0 && d->retry_after_ns > 0) {
        r = pack_retry(d->retry_after_ns, &retry);
        details[n++] = (struct any){retry_info_url, bytes_of(&retry)};
    }
    if (r == 0 && *d->field) {
        r = pack_violation(d->field, text, &bad);
        details[n++] = (struct any){bad_request_url, bytes_of(&bad)};
    }
    if (r == 0 && *d->quota) {
        r = pack_quota(d->quota, text, &quota);
        details[n++] = (struct any){quota_failure_url, bytes_of(&quota)};
    }
    if (r == 0 && n)
        r = wire_map_pack(&status, &(struct status){(int32_t)code, text, details, n}, out);
    buf_deinit(&info);
    buf_deinit(&retry);
    buf_deinit(&bad);
    buf_deinit(&quota);
    return r;
}

/* ---- unpacking: what is understood of each kind ---- */

static void take_retry(const void *object, struct status_details *ret)
{
    const struct retry_info *r = object;
    const struct duration *d = r->retry_delay;
    if (!d || d->seconds < 0 || d->nanos < 0 || d->nanos >= NSEC_PER_SEC)
        return;
    int64_t seconds = d->seconds < MAX_RETRY_SECONDS ? d->seconds : MAX_RETRY_SECONDS;
    ret->retry_after_ns = seconds * NSEC_PER_SEC + d->nanos;
}

static void take_name(const char *name, char ret[STATUS_FIELD_BYTES])
{
    snprintf(ret, STATUS_FIELD_BYTES, "%s", name);
    utf8_repair(ret, strlen(ret));
}

static void take_violation(const void *object, struct status_details *ret)
{
    const struct bad_request *b = object;
    if (b->n_field_violations)
        take_name(b->field_violations[0].field, ret->field);
}

static void take_quota(const void *object, struct status_details *ret)
{
    const struct quota_failure *q = object;
    if (q->n_violations)
        take_name(q->violations[0].subject, ret->quota);
}

/* A constant, as its specification has it: A-Z, 0-9 and '_'. */
static bool is_reason(const char *text)
{
    size_t n = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
    return n > 0 && n < STATUS_REASON_BYTES && !text[n];
}

static void take_tokens(const char *text, struct status_details *ret)
{
    size_t n = strspn(text, "0123456789");
    if (n == 0 || n > 18 || text[n]) /* no sum of tokens has more digits */
        return;
    ret->n_tokens = strtoull(text, NULL, 10);
    ret->has_tokens = true;
}

/* Of other domains nothing is known. */
static void take_info(const void *object, struct status_details *ret)
{
    const struct error_info *i = object;
    if (strcmp(i->domain, our_domain) != 0 || !is_reason(i->reason))
        return;
    snprintf(ret->reason, sizeof ret->reason, "%s", i->reason);
    for (uint32_t k = 0; k != i->n_metadata; k++) {
        if (strcmp(i->metadata[k].key, tokens_key) == 0)
            take_tokens(i->metadata[k].value, ret);
    }
}

static const struct {
    const char *type_url;
    const struct wire_map *map;
    void (*take)(const void *object, struct status_details *ret);
} kinds[N_DETAILS] = {
    {error_info_url, &error_info, take_info},
    {retry_info_url, &retry_info, take_retry},
    {bad_request_url, &bad_request, take_violation},
    {quota_failure_url, &quota_failure, take_quota},
};

static void take_any(const struct any *a, struct status_details *ret)
{
    for (size_t i = 0; i != N_DETAILS; i++) {
        void *object;
        if (strcmp(a->type_url, kinds[i].type_url) != 0)
            continue;
        if (wire_map_unpack(kinds[i].map, a->value.data, a->value.size, &object, NULL) == 0)
            kinds[i].take(object, ret);
        wire_map_free(object);
        return;
    }
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
    for (uint32_t i = 0; i != s->n_details; i++)
        take_any(&s->details[i], ret);
    wire_map_free(object);
    return 0;
}
