/* internal.h: what the files of the client library share. */
#ifndef GLMD_CLI_LIB_INTERNAL_H
#define GLMD_CLI_LIB_INTERNAL_H

#include <pthread.h>

#include "cli/caller.h"
#include "cli/lib/glmd/client.h"

struct glmd_client {
    struct caller caller;
    pthread_t thread; /* that opened it */
    int64_t timeout_ns;
    unsigned max_attempts;
};

/* Fills in *error (may be NULL) and returns the code. */
enum glmd_code lib_error(struct glmd_error *error, enum glmd_code code, const char *message);
enum glmd_code lib_failure(struct glmd_error *error, const struct err *e);

/* The call, and again when it is refused for now. deadline_ns is set here. */
enum glmd_code lib_call(struct glmd_client *c, const struct call *call, struct glmd_error *error);

#endif
