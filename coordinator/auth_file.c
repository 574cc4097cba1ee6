/* auth_file.c: the lines of a key file. Messages name file and line, never a hash. See auth.h. */
#include <assert.h>
#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/auth.h"

enum { MAX_LINE = 1024, MAX_WORDS = 16 };

struct place { /* for messages */
    const char *file;
    unsigned line;
};

static int bad(const struct place *p, struct err *e, const char *what)
{
    return err_set(e, -EINVAL, "%s:%u: %s", p->file, p->line, what);
}

static int parse_hash(const char *word, const struct place *p, uint8_t ret[AUTH_HASH_BYTES],
                      struct err *e)
{
    static const char prefix[] = "sha256:", digits[] = "0123456789abcdef";
    size_t skip = sizeof prefix - 1;
    if (strncmp(word, prefix, skip) != 0 || strlen(word) != skip + 2 * AUTH_HASH_BYTES)
        return bad(p, e,
                   "expected sha256: and 64 hexadecimal digits behind the name; make the "
                   "line with `glmd keys new`");
    for (size_t i = 0; i != 2 * AUTH_HASH_BYTES; i++) {
        const char *d = strchr(digits, tolower((unsigned char)word[skip + i]));
        if (!d)
            return bad(p, e, "expected hexadecimal digits behind sha256:");
        unsigned nibble = (unsigned)(d - digits);
        ret[i / 2] = (uint8_t)(i % 2 ? ret[i / 2] | nibble : nibble << 4);
    }
    return 0;
}

/* A whole number between min and max behind NAME=. */
static int parse_number(const char *text, int64_t min, int64_t max, const struct place *p,
                        int64_t *ret, struct err *e)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    bool number = isdigit((unsigned char)*text) || *text == '-';
    if (!number || end == text || *end || errno || v < min || v > max)
        return err_set(e, -EINVAL,
                       "%s:%u: expected a whole number from %" PRId64 " to %" PRId64
                       " behind the equals sign",
                       p->file, p->line, min, max);
    *ret = v;
    return 0;
}

static int parse_option(struct auth_key *k, const char *word, const struct place *p, struct err *e)
{
    struct auth_limits *l = &k->limits;
    int64_t v = 0;
    int r;
    if (strcmp(word, "admin") == 0) {
        k->admin = true;
        return 0;
    }
    const char *equals = strchr(word, '=');
    size_t n = equals ? (size_t)(equals - word) : 0;
    if (n == 8 && memcmp(word, "requests", n) == 0) {
        r = parse_number(equals + 1, 1, 1000000, p, &v, e);
        l->requests = (uint32_t)v;
    } else if (n == 17 && memcmp(word, "tokens_per_minute", n) == 0) {
        r = parse_number(equals + 1, 1, INT64_C(1000000000000), p, &v, e);
        l->tokens_per_minute = (uint64_t)v;
    } else if (n == 7 && memcmp(word, "context", n) == 0) {
        r = parse_number(equals + 1, 1, INT32_MAX, p, &v, e);
        l->context = (uint32_t)v;
    } else if (n == 7 && memcmp(word, "choices", n) == 0) {
        r = parse_number(equals + 1, 1, 1024, p, &v, e);
        l->choices = (uint32_t)v;
    } else if (n == 8 && memcmp(word, "priority", n) == 0) {
        r = parse_number(equals + 1, -100, 100, p, &v, e);
        l->priority = (int32_t)v;
    } else {
        r = bad(p, e,
                "expected admin, requests=N, tokens_per_minute=N, context=N, choices=N or "
                "priority=N behind the hash");
    }
    return r;
}

static bool name_ok(const char *name)
{
    size_t n = strlen(name);
    for (size_t i = 0; i != n; i++) {
        if (!isalnum((unsigned char)name[i]) && !strchr("._-@", name[i]))
            return false;
    }
    return n && n <= AUTH_MAX_NAME;
}

/* One line without its comment, to be cut into words in place. */
static int parse_line(char *line, const struct place *p, struct auth_key *k, struct err *e)
{
    static const char spaces[] = " \t\r";
    char *rest, *name = strtok_r(line, spaces, &rest);
    char *hash = strtok_r(NULL, spaces, &rest);
    if (!name_ok(name))
        return bad(p, e, "expected a name of up to 64 letters, digits, '.', '_', '-' and '@'");
    if (!hash)
        return bad(p, e,
                   "expected sha256:HASH behind the name; make the line with `glmd keys new`");
    memcpy(k->name, name, strlen(name) + 1);
    int r = parse_hash(hash, p, k->hash, e);
    for (char *word; r == 0 && (word = strtok_r(NULL, spaces, &rest));)
        r = parse_option(k, word, p, e);
    return r;
}

/* The same name or hash twice would make it a matter of luck which line counts. */
static int check_unique(struct auth_key *const *keys, size_t n, const struct place *p,
                        struct err *e)
{
    const struct auth_key *last = keys[n - 1];
    for (size_t i = 0; i != n - 1; i++) {
        if (strcmp(keys[i]->name, last->name) == 0)
            return bad(p, e, "the same name stands in a line above; give each key its own");
        if (memcmp(keys[i]->hash, last->hash, AUTH_HASH_BYTES) == 0)
            return bad(p, e, "the same key stands in a line above");
    }
    return 0;
}

static int add_line(const char *text, size_t n, const struct place *p, struct auth_key **keys,
                    size_t *n_keys, struct err *e)
{
    char line[MAX_LINE + 1];
    const char *comment = memchr(text, '#', n);
    if (comment)
        n = (size_t)(comment - text);
    if (n > MAX_LINE || memchr(text, '\0', n))
        return bad(p, e, "expected a line of text of at most 1024 bytes");
    memcpy(line, text, n);
    line[n] = '\0';
    if (strspn(line, " \t\r") == n)
        return 0;
    if (*n_keys == AUTH_MAX_KEYS)
        return bad(p, e, "expected at most 4096 keys");
    struct auth_key *k = calloc(1, sizeof *k);
    if (!k)
        return err_set(e, -ENOMEM, "out of memory");
    k->n_refs = 1;
    keys[(*n_keys)++] = k;
    int r = parse_line(line, p, k, e);
    return r == 0 ? check_unique(keys, *n_keys, p, e) : r;
}

int auth_parse(const char *text, size_t size, const char *file, struct auth_key ***ret,
               size_t *ret_n, struct err *e)
{
    struct place p = {.file = file};
    struct auth_key **keys = alloc_array(AUTH_MAX_KEYS, sizeof(struct auth_key *));
    size_t n = 0;
    int r = 0;
    if (!keys)
        return err_set(e, -ENOMEM, "out of memory");
    for (size_t at = 0; r == 0 && at < size;) {
        const char *end = memchr(text + at, '\n', size - at);
        size_t len = end ? (size_t)(end - text) - at : size - at;
        p.line++;
        r = add_line(text + at, len, &p, keys, &n, e);
        at += len + 1;
    }
    if (r < 0) {
        for (size_t i = 0; i != n; i++)
            free(keys[i]);
        free(keys);
        return r;
    }
    *ret = keys;
    *ret_n = n;
    return 0;
}
