/* test_status_details.c: what a status says to programs, against the bytes that Google's own
 * messages have (made with Python's protobuf), and against bytes that are nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/clock.h"
#include "proto/rpc/status_details.h"

/* Status{8, "full", [RetryInfo{1.5 s}]} */
static const char retry_bytes[] = "\x08\x08\x12\x04"
                                  "full"
                                  "\x1a\x36\x0a\x28type.googleapis.com/google.rpc.RetryInfo"
                                  "\x12\x0a\x0a\x08\x08\x01\x10\x80\xca\xb5\xee\x01";
/* Status{3, "bad", [BadRequest{["n", "bad"]}]} */
static const char field_bytes[] = "\x08\x03\x12\x03"
                                  "bad"
                                  "\x1a\x37\x0a\x29type.googleapis.com/google.rpc.BadRequest"
                                  "\x12\x0a\x0a\x08\x0a\x01n\x12\x03"
                                  "bad";

/* Status{10, "lost", [ErrorInfo{"STOPPING", "glmd", {"committed_tokens": "12"}}]} */
static const char info_bytes[] = "\x08\x0a\x12\x04"
                                 "lost"
                                 "\x1a\x54\x0a\x28type.googleapis.com/google.rpc.ErrorInfo"
                                 "\x12\x28\x0a\x08STOPPING\x12\x04glmd"
                                 "\x1a\x16\x0a\x10"
                                 "committed_tokens\x12\x02"
                                 "12";
/* Status{8, "q", [QuotaFailure{["api_key", "q"]}]} */
static const char quota_bytes[] = "\x08\x08\x12\x01q"
                                  "\x1a\x3d\x0a\x2btype.googleapis.com/google.rpc.QuotaFailure"
                                  "\x12\x0e\x0a\x0c\x0a\x07"
                                  "api_key\x12\x01q";

static void expect_bytes(const struct buf *found, const char *expected, size_t size)
{
    assert_int_equal(found->size, size);
    assert_memory_equal(found->data, expected, size);
}

static void packs_as_google_does(void **state)
{
    (void)state;
    struct buf out = {0};
    const struct status_details retry = {.retry_after_ns = 1500 * NSEC_PER_MSEC};
    assert_int_equal(status_details_pack(RPC_RESOURCE_EXHAUSTED, "full", &retry, &out), 0);
    expect_bytes(&out, retry_bytes, sizeof retry_bytes - 1);
    buf_clear(&out);
    const struct status_details field = {.field = "n"};
    assert_int_equal(status_details_pack(RPC_INVALID_ARGUMENT, "bad", &field, &out), 0);
    expect_bytes(&out, field_bytes, sizeof field_bytes - 1);
    buf_clear(&out);
    const struct status_details info = {.reason = "STOPPING", .has_tokens = true, .n_tokens = 12};
    assert_int_equal(status_details_pack(RPC_ABORTED, "lost", &info, &out), 0);
    expect_bytes(&out, info_bytes, sizeof info_bytes - 1);
    buf_clear(&out);
    const struct status_details quota = {.quota = "api_key"};
    assert_int_equal(status_details_pack(RPC_RESOURCE_EXHAUSTED, "q", &quota, &out), 0);
    expect_bytes(&out, quota_bytes, sizeof quota_bytes - 1);
    buf_clear(&out);
    const struct status_details nothing = {0};
    assert_int_equal(status_details_pack(RPC_INTERNAL, "x", &nothing, &out), 0);
    assert_int_equal(out.size, 0);
    buf_deinit(&out);
}

static void unpacks_what_it_packed(void **state)
{
    (void)state;
    const struct status_details in = {.retry_after_ns = 7 * NSEC_PER_SEC + 1,
                                      .field = "beam.num_beams",
                                      .reason = "QUEUE_FULL",
                                      .has_tokens = true,
                                      .n_tokens = UINT64_C(999999999999999999)};
    struct status_details d;
    struct buf out = {0};
    char message[600]; /* longer than what describes a field; cut inside a character */
    memset(message, 'm', sizeof message);
    memcpy(message + 509, "\xe2\x82\xac", 4);
    assert_int_equal(status_details_pack(RPC_INVALID_ARGUMENT, message, &in, &out), 0);
    assert_int_equal(status_details_unpack((uint8_t *)out.data, out.size, &d, NULL), 0);
    assert_int_equal(d.retry_after_ns, in.retry_after_ns);
    assert_string_equal(d.field, in.field);
    assert_string_equal(d.reason, in.reason);
    assert_true(d.has_tokens);
    assert_int_equal(d.n_tokens, in.n_tokens);
    assert_string_equal(d.quota, "");
    assert_true(out.size <= RPC_MAX_DETAILS_BYTES);
    buf_deinit(&out);
}

