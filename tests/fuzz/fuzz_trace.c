/* fuzz_trace.c: any text as a W3C traceparent header: no trace, or its 32 digits from where they
 * stand. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/timeline.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char trace[TIMELINE_TRACE_BYTES];
    char *header = malloc(size + 1);
    if (!header)
        abort();
    memcpy(header, data, size);
    header[size] = '\0';
    memset(trace, 'x', sizeof trace);
    timeline_trace(header, trace);
    size_t n = strnlen(trace, sizeof trace);
    assert(n == 0 || n == sizeof trace - 1);
    if (n) {
        assert(strspn(trace, "0123456789abcdef") == n && strspn(trace, "0") != n);
        assert(memcmp(header + 3, trace, n) == 0 && memcmp(header, "ff", 2) != 0);
        assert(strlen(header) == 55 || header[55] == '-');
    }
    free(header);
    return 0;
}
