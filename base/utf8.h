/* utf8.h: is this text UTF-8? Everything textual that enters or leaves glmd is. */
#ifndef GLMD_BASE_UTF8_H
#define GLMD_BASE_UTF8_H

#include <stddef.h>

/* Offset of the first byte that is not part of a well-formed sequence (Unicode 15, table 3-7: no
 * overlong forms, no surrogates, nothing above U+10FFFF; a sequence cut off at the end counts as
 * malformed); `size` when all is well. NUL bytes are well-formed. */
size_t utf8_check(const char *text, size_t size);

/* Replaces, in place, every byte that utf8_check complains about by '?'. For texts of unknown
 * origin (file names in messages) on their way out. */
void utf8_repair(char *text, size_t size);

#endif
