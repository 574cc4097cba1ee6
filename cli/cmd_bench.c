/* cmd_bench.c: `glmd bench NAME`: finds the benchmark and runs it. */
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "cli/bench.h"
#include "cli/cli.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} benches[] = {
#ifndef GLMD_ENGINE_ONLY
    {"daemon", bench_daemon, "how much of the engine's speed arrives through the daemons"},
#endif
    {"engine", bench_engine, "prefill and decode over batch sizes, without a server"},
    {"loading", bench_loading, "how fast weights come from files to the device"},
    {"model", bench_model, "write a model directory with made-up weights"},
#ifndef GLMD_ENGINE_ONLY
    {"rpc", bench_rpc, "what a coordinator costs, with ranks on fake devices"},
    {"serve", bench_serve, "load on a running coordinator: latencies, throughput, goodput"},
#endif
    {"stages", bench_stages, "how busy pipeline stages are, without a server"},
};

static void print_usage(FILE *out)
{
    fputs("usage: glmd bench NAME [OPTIONS]     (glmd bench NAME --help explains one)\n\n", out);
    for (size_t i = 0; i != ARRAY_LEN(benches); i++)
        fprintf(out, "  %-8s %s\n", benches[i].name, benches[i].summary);
}

int cmd_bench(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        print_usage(stdout);
        return EXIT_OK;
    }
    for (size_t i = 0; i != ARRAY_LEN(benches); i++) {
        if (strcmp(name, benches[i].name) != 0)
            continue;
        static char verb[32]; /* what messages begin with */
        snprintf(verb, sizeof verb, "bench %s", name);
        argv[1] = verb;
        return benches[i].run(argc - 1, argv + 1);
    }
    if (*name)
        fprintf(stderr, "glmd bench: unknown benchmark \"%s\"\n\n", name);
    print_usage(stderr);
    return EXIT_USAGE;
}
