/* auth.h: who may do what: API keys from a file, and what each of them may use.
 *
 * The file holds a line per key, with the SHA-256 of the key instead of the key (keys are 256
 * random bits, so that a plain hash is enough), made by `glmd keys new`:
 *
 *   # name  hash             what it may do
 *   alice   sha256:<64 hex>  requests=8 tokens_per_minute=60000 context=2048 choices=4 priority=5
 *   ops     sha256:<64 hex>  admin
 *
 * Without a file everybody may do everything: for loopback and Unix sockets. Pure apart from
 * reading the file; loop thread.
 */
#ifndef GLMD_COORDINATOR_AUTH_H
#define GLMD_COORDINATOR_AUTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum { AUTH_MAX_NAME = 64, AUTH_MAX_KEYS = 4096, AUTH_HASH_BYTES = 32 };

struct auth_limits {            /* 0 = none, but for priority */
    uint32_t requests;          /* in flight */
    uint64_t tokens_per_minute; /* prompt and output together */
    uint32_t context;           /* tokens of a prompt and its output */
    uint32_t choices;           /* n, best_of, beams */
    int32_t priority;           /* the greatest that a request may ask for; 0 when not given */
};

/* One key, as the file describes it, and what it uses now. */
struct auth_key {
    char name[AUTH_MAX_NAME + 1];
    uint8_t hash[AUTH_HASH_BYTES];
    bool admin;
    struct auth_limits limits;
    uint64_t tenant; /* whom its requests count for in the scheduler's fairness; never 0 */

    /* state */
    uint32_t n_refs;    /* the table's, and one for each request in flight */
    uint32_t n_running; /* requests */
    double tokens;      /* left in the bucket; may be negative */
    int64_t filled_ns;  /* when the bucket was looked at last; 0 = never */
};

struct auth; /* opaque */

/* What a route asks for. */
enum auth_need {
    AUTH_PUBLIC, /* nothing */
    AUTH_USER,   /* any key */
    AUTH_ADMIN,  /* a key with `admin` */
};

/* What a request may need at most. */
struct auth_cost {
    uint32_t tokens;  /* of all prompts and outputs */
    uint32_t context; /* of its longest sequence */
    uint32_t choices;
    int32_t priority;
    bool charged; /* by auth_begin: its tokens were taken from the key's minute */
};

/* file "" or NULL: no keys. -EINVAL: a line is wrong, and the message says which; -EACCES: others
 * may write the file. */
int auth_open(const char *file, struct auth **ret, struct err *e);
/* Once every request has ended. */
void auth_close(struct auth *a);
/* Reads the file again; on failure everything stays as it was. Keys that keep their name keep their
 * use; requests of keys that are gone go on. */
int auth_reload(struct auth *a, struct err *e);
/* Reloads when the file has changed since it was read (its time, size, mode or inode), and has not
 * since the last look: the first half of a file may be one without somebody's key, or limits. 1: it
 * was reloaded; 0: not, or not yet; negative: it is wrong, said once per change. */
int auth_reload_if_changed(struct auth *a, struct err *e);
bool auth_has_keys(const struct auth *a); /* whether a file is in force */

/* Whose request this is. `authorization`: the header's value ("Bearer KEY"), NULL = none. 0: *ret
 * is the key (borrowed until the next reload; NULL: no keys are in force, or none was needed).
 * -EACCES: no key, or an unknown one (401). -EPERM: a key that may not do this (403). Takes the
 * same time whichever key it is, or none. */
int auth_check(const struct auth *a, const char *authorization, enum auth_need need,
               struct auth_key **ret, struct err *e);

/* Takes what a request may need at most from its key. key NULL: nothing to take. -EPERM: it may
 * never have this much; -EDQUOT: not now, *ret_retry_ns says when to try again (0 = when a request
 * of this key ends). */
int auth_begin(struct auth_key *key, struct auth_cost *cost, int64_t now_ns, int64_t *ret_retry_ns,
               struct err *e);
/* The request has ended and used so many tokens. What it did not use of those that were taken comes
 * back; what it used beyond them (a Fill: the end of each blank, what a stop text has cut off) is
 * owed, and the next requests wait for it. One that began while its key had no limit of tokens was
 * charged for nothing, whatever the limits are now. */
void auth_end(struct auth_key *key, const struct auth_cost *cost, uint64_t used_tokens);

/* The hash of a key, as the file holds it. -EIO: the library failed. */
int auth_hash(const char *key, size_t size, uint8_t ret[AUTH_HASH_BYTES]);

/* auth_file.c: the lines of a file. text[size] is not changed; *ret is an array of malloc'd keys
 * with one reference each. -EINVAL or -ENOMEM: nothing is returned. */
int auth_parse(const char *text, size_t size, const char *file, struct auth_key ***ret,
               size_t *ret_n, struct err *e);

#endif
