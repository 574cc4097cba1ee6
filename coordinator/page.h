/* page.h: what a browser is shown: the files of the page (coordinator/page/, in the program itself:
 * nothing is loaded from elsewhere) and the state of the cluster as JSON. Loop thread. */
#ifndef GLMD_COORDINATOR_PAGE_H
#define GLMD_COORDINATOR_PAGE_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

struct coordinator;

struct page_file {
    const char *path; /* "/", "/page/style.css" */
    const char *content_type;
    const uint8_t *data;
    const size_t *size;
};

/* All of them, for a route table. */
extern const struct page_file page_files[];
extern const size_t page_n_files;

/* Headers that go with each file: nothing but what this server serves may run or be asked. */
#define PAGE_SECURITY_POLICY                                                                       \
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

/* Appends the object that `glmd status --json` prints, with "history": the samples of the last
 * minutes, oldest first. -ENOMEM. */
int page_status(const struct coordinator *c, struct buf *out);

#endif
