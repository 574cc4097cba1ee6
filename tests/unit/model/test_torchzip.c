/* The ZIP reader: archives built byte by byte, right and wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/util.h"
#include "model/torchzip.h"
#include "tests/unit/model/support.h"

static void put(struct buf *b, uint64_t value, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char byte = i < 8 ? (char)(value >> (8 * i)) : 0;
        assert_int_equal(buf_append(b, &byte, 1), 0);
    }
}

static void set(struct buf *b, size_t at, uint64_t value, size_t n)
{
    assert_true(at + n <= b->size);
    for (size_t i = 0; i < n; i++)
        b->data[at + i] = (char)(value >> (8 * i));
}

/* Where the parts of the archive under construction are. */
struct built {
    struct buf b;
    size_t local[4], payload[4], central[4], end64, locator, end;
    size_t central_start;
};

static const struct {
    const char *name, *content;
} files[] = {{"x/data.pkl", "pickle"}, {"x/data/0", "0123456789abcdef"}, {"x/version", "3\n"}};
enum { N_FILES = ARRAY_LEN(files) };

static void put_local(struct built *z, size_t i, bool descriptor)
{
    size_t n = strlen(files[i].name), size = strlen(files[i].content);
    struct buf *b = &z->b;
    z->local[i] = b->size;
    put(b, 0x04034b50, 4);
    put(b, 20, 2);
    put(b, descriptor ? 8 : 0, 2);
    put(b, 0, 2 + 2 + 2);
    put(b, descriptor ? 0 : 0x1234, 4);
    put(b, descriptor ? 0 : size, 4);
    put(b, descriptor ? 0 : size, 4);
    put(b, n, 2);
    put(b, 6, 2); /* padding in the extra field, as torch writes it */
    buf_append(b, files[i].name, n);
    put(b, 'F' | 'B' << 8, 2);
    put(b, 2, 2);
    buf_append(b, "ZZ", 2);
    z->payload[i] = b->size;
    buf_append(b, files[i].content, size);
    if (descriptor) {
        put(b, 0x08074b50, 4);
        put(b, 0x1234, 4);
        put(b, size, 4);
        put(b, size, 4);
    }
}

static void put_central(struct built *z, size_t i, bool zip64)
{
    size_t n = strlen(files[i].name), size = strlen(files[i].content);
    struct buf *b = &z->b;
    z->central[i] = b->size;
    put(b, 0x02014b50, 4);
    put(b, 20, 2);
    put(b, 20, 2);
    put(b, 0, 2 + 2 + 2 + 2);
    put(b, 0x1234, 4);
    put(b, zip64 ? UINT32_MAX : size, 4);
    put(b, zip64 ? UINT32_MAX : size, 4);
    put(b, n, 2);
    put(b, zip64 ? 4 + 24 : 0, 2);
    put(b, 0, 2 + 2 + 2 + 4);
    put(b, zip64 ? UINT32_MAX : z->local[i], 4);
    buf_append(b, files[i].name, n);
    if (zip64) {
        put(b, 1, 2);
        put(b, 24, 2);
        put(b, size, 8);
        put(b, size, 8);
        put(b, z->local[i], 8);
    }
}

static void build(struct built *z, bool zip64, bool descriptor)
{
    *z = (struct built){0};
    struct buf *b = &z->b;
    for (size_t i = 0; i < N_FILES; i++)
        put_local(z, i, descriptor);
    z->central_start = b->size;
    for (size_t i = 0; i < N_FILES; i++)
        put_central(z, i, zip64);
    size_t central_bytes = b->size - z->central_start;
    if (zip64) {
        z->end64 = b->size;
        put(b, 0x06064b50, 4);
        put(b, 44, 8);
        put(b, 45, 2);
        put(b, 45, 2);
        put(b, 0, 4 + 4);
        put(b, N_FILES, 8);
        put(b, N_FILES, 8);
        put(b, central_bytes, 8);
        put(b, z->central_start, 8);
        z->locator = b->size;
        put(b, 0x07064b50, 4);
        put(b, 0, 4);
        put(b, z->end64, 8);
        put(b, 1, 4);
    }
    z->end = b->size;
    put(b, 0x06054b50, 4);
    put(b, 0, 2 + 2);
    put(b, zip64 ? 0xffff : N_FILES, 2);
    put(b, zip64 ? 0xffff : N_FILES, 2);
    put(b, zip64 ? UINT32_MAX : central_bytes, 4);
    put(b, zip64 ? UINT32_MAX : z->central_start, 4);
    put(b, 0, 2);
}

