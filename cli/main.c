/* main.c: finds the verb and runs it. */
#include "cli/cli.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"

struct verb {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
};

static const struct verb verbs[] = {
#ifndef GLMD_ENGINE_ONLY
    {"abort", cmd_abort, "end a request of a running coordinator"},
#endif
    {"bench", cmd_bench, "measure the engine, a coordinator, a running server"},
    {"compare", cmd_compare, "how two model directories differ in output"},
#ifndef GLMD_ENGINE_ONLY
    {"config", cmd_config, "check a configuration, show the defaults"},
#endif
    {"convert", cmd_convert, "published checkpoint -> model directory"},
    {"detokenize", cmd_detokenize, "token ids -> text"},
#ifndef GLMD_ENGINE_ONLY
    {"drain", cmd_drain, "take a group out of service, its requests first"},
    {"fill", cmd_fill, "fill the blanks of a text"},
    {"generate", cmd_generate, "continue a text"},
#endif
    {"inspect", cmd_inspect, "architecture, tensors, sizes, checksums of a model directory"},
#ifndef GLMD_ENGINE_ONLY
    {"keys", cmd_keys, "make API keys"},
#endif
    {"logits", cmd_logits, "run the engine on given cases, write logits"},
#ifndef GLMD_ENGINE_ONLY
    {"metrics", cmd_metrics, "what a running coordinator counts, for Prometheus"},
#endif
    {"plan", cmd_plan, "whether and how a model fits on devices"},
#ifndef GLMD_ENGINE_ONLY
    {"score", cmd_score, "log-probabilities of given continuations"},
    {"status", cmd_status, "groups, ranks, memory, speed of a running coordinator"},
#endif
    {"tokenize", cmd_tokenize, "text -> token ids"},
#ifndef GLMD_ENGINE_ONLY
    {"why", cmd_why, "what became of a request, and why"},
#endif
};

static void print_usage(FILE *out)
{
    fputs("glmd " GLMD_VERSION ": serve GLM-130B on your own machines\n\n"
          "usage: glmd VERB [OPTIONS]     (glmd VERB --help explains one)\n\n",
          out);
    for (size_t i = 0; i != ARRAY_LEN(verbs); i++)
        fprintf(out, "  %-12s %s\n", verbs[i].name, verbs[i].summary);
}

int main(int argc, char **argv)
{
    log_init("glmd", LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
    if (argc < 2) {
        print_usage(stderr);
        return EXIT_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_usage(stdout);
        return EXIT_OK;
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "version") == 0) {
        puts("glmd " GLMD_VERSION);
        return EXIT_OK;
    }
    for (size_t i = 0; i != ARRAY_LEN(verbs); i++) {
        if (strcmp(name, verbs[i].name) == 0)
            return verbs[i].run(argc - 1, argv + 1);
    }
    fprintf(stderr, "glmd: unknown verb \"%s\"; `glmd --help` lists the verbs\n", name);
    return EXIT_USAGE;
}
