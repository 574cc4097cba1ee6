/* front_prepare.c: the half of opening a call that needs no loop (front.h). Any thread. */
#include <string.h>

#include "coordinator/coordinator.h"
#include "coordinator/front.h"

static void keep_id(const char *id, char ret[REQUEST_ID_BYTES])
{
    struct err e = ERR_INIT;
    if (admit_request_id(id, &e) == 0)
        memcpy(ret, id, strlen(id) + 1);
}

void front_prepare_generate(const struct coordinator *c, const struct wire_generate_request *w,
                            struct front_prepared *ret)
{
    *ret = (struct front_prepared){
        .error = ERR_INIT, .return_ids = w->return_token_ids, .kind = REQUEST_GENERATE};
    keep_id(w->request_id, ret->id);
    int code = 0;
    if (w->has_prompt_logprobs)
        code = admit_echo(&c->admit, w, &ret->echo, &ret->error);
    if (code == 0 && !(ret->echo && w->prompt_only))
        code = admit_generate(&c->admit, w, &ret->request, &ret->error);
    ret->error.code = code;
}

void front_prepare_fill(const struct coordinator *c, const struct wire_fill_request *w,
                        struct front_prepared *ret)
{
    *ret = (struct front_prepared){
        .error = ERR_INIT, .return_ids = w->return_token_ids, .kind = REQUEST_FILL};
    keep_id(w->request_id, ret->id);
    ret->error.code = admit_fill(&c->admit, w, &ret->request, &ret->error);
}

void front_prepare_score(const struct coordinator *c, const struct wire_score_request *w,
                         struct front_prepared *ret)
{
    *ret = (struct front_prepared){.error = ERR_INIT, .kind = REQUEST_SCORE};
    keep_id(w->request_id, ret->id);
    ret->error.code = admit_score(&c->admit, w, &ret->request, &ret->error);
}

void front_prepared_deinit(struct front_prepared *p)
{
    request_free(p->request);
    request_free(p->echo);
    *p = (struct front_prepared){.error = ERR_INIT};
}
