/* tls_expiry.c: see tls_expiry.h. */
#include "coordinator/tls_expiry.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

#include <openssl/pem.h>
#include <openssl/x509.h>

enum { MAX_CHAIN = 16 };

static int not_after(const X509 *cert, time_t *ret)
{
    struct tm tm;
    if (ASN1_TIME_to_tm(X509_get0_notAfter(cert), &tm) != 1)
        return -EINVAL;
    *ret = timegm(&tm);
    return 0;
}

int tls_expiry(const char *cert_file, time_t *ret)
{
    FILE *f = fopen(cert_file, "re");
    if (!f)
        return -errno;
    int r = -EINVAL;
    for (int i = 0; i != MAX_CHAIN; i++) {
        X509 *cert = PEM_read_X509(f, NULL, NULL, NULL);
        time_t end;
        if (!cert)
            break;
        int code = not_after(cert, &end);
        X509_free(cert);
        if (code == 0 && (r < 0 || end < *ret)) {
            *ret = end;
            r = 0;
        }
    }
    fclose(f);
    return r;
}
