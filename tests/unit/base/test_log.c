/* test_log.c: the three formats, what hostile values become, and entries for journald. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log_format.h"
#include "base/util.h"

static const uint32_t rank = 3;

static struct log_line line_of(const char *message)
{
    return (struct log_line){
        .level = LOG_LEVEL_WARN,
        .name = "worker/3",
        .message = message,
        .fields =
            {.request = "r\"1", .trace = "t1", .group = "g", .rank = &rank, .epoch = 7, .step = 9},
        .time = {.tv_sec = 1700000000, .tv_nsec = 12345678},
    };
}

static char out[LOG_LINE_BYTES + 1];

static const char *formatted(size_t (*format)(const struct log_line *l, char *o),
                             const struct log_line *l)
{
    size_t n = format(l, out);
    assert_in_range(n, 1, LOG_LINE_BYTES);
    out[n] = '\0';
    return out;
}

static void text_is_one_line(void **state)
{
    (void)state;
    struct log_line l = line_of("a\nb\x1b[31mc 智");
    const char *text = formatted(log_format_text, &l);
    assert_string_equal(text + 13, "warn  worker/3: a?b?[31mc 智\n");
    assert_string_equal(formatted(log_format_syslog, &l), "<4>worker/3: a?b?[31mc 智\n");
    l.message = "a\xc2\x9b"
                "2J\xc2\xa0\xc2\x85"; /* C1: CSI, and a next line; not U+00A0 */
    assert_string_equal(formatted(log_format_text, &l) + 13, "warn  worker/3: a?2J\xc2\xa0?\n");
}

static void json_has_the_fields(void **state)
{
    (void)state;
    struct log_line l = line_of("say \"a\\b\"\n\x01");
    assert_string_equal(formatted(log_format_json, &l),
                        "{\"time\":\"2023-11-14T22:13:20.012Z\",\"level\":\"warn\","
                        "\"name\":\"worker/3\",\"message\":\"say \\\"a\\\\b\\\"\\u000a\\u0001\","
                        "\"request\":\"r\\\"1\",\"trace\":\"t1\",\"group\":\"g\",\"rank\":3,"
                        "\"epoch\":7,\"step\":9}\n");
    l.fields = (struct log_fields){0};
    l.message = "x";
    assert_string_equal(formatted(log_format_json, &l),
                        "{\"time\":\"2023-11-14T22:13:20.012Z\",\"level\":\"warn\","
                        "\"name\":\"worker/3\",\"message\":\"x\"}\n");
}

static void json_is_utf8_whatever_it_is_about(void **state)
{
    (void)state;
    char cut[201] = "";
    struct log_line l = line_of("x");
    l.fields = (struct log_fields){.request = "\xff河\xe6\xb2", .group = cut};
    memset(cut, 'a', 158);
    memcpy(cut + 158, "河", 3); /* values end behind 160 bytes */
    const char *json = formatted(log_format_json, &l);
    assert_non_null(strstr(json, "\"request\":\"?河??\""));
    assert_non_null(strstr(json, "aaa??\"}\n"));
}

static void journal_entries_have_the_fields(void **state)
{
    (void)state;
    struct log_line l = line_of("all is well");
    assert_string_equal(formatted(log_format_journal, &l),
                        "MESSAGE=all is well\nPRIORITY=4\nSYSLOG_IDENTIFIER=glmd-worker/3\n"
                        "GLMD_REQUEST=r\"1\nGLMD_TRACE=t1\nGLMD_GROUP=g\nGLMD_RANK=3\n"
                        "GLMD_EPOCH=7\nGLMD_STEP=9\n");
    /* a newline cannot make a field of its own */
    l.message = "a\nPRIORITY=0";
    l.fields = (struct log_fields){0};
    static const char expected[] = "MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\nPRIORITY=4\n"
                                   "SYSLOG_IDENTIFIER=glmd-worker/3\n";
    assert_int_equal(log_format_journal(&l, out), sizeof expected - 1);
    assert_memory_equal(out, expected, sizeof expected - 1);
}

