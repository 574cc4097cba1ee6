/* fuzz_rpc_health.c: requests of the health service. */
#include <stdlib.h>
#include <string.h>

#include "proto/rpc/rpc_requests.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char service[HEALTH_MAX_SERVICE_BYTES + 1];
    struct err e = ERR_INIT;
    memset(service, 'x', sizeof service);
    int code = health_read_request(data, size, service, &e);
    if (code ? !e.message[0] : !memchr(service, 0, sizeof service))
        abort();
    return 0;
}