static int unpack(const char *bytes, size_t size, struct status_details *ret)
{
    struct err e = ERR_INIT;
    memset(ret, 'x', sizeof *ret);
    return status_details_unpack((const uint8_t *)bytes, size, ret, &e);
}

static void takes_no_nonsense(void **state)
{
    (void)state;
    struct status_details d;
    static const char negative[] = "\x1a\x36\x0a\x28type.googleapis.com/google.rpc.RetryInfo"
                                   "\x12\x0a\x0a\x08\x08\x01\x10\xff\xff\xff\xff\x03";
    static const char century[] = "\x1a\x34\x0a\x28type.googleapis.com/google.rpc.RetryInfo"
                                  "\x12\x08\x0a\x06\x08\x80\xa7\xe4\xe0\x0b";
    static const char other[] = "\x1a\x0c\x0a\x06"
                                "foo/ba\x12\x02\xff\xff";
    assert_int_equal(unpack("", 0, &d), 0);
    assert_int_equal(d.retry_after_ns, 0);
    assert_int_equal(unpack("\xff\xff", 2, &d), -EBADMSG);
    assert_int_equal(d.retry_after_ns, 0);
    assert_string_equal(d.field, "");
    assert_int_equal(unpack(negative, sizeof negative - 1, &d), 0);
    assert_int_equal(d.retry_after_ns, 0); /* nanoseconds beyond a second */
    assert_int_equal(unpack(century, sizeof century - 1, &d), 0);
    assert_int_equal(d.retry_after_ns, 86400 * NSEC_PER_SEC);
    assert_int_equal(unpack(other, sizeof other - 1, &d), 0);
    assert_int_equal(d.retry_after_ns, 0);
    for (size_t n = 0; n < sizeof field_bytes - 1; n++)
        unpack(field_bytes, n, &d); /* cut anywhere: no crash, no garbage */
    assert_true(d.retry_after_ns == 0);
    for (size_t n = 0; n < sizeof info_bytes - 1; n++)
        unpack(info_bytes, n, &d);
    assert_string_equal(d.reason, "");
}

/* The bytes of an ErrorInfo, with something else in their place. */
static void expect_reason(const char *place, const char *instead, const char *reason, bool tokens)
{
    char bytes[sizeof info_bytes];
    struct status_details d;
    memcpy(bytes, info_bytes, sizeof bytes);
    for (size_t i = 0; i + strlen(place) < sizeof bytes; i++) {
        if (memcmp(bytes + i, place, strlen(place)) == 0)
            memcpy(bytes + i, instead, strlen(instead));
    }
    assert_int_equal(unpack(bytes, sizeof bytes - 1, &d), 0);
    assert_string_equal(d.reason, reason);
    assert_int_equal(d.has_tokens, tokens);
    assert_int_equal(d.n_tokens, tokens ? 12 : 0);
}

static void takes_reasons_of_its_own_domain(void **state)
{
    (void)state;
    expect_reason("STOPPING", "STOPPING", "STOPPING", true);
    expect_reason("STOPPING", "STOP\n\x1bNG", "", false);
    expect_reason("STOPPING", "stopping", "", false);
    expect_reason("\x04glmd", "\x04glme", "", false);
    expect_reason("\x02"
                  "12",
                  "\x02-1", "STOPPING", false);
    expect_reason("committed_tokens", "committed_kisses", "STOPPING", false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packs_as_google_does),
        cmocka_unit_test(unpacks_what_it_packed),
        cmocka_unit_test(takes_no_nonsense),
        cmocka_unit_test(takes_reasons_of_its_own_domain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
