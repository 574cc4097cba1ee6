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

#include <getopt.h>
#include <jansson.h>

#include "base/buf.h"
#include "base/err.h"
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

/* The options that every client verb has, for its table and its help. */
enum { CLIENT_OPTION_FIRST = 1000 };
#define CLIENT_OPTIONS                                                                             \
    {"coordinator", required_argument, NULL, 'c'},                                                 \
        {"timeout", required_argument, NULL, CLIENT_OPTION_FIRST},                                 \
        {"ca", required_argument, NULL, CLIENT_OPTION_FIRST + 1},                                  \
        {"cert", required_argument, NULL, CLIENT_OPTION_FIRST + 2},                                \
        {"key", required_argument, NULL, CLIENT_OPTION_FIRST + 3},                                 \
        {"api-key-file", required_argument, NULL, CLIENT_OPTION_FIRST + 5},                        \
    {                                                                                              \
        "tls-name", required_argument, NULL, CLIENT_OPTION_FIRST + 4                               \
    }
#define CLIENT_SHORT_OPTIONS "c:"
#define CLIENT_HELP                                                                                \
    "  -c, --coordinator HOST:PORT  or unix:PATH; default: $GLMD_COORDINATOR, 127.0.0.1:8130\n"    \
    "      --timeout SECONDS        give up after this time\n"                                     \
    "      --ca FILE                check the coordinator's certificate against this one (TLS)\n"  \
    "      --cert FILE --key FILE   own certificate and key, where the coordinator asks for one\n" \
    "      --tls-name NAME          name expected in the coordinator's certificate\n"              \
    "      --api-key-file FILE      holds the API key; default: $GLMD_API_KEY\n"

/* Takes an option that getopt_long returned: 0 when it was one of CLIENT_OPTIONS, -1 when not,
 * EXIT_USAGE (printed) when its value is wrong. */
int client_option(struct client_target *t, int c, const char *value);

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
