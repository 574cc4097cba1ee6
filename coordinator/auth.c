/* auth.c: see auth.h. */
#include "coordinator/auth.h"

#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "coordinator/admit.h"

enum { MAX_FILE = 1 << 20, MAX_KEY = 256 };
#define NSEC_PER_MINUTE (60 * NSEC_PER_SEC)

struct auth {
    char *file; /* NULL: no keys are in force */
    struct auth_key **keys;
    size_t n;
    struct stat seen;  /* of the file when it was read last */
    struct stat found; /* when it was looked at last */
};

/* ---- the table ---- */

static void key_release(struct auth_key *k)
{
    assert(k->n_refs > 0);
    if (--k->n_refs == 0)
        free(k);
}

static void release_all(struct auth_key **keys, size_t n)
{
    for (size_t i = 0; i != n; i++)
        key_release(keys[i]);
    free(keys);
}

static int read_all(int fd, struct stat *st, char **ret, size_t *ret_n, const char *file,
                    struct err *e)
{
    if (fstat(fd, st) < 0)
        return err_set(e, -errno, "%s: %s", file, err_name(-errno));
    if (!S_ISREG(st->st_mode) || st->st_size > MAX_FILE)
        return err_set(e, -EINVAL, "%s: expected a file of at most 1 MiB", file);
    if (st->st_mode & (S_IWGRP | S_IWOTH))
        return err_set(e, -EACCES, "%s: others than its owner may write it: chmod go-w", file);
    char *text = malloc(MAX_FILE + 1);
    if (!text)
        return err_set(e, -ENOMEM, "out of memory");
    size_t n = 0;
    for (ssize_t got = 1; got > 0 && n <= MAX_FILE; n += (size_t)got) {
        got = read(fd, text + n, MAX_FILE + 1 - n);
        if (got < 0) {
            int r = err_set(e, -errno, "%s: %s", file, err_name(-errno));
            free(text);
            return r;
        }
    }
    if (n > MAX_FILE) {
        free(text);
        return err_set(e, -EINVAL, "%s: expected a file of at most 1 MiB", file);
    }
    *ret = text;
    *ret_n = n;
    return 0;
}

static int load(const char *file, struct stat *st, struct auth_key ***ret, size_t *ret_n,
                struct err *e)
{
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe does not hold us up */
    if (fd < 0)
        return err_set(e, -errno, "%s: %s", file, err_name(-errno));
    char *text = NULL;
    size_t n = 0;
    int r = read_all(fd, st, &text, &n, file, e);
    close(fd);
    if (r == 0)
        r = auth_parse(text, n, file, ret, ret_n, e);
    free(text);
    for (size_t i = 0; r == 0 && i != *ret_n; i++)
        (*ret)[i]->tenant = admit_tenant((*ret)[i]->name);
    return r;
}

int auth_open(const char *file, struct auth **ret, struct err *e)
{
    struct auth *a = calloc(1, sizeof *a);
    if (!a)
        return err_set(e, -ENOMEM, "out of memory");
    int r = 0;
    if (file && *file) {
        a->file = text_dup(file, strlen(file));
        r = a->file ? load(file, &a->seen, &a->keys, &a->n, e)
                    : err_set(e, -ENOMEM, "out of memory");
    }
    if (r < 0) {
        free(a->file);
        free(a);
        return r;
    }
    a->found = a->seen;
    *ret = a;
    return 0;
}

void auth_close(struct auth *a)
{
    if (!a)
        return;
    release_all(a->keys, a->n);
    free(a->file);
    free(a);
}

static struct auth_key *find_name(const struct auth *a, const char *name)
{
    for (size_t i = 0; i != a->n; i++) {
        if (strcmp(a->keys[i]->name, name) == 0)
            return a->keys[i];
    }
    return NULL;
}

int auth_reload(struct auth *a, struct err *e)
{
    struct auth_key **keys = NULL;
    struct stat seen;
    size_t n = 0;
    if (!a->file)
        return 0;
    int r = load(a->file, &seen, &keys, &n, e);
    if (r < 0)
        return r;
    for (size_t i = 0; i != n; i++) {
        struct auth_key *old = find_name(a, keys[i]->name);
        if (!old)
            continue;
        /* The old one stays, so that requests in flight count for the new limits. */
        memcpy(old->hash, keys[i]->hash, sizeof old->hash);
        old->admin = keys[i]->admin;
        old->limits = keys[i]->limits;
        old->n_refs++;
        key_release(keys[i]);
        keys[i] = old;
    }
    release_all(a->keys, a->n);
    a->keys = keys;
    a->n = n;
    a->seen = seen;
    return 0;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
           a->st_mode == b->st_mode;
}

int auth_reload_if_changed(struct auth *a, struct err *e)
{
    struct stat now = {0};
    if (!a->file)
        return 0;
    int r = stat(a->file, &now) < 0 ? -errno : 0;
    bool settled = same_file(&now, &a->found);
    a->found = now;
    if (!settled || same_file(&now, &a->seen))
        return 0;
    a->seen = now; /* a wrong file is complained of once */
    if (r < 0)
        return err_set(e, r, "%s: %s", a->file, err_name(r));
    r = auth_reload(a, e);
    return r < 0 ? r : 1;
}