static void the_longest_fits(void **state)
{
    (void)state;
    static char message[LOG_MESSAGE_BYTES], value[1000];
    memset(message, 1, sizeof message - 1);
    memset(value, 1, sizeof value - 1);
    struct log_line l = line_of(message);
    l.name = l.fields.request = l.fields.trace = l.fields.group = value;
    l.fields.epoch = l.fields.step = UINT64_MAX;
    formatted(log_format_text, &l);
    formatted(log_format_json, &l);
    formatted(log_format_syslog, &l);
    formatted(log_format_journal, &l);
}

/* ---- where lines go ---- */

/* Standard error becomes the returned file until restore_stderr. */
static int saved_stderr = -1;

static FILE *catch_stderr(void)
{
    FILE *f = tmpfile();
    assert_non_null(f);
    saved_stderr = dup(STDERR_FILENO);
    dup2(fileno(f), STDERR_FILENO);
    return f;
}

static void restore_stderr(FILE *f, char *ret, size_t size)
{
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    rewind(f);
    size_t n = fread(ret, 1, size - 1, f);
    ret[n] = '\0';
    fclose(f);
}

static void journald_gets_entries_and_else_standard_error(void **state)
{
    (void)state;
    char folder[] = "/tmp/glmd-log-XXXXXX", received[4096], text[4096], stream[64];
    assert_non_null(mkdtemp(folder));
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/socket", folder);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);

    FILE *caught = catch_stderr();
    struct stat s;
    fstat(STDERR_FILENO, &s);
    snprintf(stream, sizeof stream, "%llu:%llu", (unsigned long long)s.st_dev,
             (unsigned long long)s.st_ino);
    setenv("JOURNAL_STREAM", stream, 1);
    log_init("test", LOG_LEVEL_INFO, LOG_FORMAT_JOURNAL);
    int code = log_set_journal(address.sun_path);
    log_event(LOG_LEVEL_INFO, LOG(.group = "left", .rank = &rank), "hello %d", 1);
    ssize_t n = recv(fd, received, sizeof received - 1, MSG_DONTWAIT);
    close(fd);
    log_event(LOG_LEVEL_ERROR, NULL, "nobody listens");
    log_event(LOG_LEVEL_DEBUG, NULL, "below the level");
    restore_stderr(caught, text, sizeof text);
    unsetenv("JOURNAL_STREAM");
    unlink(address.sun_path);
    rmdir(folder);
    assert_int_equal(code, 0);
    received[MAX(n, 0)] = '\0';
    assert_string_equal(received, "MESSAGE=hello 1\nPRIORITY=6\nSYSLOG_IDENTIFIER=glmd-test\n"
                                  "GLMD_GROUP=left\nGLMD_RANK=3\n");
    assert_string_equal(text, "<3>test: nobody listens\n");
}

static void defaults_complete_an_event(void **state)
{
    (void)state;
    char text[4096];
    FILE *caught = catch_stderr();
    log_init("test", LOG_LEVEL_INFO, LOG_FORMAT_JSON);
    log_set_fields(LOG(.group = "own", .rank = &rank));
    log_event(LOG_LEVEL_INFO, LOG(.group = "other", .epoch = 5), "x");
    log_set_fields(LOG(.group = NULL));
    restore_stderr(caught, text, sizeof text);
    const char *fields = strstr(text, "\"message\"");
    assert_non_null(fields);
    assert_string_equal(fields, "\"message\":\"x\",\"group\":\"other\",\"rank\":3,\"epoch\":5}\n");
    log_init("test", LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_one_line),
        cmocka_unit_test(json_has_the_fields),
        cmocka_unit_test(json_is_utf8_whatever_it_is_about),
        cmocka_unit_test(journal_entries_have_the_fields),
        cmocka_unit_test(the_longest_fits),
        cmocka_unit_test(journald_gets_entries_and_else_standard_error),
        cmocka_unit_test(defaults_complete_an_event),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