static int read_zip(const struct buf *b, struct torchzip *zip, struct err *e)
{
    int fd = memory_file(b->data, b->size);
    int r = torchzip_read(fd, b->size, "x.pt", zip, e);
    close(fd);
    return r;
}

static void test_good(void **state)
{
    (void)state;
    for (unsigned variant = 0; variant < 4; variant++) {
        struct built z;
        struct torchzip zip;
        struct err e = ERR_INIT;
        build(&z, variant & 1, variant & 2);
        if (read_zip(&z.b, &zip, &e) < 0)
            fail_msg("variant %u: %s", variant, e.message);
        assert_int_equal(zip.n, N_FILES);
        const struct torchzip_entry *entry = torchzip_find(&zip, "data/0");
        assert_non_null(entry);
        assert_int_equal(entry->bytes, 16);
        assert_int_equal(entry->crc, 0x1234);
        assert_memory_equal(z.b.data + entry->offset, "0123456789abcdef", 16);
        assert_null(torchzip_find(&zip, "data/1"));
        assert_null(torchzip_find(&zip, "x/data/0"));
        torchzip_deinit(&zip);
        buf_deinit(&z.b);
    }
}

/* A comment behind the end record, also one that looks like an end record. */
static void test_comment(void **state)
{
    (void)state;
    struct built z;
    struct torchzip zip;
    struct err e = ERR_INIT;
    build(&z, true, false);
    set(&z.b, z.end + 20, 40, 2);
    put(&z.b, 0x06054b50, 4);
    put(&z.b, 0, 36);
    if (read_zip(&z.b, &zip, &e) < 0)
        fail_msg("%s", e.message);
    torchzip_deinit(&zip);
    buf_deinit(&z.b);
}

/* Every file that ends too early is refused. */
static void test_truncated(void **state)
{
    (void)state;
    struct built z;
    build(&z, true, true);
    for (size_t n = 0; n < z.b.size; n++) {
        struct buf cut = {.data = z.b.data, .size = n};
        struct torchzip zip;
        struct err e = ERR_INIT;
        int r = read_zip(&cut, &zip, &e);
        if (r != -EBADMSG)
            fail_msg("%zu of %zu bytes: expected -EBADMSG, found %d", n, z.b.size, r);
    }
    buf_deinit(&z.b);
}

enum place { CENTRAL, LOCAL, END, END64, LOCATOR };

