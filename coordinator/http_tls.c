/* http_tls.c: certificates, read again when their files change.
 *
 * MHD does TLS by GnuTLS and asks for the certificate at every handshake. Handshakes under way keep
 * the one that they were given: an old one is freed when the longest handshake is long over.
 */
#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "coordinator/http_internal.h"

#define RETIRED_NS (300 * NSEC_PER_SEC)

enum { MAX_CHAIN = 16 };

/* What a file was when it was read. */
struct stamp {
    struct timespec changed;
    off_t size;
    ino_t inode;
};

struct generation {
    struct generation *older;
    gnutls_pcert_st chain[MAX_CHAIN];
    unsigned n_chain;
    gnutls_privkey_t key;
    int64_t replaced_ns;
};

struct http_certs {
    char *cert_file, *key_file, *ca_file; /* ca_file NULL = clients need no certificate */
    char *trust;                          /* PEM at the start, for MHD; NULL = none */
    gnutls_x509_trust_list_t trusted;     /* what clients' certificates are held against */
    struct stamp cert_stamp, key_stamp, ca_stamp;
    struct generation *current;
};

static struct http_certs *in_use; /* of the server whose MHD runs; loop thread */

static void generation_free(struct generation *g)
{
    if (!g)
        return;
    for (unsigned i = 0; i != g->n_chain; i++)
        gnutls_pcert_deinit(&g->chain[i]);
    if (g->key)
        gnutls_privkey_deinit(g->key);
    free(g);
}

static int read_pem(const char *what, const char *file, gnutls_datum_t *ret, struct err *e)
{
    if (gnutls_load_file(file, ret) < 0)
        return err_set(e, -ENOENT, "%s %s: cannot be read", what, file);
    return 0;
}

static int load_chain(const char *file, struct generation *g, struct err *e)
{
    gnutls_datum_t pem;
    int r = read_pem("certificate", file, &pem, e);
    if (r < 0)
        return r;
    unsigned n = MAX_CHAIN;
    int code = gnutls_pcert_list_import_x509_raw(g->chain, &n, &pem, GNUTLS_X509_FMT_PEM, 0);
    gnutls_free(pem.data);
    if (code < 0 || n == 0)
        return err_set(e, -EINVAL, "certificate %s: %s", file, gnutls_strerror(code));
    g->n_chain = n;
    return 0;
}

static int load_key(const char *file, struct generation *g, struct err *e)
{
    gnutls_datum_t pem;
    int r = read_pem("key", file, &pem, e);
    if (r < 0)
        return r;
    int code = gnutls_privkey_init(&g->key);
    if (code >= 0)
        code = gnutls_privkey_import_x509_raw(g->key, &pem, GNUTLS_X509_FMT_PEM, NULL, 0);
    explicit_bzero(pem.data, pem.size); /* no dead store */
    gnutls_free(pem.data);
    return code < 0 ? err_set(e, -EINVAL, "key %s: %s", file, gnutls_strerror(code)) : 0;
}

/* While both files are replaced, one after the other, they do not belong together. */
static int check_pair(const struct http_certs *c, struct generation *g, struct err *e)
{
    unsigned char a[64], b[64];
    size_t n_a = sizeof a, n_b = sizeof b;
    gnutls_pubkey_t public;
    if (gnutls_pubkey_init(&public) < 0)
        return err_set(e, -ENOMEM, "out of memory");
    int code = gnutls_pubkey_import_privkey(public, g->key, 0, 0);
    if (code >= 0)
        code = gnutls_pubkey_get_key_id(public, GNUTLS_KEYID_USE_SHA256, a, &n_a);
    if (code >= 0)
        code = gnutls_pubkey_get_key_id(g->chain[0].pubkey, GNUTLS_KEYID_USE_SHA256, b, &n_b);
    gnutls_pubkey_deinit(public);
    if (code < 0)
        return err_set(e, -EINVAL, "key %s: %s", c->key_file, gnutls_strerror(code));
    if (n_a != n_b || memcmp(a, b, n_a) != 0)
        return err_set(e, -EINVAL, "key %s is not that of certificate %s", c->key_file,
                       c->cert_file);
    return 0;
}

static struct stamp stamp_of(const char *file)
{
    struct stat st;
    if (stat(file, &st) < 0)
        return (struct stamp){0};
    return (struct stamp){st.st_mtim, st.st_size, st.st_ino};
}

static bool same(const struct stamp *a, const struct stamp *b)
{
    return a->changed.tv_sec == b->changed.tv_sec && a->changed.tv_nsec == b->changed.tv_nsec &&
           a->size == b->size && a->inode == b->inode;
}

static int load(struct http_certs *c, struct err *e)
{
    struct generation *g = calloc(1, sizeof *g);
    if (!g)
        return err_set(e, -ENOMEM, "out of memory");
    c->cert_stamp = stamp_of(c->cert_file);
    c->key_stamp = stamp_of(c->key_file);
    int r = load_chain(c->cert_file, g, e);
    if (r == 0)
        r = load_key(c->key_file, g, e);
    if (r == 0)
        r = check_pair(c, g, e);
    if (r < 0) {
        generation_free(g);
        return r;
    }
    if (c->current)
        c->current->replaced_ns = clock_now_ns();
    g->older = c->current;
    c->current = g;
    return 0;
}

