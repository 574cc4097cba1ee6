/* test_tls_expiry.c: the end of a chain is that of the certificate that ends first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "coordinator/tls_expiry.h"

static char path[] = "/tmp/glmd-test-expiry-XXXXXX";

/* Appends a certificate that ends then. */
static void append_cert(FILE *f, time_t end)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    assert_non_null(key);
    assert_non_null(cert);
    ASN1_TIME_set(X509_getm_notBefore(cert), 0);
    ASN1_TIME_set(X509_getm_notAfter(cert), end);
    X509_set_pubkey(cert, key);
    assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
    assert_int_equal(PEM_write_X509(f, cert), 1);
    X509_free(cert);
    EVP_PKEY_free(key);
}

static FILE *begin_file(void)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    return f;
}

static void the_earliest_counts(void **state)
{
    (void)state;
    static const time_t ends[] = {2000000000, 1900000007, 2100000000};
    time_t found = 0;
    FILE *f = begin_file();
    for (size_t i = 0; i != sizeof ends / sizeof ends[0]; i++)
        append_cert(f, ends[i]);
    fclose(f);
    assert_int_equal(tls_expiry(path, &found), 0);
    assert_int_equal(found, ends[1]);
}

static void what_is_no_certificate(void **state)
{
    (void)state;
    time_t found = 7;
    FILE *f = begin_file();
    fputs("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", f);
    fclose(f);
    assert_int_equal(tls_expiry(path, &found), -EINVAL);
    assert_int_equal(tls_expiry("/nonexistent/cert.pem", &found), -ENOENT);
    assert_int_equal(found, 7);
}

static int make_path(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    close(fd);
    return fd < 0;
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_earliest_counts),
        cmocka_unit_test(what_is_no_certificate),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
