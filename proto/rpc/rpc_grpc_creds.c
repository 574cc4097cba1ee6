/* rpc_grpc_creds.c: certificate files -> gRPC credentials.
 *
 * gRPC takes certificates as text and fails, with a line in its log, when the first connection is
 * made. Here the files are read and checked at start: there, in PEM, the key fits the certificate,
 * the certificate has not expired. The keys are wiped from the copies made here. A server looks at
 * its files again at every handshake, so that a new certificate needs no restart; what is wrong
 * with a new one is logged once, and the old one stays in use.
 */
#include "proto/rpc/rpc_grpc.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "base/log.h"
#include "base/util.h"

enum { MAX_PEM_BYTES = 1 << 20 };

struct pem_files { /* owned; NULL: not given */
    char *ca, *cert, *key;
};

static bool given(const char *file)
{
    return file && file[0];
}

static void wipe(char *text)
{
    if (text)
        explicit_bzero(text, strlen(text));
    free(text);
}

static void pem_files_deinit(struct pem_files *p)
{
    wipe(p->ca);
    wipe(p->cert);
    wipe(p->key);
}

static int read_all(int fd, char *text, size_t size)
{
    size_t at = 0;
    while (at < size) {
        ssize_t n = read(fd, text + at, size - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        at += (size_t)n;
    }
    text[at] = '\0';
    return 0;
}

static int read_file(const char *file, const char *what, char **ret, struct err *e)
{
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(e, -errno, "cannot read the %s file %s: %s", what, file, err_name(-errno));
    struct stat st;
    int code = fstat(fd, &st) < 0 ? -errno : 0;
    if (!code && (!S_ISREG(st.st_mode) || st.st_size < 1 || st.st_size > MAX_PEM_BYTES))
        code =
            err_set(e, -EINVAL, "the %s file %s: expected a PEM file of at most 1 MiB", what, file);
    else if (!code) {
        char *text = calloc(1, (size_t)st.st_size + 1);
        code = text ? read_all(fd, text, (size_t)st.st_size) : -ENOMEM;
        if (code) {
            free(text);
            err_set(e, code, "cannot read the %s file %s: %s", what, file, err_name(code));
        } else {
            *ret = text;
        }
    }
    close(fd);
    return code;
}

/* The first certificate in the text; NULL when there is none. The caller frees it. */
static X509 *first_certificate(const char *text)
{
    BIO *bio = BIO_new_mem_buf(text, -1);
    X509 *cert = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
    BIO_free(bio);
    return cert;
}

static int no_passphrase(char *buffer, int size, int writing, void *context)
{
    (void)buffer, (void)size, (void)writing, (void)context;
    return -1; /* nobody is there to type it */
}

static EVP_PKEY *private_key(const char *text)
{
    BIO *bio = BIO_new_mem_buf(text, -1);
    EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL) : NULL;
    BIO_free(bio);
    return key;
}

static int check_ca(const struct rpc_tls *tls, const struct pem_files *p, struct err *e)
{
    X509 *cert = first_certificate(p->ca);
    if (!cert)
        return err_set(e, -EINVAL, "the CA file %s holds no certificate in PEM", tls->ca_file);
    X509_free(cert);
    return 0;
}

static int check_pair(const struct rpc_tls *tls, const struct pem_files *p, struct err *e)
{
    X509 *cert = first_certificate(p->cert);
    EVP_PKEY *key = private_key(p->key);
    int code = 0;
    if (!cert)
        code = err_set(e, -EINVAL, "the certificate file %s holds no certificate in PEM",
                       tls->cert_file);
    else if (!key)
        code = err_set(e, -EINVAL,
                       "the key file %s holds no private key in PEM, or one with a passphrase",
                       tls->key_file);
    else if (X509_check_private_key(cert, key) != 1)
        code = err_set(e, -EINVAL, "the key in %s does not belong to the first certificate in %s",
                       tls->key_file, tls->cert_file);
    else if (X509_cmp_current_time(X509_get0_notAfter(cert)) < 0)
        code = err_set(e, -EKEYEXPIRED, "the certificate in %s has expired; install a new one",
                       tls->cert_file);
    X509_free(cert);
    EVP_PKEY_free(key);
    return code;
}

static int load(const struct rpc_tls *tls, struct pem_files *p, struct err *e)
{
    if (given(tls->cert_file) != given(tls->key_file))
        return err_set(e, -EINVAL,
                       "TLS: a certificate file and its key file go together; only the "
                       "%s file is given",
                       given(tls->cert_file) ? "certificate" : "key");
    int code = 0;
    if (given(tls->ca_file)) {
        code = read_file(tls->ca_file, "CA", &p->ca, e);
        if (!code)
            code = check_ca(tls, p, e);
    }
    if (!code && given(tls->cert_file)) {
        code = read_file(tls->cert_file, "certificate", &p->cert, e);
        if (!code)
            code = read_file(tls->key_file, "key", &p->key, e);
        if (!code)
            code = check_pair(tls, p, e);
    }
    ERR_clear_error(); /* gRPC uses the same library on this thread */
    return code;
}

static bool plaintext(const struct rpc_tls *tls)
{
    return !tls || (!given(tls->ca_file) && !given(tls->cert_file) && !given(tls->key_file));
}

/* ---- servers: certificates that change ---- */

enum { N_FILES = 3 };

struct creds_source {
    pthread_mutex_t lock; /* gRPC asks on threads of its own */
    char *paths[N_FILES]; /* owned; CA (may be NULL), certificate, key */
    struct stat seen[N_FILES];
    bool loaded;
};