static void test_wrong_fields(void **state)
{
    (void)state;
    static const struct {
        bool zip64;
        enum place place;
        size_t at, n;
        uint64_t value;
        int code;
        const char *message;
    } cases[] = {
        {false, CENTRAL, 0, 4, 0x12345678, -EBADMSG, "directory is damaged"},
        {false, CENTRAL, 8, 2, 1, -ENOTSUP, "encrypted"},
        {false, CENTRAL, 10, 2, 8, -ENOTSUP, "compressed"},
        {false, CENTRAL, 20, 4, 5, -EBADMSG, "two different sizes"},
        {false, CENTRAL, 24, 4, 0xfffffff0, -EBADMSG, "two different sizes"},
        {false, CENTRAL, 28, 2, 0, -EBADMSG, "damaged"},
        {false, CENTRAL, 28, 2, 600, -EBADMSG, "damaged"},
        {false, CENTRAL, 28, 2, 7, -EBADMSG, ""},
        {false, CENTRAL, 30, 2, 0xffff, -EBADMSG, "damaged"},
        {false, CENTRAL, 42, 4, 0xfffffff0, -EBADMSG, "outside the file"},
        {false, CENTRAL, 42, 4, 1, -EBADMSG, "differs"},
        {false, CENTRAL, 46, 1, '/', -EBADMSG, "folder"},
        {false, CENTRAL, 46, 1, 'y', -EBADMSG, ""},
        {false, CENTRAL, 48, 1, 0, -EBADMSG, ""},
        {true, CENTRAL, 46 + 8 + 2, 2, 16, -EBADMSG, ""},
        {true, CENTRAL, 46 + 8 + 2, 2, 400, -EBADMSG, "extra field"},
        {true, CENTRAL, 46 + 8 + 4, 8, UINT64_MAX, -EBADMSG, ""},
        {true, CENTRAL, 46 + 8 + 20, 8, UINT64_MAX, -EBADMSG, "outside the file"},
        {false, LOCAL, 0, 4, 0, -EBADMSG, "differs"},
        {false, LOCAL, 26, 2, 9, -EBADMSG, "differs"},
        {false, LOCAL, 28, 2, 0xffff, -EBADMSG, "reaches beyond"},
        {false, LOCAL, 30, 1, 'q', -EBADMSG, "differs"},
        {false, END, 0, 4, 0, -EBADMSG, "no end record"},
        {false, END, 4, 2, 1, -EBADMSG, "several disks"},
        {false, END, 8, 2, 2, -EBADMSG, "several disks"},
        {false, END, 8, 4, 0, -EBADMSG, "expected 1 to"},
        {false, END, 8, 4, 0x00ff00ff, -EBADMSG, "not possible"},
        {false, END, 12, 4, UINT32_MAX, -EBADMSG, "not possible"},
        {false, END, 16, 4, UINT32_MAX, -EBADMSG, "outside the file"},
        {false, END, 20, 2, 1, -EBADMSG, "no end record"},
        {true, LOCATOR, 0, 4, 0, -EBADMSG, ""},
        {true, LOCATOR, 4, 4, 1, -EBADMSG, "several disks"},
        {true, LOCATOR, 8, 8, UINT64_MAX, -EBADMSG, "outside the file"},
        {true, LOCATOR, 8, 8, 1, -EBADMSG, "end record is damaged"},
        {true, LOCATOR, 16, 4, 2, -EBADMSG, "several disks"},
        {true, END64, 24, 8, 9, -EBADMSG, "several disks"},
        {true, END64, 40, 8, UINT64_MAX, -EBADMSG, "not possible"},
        {true, END64, 48, 8, UINT64_MAX, -EBADMSG, "outside the file"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct built z;
        struct torchzip zip;
        struct err e = ERR_INIT;
        build(&z, cases[i].zip64, false);
        const size_t places[] = {[CENTRAL] = z.central[1],
                                 [LOCAL] = z.local[1],
                                 [END] = z.end,
                                 [END64] = z.end64,
                                 [LOCATOR] = z.locator};
        set(&z.b, places[cases[i].place] + cases[i].at, cases[i].value, cases[i].n);
        int r = read_zip(&z.b, &zip, &e);
        if (r != cases[i].code || !strstr(e.message, cases[i].message))
            fail_msg("case %zu: expected %d and \"%s\", found %d and \"%s\"", i, cases[i].code,
                     cases[i].message, r, e.message);
        buf_deinit(&z.b);
    }
}

/* The number of entries in both fields. */
static void set_n_entries(struct built *z, uint64_t n)
{
    set(&z->b, z->end64 + 24, n, 8);
    set(&z->b, z->end64 + 32, n, 8);
}

static void test_counts(void **state)
{
    (void)state;
    static const uint64_t counts[] = {
        0, 4, 100, TORCHZIP_MAX_ENTRIES + 1, UINT64_MAX, UINT64_MAX / 46 + 1};
    for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
        struct built z;
        struct torchzip zip;
        struct err e = ERR_INIT;
        build(&z, true, false);
        set_n_entries(&z, counts[i]);
        if (read_zip(&z.b, &zip, &e) != -EBADMSG)
            fail_msg("%llu entries were accepted", (unsigned long long)counts[i]);
        buf_deinit(&z.b);
    }
}

/* Two directory records for one entry: same name, or same bytes. */
static void test_overlap(void **state)
{
    (void)state;
    struct built z;
    struct torchzip zip;
    struct err e = ERR_INIT;
    build(&z, false, false);
    /* an entry that is longer than its room runs into the next local header's payload */
    size_t reach = z.payload[2] + 1 - z.payload[1];
    set(&z.b, z.central[1] + 20, reach, 4);
    set(&z.b, z.central[1] + 24, reach, 4);
    assert_int_equal(read_zip(&z.b, &zip, &e), -EBADMSG);
    assert_non_null(strstr(e.message, "overlap"));
    buf_deinit(&z.b);

    build(&z, false, false);
    /* both places of entry 2's name become entry 1's: "x/version" -> "x/data/0" is shorter, so
     * make 1 a copy of 0 instead, which has another length: change lengths too */
    memcpy(z.b.data + z.central[2] + 46, "x/data.pk", 9);
    memcpy(z.b.data + z.local[2] + 30, "x/data.pk", 9);
    set(&z.b, z.central[0] + 28, 9, 2);
    set(&z.b, z.central[0] + 30, 1, 2); /* the tenth letter becomes an extra field of one byte */
    set(&z.b, z.local[0] + 26, 9, 2);
    assert_int_equal(read_zip(&z.b, &zip, &e), -EBADMSG);
    assert_non_null(strstr(e.message, "twice"));
    buf_deinit(&z.b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),      cmocka_unit_test(test_comment),
        cmocka_unit_test(test_truncated), cmocka_unit_test(test_wrong_fields),
        cmocka_unit_test(test_counts),    cmocka_unit_test(test_overlap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
