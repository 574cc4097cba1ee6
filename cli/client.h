/* client.h: one call of a verb to a coordinator, over a loop of its own.
 *
 * The verb packs a request, gets every response message as bytes, and an exit code at the end; what
 * went wrong has been printed by then. Ctrl-C cancels the call, a second one ends the process.
 */
#ifndef GLMD_CLI_CLIENT_H
#define GLMD_CLI_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

#include "base/buf.h"
#include "base/err.h"
#include "cli/options.h"
#include "proto/rpc/wire_inference.h"

struct client_target {
    const char *verb;
    const char *coordinator;                               /* "HOST:PORT" or "unix:PATH" */
    const char *ca_file, *cert_file, *key_file, *tls_name; /* NULL: not given */
    const char *api_key_file;                              /* NULL: GLMD_API_KEY, or no key */
    double timeout_seconds;                                /* 0: none */
};

/* Defaults: GLMD_COORDINATOR or 127.0.0.1:8130, no TLS. */
void client_target_init(struct client_target *t, const char *verb);

/* The options that every verb with a server has, for cli_parse. */
enum { CLIENT_N_OPTIONS = 7 };
struct cli_options client_options(struct client_target *t, struct cli_option ret[CLIENT_N_OPTIONS]);

/* cli_parse for a verb with a server: its own options, then client_options. */
int client_parse(int argc, char **argv, const char *usage, const struct cli_option *own,
                 size_t n_own, struct client_target *t);

struct client_call {
    const char *path;          /* "/glmd.v1.Inference/Fill" */
    const struct buf *request; /* packed */
    /* Each response message, in order. A negative value ends the call; e says why. */
    int (*on_message)(void *context, const uint8_t *data, size_t size, struct err *e);
    void *context;
};

/* A channel to the target, with its certificates and its API key. */
struct rpc_runtime;
struct rpc_channel;
int client_channel(const struct client_target *t, struct rpc_runtime *runtime,
                   struct rpc_channel **ret, struct err *e);

/* EXIT_OK when the server ended the call with OK; otherwise the failure has been printed. */
int client_run(const struct client_target *t, const struct client_call *call);

/* cli_text, and that the text can be sent: UTF-8, no NUL, not empty. Returns 0 or an exit code. */
int client_text(const char *verb, int argc, char **argv, struct buf *ret_text);

/* Text of a model on its way out: on a terminal, control characters other than newline and tab
 * become U+FFFD. Flushes. -EIO when the output is gone. */
int client_print(FILE *out, const char *text);

/* Tokens and tokens per second on standard error; n_first tokens came with the prefill. seed may be
 * NULL. */
void client_print_stats(const struct wire_usage *u, size_t n_first, const uint64_t *seed);

/* Adds "usage" and "seed" (as text: JSON numbers of many readers end at 2^53), where not NULL. */
void client_add_usage(json_t *object, const struct wire_usage *u, const uint64_t *seed);

#endif
