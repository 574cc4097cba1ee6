/* options_help.c: whether what --help says and what the tables take is the same. See options.h. */
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <string.h>

#include "base/err.h"
#include "cli/options.h"

/* An option as a line of help has it. */
struct said {
    const char *name;
    size_t n_name;
    char letter;
    int value; /* no_argument, ... */
};

static const struct cli_option *find(const struct cli_options *tables, size_t n_tables,
                                     const struct said *s, size_t *ret_at)
{
    *ret_at = 0;
    for (size_t t = 0; t != n_tables; t++) {
        for (size_t i = 0; i != tables[t].n; i++, ++*ret_at) {
            const char *name = tables[t].options[i].name;
            if (strlen(name) == s->n_name && memcmp(name, s->name, s->n_name) == 0)
                return &tables[t].options[i];
        }
    }
    return NULL;
}

static int value_of(const struct cli_option *o)
{
    if (o->kind == CLI_OPTION_FLAG || o->kind == CLI_OPTION_TAKE_NONE)
        return no_argument;
    return o->kind == CLI_OPTION_TAKE_OPTIONAL ? optional_argument : required_argument;
}

static int check_said(const struct said *s, const struct cli_options *tables, size_t n_tables,
                      bool *seen, struct err *e)
{
    static const char *const values[] = {
        [no_argument] = "none", [required_argument] = "one", [optional_argument] = "perhaps one"};
    size_t at;
    int n = (int)s->n_name;
    if (n == 4 && memcmp(s->name, "help", 4) == 0)
        return 0; /* every verb has it */
    const struct cli_option *o = find(tables, n_tables, s, &at);
    if (!o)
        return err_set(e, -EINVAL, "--help has --%.*s, which is no option", n, s->name);
    if (seen[at])
        return err_set(e, -EINVAL, "--help has --%.*s twice", n, s->name);
    seen[at] = true;
    if (s->letter != o->letter)
        return err_set(e, -EINVAL, "--%.*s: --help has the letter '%c', the option '%c'", n,
                       s->name, s->letter ? s->letter : ' ', o->letter ? o->letter : ' ');
    if (s->value != value_of(o))
        return err_set(e, -EINVAL, "--%.*s: --help has a value: %s; the option: %s", n, s->name,
                       values[s->value], values[value_of(o)]);
    return 0;
}

/* The next word, up to a blank; NULL behind the last one, which two blanks end. */
static const char *next_word(const char **at, const char *end, size_t *ret_n)
{
    const char *word = *at;
    if (word == end || *word == ' ')
        return NULL;
    const char *blank = memchr(word, ' ', (size_t)(end - word));
    *ret_n = (size_t)((blank ? blank : end) - word);
    *at = blank ? blank + 1 : end;
    return word;
}

/* "-L, --name VALUE, --other": a comma ends an option, and so does a dash. */
static int check_line(const char *line, const char *end, const struct cli_options *tables,
                      size_t n_tables, bool *seen, struct err *e)
{
    size_t n;
    char letter = 0;
    int r = 0;
    for (const char *word = next_word(&line, end, &n); word && r == 0;) {
        bool comma = word[n - 1] == ',';
        if (n - comma == 2 && word[0] == '-' && isalpha((unsigned char)word[1]))
            letter = word[1];
        if (n <= 2 || word[0] != '-' || word[1] != '-') {
            word = next_word(&line, end, &n); /* a letter, or more of a value: KEY:MS ... */
            continue;
        }
        struct said s = {word + 2, n - 2 - comma, letter, no_argument};
        letter = 0;
        word = next_word(&line, end, &n);
        if (word && *word != '-' && !comma)
            s.value = *word == '[' ? optional_argument : required_argument;
        r = check_said(&s, tables, n_tables, seen, e);
    }
    return r;
}

static int check_text(const char *text, const struct cli_options *tables, size_t n_tables,
                      bool *seen, struct err *e)
{
    int r = 0;
    while (*text && r == 0) {
        const char *end = text + strcspn(text, "\n");
        const char *line = text + strspn(text, " ");
        if (line != text && *line == '-')
            r = check_line(line, end, tables, n_tables, seen, e);
        text = *end ? end + 1 : end;
    }
    return r;
}

int cli_help_check(const char *usage, const struct cli_options *tables, size_t n_tables,
                   struct err *e)
{
    bool seen[CLI_MAX_OPTIONS] = {false};
    size_t at = 0;
    int r = check_text(usage, tables, n_tables, seen, e);
    for (size_t t = 0; t != n_tables && r == 0; t++) {
        if (tables[t].help)
            r = check_text(tables[t].help, tables, n_tables, seen, e);
    }
    for (size_t t = 0; t != n_tables && r == 0; t++) {
        for (size_t i = 0; i != tables[t].n && r == 0; i++) {
            assert(at < CLI_MAX_OPTIONS);
            if (!seen[at++])
                r = err_set(e, -EINVAL, "--help lacks --%s", tables[t].options[i].name);
        }
    }
    return r;
}
