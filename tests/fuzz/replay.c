/* replay.c: runs a fuzz target without libFuzzer, so that every build and compiler exercises it:
 * each file of the seed corpus as it is, then a fixed number of deterministic mutations of it
 * (GLMD_FUZZ_MUTATIONS: another number). */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_INPUT_BYTES = 1 << 20, MUTATIONS_PER_SEED = 400 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint32_t random_next(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

/* Runs the target on a copy of exact size, so that a read past the end is a sanitizer finding. */
static void run_once(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy)
        abort();
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static void mutate_and_run(const uint8_t *seed, size_t size, uint8_t *scratch)
{
    memcpy(scratch, seed, size);
    size_t n = size;
    unsigned n_edits = 1 + random_next() % 4;
    for (unsigned i = 0; i < n_edits && n; i++) {
        size_t at = random_next() % n;
        switch (random_next() % 6) {
        case 0:
            scratch[at] ^= (uint8_t)(1u << (random_next() % 8));
            break;
        case 1:
            scratch[at] = (uint8_t)random_next();
            break;
        case 2:
            scratch[at] = (uint8_t)(random_next() % 2 ? 0xff : 0);
            break;
        case 3:
            n = at;
            break; /* truncate */
        case 4: {  /* drop a stretch */
            size_t cut = random_next() % (n - at) + 1;
            memmove(scratch + at, scratch + at + cut, n - at - cut);
            n -= cut;
            break;
        }
        case 5: { /* repeat a stretch */
            size_t length = random_next() % (n - at) + 1;
            if (n + length > MAX_INPUT_BYTES)
                break;
            memmove(scratch + at + length, scratch + at, n - at);
            n += length;
            break;
        }
        }
    }
    run_once(scratch, n);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s CORPUS_DIR\n", argv[0]);
        return 2;
    }
    DIR *dir = opendir(argv[1]);
    if (!dir) {
        fprintf(stderr, "%s: cannot open the seed corpus\n", argv[1]);
        return 1;
    }
    uint8_t *seed = malloc(MAX_INPUT_BYTES), *scratch = malloc(MAX_INPUT_BYTES);
    if (!seed || !scratch)
        abort();
    run_once(seed, 0);
    const char *wanted = getenv("GLMD_FUZZ_MUTATIONS");
    long n_mutations = wanted ? strtol(wanted, NULL, 10) : MUTATIONS_PER_SEED;
    size_t n_seeds = 0, n_runs = 1;
    struct dirent *entry;
    while ((entry = readdir(dir))) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", argv[1], entry->d_name);
        FILE *f = entry->d_name[0] == '.' ? NULL : fopen(path, "rb");
        if (!f)
            continue;
        size_t size = fread(seed, 1, MAX_INPUT_BYTES, f);
        fclose(f);
        run_once(seed, size);
        for (long i = 0; i < n_mutations; i++)
            mutate_and_run(seed, size, scratch);
        n_seeds++;
        n_runs += 1 + (size_t)n_mutations;
    }
    closedir(dir);
    free(seed);
    free(scratch);
    printf("%zu seeds, %zu runs\n", n_seeds, n_runs);
    return n_seeds ? 0 : 1; /* an empty corpus tests nothing */
}
