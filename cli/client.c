/* client.c: see client.h. */
#include "cli/client.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/utf8.h"
#include "base/util.h"
#include "cli/caller.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "proto/rpc/rpc.h"

/* A filled text of 64 beams with token ids stays far below. */
enum { MAX_MESSAGE_BYTES = 16 << 20 };

#define DEFAULT_COORDINATOR "127.0.0.1:8130"

/* ---- options ---- */

void client_target_init(struct client_target *t, const char *verb)
{
    const char *address = getenv("GLMD_COORDINATOR");
    *t = (struct client_target){
        .verb = verb,
        .coordinator = address && address[0] ? address : DEFAULT_COORDINATOR,
    };
}

struct cli_options client_options(struct client_target *t, struct cli_option ret[CLIENT_N_OPTIONS])
{
    static const char help[] =
        "  -c, --coordinator HOST:PORT  or unix:PATH; default: $GLMD_COORDINATOR, 127.0.0.1:8130\n"
        "      --timeout SECONDS        give up after this time\n"
        "      --ca FILE                check the coordinator's certificate against this one "
        "(TLS)\n"
        "      --cert FILE --key FILE   own certificate and key, where the coordinator asks for "
        "one\n"
        "      --tls-name NAME          name expected in the coordinator's certificate\n"
        "      --api-key-file FILE      holds the API key; default: $GLMD_API_KEY\n";
    const struct cli_option options[CLIENT_N_OPTIONS] = {
        CLI_TEXT("coordinator", &t->coordinator),
        CLI_DOUBLE("timeout", &t->timeout_seconds, 0.001, 1e6),
        CLI_TEXT("ca", &t->ca_file),
        CLI_TEXT("cert", &t->cert_file),
        CLI_TEXT("key", &t->key_file),
        CLI_TEXT("tls-name", &t->tls_name),
        CLI_TEXT("api-key-file", &t->api_key_file),
    };
    memcpy(ret, options, sizeof options);
    ret[0].letter = 'c';
    return (struct cli_options){ret, CLIENT_N_OPTIONS, help};
}

int client_parse(int argc, char **argv, const char *usage, const struct cli_option *own,
                 size_t n_own, struct client_target *t)
{
    struct cli_option server[CLIENT_N_OPTIONS];
    const struct cli_options tables[] = {{own, n_own, NULL}, client_options(t, server)};
    return cli_parse(argc, argv, usage, tables, ARRAY_LEN(tables));
}

/* ---- one call ---- */

struct client {
    const struct client_target *target;
    struct caller caller;
    uv_signal_t interrupt;
    bool interrupted;
};

static void on_interrupt(uv_signal_t *signal, int number)
{
    (void)number;
    struct client *c = signal->data;
    c->interrupted = true;
    caller_cancel(&c->caller);
    uv_signal_stop(signal); /* a second Ctrl-C ends the process */
}

/* The first line of the file. */
static int read_key(const char *file, char *key, size_t size, struct err *e)
{
    FILE *f = fopen(file, "re");
    if (!f)
        return err_set(e, -errno, "%s: %s", file, err_name(-errno));
    bool any = fgets(key, (int)size, f) != NULL;
    fclose(f);
    if (any)
        key[strcspn(key, "\r\n")] = '\0';
    return any ? 0 : err_set(e, -EINVAL, "%s: expected an API key in the first line", file);
}

static int authorize(const struct client_target *t, struct rpc_channel *ch, struct err *e)
{
    char key[1100] = "";
    const char *given = getenv("GLMD_API_KEY");
    int r = 0;
    if (t->api_key_file)
        r = read_key(t->api_key_file, key, sizeof key, e);
    else if (!given || !*given)
        return 0;
    if (r == 0 && rpc_channel_authorize(ch, t->api_key_file ? key : given) < 0)
        r = err_set(e, -EINVAL, "the API key in %s: expected printable ASCII characters",
                    t->api_key_file ? t->api_key_file : "GLMD_API_KEY");
    explicit_bzero(key, sizeof key);
    return r;
}

int client_channel(const struct client_target *t, struct rpc_runtime *runtime,
                   struct rpc_channel **ret, struct err *e)
{
    const struct rpc_tls tls = {.ca_file = t->ca_file,
                                .cert_file = t->cert_file,
                                .key_file = t->key_file,
                                .target_name = t->tls_name};
    bool secure = t->ca_file || t->cert_file || t->key_file || t->tls_name;
    const struct rpc_limits limits = {.max_message_bytes = MAX_MESSAGE_BYTES};
    struct rpc_channel *ch;
    int r = rpc_channel_new(runtime, t->coordinator, secure ? &tls : NULL, &limits, &ch, e);
    if (r < 0)
        return r;
    r = authorize(t, ch, e);
    if (r < 0)
        rpc_channel_close(ch);
    else
        *ret = ch;
    return r;
}

/* The transport's own words for a server that cannot be reached, as opposed to one that refuses. */
static bool is_unreachable(const struct call_end *end)
{
    return end->status == RPC_UNAVAILABLE &&
           (strstr(end->message, "connect") || strstr(end->message, "DNS") ||
            strstr(end->message, "esol") || strstr(end->message, "ocket"));
}

