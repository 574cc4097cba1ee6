/* conf_internal.h: shared by the files of conf: table look-up and value parsing. */
#ifndef GLMD_BASE_CONF_INTERNAL_H
#define GLMD_BASE_CONF_INTERNAL_H

#include "base/conf.h"

/* Index of the option with this path, or -1. */
int conf_find(const struct conf_table *t, const char *path);

/* Whether some option's path starts with "path." */
bool conf_is_section(const struct conf_table *t, const char *path);

/* The path or section most like an unknown one; NULL when nothing comes near. The text stays valid
 * until the next call with the same buffer. */
const char *conf_nearest(const struct conf_table *t, const char *path, char *buffer, size_t size);

/* Text -> field. On failure `ret_expected` says what is allowed ("a whole number from 1 to 64"). */
int conf_parse_scalar(const struct conf_option *o, void *values, const char *text,
                      struct buf *ret_expected);
int conf_check_list(const struct conf_option *o, const struct conf_list *l,
                    struct buf *ret_expected);

void conf_describe_range(const struct conf_option *o, struct buf *ret_text);
void conf_format_size(uint64_t bytes, struct buf *ret_text);
void conf_format_duration(int64_t ns, struct buf *ret_text);

static inline void *conf_field(const struct conf_option *o, void *values)
{
    return (char *)values + o->offset;
}

#endif