bool auth_has_keys(const struct auth *a)
{
    return a->file != NULL;
}

/* ---- who it is ---- */

int auth_hash(const char *key, size_t size, uint8_t ret[AUTH_HASH_BYTES])
{
    unsigned n = 0;
    return EVP_Digest(key, size, ret, &n, EVP_sha256(), NULL) == 1 && n == AUTH_HASH_BYTES ? 0
                                                                                           : -EIO;
}

/* The key in "Bearer KEY", or the whole value. */
static const char *bearer(const char *authorization)
{
    static const char scheme[] = "Bearer ";
    if (strncasecmp(authorization, scheme, sizeof scheme - 1) == 0)
        authorization += sizeof scheme - 1;
    return authorization + strspn(authorization, " ");
}

/* Looks at every key, whichever it is. */
static struct auth_key *find_key(const struct auth *a, const char *authorization)
{
    const char *key = bearer(authorization);
    size_t n = strnlen(key, MAX_KEY + 1);
    uint8_t hash[AUTH_HASH_BYTES];
    struct auth_key *found = NULL;
    if (n == 0 || n > MAX_KEY || auth_hash(key, n, hash) < 0)
        return NULL;
    for (size_t i = 0; i != a->n; i++) {
        if (CRYPTO_memcmp(a->keys[i]->hash, hash, sizeof hash) == 0)
            found = a->keys[i];
    }
    return found;
}

int auth_check(const struct auth *a, const char *authorization, enum auth_need need,
               struct auth_key **ret, struct err *e)
{
    *ret = NULL;
    if (!a->file || need == AUTH_PUBLIC)
        return 0;
    if (!authorization || !*authorization)
        return err_set(e, -EACCES, "an API key is needed: send \"Authorization: Bearer KEY\"");
    struct auth_key *k = find_key(a, authorization);
    if (!k)
        return err_set(e, -EACCES, "the API key is not known here");
    if (need == AUTH_ADMIN && !k->admin)
        return err_set(e, -EPERM, "this needs the API key of an operator");
    *ret = k;
    return 0;
}

/* ---- what it may use ---- */

static int check_limits(const struct auth_limits *l, const struct auth_cost *c, struct err *e)
{
    if (l->context && c->context > l->context)
        return err_set(e, -EPERM, "this API key allows %u tokens of prompt and output, found %u",
                       l->context, c->context);
    if (l->choices && c->choices > l->choices)
        return err_set(e, -EPERM, "this API key allows %u choices, found %u", l->choices,
                       c->choices);
    if (c->priority > l->priority)
        return err_set(e, -EPERM, "this API key allows a priority of at most %d, found %d",
                       (int)l->priority, (int)c->priority);
    if (l->tokens_per_minute && c->tokens > l->tokens_per_minute)
        return err_set(e, -EPERM,
                       "this API key allows %" PRIu64 " tokens a minute, and the request may "
                       "need %u: ask for fewer",
                       l->tokens_per_minute, c->tokens);
    return 0;
}

/* The bucket holds a minute's tokens and fills steadily. */
static void fill_bucket(struct auth_key *k, int64_t now_ns)
{
    double full = (double)k->limits.tokens_per_minute;
    if (k->filled_ns == 0)
        k->tokens = full;
    else
        k->tokens += full * (double)(now_ns - k->filled_ns) / (double)NSEC_PER_MINUTE;
    k->tokens = fmin(k->tokens, full);
    k->filled_ns = now_ns;
}

int auth_begin(struct auth_key *k, struct auth_cost *c, int64_t now_ns, int64_t *ret_retry_ns,
               struct err *e)
{
    *ret_retry_ns = 0;
    c->charged = false;
    if (!k)
        return 0;
    int r = check_limits(&k->limits, c, e);
    if (r < 0)
        return r;
    if (k->limits.requests && k->n_running >= k->limits.requests)
        return err_set(e, -EDQUOT, "this API key has %u requests in flight, as many as it may",
                       k->n_running);
    if (k->limits.tokens_per_minute) {
        fill_bucket(k, now_ns);
        double missing = (double)c->tokens - k->tokens;
        if (missing > 0) {
            double minutes = missing / (double)k->limits.tokens_per_minute;
            *ret_retry_ns = (int64_t)ceil(minutes * (double)NSEC_PER_MINUTE);
            return err_set(e, -EDQUOT, "this API key has used its %" PRIu64 " tokens a minute",
                           k->limits.tokens_per_minute);
        }
        k->tokens -= (double)c->tokens;
        c->charged = true;
    }
    k->n_running++;
    k->n_refs++;
    return 0;
}

void auth_end(struct auth_key *k, const struct auth_cost *c, uint64_t used_tokens)
{
    if (!k)
        return;
    assert(k->n_running > 0);
    k->n_running--;
    if (c->charged)
        k->tokens += (double)c->tokens - (double)used_tokens; /* more than was taken is owed */
    key_release(k);
}
