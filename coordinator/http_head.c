/* http_head.c: see http_internal.h. */
#include <string.h>
#include <strings.h>

#include "base/util.h"
#include "coordinator/http_internal.h"

enum { MAX_FIELDS = 100 };

struct head {
    unsigned n_fields, n_lengths, n_codings, n_hosts;
    bool bad;
    const char *coding, *length;
};

/* RFC 9110, 5.6.2 */
static bool is_token(const char *text, size_t n)
{
    static const char others[] = "!#$%&'*+-.^_`|~";
    for (size_t i = 0; i != n; i++) {
        unsigned char c = (unsigned char)text[i];
        bool alnum = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
        if (!alnum && !(c && strchr(others, c)))
            return false;
    }
    return n > 0;
}

static bool is_field_text(const char *text, size_t n)
{
    for (size_t i = 0; i != n; i++) {
        unsigned char c = (unsigned char)text[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return false;
    }
    return true;
}

static bool is(const char *name, size_t n, const char *expected)
{
    return n == strlen(expected) && strncasecmp(name, expected, n) == 0;
}

static enum MHD_Result look(void *context, enum MHD_ValueKind kind, const char *name, size_t n_name,
                            const char *value, size_t n_value)
{
    struct head *h = context;
    (void)kind;
    h->n_fields++;
    value = value ? value : "";
    if (!is_token(name, n_name) || !is_field_text(value, n_value))
        h->bad = true;
    if (is(name, n_name, "content-length")) {
        h->n_lengths++;
        h->length = value;
    } else if (is(name, n_name, "transfer-encoding")) {
        h->n_codings++;
        h->coding = value;
    } else if (is(name, n_name, "host")) {
        h->n_hosts++;
    }
    return MHD_YES;
}

/* Digits only, and not more than a number holds; MHD has looked at it before. */
static bool parse_length(const char *text, uint64_t *ret)
{
    uint64_t value = 0;
    size_t n = strspn(text, "0123456789");
    if (n == 0 || n > 19 || text[n])
        return false;
    for (size_t i = 0; i != n; i++)
        value = value * 10 + (uint64_t)(text[i] - '0');
    *ret = value;
    return true;
}

unsigned http_check_head(struct MHD_Connection *mhd, const char *version, size_t max_bytes,
                         uint64_t *ret_length, const char **ret_why)
{
    struct head h = {0};
    const union MHD_ConnectionInfo *size =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    MHD_get_connection_values_n(mhd, MHD_HEADER_KIND, look, &h);
    *ret_length = 0;
    if ((size && size->header_size > max_bytes) || h.n_fields > MAX_FIELDS) {
        *ret_why = "the head of the request is too long";
        return 431;
    }
    if (h.bad) {
        *ret_why = "a header field is malformed";
        return 400;
    }
    bool is_1_1 = strcmp(version, "HTTP/1.1") == 0;
    if (h.n_hosts > 1 || (h.n_hosts == 0 && is_1_1)) {
        *ret_why = "expected one Host";
        return 400;
    }
    /* Where another server could see the body end elsewhere. */
    if (h.n_lengths > 1 || h.n_codings > 1 || (h.n_lengths && h.n_codings)) {
        *ret_why = "more than one Content-Length or Transfer-Encoding";
        return 400;
    }
    if (h.n_codings && !is_1_1) {
        *ret_why = "Transfer-Encoding needs HTTP/1.1";
        return 400;
    }
    if (h.n_codings && strcasecmp(h.coding, "chunked") != 0) {
        *ret_why = "Transfer-Encoding: only chunked is understood";
        return 501;
    }
    if (h.n_lengths && !parse_length(h.length, ret_length)) {
        *ret_why = "Content-Length is malformed";
        return 400;
    }
    if (h.n_codings)
        *ret_length = UINT64_MAX;
    return 0;
}

const char *http_origin_path(const char *target)
{
    const char *authority = strncasecmp(target, "http://", 7) == 0    ? target + 7
                            : strncasecmp(target, "https://", 8) == 0 ? target + 8
                                                                      : NULL;
    if (!authority)
        return target;
    const char *path = strchr(authority, '/');
    return path ? path : "/";
}
