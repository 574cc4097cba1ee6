/* openai_chat.c: conversations: messages to the text that the model directory states for them
 * (model/dialogue.h). See openai.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/openai_internal.h"
#include "model/dialogue.h"

/* ---- messages ---- */

/* The text parts of a content, a line each. */
static int take_parts(struct openai_private *p, size_t message, const json_t *parts,
                      const char **ret)
{
    struct buf text = {0};
    int r = 0;
    for (size_t i = 0; i != json_array_size(parts) && r == 0; i++) {
        const json_t *part = json_array_get(parts, i);
        const char *type = json_string_value(json_object_get(part, "type"));
        const char *line = json_string_value(json_object_get(part, "text"));
        if (!type || strcmp(type, "text") != 0 || !line)
            r = openai_refuse(p, "messages",
                              "messages[%zu].content[%zu]: expected {\"type\": \"text\", \"text\": "
                              "...}: this server has text only",
                              message, i);
        if (r == 0 && i)
            r = buf_append(&text, "\n", 1);
        if (r == 0)
            r = buf_append_str(&text, line);
    }
    char *copy = r == 0 ? openai_alloc(p, text.size + 1, 1) : NULL;
    if (copy && text.size)
        memcpy(copy, text.data, text.size);
    buf_deinit(&text);
    if (r == -ENOMEM)
        openai_error_set(p->error, 500, NULL, "out of memory");
    *ret = copy;
    return r == 0 && !copy ? -ENOMEM : r;
}

static int take_content(struct openai_private *p, size_t i, const json_t *content, const char **ret)
{
    *ret = json_string_value(content);
    int r = json_is_array(content) ? take_parts(p, i, content, ret) : 0;
    if (r < 0)
        return r;
    if (!*ret)
        return openai_refuse(p, "messages",
                             "messages[%zu].content: expected a string or a list of text parts", i);
    if (strstr(*ret, "[MASK]") || strstr(*ret, "[sMASK]") || strstr(*ret, "[gMASK]"))
        return openai_refuse(p, "messages",
                             "messages[%zu].content: it has a mask, which would be filled instead "
                             "of answered: use /v1/fill or /v1/completions",
                             i);
    return 0;
}

static int take_role(struct openai_private *p, size_t i, const json_t *role,
                     enum dialogue_role *ret)
{
    static const struct {
        const char *name;
        enum dialogue_role role;
    } roles[] = {{"system", DIALOGUE_SYSTEM},
                 {"developer", DIALOGUE_SYSTEM},
                 {"user", DIALOGUE_USER},
                 {"assistant", DIALOGUE_ASSISTANT}};
    const char *name = json_string_value(role);
    for (size_t k = 0; name && k != ARRAY_LEN(roles); k++) {
        if (strcmp(name, roles[k].name) == 0) {
            *ret = roles[k].role;
            return 0;
        }
    }
    return openai_refuse(p, "messages",
                         "messages[%zu].role: expected system, developer, user or assistant", i);
}

static int take_message(struct openai_private *p, size_t i, const json_t *m,
                        struct dialogue_turn *ret)
{
    if (!json_is_object(m))
        return openai_refuse(p, "messages", "messages[%zu]: expected an object, found %s", i,
                             jsonfile_type_name(m));
    const json_t *calls = json_object_get(m, "tool_calls");
    if (calls && !json_is_null(calls) && json_array_size(calls) != 0)
        return openai_refuse(p, "messages", "messages[%zu].tool_calls: this server has no tools",
                             i);
    int r = take_role(p, i, json_object_get(m, "role"), &ret->role);
    return r == 0 ? take_content(p, i, json_object_get(m, "content"), &ret->text) : r;
}

/* The assistant's last message is the beginning of the answer. */
static int check_going_on(struct openai_private *p, const struct dialogue_turn *turns, size_t n)
{
    const struct openai_int *add = &p->v.add_generation_prompt;
    if (!p->v.continue_final && !(add->set && !add->v))
        return 0;
    if (p->v.continue_final && add->set && add->v)
        return openai_refuse(p, "continue_final_message",
                             "continue_final_message: expected add_generation_prompt false with "
                             "it");
    if (turns[n - 1].role != DIALOGUE_ASSISTANT)
        return openai_refuse(p, "continue_final_message",
                             "messages[%zu].role: expected assistant: there is nothing to go on "
                             "from",
                             n - 1);
    return 0;
}

