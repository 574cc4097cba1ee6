/* fuzz_config.c: any bytes as a configuration file. What is accepted must print as a configuration
 * that is accepted again and prints the same. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_show(struct config *c)
{
    struct buf text = {0}, again = {0};
    struct config back;
    struct err e = ERR_INIT;
    if (conf_show(&config_table, c, false, &text) < 0 || config_init(&back) < 0)
        abort();
    if (conf_read(&config_table, &back, "shown", text.data, text.size, &back.origin, &e) < 0)
        abort();
    if (conf_show(&config_table, &back, false, &again) < 0 || strcmp(text.data, again.data) != 0)
        abort();
    config_deinit(&back);
    buf_deinit(&text);
    buf_deinit(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct config c;
    struct err e = ERR_INIT;
    if (config_init(&c) < 0)
        abort();
    int r = conf_read(&config_table, &c, "fuzz.yaml", (const char *)data, size, &c.origin, &e);
    if (r == 0) {
        (void)config_check(&c, &e);
        check_show(&c);
    } else if (e.message[0] == '\0') {
        abort(); /* a refusal without a reason */
    }
    config_deinit(&c);
    return 0;
}
