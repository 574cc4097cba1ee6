/* err.h: how functions of this project report failure.
 *
 * A function that can fail returns int: 0, or a negative errno value (-EINVAL, -ENOMEM, ...). Where
 * a person needs to know the place and the remedy, it also takes a `struct err *` and fills in a
 * message that says what was expected, what was found and what to do. Low layers return; one caller
 * logs.
 */
#ifndef GLMD_BASE_ERR_H
#define GLMD_BASE_ERR_H

#include <errno.h>

enum { ERR_MESSAGE_BYTES = 512 };

struct err {
    int code;                        /* 0, or the negative errno value that was returned */
    char message[ERR_MESSAGE_BYTES]; /* one line, no trailing newline; "" when code is 0 */
};

#define ERR_INIT                                                                                   \
    {                                                                                              \
        0, ""                                                                                      \
    }

/* Fills in `e` (which may be NULL) and returns `code`, so that `return err_set(e, -EINVAL, ...)`
 * reads as one step. A message that does not fit is cut. */
int err_set(struct err *e, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "context: " in front of the message that is already there; returns the code unchanged. */
int err_prefix(struct err *e, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The text of a negative errno value, thread-safe ("No such file or directory"). */
const char *err_name(int code);

#endif
