/* writer.h: writes a model directory (model_dir.h): plans the files, writes tensors front to back,
 * keeps a journal of finished files so that an interrupted conversion goes on where it stopped, and
 * writes manifest.json last. Nothing half-written carries its final name. One thread.
 *
 *   model-00001-of-00003.safetensors         finished, in the journal
 *   model-00002-of-00003.safetensors.part    being written
 *   convert.journal.json                     which conversion this is; checksums of what is
 * finished manifest.json                            not there yet
 */
#ifndef GLMD_MODEL_WRITER_H
#define GLMD_MODEL_WRITER_H

#include <jansson.h>

#include "model/manifest.h"
#include "model/safetensors.h"

struct writer; /* opaque */

struct writer_options {
    const char *path;
    uint64_t max_file_bytes; /* of tensors in one file; a larger tensor has a file to itself */
    const char *conversion; /* identifies source and options: a journal of another one is refused */
    void (*on_warning)(void *context, const char *text); /* may be NULL */
    void *context;
};

/* Takes the list over (names included), creates the directory, locks it, and checks what an earlier
 * run has finished by its checksums. -EEXIST: the directory holds a finished model or anything else
 * that this conversion did not write; -EBUSY: another process is writing it; -ENOSPC: the file
 * system has not enough room. */
int writer_open(const struct writer_options *o, struct st_list *tensors, struct writer **ret,
                struct err *e);
/* Removes an unfinished .part file. NULL is fine. */
void writer_close(struct writer *w);

/* The manifest was already there: nothing is left to do. */
bool writer_is_complete(const struct writer *w);

/* Whether tensor i of the list is in a file that an earlier run finished. */
bool writer_has(const struct writer *w, size_t i);

/* The tensors that are not there yet, in list order: append all bytes of each. Files are begun and
 * published on the way. */
int writer_append(struct writer *w, const void *data, size_t n, struct err *e);

/* A small file beside the tensors (config.json): written at once, listed in the manifest. */
int writer_add_file(struct writer *w, const char *name, const void *data, size_t n, struct err *e);
int writer_add_json(struct writer *w, const char *name, const json_t *object, struct err *e);

/* The index, the manifest (source: borrowed), and the end of the journal. */
int writer_finish(struct writer *w, json_t *source, struct err *e);

#endif
