/* manifest.json, whole and its lists alone (a changed manifest fails its own digest). */
#include <stdint.h>
#include <stdlib.h>

#include "model/jsonfile.h"
#include "model/manifest.h"
#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_list(const json_t *root, const char *key)
{
    struct manifest_list list;
    struct err e = ERR_INIT;
    const json_t *object = json_object_get(root, key);
    if (!json_is_object(object) || manifest_list_from_json(object, &list, &e) < 0)
        return;
    for (size_t i = 0; i < list.n; i++) {
        if (!st_name_ok(list.entries[i].name) ||
            manifest_find(&list, list.entries[i].name) != &list.entries[i])
            abort();
    }
    manifest_list_deinit(&list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err e = ERR_INIT;
    json_t *root = NULL;
    struct manifest m;
    if (size > MANIFEST_MAX_BYTES ||
        jsonfile_parse((const char *)data, size, "input", &root, &e) < 0)
        return 0;
    if (manifest_from_json(root, &m, &e) == 0)
        manifest_deinit(&m);
    else if (e.message[0] == '\0')
        abort();
    read_list(root, "files");
    read_list(root, "tensors");
    json_decref(root);
    return 0;
}
