/* tls_expiry.h: until when a certificate is good. Pure apart from reading the file; loop thread, 50
 * us: for scrapes. */
#ifndef GLMD_COORDINATOR_TLS_EXPIRY_H
#define GLMD_COORDINATOR_TLS_EXPIRY_H

#include <time.h>

/* The earliest end among the certificates of a PEM file, a chain: that is when clients stop to
 * trust it. -EINVAL: there is none in it; -errno: it cannot be read. */
int tls_expiry(const char *cert_file, time_t *ret);

#endif
