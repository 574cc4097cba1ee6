/* certs.h: makes certificates for the TLS tests, fresh in every run. */
#ifndef GLMD_TESTS_UNIT_RPC_CERTS_H
#define GLMD_TESTS_UNIT_RPC_CERTS_H

#include <stdbool.h>

struct certs; /* a certificate authority */

struct certs *certs_new(const char *directory); /* writes NAME.crt files there: "ca.crt" */
void certs_free(struct certs *c, bool keep_files);

/* Writes NAME.crt and NAME.key, signed by the authority, for host name `host` (more alternative
 * names may follow: "a.test, IP:127.0.0.1"); valid until `seconds` from now (negative: has
 * expired). */
void certs_issue(struct certs *c, const char *name, const char *host, long seconds);

#endif
