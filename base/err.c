/* err.c: see err.h. Thread-safe: touches only what the caller passes. */
#include "base/err.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int err_set(struct err *e, int code, const char *format, ...)
{
    assert(code < 0);
    if (!e)
        return code;
    va_list args;
    va_start(args, format);
    vsnprintf(e->message, sizeof e->message, format, args);
    va_end(args);
    e->code = code;
    return code;
}

int err_prefix(struct err *e, const char *format, ...)
{
    if (!e)
        return -EINVAL;
    assert(e->code < 0);
    char context[ERR_MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(context, sizeof context, format, args);
    va_end(args);
    char joined[2 * ERR_MESSAGE_BYTES + 3];
    snprintf(joined, sizeof joined, "%s: %s", context, e->message);
    joined[ERR_MESSAGE_BYTES - 1] = '\0';
    memcpy(e->message, joined, strlen(joined) + 1);
    return e->code;
}

const char *err_name(int code)
{
    const char *text = strerrordesc_np(-code);
    return text ? text : "unknown error";
}
