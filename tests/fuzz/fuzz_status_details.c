/* fuzz_status_details.c: what a server may put into the trailer with the details of a status. */
#include <assert.h>
#include <string.h>

#include "base/utf8.h"
#include "proto/rpc/status_details.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct status_details d;
    struct err e = ERR_INIT;
    memset(&d, 'x', sizeof d);
    int r = status_details_unpack(data, size, &d, &e);
    assert(r == e.code && (r == 0 || e.message[0]));
    assert(d.retry_after_ns >= 0 && memchr(d.field, 0, sizeof d.field));
    assert(utf8_check(d.field, strlen(d.field)) == strlen(d.field));
    assert(memchr(d.reason, 0, sizeof d.reason) && memchr(d.quota, 0, sizeof d.quota));
    assert(strspn(d.reason, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == strlen(d.reason));
    assert(utf8_check(d.quota, strlen(d.quota)) == strlen(d.quota));
    struct buf out = {0};
    assert(status_details_pack(RPC_INVALID_ARGUMENT, "m", &d, &out) == 0);
    buf_deinit(&out);
    return 0;
}
