/* cmd_keys.c: `glmd keys`: makes an API key and its line of the key file. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "base/random.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "cli/options.h"

static const char usage[] =
    "usage: glmd keys new NAME [OPTIONS]\n"
    "\n"
    "Makes an API key: prints it on standard output, once, and adds its line (which holds only "
    "the\n"
    "key's SHA-256) to a key file, the coordinator's `coordinator.keys`. A running coordinator "
    "reads\n"
    "the file again when it changes. To take a key away, remove its line.\n"
    "\n"
    "      --file FILE              default: print the line on standard error instead\n"
    "      --admin                  may drain groups, abort and look into requests\n"
    "      --requests N             in flight at once\n"
    "      --tokens-per-minute N    of prompts and outputs\n"
    "      --context N              tokens of a prompt and its output\n"
    "      --choices N              n, best_of and beams\n"
    "      --priority N             the greatest that a request may ask for; default 0\n"
    "  -h, --help\n";

enum { KEY_BYTES = 32, MAX_NAME = 64, LINE_BYTES = 512 };

enum { N_LIMITS = 4 };
/* Their names in the file, in the order of struct keys. */
static const char *const limit_fields[N_LIMITS] = {"requests", "tokens_per_minute", "context",
                                                   "choices"};

struct keys {
    const char *file, *name;
    bool admin;
    uint64_t limits[N_LIMITS]; /* 0 = none */
    int32_t priority;
};

static bool name_ok(const char *name)
{
    size_t n = strlen(name);
    for (size_t i = 0; i != n; i++) {
        if (!isalnum((unsigned char)name[i]) && !strchr("._-@", name[i]))
            return false;
    }
    return n && n <= MAX_NAME;
}

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct keys *k)
{
    const struct cli_option own[] = {
        CLI_TEXT("file", &k->file),
        CLI_FLAG("admin", &k->admin),
        CLI_U64("requests", &k->limits[0], 1, 1000000),
        CLI_U64("tokens-per-minute", &k->limits[1], 1, 1e12),
        CLI_U64("context", &k->limits[2], 1, INT32_MAX),
        CLI_U64("choices", &k->limits[3], 1, 1024),
        CLI_I32("priority", &k->priority, -100, 100),
    };
    const struct cli_options table = CLI_OWN(own);
    int code = cli_parse(argc, argv, usage, &table, 1);
    if (code >= 0)
        return code;
    if (argc - optind != 2 || strcmp(argv[optind], "new") != 0)
        return cli_usage_error(argv[0], "expected: new NAME");
    k->name = argv[optind + 1];
    if (!name_ok(k->name))
        return cli_usage_error(argv[0],
                               "NAME: expected up to %d letters, digits, '.', '_', '-' and "
                               "'@'",
                               MAX_NAME);
    return -1;
}

static int append_hex(struct buf *b, const uint8_t *bytes, size_t n)
{
    int r = 0;
    for (size_t i = 0; i != n && r == 0; i++)
        r = buf_printf(b, "%02x", bytes[i]);
    return r;
}

/* "glmd-" and 64 hexadecimal digits. */
static int make_key(struct buf *ret, struct err *e)
{
    uint8_t bytes[KEY_BYTES];
    int r = random_bytes(bytes, sizeof bytes);
    if (r < 0)
        return err_set(e, r, "the system has no randomness to give");
    r = buf_append_str(ret, "glmd-");
    if (r == 0)
        r = append_hex(ret, bytes, sizeof bytes);
    explicit_bzero(bytes, sizeof bytes);
    return r < 0 ? err_set(e, r, "out of memory") : 0;
}

static int make_line(const struct keys *k, const struct buf *key, struct buf *ret, struct err *e)
{
    uint8_t hash[EVP_MAX_MD_SIZE];
    unsigned n_hash = 0;
    if (EVP_Digest(key->data, key->size, hash, &n_hash, EVP_sha256(), NULL) != 1)
        return err_set(e, -EIO, "the library cannot make a SHA-256");
    int r = buf_printf(ret, "%s sha256:", k->name);
    if (r == 0)
        r = append_hex(ret, hash, n_hash);
    if (r == 0 && k->admin)
        r = buf_append_str(ret, " admin");
    for (size_t i = 0; r == 0 && i != N_LIMITS; i++) {
        if (k->limits[i])
            r = buf_printf(ret, " %s=%" PRIu64, limit_fields[i], k->limits[i]);
    }
    if (r == 0 && k->priority)
        r = buf_printf(ret, " priority=%" PRId32, k->priority);
    if (r == 0)
        r = buf_append_str(ret, "\n");
    return r < 0 ? err_set(e, r, "out of memory") : 0;
}

/* Whether a line of the file begins with this name. */
static bool has_name(FILE *f, const char *name)
{
    char line[LINE_BYTES * 4];
    size_t n = strlen(name);
    rewind(f);
    while (fgets(line, sizeof line, f)) {
        const char *p = line + strspn(line, " \t");
        if (strncmp(p, name, n) == 0 && strchr(" \t\r\n#", p[n]))
            return true;
    }
    return false;
}

/* At the end of the file, behind a line break; made readable by its owner and group. */
static int add_line(const struct keys *k, const char *line, struct err *e)
{
    int fd = open(k->file, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "a+");
    if (!f) {
        int r = err_set(e, -errno, "%s: %s", k->file, err_name(-errno));
        if (fd >= 0)
            close(fd);
        return r;
    }
    int r = 0;
    if (flock(fd, LOCK_EX) < 0)
        r = err_set(e, -errno, "%s: %s", k->file, err_name(-errno));
    else if (has_name(f, k->name))
        r = err_set(e, -EEXIST, "%s has a key of the name %s already; remove its line first",
                    k->file, k->name);
    bool open_end = r == 0 && fseek(f, -1, SEEK_END) == 0 && fgetc(f) != '\n';
    if (r == 0 &&
        (fprintf(f, "%s%s", open_end ? "\n" : "", line) < 0 || fflush(f) != 0 || fsync(fd) < 0))
        r = err_set(e, -errno, "%s: %s", k->file, err_name(-errno));
    fclose(f);
    return r;
}

int cmd_keys(int argc, char **argv)
{
    struct keys k = {0};
    struct err e = ERR_INIT;
    struct buf key = {0}, line = {0};
    int code = parse_args(argc, argv, &k);
    if (code >= 0)
        return code;
    int r = make_key(&key, &e);
    if (r == 0)
        r = make_line(&k, &key, &line, &e);
    if (r == 0 && k.file)
        r = add_line(&k, line.data, &e);
    if (r < 0) {
        code = cli_failed(argv[0], &e);
    } else {
        if (!k.file)
            fputs(line.data, stderr);
        puts(key.data);
        code = fflush(stdout) == EOF ? EXIT_FAILED : EXIT_OK;
    }
    if (key.data)
        explicit_bzero(key.data, key.size);
    buf_deinit(&key);
    buf_deinit(&line);
    return code;
}
