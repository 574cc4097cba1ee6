/* generate.c: continues a text with a glmd coordinator, printing it as it comes.
 *
 *   cc generate.c $(pkg-config --cflags --libs glmd-client) -o generate
 *   ./generate 127.0.0.1:8130 "The capital of France is"
 */
#include <stdio.h>

#include <glmd/client.h>

static int on_text(void *context, unsigned index, const char *text)
{
    (void)context, (void)index;
    fputs(text, stdout);
    return fflush(stdout); /* anything but 0 would cancel */
}

static int failed(const struct glmd_error *error)
{
    fprintf(stderr, "%s: %s\n", glmd_code_name(error->code), error->message);
    if (error->field[0])
        fprintf(stderr, "look at: %s\n", error->field);
    if (error->retry_seconds > 0)
        fprintf(stderr, "try again after %.1f s\n", error->retry_seconds);
    return 1;
}

int main(int argc, char **argv)
{
    struct glmd_options options = glmd_options_init();
    struct glmd_request request = glmd_request_init(argc > 2 ? argv[2] : "The river");
    struct glmd_client *client;
    struct glmd_result *result;
    struct glmd_error error;

    options.address = argc > 1 ? argv[1] : NULL; /* NULL: GLMD_COORDINATOR, or this host */
    options.timeout_seconds = 60;
    if (glmd_client_open(&options, &client, &error) != GLMD_OK)
        return failed(&error);

    request.max_tokens = 32;
    request.temperature = 0.7;
    request.on_text = on_text;
    if (glmd_generate(client, &request, &result, &error) != GLMD_OK) {
        glmd_client_close(client);
        return failed(&error);
    }
    printf("\n[%u tokens, seed %llu]\n", result->completion_tokens,
           (unsigned long long)result->seed);
    glmd_result_free(result);
    glmd_client_close(client);
    return 0;
}