/* The authorities of clients, in the place of those from before. */
static int load_trust(struct http_certs *c, struct err *e)
{
    gnutls_datum_t pem = {0};
    gnutls_x509_trust_list_t list = NULL;
    c->ca_stamp = stamp_of(c->ca_file);
    int r = read_pem("certificates", c->ca_file, &pem, e);
    if (r < 0)
        return r;
    int n = gnutls_x509_trust_list_init(&list, 0);
    if (n >= 0)
        n = gnutls_x509_trust_list_add_trust_mem(list, &pem, NULL, GNUTLS_X509_FMT_PEM, 0, 0);
    if (n > 0 && !c->trust && !(c->trust = text_dup((const char *)pem.data, pem.size)))
        n = GNUTLS_E_MEMORY_ERROR;
    gnutls_free(pem.data);
    if (n <= 0) {
        if (list)
            gnutls_x509_trust_list_deinit(list, 1);
        return err_set(e, -EINVAL, "certificates %s: %s", c->ca_file,
                       n < 0 ? gnutls_strerror(n) : "there are none");
    }
    if (c->trusted)
        gnutls_x509_trust_list_deinit(c->trusted, 1);
    c->trusted = list;
    return 0;
}

static void refresh_trust(struct http_certs *c)
{
    struct stamp ca = stamp_of(c->ca_file);
    struct err e = ERR_INIT;
    if (same(&ca, &c->ca_stamp))
        return;
    if (load_trust(c, &e) < 0)
        log_warn("http: %s; the authorities from before are used", e.message);
    else
        log_info("http: new authorities of clients from %s", c->ca_file);
}

static void free_retired(struct http_certs *c)
{
    int64_t now = clock_now_ns();
    for (struct generation **at = &c->current->older; *at;) {
        struct generation *g = *at;
        if (now - g->replaced_ns < RETIRED_NS) {
            at = &g->older;
            continue;
        }
        *at = g->older;
        generation_free(g);
    }
}

static void refresh(struct http_certs *c)
{
    struct stamp cert = stamp_of(c->cert_file), key = stamp_of(c->key_file);
    if (same(&cert, &c->cert_stamp) && same(&key, &c->key_stamp))
        return;
    struct err e = ERR_INIT;
    if (load(c, &e) < 0)
        log_warn("http: %s; the certificate from before is used", e.message);
    else
        log_info("http: new certificate from %s", c->cert_file);
    free_retired(c);
}

static int on_handshake(gnutls_session_t session, const gnutls_datum_t *issuers, int n_issuers,
                        const gnutls_pk_algorithm_t *algorithms, int n_algorithms,
                        gnutls_pcert_st **ret_chain, unsigned *ret_n, gnutls_privkey_t *ret_key)
{
    (void)session;
    (void)issuers;
    (void)n_issuers;
    (void)algorithms;
    (void)n_algorithms;
    if (!in_use)
        return -1;
    refresh(in_use);
    *ret_chain = in_use->current->chain;
    *ret_n = in_use->current->n_chain;
    *ret_key = in_use->current->key;
    return 0;
}

const void *const http_certs_callback = (const void *)on_handshake;

void http_certs_use(struct http_certs *c)
{
    in_use = c;
}

int http_certs_new(const struct http_tls *tls, struct http_certs **ret, struct err *e)
{
    struct http_certs *c = calloc(1, sizeof *c);
    if (!c)
        return err_set(e, -ENOMEM, "out of memory");
    c->cert_file = strdup(tls->cert_file);
    c->key_file = strdup(tls->key_file);
    int r = c->cert_file && c->key_file ? load(c, e) : err_set(e, -ENOMEM, "out of memory");
    if (r == 0 && tls->ca_file && *tls->ca_file) {
        c->ca_file = strdup(tls->ca_file);
        r = c->ca_file ? load_trust(c, e) : err_set(e, -ENOMEM, "out of memory");
    }
    if (r < 0)
        http_certs_free(c);
    else
        *ret = c;
    return r;
}

void http_certs_free(struct http_certs *c)
{
    if (!c)
        return;
    if (in_use == c)
        in_use = NULL;
    for (struct generation *g = c->current, *older; g; g = older) {
        older = g->older;
        generation_free(g);
    }
    free(c->cert_file);
    free(c->key_file);
    free(c->ca_file);
    free(c->trust);
    if (c->trusted)
        gnutls_x509_trust_list_deinit(c->trusted, 1);
    free(c);
}

const char *http_certs_trust(const struct http_certs *c)
{
    return c->trust;
}

/* Not what MHD was started with: the file may have been replaced since. */
bool http_certs_client_ok(struct http_certs *c, struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    unsigned n = 0, n_read = 0, status = ~0U;
    const gnutls_datum_t *chain = info ? gnutls_certificate_get_peers(info->tls_session, &n) : NULL;
    gnutls_x509_crt_t certs[MAX_CHAIN];
    refresh_trust(c);
    bool ok = chain && n > 0 && n <= MAX_CHAIN;
    while (ok && n_read != n) {
        ok = gnutls_x509_crt_init(&certs[n_read]) >= 0;
        if (ok)
            n_read++;
        if (ok)
            ok = gnutls_x509_crt_import(certs[n_read - 1], &chain[n_read - 1],
                                        GNUTLS_X509_FMT_DER) >= 0;
    }
    if (ok)
        ok = gnutls_x509_trust_list_verify_crt(c->trusted, certs, n, 0, &status, NULL) >= 0;
    for (unsigned i = 0; i != n_read; i++)
        gnutls_x509_crt_deinit(certs[i]);
    return ok && status == 0;
}
