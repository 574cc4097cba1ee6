/* front_http.h: the client API over HTTP: OpenAI's, and what else http_routes.c lists. Requests are
 * read and answers written by openai.h; what happens between the two is front.c's business.
 *
 *   http.h: on_head     route -> key -> size           (404, 405, 401, 403, 415, 413, 503)
 *           on_request  openai_parse -> a front call for every prompt -> reply
 *           on_done     front_gone for the calls that still run
 *
 * A stream begins with its first message: what fails before that is a status, what fails later an
 * event. Loop thread. It lives beside the coordinator, which knows nothing of it.
 */
#ifndef GLMD_COORDINATOR_FRONT_HTTP_H
#define GLMD_COORDINATOR_FRONT_HTTP_H

#include <stdint.h>

#include "base/err.h"

struct coordinator;
struct front_http;
struct uv_loop_s;

/* Listens at coordinator.http.listen, which is not empty. On failure call front_http_stop. The
 * coordinator's requests must have ended (coordinator_stop) before on_stopped; it outlives this. */
int front_http_new(struct coordinator *c, struct uv_loop_s *loop, struct front_http **ret,
                   struct err *e);
/* "127.0.0.1:8000", as clients of this host find it. */
const char *front_http_address(const struct front_http *h);
int front_http_port(const struct front_http *h);
void front_http_stop(struct front_http *h, int64_t grace_ns, void (*on_stopped)(void *context),
                     void *context);

#endif
