/* certs.c: see certs.h. */
#include "certs.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

enum { MAX_FILES = 32 };

struct certs {
    char directory[128];
    EVP_PKEY *key;
    X509 *cert;
    long serial;
    char *files[MAX_FILES];
    int n_files;
};

static FILE *create(struct certs *c, const char *name, const char *suffix)
{
    assert(c->n_files < MAX_FILES);
    char **path = &c->files[c->n_files++];
    int length = asprintf(path, "%s/%s.%s", c->directory, name, suffix);
    assert(length > 0);
    FILE *f = fopen(*path, "w");
    assert(f);
    return f;
}

static void extend(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX context;
    X509V3_set_ctx_nodb(&context);
    X509V3_set_ctx(&context, issuer, cert, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
    assert(extension);
    X509_add_ext(cert, extension, -1);
    X509_EXTENSION_free(extension);
}

static X509 *make(struct certs *c, EVP_PKEY *key, const char *host, long seconds)
{
    X509 *cert = X509_new();
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), ++c->serial);
    X509_gmtime_adj(X509_getm_notBefore(cert), -7200);
    X509_gmtime_adj(X509_getm_notAfter(cert), seconds);
    X509_set_pubkey(cert, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
                               (const unsigned char *)(host ? host : "test authority"), -1, -1, 0);
    X509 *issuer = host ? c->cert : cert;
    X509_set_issuer_name(cert, X509_get_subject_name(issuer));
    char names[160];
    snprintf(names, sizeof names, "DNS:%s", host ? host : "");
    if (host)
        extend(cert, issuer, NID_subject_alt_name, names);
    else
        extend(cert, issuer, NID_basic_constraints, "critical,CA:TRUE");
    int signed_bytes = X509_sign(cert, host ? c->key : key, EVP_sha256());
    assert(signed_bytes > 0);
    return cert;
}

static void write_cert(struct certs *c, const char *name, X509 *cert)
{
    FILE *f = create(c, name, "crt");
    PEM_write_X509(f, cert);
    fclose(f);
}

struct certs *certs_new(const char *directory)
{
    struct certs *c = calloc(1, sizeof *c);
    assert(c);
    snprintf(c->directory, sizeof c->directory, "%s", directory);
    c->key = EVP_EC_gen("P-256");
    c->cert = make(c, c->key, NULL, 3600);
    write_cert(c, "ca", c->cert);
    return c;
}

void certs_issue(struct certs *c, const char *name, const char *host, long seconds)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = make(c, key, host, seconds);
    write_cert(c, name, cert);
    FILE *f = create(c, name, "key");
    PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL);
    fclose(f);
    X509_free(cert);
    EVP_PKEY_free(key);
}

void certs_free(struct certs *c, bool keep_files)
{
    for (int i = 0; i < c->n_files; i++) {
        if (!keep_files)
            unlink(c->files[i]);
        free(c->files[i]);
    }
    X509_free(c->cert);
    EVP_PKEY_free(c->key);
    free(c);
}