static int report(const struct client *c, const struct call_end *end)
{
    const struct client_target *t = c->target;
    if (c->interrupted && end->status != RPC_OK) {
        fprintf(stderr, "glmd %s: cancelled\n", t->verb);
        return EXIT_FAILED;
    }
    if (end->failure.code)
        return cli_failed(t->verb, &end->failure);
    if (end->status == RPC_OK)
        return EXIT_OK;
    if (is_unreachable(end)) {
        fprintf(stderr,
                "glmd %s: no coordinator answers at %s (%s)\n"
                "Start one with `glmd-coordinator --config FILE`, or name another one with "
                "--coordinator HOST:PORT or GLMD_COORDINATOR.\n",
                t->verb, t->coordinator, end->message);
        return EXIT_UNAVAILABLE;
    }
    if (end->status == RPC_DEADLINE_EXCEEDED && t->timeout_seconds > 0)
        fprintf(stderr, "glmd %s: no complete answer from %s within %g s\n", t->verb,
                t->coordinator, t->timeout_seconds);
    else
        fprintf(stderr, "glmd %s: %s: %s\n", t->verb, rpc_status_name(end->status),
                end->message[0] ? end->message : "(no message)");
    if (end->details.retry_after_ns > 0)
        fprintf(stderr, "It is worth another try after %.1f s.\n",
                (double)end->details.retry_after_ns / (double)NSEC_PER_SEC);
    return end->status == RPC_UNAVAILABLE ? EXIT_UNAVAILABLE : EXIT_FAILED;
}

int client_run(const struct client_target *t, const struct client_call *call)
{
    struct client c = {.target = t};
    struct call_end end;
    struct err e = ERR_INIT;
    const struct call one = {
        .path = call->path,
        .request = call->request,
        .deadline_ns = (int64_t)(t->timeout_seconds * (double)NSEC_PER_SEC),
        .on_message = call->on_message,
        .context = call->context,
    };
    int r = caller_open(&c.caller, &e);
    if (r == 0)
        r = client_channel(t, c.caller.runtime, &c.caller.channel, &e);
    if (r < 0) {
        caller_close(&c.caller);
        cli_failed(t->verb, &e);
        return EXIT_FAILED;
    }
    uv_signal_init(&c.caller.loop, &c.interrupt);
    c.interrupt.data = &c;
    uv_signal_start(&c.interrupt, on_interrupt, SIGINT);
    r = caller_run(&c.caller, &one, &end, &e);
    uv_close((uv_handle_t *)&c.interrupt, NULL);
    caller_close(&c.caller);
    return r < 0 ? cli_failed(t->verb, &e) : report(&c, &end);
}

/* ---- text ---- */

int client_text(const char *verb, int argc, char **argv, struct buf *ret_text)
{
    int code = cli_text(verb, argc, argv, ret_text);
    if (code)
        return code;
    if (ret_text->size == 0)
        return cli_usage_error(verb, "the text is empty");
    size_t valid = utf8_check(ret_text->data, ret_text->size);
    valid = MIN(valid, strlen(ret_text->data));
    if (valid < ret_text->size) {
        fprintf(stderr, "glmd %s: the text is not UTF-8: invalid byte at offset %zu\n", verb,
                valid);
        return EXIT_FAILED;
    }
    return 0;
}

/* Bytes of a control character (C0 except newline and tab, DEL, C1), else 0. */
static size_t control_size(const unsigned char *text)
{
    if ((text[0] < 0x20 && text[0] != '\n' && text[0] != '\t') || text[0] == 0x7f)
        return 1;
    return text[0] == 0xc2 && text[1] >= 0x80 && text[1] < 0xa0 ? 2 : 0;
}

int client_print(FILE *out, const char *text)
{
    bool terminal = isatty(fileno(out));
    while (*text) {
        size_t control = terminal ? control_size((const unsigned char *)text) : 0;
        if (control)
            fputs("\xef\xbf\xbd", out);
        else
            putc((unsigned char)*text, out);
        text += control ? control : 1;
    }
    return fflush(out) == EOF ? -EIO : 0;
}

/* ---- usage ---- */

void client_print_stats(const struct wire_usage *u, size_t n_first, const uint64_t *seed)
{
    fprintf(stderr, "%" PRIu32 " prompt tokens in %.3f s, %" PRIu32 " tokens in %.3f s",
            u->prompt_tokens, u->prefill_seconds, u->completion_tokens, u->decode_seconds);
    if (u->decode_seconds > 0 && u->completion_tokens > n_first)
        fprintf(stderr, ": %.1f tokens/s",
                (double)(u->completion_tokens - n_first) / u->decode_seconds);
    if (u->scored_tokens)
        fprintf(stderr, "; %" PRIu32 " tokens scored", u->scored_tokens);
    if (seed)
        fprintf(stderr, "; seed %" PRIu64, *seed);
    fputc('\n', stderr);
}

void client_add_usage(json_t *object, const struct wire_usage *u, const uint64_t *seed)
{
    if (seed)
        json_object_set_new(object, "seed", json_sprintf("%" PRIu64, *seed));
    if (u)
        json_object_set_new(object, "usage",
                            json_pack("{s:I, s:I, s:I, s:f, s:f}", "prompt_tokens",
                                      (json_int_t)u->prompt_tokens, "completion_tokens",
                                      (json_int_t)u->completion_tokens, "scored_tokens",
                                      (json_int_t)u->scored_tokens, "prefill_seconds",
                                      u->prefill_seconds, "decode_seconds", u->decode_seconds));
}
