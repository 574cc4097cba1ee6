/* client_lib.c: every function of glmd/client.h, for test_client_lib.py: compiled against what is
 * installed, as any program would be. client_lib ADDRESS WHAT [ARGUMENT]; one fact a line. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <glmd/client.h>

static struct glmd_client *client;
static struct glmd_error error;

static int report(enum glmd_code code)
{
    if (code != error.code)
        abort();
    if (code == GLMD_OK)
        return 0;
    printf("code %s\nmessage %s\nfield %s\nretry %.1f\n", glmd_code_name(code), error.message,
           error.field, error.retry_seconds);
    return 1;
}

static int on_text(void *context, unsigned index, const char *text)
{
    int *left = context;
    printf("piece %u %s\n", index, text);
    fflush(stdout);
    return *left && --*left == 0;
}

static void print_result(struct glmd_result *r)
{
    for (size_t i = 0; i != r->n_texts; i++)
        printf("text %d %s\n", (int)r->texts[i].finish, r->texts[i].text);
    for (size_t i = 0; i != r->n_blanks; i++)
        printf("blank %s\n", r->blanks[i]);
    printf("tokens %u %u\nseed %llu\nid %s\n", r->prompt_tokens, r->completion_tokens,
           (unsigned long long)r->seed, r->request_id);
    glmd_result_free(r);
}

static int generate(const char *text, int cancel_after, unsigned n, double temperature)
{
    static const char *const stop[] = {"never there", "neither"};
    struct glmd_request q = glmd_request_init(text);
    struct glmd_result *r;
    uint64_t seed = 5;
    q.max_tokens = 12;
    q.n = n;
    q.seed = &seed;
    q.temperature = temperature;
    q.top_p = 0.8;
    q.stop = stop;
    q.n_stop = 2;
    q.ignore_end = 1;
    q.request_id = "from-c";
    q.on_text = on_text;
    q.context = &cancel_after;
    if (report(glmd_generate(client, &q, &r, &error)))
        return r != NULL; /* must be NULL then */
    print_result(r);
    return 0;
}

static int fill(const char *text)
{
    struct glmd_request q = glmd_request_init(text);
    struct glmd_result *r;
    q.temperature = 0;
    q.max_tokens = 60;
    if (report(glmd_fill(client, &q, &r, &error)))
        return 0;
    print_result(r);
    return 0;
}

static int others(void)
{
    static const char *const choices[] = {"flows", "eats"};
    double logprobs[2];
    size_t best, n;
    int32_t *ids;
    char *text;
    struct glmd_model *m;
    int ready;
    if (report(glmd_score(client, "The river", choices, 2, logprobs, &best, &error)) ||
        report(glmd_tokenize(client, "The river", &ids, &n, &error)) ||
        report(glmd_detokenize(client, ids, n, &text, &error)) ||
        report(glmd_model(client, &m, &error)) || report(glmd_ready(client, &ready, &error)))
        return 1;
    printf("scores %.4f %.4f best %zu\nids %zu\ntext %s\n", logprobs[0], logprobs[1], best, n,
           text);
    printf("model %s %s %s %u %u %u %u\nready %d\n", m->id, m->architecture, m->weights,
           m->context_length, m->vocab_size, m->layers, m->hidden_size, ready);
    glmd_free(m);
    glmd_free(text);
    glmd_free(ids);
    return 0;
}

static void *from_another_thread(void *arg)
{
    int ready;
    report(glmd_ready(client, &ready, &error));
    return arg;
}

static int nested(void *context, unsigned index, const char *text)
{
    int ready;
    (void)context, (void)index, (void)text;
    report(glmd_ready(client, &ready, &error));
    return 1;
}

static int misuse(void)
{
    pthread_t thread;
    struct glmd_request q = glmd_request_init("The river");
    struct glmd_result *r;
    pthread_create(&thread, NULL, from_another_thread, NULL);
    pthread_join(thread, NULL);
    q.on_text = nested;
    return !report(glmd_generate(client, &q, &r, &error)); /* cancelled */
}

/* Connects, says so, waits for a line, and calls. */
static int wait_then_generate(void)
{
    int ready;
    if (report(glmd_ready(client, &ready, &error)))
        return 1;
    printf("connected\n");
    fflush(stdout);
    getchar();
    return generate("The river", 0, 1, 0.9);
}

int main(int argc, char **argv)
{
    struct glmd_options o = glmd_options_init();
    const char *what = argc > 2 ? argv[2] : "";
    o.address = argc > 1 ? argv[1] : NULL;
    o.timeout_seconds = argc > 3 ? strtod(argv[3], NULL) : 30;
    o.max_attempts = argc > 4 ? (unsigned)strtoul(argv[4], NULL, 10) : 1;
    if (report(glmd_client_open(&o, &client, &error)))
        return 0;
    int r = strcmp(what, "generate") == 0 ? generate("The river", 0, 2, 0.9)
            : strcmp(what, "cancel") == 0 ? generate("The river", 2, 1, 0.9)
            : strcmp(what, "bad") == 0    ? generate("The river", 0, 1, 11)
            : strcmp(what, "fill") == 0   ? fill("The [MASK] train to [MASK].")
            : strcmp(what, "others") == 0 ? others()
            : strcmp(what, "misuse") == 0 ? misuse()
            : strcmp(what, "wait") == 0   ? wait_then_generate()
                                          : 2;
    glmd_client_close(client);
    glmd_client_close(NULL);
    glmd_result_free(NULL);
    return r;
}
