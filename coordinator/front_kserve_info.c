/* front_kserve_info.c: what the Open Inference Protocol's calls about the server and its model are
 * answered: at once, from what the coordinator knows. */
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/coordinator.h"
#include "coordinator/front_kserve.h"
#include "coordinator/kserve.h"

static bool is_ready(const struct coordinator *c)
{
    return fleet_any_ready(c->fleet) && !c->draining;
}

static int check_model(const struct coordinator *c, const struct wire_kserve_model *w,
                       struct err *e)
{
    if (*w->name && strcmp(w->name, c->model_name) != 0)
        return err_set(e, -ENOENT, "name: unknown; this server has \"%s\"", c->model_name);
    if (*w->version && strcmp(w->version, "1") != 0)
        return err_set(e, -ENOENT, "version: expected none, or 1");
    return 0;
}

static int pack_server(struct buf *out)
{
    static const char *const extensions[] = {"health", "model_metadata", "streaming"};
    const struct wire_kserve_server_metadata m = {
        .name = "glmd",
        .version = GLMD_VERSION,
        .extensions = extensions,
        .n_extensions = ARRAY_LEN(extensions),
    };
    return wire_pack_kserve_server_metadata(&m, out);
}

static int pack_model(const struct coordinator *c, struct buf *out)
{
    static const char *const versions[] = {"1"};
    const struct wire_kserve_model_metadata m = {
        .name = c->model_name,
        .versions = versions,
        .n_versions = 1,
        .platform = "glmd",
        .inputs = kserve_inputs,
        .n_inputs = kserve_n_inputs,
        .outputs = kserve_outputs,
        .n_outputs = KSERVE_N_OUTPUTS,
    };
    return wire_pack_kserve_model_metadata(&m, out);
}

static int answer_model(const struct coordinator *c, enum kserve_method method, const uint8_t *data,
                        size_t size, struct buf *out, struct err *e)
{
    struct wire_kserve_model *w;
    bool metadata = method == KSERVE_MODEL_METADATA;
    int r = metadata ? wire_unpack_kserve_model_metadata_request(data, size, &w, e)
                     : wire_unpack_kserve_model_ready_request(data, size, &w, e);
    if (r < 0)
        return r;
    r = check_model(c, w, e);
    if (r == 0)
        r = metadata ? pack_model(c, out)
                     : wire_pack_kserve_model_ready_response(
                           &(struct wire_kserve_ready){.ready = is_ready(c)}, out);
    if (metadata)
        wire_free_kserve_model_metadata_request(w);
    else
        wire_free_kserve_model_ready_request(w);
    return r;
}

static int answer_server(const struct coordinator *c, enum kserve_method method,
                         const uint8_t *data, size_t size, struct buf *out, struct err *e)
{
    struct wire_kserve_empty *w; /* the three requests are all empty */
    int r = wire_unpack_kserve_live_request(data, size, &w, e);
    if (r < 0)
        return r;
    wire_free_kserve_live_request(w);
    switch (method) {
    case KSERVE_LIVE:
        return wire_pack_kserve_live_response(&(struct wire_kserve_live){.live = true}, out);
    case KSERVE_READY:
        return wire_pack_kserve_ready_response(&(struct wire_kserve_ready){.ready = is_ready(c)},
                                               out);
    default:
        return pack_server(out);
    }
}

bool kserve_info_is_public(enum kserve_method method)
{
    return method == KSERVE_LIVE || method == KSERVE_READY || method == KSERVE_MODEL_READY;
}

int kserve_info_answer(const struct coordinator *c, enum kserve_method method, const uint8_t *data,
                       size_t size, struct buf *out, struct err *e)
{
    bool of_model = method == KSERVE_MODEL_READY || method == KSERVE_MODEL_METADATA;
    return of_model ? answer_model(c, method, data, size, out, e)
                    : answer_server(c, method, data, size, out, e);
}
