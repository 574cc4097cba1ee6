/* kserve.c: what a request says. See kserve.h. */
#include "coordinator/kserve.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/utf8.h"
#include "base/util.h"

static const int64_t one[] = {1}, any_size[] = {-1};

#define TENSOR(name, datatype, shape)                                                              \
    {                                                                                              \
        name, datatype, shape, 1                                                                   \
    }
const struct wire_kserve_tensor_metadata kserve_inputs[] = {
    TENSOR("text_input", "BYTES", one),
    TENSOR("stream", "BOOL", one),
    TENSOR("sampling_parameters", "BYTES", one),
    TENSOR("exclude_input_in_output", "BOOL", one),
    TENSOR("return_finish_reason", "BOOL", one),
    TENSOR("return_cumulative_logprob", "BOOL", one),
    TENSOR("return_num_input_tokens", "BOOL", one),
    TENSOR("return_num_output_tokens", "BOOL", one),
};
const uint32_t kserve_n_inputs = ARRAY_LEN(kserve_inputs);

/* In the order of enum kserve_output. */
const struct wire_kserve_tensor_metadata kserve_outputs[KSERVE_N_OUTPUTS] = {
    TENSOR("text_output", "BYTES", any_size),        TENSOR("finish_reason", "BYTES", any_size),
    TENSOR("cumulative_logprob", "FP32", any_size),  TENSOR("num_input_tokens", "UINT32", any_size),
    TENSOR("num_output_tokens", "UINT32", any_size),
};

/* ---- values, wherever they come from ---- */

enum value_kind { VALUE_BOOL, VALUE_INT, VALUE_UINT, VALUE_NUMBER, VALUE_TEXT, VALUE_LIST };

struct value {
    enum value_kind kind;
    bool flag;
    int64_t integer;
    uint64_t natural;
    double number;
    const char *text;
    json_t *list;
};

/* Texts may hold a number: the published samples send them so. */
static int value_number(const char *name, const struct value *v, double *ret, struct err *e)
{
    char *end = NULL;
    switch (v->kind) {
    case VALUE_INT:
        *ret = (double)v->integer;
        return 0;
    case VALUE_UINT:
        *ret = (double)v->natural;
        return 0;
    case VALUE_NUMBER:
        *ret = v->number;
        return 0;
    case VALUE_TEXT:
        *ret = strtod(v->text, &end);
        if (end != v->text && !*end)
            return 0;
        break;
    default:
        break;
    }
    return err_set(e, -EINVAL, "%s: expected a number", name);
}

static int value_natural(const char *name, const struct value *v, uint64_t max, uint64_t *ret,
                         struct err *e)
{
    double number = 0;
    *ret = 0;
    if (v->kind == VALUE_UINT || (v->kind == VALUE_INT && v->integer >= 0)) {
        *ret = v->kind == VALUE_UINT ? v->natural : (uint64_t)v->integer;
    } else {
        int r = value_number(name, v, &number, e);
        if (r < 0)
            return r;
        if (!(number >= 0 && number < 0x1p64 && number == floor(number)))
            return err_set(e, -EINVAL, "%s: expected a whole number from 0, found %g", name,
                           number);
        *ret = (uint64_t)number;
    }
    if (*ret > max)
        return err_set(e, -EINVAL, "%s: expected at most %llu, found %llu", name,
                       (unsigned long long)max, (unsigned long long)*ret);
    return 0;
}

static int value_bool(const char *name, const struct value *v, bool *ret, struct err *e)
{
    if (v->kind == VALUE_BOOL) {
        *ret = v->flag;
        return 0;
    }
    if (v->kind == VALUE_TEXT &&
        (strcasecmp(v->text, "true") == 0 || strcasecmp(v->text, "false") == 0)) {
        *ret = strcasecmp(v->text, "true") == 0;
        return 0;
    }
    return err_set(e, -EINVAL, "%s: expected true or false", name);
}

/* ---- parameters ---- */

enum type {
    TYPE_BOOL,
    TYPE_U32,
    TYPE_U64,
    TYPE_FLOAT,
    TYPE_TOP_K,
    TYPE_EXCLUDE,
    TYPE_STOP,
    TYPE_STOP_IDS
};

struct parameter {
    const char *name;
    enum type type;
    size_t offset, has; /* in struct kserve_request; has 0: there is no such flag */
};