static int render(struct openai_private *p, const struct dialogue_turn *turns, size_t n,
                  const char **ret)
{
    struct buf text = {0};
    const struct openai_int *add = &p->v.add_generation_prompt;
    bool go_on = p->v.continue_final || (add->set && !add->v);
    int r = dialogue_render(p->settings->dialogue, turns, n, go_on, &text);
    char *copy = r == 0 ? openai_alloc(p, text.size + 1, 1) : NULL;
    if (copy && text.size)
        memcpy(copy, text.data, text.size);
    buf_deinit(&text);
    if (!copy) {
        openai_error_set(p->error, 500, NULL, "out of memory");
        return -ENOMEM;
    }
    *ret = copy;
    return 0;
}

int openai_render_messages(struct openai_private *p, const char **ret_text)
{
    const json_t *messages = p->v.messages;
    size_t n = json_array_size(messages);
    if (!p->settings->dialogue) {
        openai_error_set(p->error, 404, NULL, "this model has no conversations");
        return -EINVAL;
    }
    if (!messages)
        return openai_refuse(p, "messages", "messages: missing");
    if (n == 0 || n > OPENAI_MAX_MESSAGES)
        return openai_refuse(p, "messages", "messages: expected a list of 1 to %d messages",
                             OPENAI_MAX_MESSAGES);
    struct dialogue_turn *turns = openai_alloc(p, n, sizeof *turns);
    int r = turns ? 0 : -ENOMEM;
    for (size_t i = 0; i != n && r == 0; i++)
        r = take_message(p, i, json_array_get(messages, i), &turns[i]);
    if (r == 0)
        r = check_going_on(p, turns, n);
    return r == 0 ? render(p, turns, n, ret_text) : r;
}

/* ---- the call ---- */

/* The dialogue's own stop texts behind the client's. */
static int add_stops(struct openai_private *p)
{
    const struct dialogue *d = p->settings->dialogue;
    struct wire_sampling_parameters *s = &p->sampling;
    uint32_t n = s->n_stop + d->n_stops;
    if (n > STOP_MAX_TEXTS)
        return openai_refuse(p, "stop", "stop: expected at most %u texts in a chat, found %u",
                             STOP_MAX_TEXTS - d->n_stops, s->n_stop);
    const char **texts = openai_alloc(p, n, sizeof *texts);
    /* Copies: the dialogue may be another one by the time the call is made. */
    char(*own)[DIALOGUE_STOP_BYTES] = texts ? openai_alloc(p, d->n_stops, sizeof *own) : NULL;
    if (!own)
        return -ENOMEM;
    for (uint32_t i = 0; i != s->n_stop; i++)
        texts[i] = s->stop[i];
    for (uint32_t i = 0; i != d->n_stops; i++) {
        memcpy(own[i], d->stops[i], sizeof own[i]);
        texts[s->n_stop + i] = own[i];
    }
    s->stop = texts;
    s->n_stop = n;
    return 0;
}

static int take_logprobs(struct openai_private *p)
{
    p->logprobs = p->v.logprobs.set && p->v.logprobs.v;
    if (p->v.top_logprobs.set && p->v.top_logprobs.v && !p->logprobs)
        return openai_refuse(p, "top_logprobs", "top_logprobs: expected logprobs true with it");
    p->top_logprobs = p->logprobs && p->v.top_logprobs.set ? (uint32_t)p->v.top_logprobs.v : 0;
    return 0;
}

int openai_build_chat(struct openai_private *p)
{
    const char *text = NULL;
    int r = take_logprobs(p);
    if (r == 0)
        r = openai_take_sampling(p);
    if (r == 0)
        r = openai_render_messages(p, &text);
    if (r == 0)
        r = add_stops(p);
    if (r == 0)
        r = openai_new_calls(p, 1);
    if (r < 0)
        return r;
    const struct openai_int *max = &p->v.max_completion_tokens;
    if (!max->set)
        max = &p->v.max_tokens;
    p->public.open_ended = !max->set;
    p->generate[0].text = text;
    p->generate[0].max_tokens = max->set ? (uint32_t)max->v : p->settings->max_tokens;
    return 0;
}
