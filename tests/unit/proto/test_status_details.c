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
    const struct status_details nothing = {0};
    assert_int_equal(status_details_pack(RPC_INTERNAL, "x", &nothing, &out), 0);
    assert_int_equal(out.size, 0);
    buf_deinit(&out);
}

static void unpacks_what_it_packed(void **state)
{
    (void)state;
    const struct status_details in = {.retry_after_ns = 7 * NSEC_PER_SEC + 1,
                                      .field = "beam.num_beams"};
    struct status_details d;
    struct buf out = {0};
    char message[600]; /* longer than what describes a field; cut inside a character */
    memset(message, 'm', sizeof message);
    memcpy(message + 509, "\xe2\x82\xac", 4);
    assert_int_equal(status_details_pack(RPC_INVALID_ARGUMENT, message, &in, &out), 0);
    assert_int_equal(status_details_unpack((uint8_t *)out.data, out.size, &d, NULL), 0);
    assert_int_equal(d.retry_after_ns, in.retry_after_ns);
    assert_string_equal(d.field, in.field);
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
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packs_as_google_does),
        cmocka_unit_test(unpacks_what_it_packed),
        cmocka_unit_test(takes_no_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