#define AT(member) offsetof(struct kserve_request, member)
#define P(n, t, x)                                                                                 \
    {                                                                                              \
        n, t, AT(x), 0                                                                             \
    }
#define P_HAS(n, t, s, x)                                                                          \
    {                                                                                              \
        n, t, AT(s.x), AT(s.has_##x)                                                               \
    }

static const struct parameter parameters[] = {
    P_HAS("temperature", TYPE_FLOAT, sampling, temperature),
    P_HAS("top_p", TYPE_FLOAT, sampling, top_p),
    P("top_k", TYPE_TOP_K, sampling.top_k),
    P("min_p", TYPE_FLOAT, sampling.min_p),
    P_HAS("seed", TYPE_U64, sampling, seed),
    P("max_tokens", TYPE_U32, generate.max_tokens),
    P("min_tokens", TYPE_U32, sampling.min_tokens),
    P("n", TYPE_U32, generate.n),
    P("best_of", TYPE_U32, generate.best_of),
    P("stop", TYPE_STOP, sampling.stop),
    P("stop_token_ids", TYPE_STOP_IDS, sampling.stop_token_ids),
    P("include_stop_str_in_output", TYPE_BOOL, sampling.include_stop),
    P("ignore_eos", TYPE_BOOL, sampling.ignore_end),
    P("repetition_penalty", TYPE_FLOAT, sampling.repetition_penalty),
    P("presence_penalty", TYPE_FLOAT, sampling.presence_penalty),
    P("frequency_penalty", TYPE_FLOAT, sampling.frequency_penalty),
    P("stream", TYPE_BOOL, stream),
    P("echo", TYPE_BOOL, echo),
    P("exclude_input_in_output", TYPE_EXCLUDE, echo),
    P("timeout", TYPE_U64, timeout_us),
    P("return_finish_reason", TYPE_BOOL, outputs[KSERVE_FINISH_REASON]),
    P("return_cumulative_logprob", TYPE_BOOL, outputs[KSERVE_LOGPROB]),
    P("return_num_input_tokens", TYPE_BOOL, outputs[KSERVE_INPUT_TOKENS]),
    P("return_num_output_tokens", TYPE_BOOL, outputs[KSERVE_OUTPUT_TOKENS]),
};

/* While a request is read. */
struct reader {
    struct kserve_request *r;
    bool said_echo, said_sampling;
    struct err *e;
};

static json_t *keep(struct kserve_request *r, json_t *json)
{
    if (json) {
        assert(r->n_json < ARRAY_LEN(r->json));
        r->json[r->n_json++] = json;
    }
    return json;
}

static int take_stop_list(struct reader *in, json_t *list)
{
    struct kserve_request *r = in->r;
    size_t n = json_array_size(list);
    if (n > KSERVE_MAX_STOPS)
        return err_set(in->e, -EINVAL, "stop: expected at most %d texts, found %zu",
                       KSERVE_MAX_STOPS, n);
    for (size_t i = 0; i != n; i++) {
        r->stops[i] = json_string_value(json_array_get(list, i));
        if (!r->stops[i])
            return err_set(in->e, -EINVAL, "stop: expected a list of texts");
    }
    r->sampling.stop = r->stops;
    r->sampling.n_stop = (uint32_t)n;
    return 0;
}

static int take_id_list(struct reader *in, json_t *list)
{
    struct kserve_request *r = in->r;
    size_t n = json_array_size(list);
    if (n > KSERVE_MAX_STOP_IDS)
        return err_set(in->e, -EINVAL, "stop_token_ids: expected at most %d ids, found %zu",
                       KSERVE_MAX_STOP_IDS, n);
    for (size_t i = 0; i != n; i++) {
        json_t *id = json_array_get(list, i);
        json_int_t number = json_integer_value(id);
        if (!json_is_integer(id) || number < 0 || number > INT32_MAX)
            return err_set(in->e, -EINVAL, "stop_token_ids: expected a list of token ids");
        r->stop_ids[i] = (int32_t)number;
    }
    r->sampling.stop_token_ids = r->stop_ids;
    r->sampling.n_stop_token_ids = (uint32_t)n;
    return 0;
}

/* A list, or a text that is one: parameters of the protocol cannot be lists. */
static int take_list(struct reader *in, const struct parameter *p, const struct value *v)
{
    json_t *list = v->kind == VALUE_LIST ? v->list : NULL;
    bool stop = p->type == TYPE_STOP;
    if (v->kind == VALUE_TEXT && v->text[0] == '[') {
        if (in->r->n_json == ARRAY_LEN(in->r->json))
            return err_set(in->e, -EINVAL, "%s: given too often", p->name);
        list = keep(in->r, json_loads(v->text, JSON_REJECT_DUPLICATES, NULL));
    }
    if (!list && v->kind == VALUE_TEXT && stop) {
        in->r->stops[0] = v->text;
        in->r->sampling.stop = in->r->stops;
        in->r->sampling.n_stop = 1;
        return 0;
    }
    if (!json_is_array(list))
        return err_set(in->e, -EINVAL, "%s: expected %s", p->name,
                       stop ? "a text or a list of texts" : "a list of token ids");
    return stop ? take_stop_list(in, list) : take_id_list(in, list);
}

static int take_parameter(struct reader *in, const struct parameter *p, const struct value *v)
{
    struct kserve_request *r = in->r;
    char *at = (char *)r + p->offset;
    uint64_t natural = 0;
    double number = 0;
    bool flag = false;
    int code = 0;
    switch (p->type) {
    case TYPE_BOOL:
    case TYPE_EXCLUDE:
        code = value_bool(p->name, v, &flag, in->e);
        *(bool *)at = p->type == TYPE_EXCLUDE ? !flag : flag;
        in->said_echo = in->said_echo || at == (char *)&r->echo;
        break;
    case TYPE_TOP_K: /* -1 is "off", too */
        if (v->kind == VALUE_INT && v->integer == -1)
            natural = 0;
        else
            code = value_natural(p->name, v, UINT32_MAX, &natural, in->e);
        *(uint32_t *)at = (uint32_t)natural;
        break;
    case TYPE_U32:
        code = value_natural(p->name, v, UINT32_MAX, &natural, in->e);
        *(uint32_t *)at = (uint32_t)natural;
        break;
    case TYPE_U64:
        code = value_natural(p->name, v, UINT64_MAX, &natural, in->e);
        *(uint64_t *)at = natural;
        break;
    case TYPE_FLOAT:
        code = value_number(p->name, v, &number, in->e);
        *(float *)at = (float)number;
        break;
    case TYPE_STOP:
    case TYPE_STOP_IDS:
        return take_list(in, p, v);
    }
    if (p->has)
        *(bool *)((char *)r + p->has) = true;
    return code;
}

/* Names of the protocol that say nothing here. */
static bool is_ignored(const char *name)
{
    return strncmp(name, "triton_", 7) == 0 || strcmp(name, "binary_data_output") == 0;
}

static int take_named(struct reader *in, const char *name, const struct value *v)
{
    for (size_t i = 0; i != ARRAY_LEN(parameters); i++) {
        if (strcmp(name, parameters[i].name) == 0)
            return take_parameter(in, &parameters[i], v);
    }
    if (is_ignored(name))
        return 0;
    char shown[64];
    snprintf(shown, sizeof shown, "%s", name);
    utf8_repair(shown, strlen(shown));
    return err_set(in->e, -EINVAL, "parameters: \"%s\" is not one that this server knows", shown);
}

static int take_entry(struct reader *in, const struct wire_kserve_entry *entry)
{
    const struct wire_kserve_parameter *p = entry->value;
    if (!p)
        return err_set(in->e, -EINVAL, "parameters: one has no value");
    if (p->has_bool_param)
        return take_named(in, entry->key,
                          &(struct value){.kind = VALUE_BOOL, .flag = p->bool_param});
    if (p->has_int64_param)
        return take_named(in, entry->key,
                          &(struct value){.kind = VALUE_INT, .integer = p->int64_param});
    if (p->has_uint64_param)
        return take_named(in, entry->key,
                          &(struct value){.kind = VALUE_UINT, .natural = p->uint64_param});
    if (p->has_double_param)
        return take_named(in, entry->key,
                          &(struct value){.kind = VALUE_NUMBER, .number = p->double_param});
    if (p->has_string_param)
        return take_named(in, entry->key,
                          &(struct value){.kind = VALUE_TEXT, .text = p->string_param});
    return err_set(in->e, -EINVAL, "parameters: one has no value");
}

/* The JSON object of sampling_parameters. */
static int take_json(struct reader *in, struct wire_bytes bytes)
{
    if (bytes.size > KSERVE_MAX_JSON_BYTES)
        return err_set(in->e, -EINVAL, "sampling_parameters: expected at most %d bytes, found %zu",
                       KSERVE_MAX_JSON_BYTES, bytes.size);
    json_t *object = keep(in->r, json_loadb(bytes.size ? (const char *)bytes.data : "", bytes.size,
                                            JSON_REJECT_DUPLICATES, NULL));
    if (!json_is_object(object))
        return err_set(in->e, -EINVAL, "sampling_parameters: expected a JSON object");
    const char *name;
    json_t *j;
    json_object_foreach(object, name, j)
    {
        struct value v = {.kind = VALUE_LIST, .list = j};
        if (json_is_boolean(j))
            v = (struct value){.kind = VALUE_BOOL, .flag = json_is_true(j)};
        else if (json_is_integer(j))
            v = (struct value){.kind = VALUE_INT, .integer = json_integer_value(j)};
        else if (json_is_real(j))
            v = (struct value){.kind = VALUE_NUMBER, .number = json_real_value(j)};
        else if (json_is_string(j))
            v = (struct value){.kind = VALUE_TEXT, .text = json_string_value(j)};
        else if (json_is_null(j))
            continue;
        int r = take_named(in, name, &v);
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- tensors ---- */

static const struct wire_kserve_tensor_metadata *
find_tensor(const struct wire_kserve_tensor_metadata *list, uint32_t n, const char *name)
{
    for (uint32_t i = 0; i != n; i++) {
        if (strcmp(list[i].name, name) == 0)
            return &list[i];
    }
    return NULL;
}

/* The one element of a tensor of BYTES. */
static int one_text(const struct reader *in, const struct wire_kserve_tensor *t,
                    const struct wire_bytes *raw, struct wire_bytes *ret)
{
    uint32_t length = 0;
    if (!raw) {
        if (!t->contents || t->contents->n_bytes_contents != 1)
            return err_set(in->e, -EINVAL, "%s: expected one element in bytes_contents, found %u",
                           t->name, t->contents ? t->contents->n_bytes_contents : 0);
        *ret = t->contents->bytes_contents[0];
        return 0;
    }
    if (raw->size >= sizeof length)
        memcpy(&length, raw->data, sizeof length); /* little-endian, as we are */
    if (raw->size < sizeof length || length != raw->size - sizeof length)
        return err_set(in->e, -EINVAL,
                       "%s: expected one element, its length in four bytes before it, found %zu "
                       "raw bytes",
                       t->name, raw->size);
    *ret = (struct wire_bytes){length, raw->data + sizeof length};
    return 0;
}

static int one_bool(const struct reader *in, const struct wire_kserve_tensor *t,
                    const struct wire_bytes *raw, bool *ret)
{
    if (raw ? raw->size != 1 : !t->contents || t->contents->n_bool_contents != 1)
        return err_set(in->e, -EINVAL, "%s: expected one true or false", t->name);
    *ret = raw ? raw->data[0] != 0 : t->contents->bool_contents[0] != 0;
    return 0;
}

static int take_text(struct reader *in, struct wire_bytes bytes)
{
    const char *text = bytes.size ? (const char *)bytes.data : "";
    if (in->r->text)
        return err_set(in->e, -EINVAL, "text_input: given twice");
    if (utf8_check(text, bytes.size) != bytes.size || memchr(text, 0, bytes.size))
        return err_set(in->e, -EINVAL, "text_input: expected UTF-8 without NUL bytes");
    in->r->text = text_dup(text, bytes.size);
    in->r->generate.text = in->r->text;
    return in->r->text ? 0 : err_set(in->e, -ENOMEM, "out of memory");
}

/* [1] or [1, 1]: batches of one. */
static int check_shape(const struct reader *in, const struct wire_kserve_tensor *t)
{
    bool ones = t->n_shape >= 1 && t->n_shape <= 2;
    for (uint32_t i = 0; ones && i != t->n_shape; i++)
        ones = t->shape[i] == 1;
    return ones
               ? 0
               : err_set(in->e, -EINVAL,
                         "%s: expected shape [1] or [1, 1]: one text a request; send requests side "
                         "by side",
                         t->name);
}

static int take_input(struct reader *in, const struct wire_kserve_tensor *t,
                      const struct wire_bytes *raw)
{
    const struct wire_kserve_tensor_metadata *known =
        find_tensor(kserve_inputs, kserve_n_inputs, t->name);
    struct wire_bytes bytes = {0, NULL};
    struct value flag = {.kind = VALUE_BOOL};
    if (!known)
        return err_set(in->e, -EINVAL,
                       "inputs: there is no such tensor (ModelMetadata lists them)");
    if (strcmp(t->datatype, known->datatype) != 0)
        return err_set(in->e, -EINVAL, "%s: expected datatype %s", known->name, known->datatype);
    if (raw && t->contents)
        return err_set(in->e, -EINVAL, "%s: expected contents or raw_input_contents, found both",
                       known->name);
    int r = check_shape(in, t);
    if (r < 0)
        return r;
    if (strcmp(known->datatype, "BOOL") == 0) {
        r = one_bool(in, t, raw, &flag.flag);
        return r < 0 ? r : take_named(in, t->name, &flag);
    }
    r = one_text(in, t, raw, &bytes);
    if (r < 0)
        return r;
    if (strcmp(t->name, "text_input") == 0)
        return take_text(in, bytes);
    if (in->said_sampling)
        return err_set(in->e, -EINVAL, "sampling_parameters: given twice");
    in->said_sampling = true;
    return take_json(in, bytes);
}

static int take_inputs(struct reader *in, const struct wire_kserve_infer_request *w)
{
    if (w->n_raw_input_contents && w->n_raw_input_contents != w->n_inputs)
        return err_set(in->e, -EINVAL,
                       "raw_input_contents: expected one for each of %u inputs, found %u",
                       w->n_inputs, w->n_raw_input_contents);
    in->r->raw = w->n_raw_input_contents != 0;
    int r = 0;
    for (uint32_t i = 0; r == 0 && i != w->n_inputs; i++)
        r = take_input(in, &w->inputs[i], in->r->raw ? &w->raw_input_contents[i] : NULL);
    if (r == 0 && !in->r->text)
        r = err_set(in->e, -EINVAL, "text_input: expected this tensor, found none");
    return r;
}

/* Those that are named, or text_output and what return_... asked for. */
static int take_outputs(struct reader *in, const struct wire_kserve_infer_request *w)
{
    in->r->outputs[KSERVE_TEXT] = w->n_outputs == 0;
    for (uint32_t i = 0; i != w->n_outputs; i++) {
        const struct wire_kserve_tensor_metadata *t =
            find_tensor(kserve_outputs, KSERVE_N_OUTPUTS, w->outputs[i].name);
        if (!t)
            return err_set(in->e, -EINVAL,
                           "outputs: there is no such tensor (ModelMetadata lists them)");
        in->r->outputs[t - kserve_outputs] = true;
    }
    return 0;
}

/* What follows from everything together. */
static int settle(struct reader *in)
{
    struct kserve_request *r = in->r;
    if (!in->said_echo)
        r->echo = !r->stream;
    if (r->echo && r->stream)
        return err_set(in->e, -EINVAL,
                       "exclude_input_in_output: streams do not repeat their input: leave it out, "
                       "or set it");
    if (r->timeout_us > INT64_MAX / NSEC_PER_USEC / 2)
        return err_set(in->e, -EINVAL, "timeout: expected microseconds");
    r->sampling.logprobs = r->sampling.logprobs || r->outputs[KSERVE_LOGPROB];
    r->generate.return_token_ids = true; /* the first one tells where a word begins */
    return 0;
}

int kserve_read(const struct wire_kserve_infer_request *w, struct kserve_request *ret,
                struct err *e)
{
    *ret = (struct kserve_request){
        .generate = {.model = w->model_name, .request_id = w->id, .user = ""}};
    ret->generate.sampling = &ret->sampling;
    struct reader in = {.r = ret, .e = e};
    int r = 0;
    if (*w->model_version && strcmp(w->model_version, "1") != 0)
        r = err_set(e, -ENOENT, "model_version: expected none, or 1");
    if (r == 0)
        r = take_inputs(&in, w);
    for (uint32_t i = 0; r == 0 && i != w->n_parameters; i++)
        r = take_entry(&in, &w->parameters[i]);
    if (r == 0)
        r = take_outputs(&in, w);
    return r == 0 ? settle(&in) : r;
}

void kserve_request_deinit(struct kserve_request *r)
{
    free(r->text);
    for (unsigned i = 0; i != r->n_json; i++)
        json_decref(r->json[i]);
}
