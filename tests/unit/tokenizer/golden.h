/* golden.h: what the tests of this folder share: the golden model's files and comparisons that
 * print both sides. Failures end the test. */
#ifndef GLMD_TESTS_UNIT_TOKENIZER_GOLDEN_H
#define GLMD_TESTS_UNIT_TOKENIZER_GOLDEN_H

#include <stdbool.h>

#include <jansson.h>

#include "model/tokenizer/tokenizer.h"

/* "<repository>/<name>"; freed by the caller. */
char *golden_path(const char *name);

/* A JSON file below the repository's root. */
json_t *golden_json(const char *name);

/* tests/golden/glm130b/config.json. */
void golden_arch(struct arch *ret);
struct tokenizer *golden_tokenizer(void);

/* The same pieces in the white-space keeping variant, whose ids need a larger vocabulary. */
struct tokenizer *golden_whitespace_tokenizer(struct arch *ret);

struct token_list golden_ids(const json_t *array);
void golden_check_ids(const struct token_list *found, const json_t *expected, const char *what);
void golden_check_text(const struct buf *found, const char *expected, const char *what);

#endif
