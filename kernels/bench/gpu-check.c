/* gpu-check.c: every operation of a backend against the CPU backend in FP32, over odd shapes and
 * random inputs:
 *
 *   gpu-check [--device cuda:0|cpu] [--mode fp16] [--full] [--seed N]
 *
 * For each case: the error, as the root of the mean square of the differences over that of the
 * values, and the same with outputs that were filled with NaNs before; a second run and the first
 * row alone must have the same bits. Attention: prefill against decode, too. --full adds the shapes
 * of GLM-130B at tensor parallel 8. Exit status 0: all within their bounds; 1: some are not; 77: no
 * such device.
 */
#include "gpu-check.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct k_ops *check_ops, *check_cpu;
struct k_ctx *check_c, *check_ref;
static unsigned n_cases, n_failed;

void check_report(const char *what, double error, double bound, bool same)
{
    const bool good = error <= bound && same;
    n_cases++;
    n_failed += !good;
    printf("%-52s %9.2e (at most %.0e)%s%s\n", what, error, bound, same ? "" : "  OTHER BITS",
           good ? "" : "  FAILED");
    fflush(stdout);
}

static int open_both(const char *device, enum k_mode mode, const struct check_limits *l)
{
    char message[512] = "";
    struct k_open_params p = {.device = device,
                              .mode = mode,
                              .max_rows = l->max_rows,
                              .max_cols = l->max_cols,
                              .max_seq = l->max_seq};
    check_cpu = k_backend("cpu", message, sizeof message);
    check_ops =
        k_backend(strncmp(device, "cuda", 4) == 0 ? "cuda" : device, message, sizeof message);
    int r = check_ops ? check_ops->open(&p, &check_c, message, sizeof message) : -ENODEV;
    if (r) {
        fprintf(stderr, "gpu-check: %s: %s\n", device, message);
        return r;
    }
    p.device = "cpu";
    p.mode = K_MODE_FP32;
    r = check_cpu->open(&p, &check_ref, message, sizeof message);
    if (r)
        fprintf(stderr, "gpu-check: cpu: %s\n", message);
    return r;
}

static int usage(void)
{
    fprintf(stderr, "usage: gpu-check [--device cuda:N|cpu] [--mode fp16] [--full] [--seed N]\n");
    return 64;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"device", required_argument, NULL, 'd'},
                                            {"mode", required_argument, NULL, 'm'},
                                            {"full", no_argument, NULL, 'f'},
                                            {"seed", required_argument, NULL, 's'},
                                            {0}};
    const char *device = "cuda:0";
    enum k_mode mode = K_MODE_FP16;
    struct check_limits l = {.max_rows = 700, .max_cols = 1024, .max_seq = 384};
    uint64_t seed = 1;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o == 'd')
            device = optarg;
        else if (o == 'm' && (!strcmp(optarg, "fp16") || !strcmp(optarg, "fp32")))
            mode = strcmp(optarg, "fp16") ? K_MODE_FP32 : K_MODE_FP16;
        else if (o == 'f')
            l.full = true;
        else if (o == 's')
            seed = strtoull(optarg, NULL, 0);
        else
            return usage();
    }
    if (optind != argc)
        return usage();
    if (l.full) {
        l.max_rows = 2048;
        l.max_cols = 12288;
        l.max_seq = 2048;
    }
    check_seed(seed);
    int r = open_both(device, mode, &l);
    if (r)
        return r == -ENODEV ? 77 : 1;
    printf("%s\nseed %llu\n\n", check_ops->describe(check_c), (unsigned long long)seed);
    check_rowwise(&l);
    check_linears(&l);
    check_sequences(&l);
    char message[512];
    r = check_ops->sync(check_c, message, sizeof message);
    if (r)
        printf("\ndevice: %s\n", message);
    check_ops->close(check_c);
    check_cpu->close(check_ref);
    printf("\n%u cases, %u failed\n", n_cases, n_failed);
    return r || n_failed ? 1 : 0;
}
