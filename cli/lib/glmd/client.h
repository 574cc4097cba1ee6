/* glmd/client.h: a client of a glmd coordinator in C. Link with -lglmd-client (pkg-config
 * glmd-client); examples/generate.c is a whole program.
 *
 * Calls block until they are over; text can be had piece by piece meanwhile. Every call returns
 * GLMD_OK or a code of gRPC, and then fills in the error, which may be NULL. A client belongs to
 * the thread that opened it and makes one call at a time; any number of clients may be open. Fork
 * before the first client is opened, or exec after it.
 *
 * Strings are UTF-8. What is given is read during the call only; what is returned is freed with the
 * function that its comment names. Structs that are given start with their size and come from a
 * glmd_..._init function, and those that are returned are made here, so that later versions may add
 * to the end of both.
 */
#ifndef GLMD_CLIENT_H
#define GLMD_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GLMD_API __attribute__((visibility("default")))

enum glmd_code {
    GLMD_OK = 0,
    GLMD_CANCELLED = 1, /* on_text said so, or an operator */
    GLMD_UNKNOWN = 2,
    GLMD_INVALID_ARGUMENT = 3, /* glmd_error.field says which, where it is known */
    GLMD_DEADLINE_EXCEEDED = 4,
    GLMD_NOT_FOUND = 5, /* no such model */
    GLMD_ALREADY_EXISTS = 6,
    GLMD_PERMISSION_DENIED = 7,
    GLMD_RESOURCE_EXHAUSTED = 8,  /* a queue or a quota is full: glmd_error.retry_seconds */
    GLMD_FAILED_PRECONDITION = 9, /* also: the client is another thread's, or in a call */
    GLMD_ABORTED = 10,
    GLMD_OUT_OF_RANGE = 11,
    GLMD_UNIMPLEMENTED = 12,
    GLMD_INTERNAL = 13,
    GLMD_UNAVAILABLE = 14, /* nobody there, no ranks ready, or the server drains */
    GLMD_DATA_LOSS = 15,
    GLMD_UNAUTHENTICATED = 16
};

struct glmd_error {
    enum glmd_code code;
    char message[1024];
    char field[64];       /* "" = not known */
    double retry_seconds; /* worth another try after so long; 0 = not said */
};

struct glmd_client; /* opaque */
struct glmd_options {
    size_t size;
    const char *address;   /* "HOST:PORT" or "unix:PATH"; NULL: $GLMD_COORDINATOR, 127.0.0.1:8130 */
    const char *ca_file;   /* TLS: certificates (PEM) that sign the server's; NULL: plaintext */
    const char *cert_file; /* mutual TLS: our own certificate, */
    const char *key_file;  /* and its key */
    const char *server_name; /* expected in the server's certificate; NULL: the host */
    const char *api_key;     /* NULL: $GLMD_API_KEY, if that is set */
    double timeout_seconds;  /* of a call with all its attempts; 0 = none */
    unsigned max_attempts;   /* of a call that is refused for now, before it had any text; 0 = 3 */
};

static inline struct glmd_options glmd_options_init(void)
{
    struct glmd_options o;
    o.size = sizeof o;
    o.address = o.ca_file = o.cert_file = o.key_file = o.server_name = o.api_key = NULL;
    o.timeout_seconds = 0;
    o.max_attempts = 0;
    return o;
}

/* options NULL: all defaults. Connects with the first call. */
GLMD_API enum glmd_code glmd_client_open(const struct glmd_options *options,
                                         struct glmd_client **ret, struct glmd_error *error);
GLMD_API void glmd_client_close(struct glmd_client *client); /* accepts NULL */

/* ---- text ---- */

