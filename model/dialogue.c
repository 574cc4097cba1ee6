/* dialogue.c: see dialogue.h. */
#include "model/dialogue.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "model/file.h"
#include "model/jsonfile.h"
#include "model/layout.h"

static const char content[] = "{content}";
static const char *const role_keys[DIALOGUE_N_ROLES] = {"system", "user", "assistant"};

/* Of several stop texts that are complete at one place the longest counts: with the blank or the
 * line break in front of it, so that the answer ends without. */
const struct dialogue dialogue_default = {
    .begin = "",
    .roles = {[DIALOGUE_SYSTEM] = "{content}\n\n",
              [DIALOGUE_USER] = "User: {content}\n",
              [DIALOGUE_ASSISTANT] = "Assistant: {content}\n"},
    .answer = "Assistant:",
    .stops = {"\nUser:", " User:", "User:"},
    .n_stops = 3,
};

/* ---- reading ---- */

static int take_text(const json_t *object, const char *key, bool with_content, char *ret,
                     size_t size, struct err *e)
{
    const char *text;
    int r = jsonfile_get_string(object, key, &text, e);
    if (r < 0)
        return r;
    if (strlen(text) >= size)
        return err_set(e, -EINVAL, "%s: expected at most %zu bytes, found %zu", key, size - 1,
                       strlen(text));
    const char *at = strstr(text, content);
    if (with_content && (!at || strstr(at + 1, content)))
        return err_set(e, -EINVAL, "%s: expected a text with \"%s\" once", key, content);
    memcpy(ret, text, strlen(text) + 1);
    return 0;
}

static int take_stops(const json_t *object, struct dialogue *ret, struct err *e)
{
    const json_t *stops = json_object_get(object, "stop");
    if (!json_is_array(stops) || json_array_size(stops) > DIALOGUE_MAX_STOPS)
        return err_set(e, -EINVAL, "stop: expected a list of at most %d texts", DIALOGUE_MAX_STOPS);
    for (size_t i = 0; i != json_array_size(stops); i++) {
        const char *text = json_string_value(json_array_get(stops, i));
        if (!text || !*text || strlen(text) >= DIALOGUE_STOP_BYTES)
            return err_set(e, -EINVAL, "stop: entry %zu: expected a text of 1 to %d bytes", i,
                           DIALOGUE_STOP_BYTES - 1);
        memcpy(ret->stops[ret->n_stops++], text, strlen(text) + 1);
    }
    return 0;
}

static int check_keys(const json_t *object, struct err *e)
{
    static const char *const known[] = {"begin", "system", "user", "assistant", "answer", "stop"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        bool found = false;
        for (size_t i = 0; i != ARRAY_LEN(known); i++)
            found = found || strcmp(key, known[i]) == 0;
        if (!found)
            return err_set(e, -EINVAL,
                           "\"%.64s\": expected begin, system, user, assistant, answer and stop",
                           key);
    }
    return 0;
}

int dialogue_from_json(const json_t *object, struct dialogue *ret, struct err *e)
{
    *ret = (struct dialogue){0};
    if (!json_is_object(object))
        return err_set(e, -EINVAL, "expected an object");
    int r = check_keys(object, e);
    if (r == 0 && json_object_get(object, "begin"))
        r = take_text(object, "begin", false, ret->begin, sizeof ret->begin, e);
    for (size_t i = 0; i != DIALOGUE_N_ROLES && r == 0; i++)
        r = take_text(object, role_keys[i], true, ret->roles[i], sizeof ret->roles[i], e);
    if (r == 0)
        r = take_text(object, "answer", false, ret->answer, sizeof ret->answer, e);
    return r == 0 ? take_stops(object, ret, e) : r;
}

int dialogue_load(const char *model_dir, struct dialogue *ret, struct err *e)
{
    char *path = file_join(model_dir, LAYOUT_GENERATION_CONFIG);
    if (!path)
        return err_set(e, -ENOMEM, "out of memory");
    json_t *config = NULL;
    int r = jsonfile_load(path, LAYOUT_MAX_CONFIG_BYTES, &config, e);
    const json_t *dialogue = r == 0 ? json_object_get(config, "dialogue") : NULL;
    if (r == -ENOENT || (r == 0 && !dialogue)) {
        *ret = dialogue_default;
        r = 0;
    } else if (r == 0) {
        r = dialogue_from_json(dialogue, ret, e);
        if (r < 0)
            err_prefix(e, "%s: dialogue", path);
    }
    json_decref(config);
    free(path);
    return r;
}

/* ---- writing ---- */

json_t *dialogue_to_json(const struct dialogue *d)
{
    json_t *object = json_object(), *stops = json_array();
    bool ok = object && stops;
    for (uint32_t i = 0; ok && i != d->n_stops; i++)
        ok = json_array_append_new(stops, json_string(d->stops[i])) == 0;
    ok = ok && json_object_set_new(object, "begin", json_string(d->begin)) == 0;
    for (size_t i = 0; ok && i != DIALOGUE_N_ROLES; i++)
        ok = json_object_set_new(object, role_keys[i], json_string(d->roles[i])) == 0;
    ok = ok && json_object_set_new(object, "answer", json_string(d->answer)) == 0;
    ok = ok && json_object_set(object, "stop", stops) == 0;
    json_decref(stops);
    if (ok)
        return object;
    json_decref(object);
    return NULL;
}

/* ---- conversations ---- */

int dialogue_render(const struct dialogue *d, const struct dialogue_turn *turns, size_t n,
                    bool go_on, struct buf *ret_text)
{
    int r = buf_append_str(ret_text, d->begin);
    for (size_t i = 0; i != n && r == 0; i++) {
        const char *around = d->roles[turns[i].role], *at = strstr(around, content);
        assert(at);
        r = buf_append(ret_text, around, (size_t)(at - around));
        if (r == 0)
            r = buf_append_str(ret_text, turns[i].text);
        if (r == 0 && !(go_on && i == n - 1))
            r = buf_append_str(ret_text, at + sizeof content - 1);
    }
    if (r == 0 && !(go_on && n))
        r = buf_append_str(ret_text, d->answer);
    return r;
}