void creds_source_free(struct creds_source *s)
{
    if (!s)
        return;
    pthread_mutex_destroy(&s->lock);
    for (size_t i = 0; i != N_FILES; i++)
        free(s->paths[i]);
    free(s);
}

static struct creds_source *source_new(const struct rpc_tls *tls)
{
    const char *paths[N_FILES] = {tls->ca_file, tls->cert_file, tls->key_file};
    struct creds_source *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    pthread_mutex_init(&s->lock, NULL);
    bool complete = true;
    for (size_t i = 0; i != N_FILES; i++) {
        if (!given(paths[i]))
            continue;
        s->paths[i] = text_dup(paths[i], strlen(paths[i]));
        complete = complete && s->paths[i];
    }
    if (complete)
        return s;
    creds_source_free(s);
    return NULL;
}

/* Looks at the files; whether one of them is another one than before. */
static bool look(struct creds_source *s)
{
    bool changed = false;
    for (size_t i = 0; i != N_FILES; i++) {
        struct stat now = {0}, *seen = &s->seen[i];
        if (!s->paths[i])
            continue;
        if (stat(s->paths[i], &now) < 0)
            now = (struct stat){0};
        changed |= now.st_dev != seen->st_dev || now.st_ino != seen->st_ino ||
                   now.st_size != seen->st_size || now.st_mtim.tv_sec != seen->st_mtim.tv_sec ||
                   now.st_mtim.tv_nsec != seen->st_mtim.tv_nsec;
        *seen = now;
    }
    return changed;
}

/* What the files hold now, as gRPC takes it. */
static int read_source(const struct creds_source *s, grpc_ssl_server_certificate_config **ret,
                       struct err *e)
{
    const struct rpc_tls tls = {
        .ca_file = s->paths[0], .cert_file = s->paths[1], .key_file = s->paths[2]};
    struct pem_files p = {0};
    int code = load(&tls, &p, e);
    if (!code) {
        grpc_ssl_pem_key_cert_pair pair = {.private_key = p.key, .cert_chain = p.cert};
        /* gRPC 1.51 insists on roots, also where no client is asked for a certificate: any
         * certificate serves then, because nothing is checked against it. */
        const char *roots = p.ca ? p.ca : p.cert;
        *ret = grpc_ssl_server_certificate_config_create(roots, &pair, 1);
        if (!*ret)
            code = err_set(e, -EINVAL, "gRPC did not accept the certificate in %s", tls.cert_file);
    }
    pem_files_deinit(&p);
    return code;
}

static grpc_ssl_certificate_config_reload_status fetch(void *user,
                                                       grpc_ssl_server_certificate_config **ret)
{
    struct creds_source *s = user;
    struct err e = ERR_INIT;
    grpc_ssl_certificate_config_reload_status status = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    pthread_mutex_lock(&s->lock);
    if (look(s)) {
        if (read_source(s, ret, &e) == 0) {
            status = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
            if (s->loaded)
                log_info("TLS: the certificate in %s was read again", s->paths[1]);
            s->loaded = true;
        } else {
            log_error("TLS: %s; the old certificate stays in use", e.message);
            if (!s->loaded)
                status = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_FAIL;
        }
    }
    pthread_mutex_unlock(&s->lock);
    return status;
}

/* Whether the files can be used now; what is wrong is known before anybody connects. */
static int check_files(const struct rpc_tls *tls, struct err *e)
{
    struct pem_files p = {0};
    int code = load(tls, &p, e);
    if (!code && !p.cert)
        code = err_set(e, -EINVAL, "TLS: a server needs a certificate file and its key file");
    pem_files_deinit(&p);
    return code;
}

int creds_server(const struct rpc_tls *tls, grpc_server_credentials **ret,
                 struct creds_source **ret_source, struct err *e)
{
    *ret_source = NULL;
    if (plaintext(tls)) {
        *ret = grpc_insecure_server_credentials_create();
        return 0;
    }
    int code = check_files(tls, e);
    if (code)
        return code;
    struct creds_source *s = source_new(tls);
    if (!s)
        return err_set(e, -ENOMEM, "out of memory");
    grpc_ssl_server_credentials_options *options =
        grpc_ssl_server_credentials_create_options_using_config_fetcher(
            given(tls->ca_file) ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
            fetch, s);
    *ret = grpc_ssl_server_credentials_create_with_options(options);
    if (!*ret) {
        creds_source_free(s);
        return err_set(e, -EINVAL, "gRPC did not accept the certificate in %s", tls->cert_file);
    }
    *ret_source = s;
    return 0;
}

int creds_client(const struct rpc_tls *tls, grpc_channel_credentials **ret, struct err *e)
{
    if (plaintext(tls)) {
        *ret = grpc_insecure_credentials_create();
        return 0;
    }
    struct pem_files p = {0};
    int code = load(tls, &p, e);
    if (!code && !p.ca)
        code = err_set(e, -EINVAL,
                       "TLS: a client needs the CA file that signs the server's certificate");
    if (!code) {
        grpc_ssl_pem_key_cert_pair pair = {.private_key = p.key, .cert_chain = p.cert};
        *ret = grpc_ssl_credentials_create(p.ca, p.cert ? &pair : NULL, NULL, NULL);
        if (!*ret)
            code = err_set(e, -EINVAL, "gRPC did not accept the certificates in %s", tls->ca_file);
    }
    pem_files_deinit(&p);
    return code;
}
