/* http_routes.h: everything that is served over HTTP; what is not in the table is not there. A test
 * holds it against tests/e2e/http_routes.txt. */
#ifndef GLMD_COORDINATOR_HTTP_ROUTES_H
#define GLMD_COORDINATOR_HTTP_ROUTES_H

#include <stdbool.h>
#include <stddef.h>

#include "coordinator/auth.h"
#include "coordinator/openai.h"

struct http_front;

struct http_route {
    const char *method; /* "GET" (HEAD as well) or "POST" */
    const char *path;   /* one that ends in a slash and a star: everything below it */
    enum auth_need need;
    bool always; /* also when there are too many connections: probes, operators */
    bool json;   /* its body is JSON */
    enum openai_route openai;
    void (*serve)(struct http_front *f);
};

extern const struct http_route http_routes[];
extern const size_t http_n_routes;

/* NULL: no such path (*ret_allow = NULL), or not by this method (*ret_allow = those that are
 * allowed). */
const struct http_route *http_route_find(const char *method, const char *path,
                                         const char **ret_allow);

#endif