/* glmd_generate and glmd_fill. What is left as it was initialised has the server's default. */
struct glmd_request {
    size_t size;
    const char *text;
    const char *model;         /* NULL: the served one */
    unsigned max_tokens;       /* generate: new tokens; fill: of the whole sequence; 0 = 256 */
    unsigned n;                /* generate: choices, at most 16; 0 = 1 */
    double temperature;        /* 0 = greedy; < 0: default, 1 */
    double top_p;              /* < 0: default, 0.7 */
    unsigned top_k;            /* 0 = off */
    double min_p;              /* 0 = off */
    double repetition_penalty; /* 0 or 1 = off */
    double presence_penalty, frequency_penalty;
    const uint64_t *seed;    /* NULL: drawn by the server; the result tells it */
    const char *const *stop; /* texts that end the output, [n_stop] */
    size_t n_stop;
    unsigned beams;         /* beam search with so many; 0 = sampling */
    int ignore_end;         /* true: end tokens do not end the output */
    int priority;           /* -100 to 100 */
    const char *request_id; /* for logs, `glmd why` and `glmd abort`; NULL: made by the server */
    /* Text as it comes, of a choice (generate) or a blank (fill). Anything but 0 cancels. NULL: all
     * at the end. */
    int (*on_text)(void *context, unsigned index, const char *text);
    void *context;
};

static inline struct glmd_request glmd_request_init(const char *text)
{
    struct glmd_request r;
    r.size = sizeof r;
    r.text = text;
    r.model = NULL;
    r.max_tokens = r.n = r.top_k = r.beams = 0;
    r.temperature = r.top_p = -1;
    r.min_p = r.repetition_penalty = r.presence_penalty = r.frequency_penalty = 0;
    r.seed = NULL;
    r.stop = NULL;
    r.n_stop = 0;
    r.ignore_end = r.priority = 0;
    r.request_id = NULL;
    r.on_text = NULL;
    r.context = NULL;
    return r;
}

enum glmd_finish {
    GLMD_FINISH_NONE = 0,
    GLMD_FINISH_STOP = 1,  /* an end token or a stop text */
    GLMD_FINISH_LENGTH = 2 /* max_tokens or the context length */
};

struct glmd_text {
    const char *text;
    enum glmd_finish finish; /* generate */
    double score;            /* of beams, else 0 */
};

struct glmd_result {
    const struct glmd_text *texts; /* generate: choices; fill: whole texts, best first */
    size_t n_texts;
    const char *const *blanks; /* fill: what filled each blank of the best text */
    size_t n_blanks;
    uint64_t seed;
    const char *request_id;
    unsigned prompt_tokens, completion_tokens;
    double prefill_seconds, decode_seconds;
};

/* Continues a text, or fills its first mask. */
GLMD_API enum glmd_code glmd_generate(struct glmd_client *client,
                                      const struct glmd_request *request, struct glmd_result **ret,
                                      struct glmd_error *error);
/* Fills every blank of one kind: [MASK], else [sMASK], else [gMASK]. */
GLMD_API enum glmd_code glmd_fill(struct glmd_client *client, const struct glmd_request *request,
                                  struct glmd_result **ret, struct glmd_error *error);
GLMD_API void glmd_result_free(struct glmd_result *result); /* accepts NULL */

/* Log-probability of each of n continuations of a text; *ret_best may be NULL. */
GLMD_API enum glmd_code glmd_score(struct glmd_client *client, const char *text,
                                   const char *const *choices, size_t n, double *ret_logprobs,
                                   size_t *ret_best, struct glmd_error *error);

/* ---- tokens and models ---- */

/* *ret_ids: free with glmd_free. */
GLMD_API enum glmd_code glmd_tokenize(struct glmd_client *client, const char *text,
                                      int32_t **ret_ids, size_t *ret_n, struct glmd_error *error);
/* *ret_text: free with glmd_free. */
GLMD_API enum glmd_code glmd_detokenize(struct glmd_client *client, const int32_t *ids, size_t n,
                                        char **ret_text, struct glmd_error *error);
GLMD_API void glmd_free(void *memory);

struct glmd_model {
    const char *id, *architecture, *weights, *digest;
    unsigned context_length, vocab_size, layers, hidden_size;
};

/* The served model; free with glmd_free, all at once. */
GLMD_API enum glmd_code glmd_model(struct glmd_client *client, struct glmd_model **ret,
                                   struct glmd_error *error);
/* Whether requests are taken just now. */
GLMD_API enum glmd_code glmd_ready(struct glmd_client *client, int *ret_ready,
                                   struct glmd_error *error);

/* ---- this library ---- */

GLMD_API const char *glmd_code_name(enum glmd_code code); /* "UNAVAILABLE" */
GLMD_API const char *glmd_client_version(void);           /* "0.1.0" */

#ifdef __cplusplus
}
#endif

#endif
