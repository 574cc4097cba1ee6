/* fuzz_rpc_reflection.c: requests of server reflection, from bytes to the serialized answer. */
#include <stdlib.h>

#include "proto/rpc/rpc_requests.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const services[] = {"glmd.v1.Inference", "grpc.health.v1.Health"};
    static struct descriptors *descriptors;
    struct buf response = {0};
    struct err e = ERR_INIT;
    if (!descriptors &&
        descriptors_new(glmd_descriptors, glmd_descriptors_size, &descriptors, &e) != 0)
        abort();
    int code = reflection_answer(descriptors, services, 2, data, size, &response, &e);
    /* an answer or a reason, never both */
    if (code ? response.size != 0 || !e.message[0] : response.size == 0)
        abort();
    buf_deinit(&response);
    return 0;
}
