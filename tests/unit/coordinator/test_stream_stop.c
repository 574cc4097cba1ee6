/* test_stream_stop.c: outputs end where a search over the whole text says, whatever the tokens and
 * messages were; the best of several outputs. Texts are those of the hash engine: what a request
 * says without stop texts is what it says with them, up to the end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "golden_model.h"
#include "stream_rig.h"
#include "tests/support/random.h"

static bool is_inside_character(char c)
{
    return ((unsigned char)c & 0xc0) == 0x80;
}

/* Some characters of the text, from anywhere. */
static void random_part(const struct buf *text, char ret[STOP_MAX_BYTES + 1])
{
    size_t begin = random_below((uint32_t)text->size);
    while (begin && is_inside_character(text->data[begin]))
        begin--;
    size_t end = begin + 1 + random_below(random_below(4) ? 4 : 20);
    end = MIN(end, text->size);
    while (end < text->size && is_inside_character(text->data[end]))
        end++;
    memcpy(ret, text->data + begin, end - begin);
    ret[end - begin] = '\0';
}

struct stops {
    char text[STOP_MAX_TEXTS][STOP_MAX_BYTES + 1];
    const char *list[STOP_MAX_TEXTS];
    uint32_t n;
};

static void random_stops(const struct buf *text, struct stops *s)
{
    static const char *const others[] = {"zzz", "\n\n", "河", "the riverbank", " "};
    s->n = 1 + random_below(3);
    for (uint32_t i = 0; i != s->n; i++) {
        if (text->size && random_below(5))
            random_part(text, s->text[i]);
        else
            snprintf(s->text[i], sizeof s->text[i], "%s", others[random_below(5)]);
        s->list[i] = s->text[i];
    }
}

/* Bytes of text that the first n tokens have surely given. */
static size_t settled_bytes(const struct token_list *tokens, size_t n)
{
    struct token_stream *d;
    struct buf text = {0};
    struct err e = ERR_INIT;
    assert_int_equal(token_stream_new(tokenizer, &d), 0);
    for (size_t i = 0; i != n; i++)
        assert_int_equal(token_stream_push(d, tokens->ids[i], &text, &e), 0);
    if (n == tokens->n)
        assert_int_equal(token_stream_flush(d, &text, &e), 0);
    size_t size = text.size;
    token_stream_free(d);
    buf_deinit(&text);
    return size;
}

struct expected {
    bool stopped;
    uint32_t index;
    size_t begin, end;
    size_t n_generated; /* tokens up to the one that completes it */
};

/* The first end of any stop text in the whole text, the longest text that ends there; not before
 * there are min_tokens tokens. */
static struct expected plain_search(const struct stops *s, const struct buf *text,
                                    const struct token_list *tokens, uint32_t min_tokens)
{
    struct expected x = {.n_generated = tokens->n};
    size_t n_tokens = 0;
    for (size_t end = 1; end <= text->size && !x.stopped; end++) {
        while (settled_bytes(tokens, n_tokens) < end)
            n_tokens++;
        size_t longest = 0;
        for (uint32_t i = 0; i != s->n; i++) {
            size_t size = strlen(s->list[i]);
            if (size > end || size <= longest || n_tokens < min_tokens ||
                memcmp(text->data + end - size, s->list[i], size) != 0)
                continue;
            longest = size;
            x = (struct expected){true, i, end - size, end, n_tokens};
        }
    }
    return x;
}

/* The fewest of the full run's tokens that cover the text. */
static void expect_tokens(const struct token_list *all, const struct token_list *found, size_t size)
{
    assert_true(found->n <= all->n);
    if (found->n)
        assert_memory_equal(found->ids, all->ids, found->n * sizeof *found->ids);
    struct token_list kept = {.ids = found->ids, .n = found->n};
    assert_true(settled_bytes(&kept, kept.n) >= size);
    if (found->n)
        assert_true(settled_bytes(all, found->n - 1) < size);
}

static void check_choice(uint64_t seed, const struct stops *s, bool include,
                         const struct reader *plain, const struct reader *x, uint32_t i,
                         uint32_t min_tokens, uint64_t *ret_generated, uint32_t *ret_stopped)
{
    struct buf empty = {.data = (char[]){""}};
    const struct buf *whole = plain->text[i].data ? &plain->text[i] : &empty;
    struct expected e = plain_search(s, whole, &plain->tokens[i], min_tokens);
    size_t size = !e.stopped ? whole->size : include ? e.end : e.begin;
    if (x->text[i].size != size || (size && memcmp(x->text[i].data, whole->data, size) != 0))
        fail_msg("seed %llu choice %u: expected %zu bytes of\n\"%s\"\nfound\n\"%s\"",
                 (unsigned long long)seed, i, size, whole->data, x->text[i].data);
    *ret_generated += e.n_generated;
    if (!e.stopped) {
        assert_int_equal(x->finish[i], plain->finish[i]);
        assert_int_equal(x->stop_token[i], plain->stop_token[i]);
        assert_string_equal(x->stop[i], "");
        assert_int_equal(x->tokens[i].n, plain->tokens[i].n);
        *ret_generated += plain->stop_token[i] >= 0;
        return;
    }
    ++*ret_stopped;
    assert_int_equal(x->finish[i], WIRE_FINISH_STOP);
    assert_string_equal(x->stop[i], s->list[e.index]);
    assert_int_equal(x->stop_token[i], -1);
    expect_tokens(&plain->tokens[i], &x->tokens[i], size);
}

static struct request *random_request(uint64_t seed)
{
    struct request *r = rig_request(tokenizer, REQUEST_GENERATE, "The river", seed);
    r->params.n_choices = 1 + (uint32_t)seed % 4;
    r->params.ignore_end = seed % 3 == 0;
    r->params.min_tokens = seed % 5 == 0 ? 6 : 0;
    r->params.max_new = seed % 2 ? 60 : 17;
    return r;
}

static void test_any_chunking_stops_at_the_same_place(void **state)
{
    (void)state;
    uint32_t n_stopped = 0, n_choices = 0;
    for (uint64_t seed = 0; seed != 400; seed++) {
        struct reader plain, x;
        struct request *r = random_request(seed);
        rig_run(tokenizer, r, true, 1, &plain);
        request_free(r);
        struct stops s;
        random_stops(&plain.text[0], &s);
        r = random_request(seed);
        assert_int_equal(stop_set_new(s.list, s.n, &r->params.stops), 0);
        r->params.include_stop = seed % 7 == 3;
        if (seed % 4 == 1) {
            r->params.logprobs = true;
            r->params.n_top_logprobs = 2;
        }
        rig_run(tokenizer, r, true, 1 + random_below(6), &x);
        uint64_t n_generated = 0;
        size_t n_tokens = 0;
        for (uint32_t i = 0; i != r->params.n_choices; i++) {
            check_choice(seed, &s, r->params.include_stop, &plain, &x, i, r->params.min_tokens,
                         &n_generated, &n_stopped);
            n_tokens += x.tokens[i].n;
            n_choices++;
        }
        assert_int_equal(x.usage.completion_tokens, n_generated);
        assert_int_equal(x.n_logprobs, r->params.logprobs ? n_tokens : 0);
        reader_deinit(&plain);
        reader_deinit(&x);
        request_free(r);
    }
    assert_in_range(n_stopped, n_choices / 4, n_choices - n_choices / 8);
}

/* Text that cannot be settled yet does not leave; nor do its tokens. */
static void test_nothing_of_a_stop_text_is_sent(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed != 60; seed++) {
        struct reader plain, x;
        struct request *r = rig_request(tokenizer, REQUEST_GENERATE, "今天", seed);
        rig_run(tokenizer, r, true, 1, &plain);
        request_free(r);
        if (plain.text[0].size < 8) {
            reader_deinit(&plain);
            continue;
        }
        /* all of the text behind some character: complete with the last token, or never */
        size_t begin = plain.text[0].size / 2;
        while (is_inside_character(plain.text[0].data[begin]))
            begin--;
        char stop[STOP_MAX_BYTES + 1];
        const char *list[] = {stop};
        snprintf(stop, sizeof stop, "%s%s", plain.text[0].data + begin, seed % 2 ? "河" : "");
        if (strlen(stop) == STOP_MAX_BYTES) {
            reader_deinit(&plain);
            continue;
        }
        r = rig_request(tokenizer, REQUEST_GENERATE, "今天", seed);
        assert_int_equal(stop_set_new(list, 1, &r->params.stops), 0);
        rig_run(tokenizer, r, true, 1, &x);
        if (seed % 2) {
            assert_string_equal(x.text[0].data, plain.text[0].data);
            assert_int_equal(x.tokens[0].n, plain.tokens[0].n);
        } else {
            assert_true(x.text[0].size <= begin);
            assert_int_equal(x.finish[0], WIRE_FINISH_STOP);
            assert_string_equal(x.stop[0], stop);
        }
        reader_deinit(&plain);
        reader_deinit(&x);
        request_free(r);
    }
}

/* ---- Fill ---- */

static void expect_no_stop(const struct stops *s, const char *text)
{
    for (uint32_t i = 0; i != s->n; i++) {
        if (strstr(text, s->list[i]))
            fail_msg("\"%s\" holds the stop text \"%s\"", text, s->list[i]);
    }
}

static void test_blanks_end_at_stop_texts(void **state)
{
    (void)state;
    uint32_t n_stopped = 0, n_blanks = 0, n_encoded = 0;
    for (uint64_t seed = 0; seed != 200; seed++) {
        static const char text[] = "The [MASK] river [MASK] and the [MASK].";
        struct reader plain, x;
        struct request *r = rig_request(tokenizer, REQUEST_FILL, text, seed);
        rig_run(tokenizer, r, true, 1, &plain);
        request_free(r);
        struct stops s;
        random_stops(&plain.text[0], &s);
        r = rig_request(tokenizer, REQUEST_FILL, text, seed);
        assert_int_equal(stop_set_new(s.list, s.n, &r->params.stops), 0);
        rig_run(tokenizer, r, true, 1 + random_below(4), &x);
        assert_int_equal(r->n_rounds, 3);
        /* the first blank is the one that an unstopped run begins with */
        struct buf empty = {.data = (char[]){""}};
        const struct buf *whole = plain.text[0].data ? &plain.text[0] : &empty;
        struct expected e = plain_search(&s, whole, &plain.tokens[0], 0);
        size_t size = e.stopped ? e.begin : whole->size;
        assert_int_equal(x.text[0].size, size);
        if (size)
            assert_memory_equal(x.text[0].data, whole->data, size);
        for (uint32_t k = 0; k != 3; k++) {
            const struct fill_round *f = &r->rounds[k];
            const char *found = x.text[k].data ? x.text[k].data : "";
            expect_no_stop(&s, found);
            /* what the next blank's prompt holds, and what was streamed, says the same */
            struct buf decoded = {0};
            assert_int_equal(stream_decode(tokenizer, f->outputs[0].ids, f->outputs[0].n, &decoded),
                             0);
            assert_string_equal(found, decoded.data);
            assert_string_equal(found, x.fill->results[0].blanks[k]);
            assert_int_equal(x.tokens[k].n, f->outputs[0].n);
            if (x.tokens[k].n)
                assert_memory_equal(x.tokens[k].ids, f->outputs[0].ids,
                                    x.tokens[k].n * sizeof(int32_t));
            assert_int_equal(*x.stop[k] != '\0', f->stops[0] >= 0);
            n_stopped += f->stops[0] >= 0;
            n_blanks++;
            buf_deinit(&decoded);
        }
        if (e.stopped && x.tokens[0].n)
            n_encoded +=
                memcmp(x.tokens[0].ids, plain.tokens[0].ids, x.tokens[0].n * sizeof(int32_t)) != 0;
        reader_deinit(&plain);
        reader_deinit(&x);
        request_free(r);
    }
    assert_in_range(n_stopped, n_blanks / 10, n_blanks - n_blanks / 8);
    assert_true(n_encoded > 0); /* some ended inside a token, whose beginning was encoded anew */
}

/* ---- best of ---- */

static void test_best_of(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed != 40; seed++) {
        enum { ALL = 6 };
        uint32_t n_best = 1 + (uint32_t)seed % 3;
        struct reader plain, x;
        struct request *r = rig_request(tokenizer, REQUEST_GENERATE, "The river", seed);
        r->params.n_choices = ALL;
        rig_run(tokenizer, r, true, 1, &plain);
        double mean[ALL];
        bool taken[ALL] = {false};
        for (uint32_t i = 0; i != ALL; i++)
            mean[i] = r->outputs[i].logprob_sum / r->outputs[i].n_sampled;
        request_free(r);
        r = rig_request(tokenizer, REQUEST_GENERATE, "The river", seed);
        r->params.n_choices = ALL;
        r->params.n_best = n_best;
        rig_run(tokenizer, r, true, 1, &x);
        assert_int_equal(x.n_messages, 1);
        for (uint32_t i = 0; i != n_best; i++) {
            uint32_t best = ALL;
            for (uint32_t k = 0; k != ALL; k++) {
                if (!taken[k] && (best == ALL || mean[k] > mean[best]))
                    best = k;
            }
            taken[best] = true;
            assert_true(x.score[i] == mean[best]);
            assert_int_equal(x.tokens[i].n, plain.tokens[best].n);
            if (x.tokens[i].n)
                assert_memory_equal(x.tokens[i].ids, plain.tokens[best].ids,
                                    x.tokens[i].n * sizeof(int32_t));
            assert_int_equal(x.finish[i], plain.finish[best]);
        }
        assert_int_equal(x.finish[n_best], WIRE_FINISH_UNSPECIFIED);
        assert_int_equal(x.usage.completion_tokens, plain.usage.completion_tokens);
        reader_deinit(&plain);
        reader_deinit(&x);
        request_free(r);
    }
}

/* ---- log-probabilities of a prompt ---- */

static void test_prompt_logprobs(void **state)
{
    (void)state;
    enum { N = 250 }; /* tokens */
    struct request *scored = request_new(REQUEST_SCORE);
    struct err e = ERR_INIT;
    scored->params = (struct request_params){.temperature = 1, .n_choices = 1, .n_top_logprobs = 3};
    assert_int_equal(prompt_unidirectional(&golden_arch, NULL, 0, 256, &scored->prompt, &e), 0);
    scored->n_choices_scored = 1;
    scored->choices = calloc(1, sizeof *scored->choices);
    for (int32_t i = 0; i != N; i++)
        token_list_append(&scored->choices[0], 40 + i % 400);
    struct reader x;
    rig_run(tokenizer, scored, false, 1, &x);
    struct request *next = rig_request(tokenizer, REQUEST_GENERATE, "The river", 77);
    for (int with_next = 0; with_next != 2; with_next++) {
        struct stream *s;
        struct buf out = {0};
        uint32_t n = 0, n_usages = 0, n_seeds = 0;
        assert_int_equal(stream_new(tokenizer, &golden_arch, with_next ? next : scored, false, &s),
                         0);
        while (stream_prompt(s, scored, with_next ? next : NULL, stream_pack, &out) == 1) {
            struct wire_generate_response *w;
            const uint8_t *data = (const uint8_t *)out.data;
            assert_int_equal(wire_unpack_generate_response(data, out.size, &w, &e), 0);
            for (uint32_t i = 0; i != w->n_prompt_logprobs; i++, n++) {
                const struct wire_token_logprob *l = &w->prompt_logprobs[i];
                assert_int_equal(l->token, scored->choices[0].ids[n]);
                assert_true(l->logprob == x.scored->choices[0].token_logprobs[n]);
                assert_int_equal(l->n_top, 3);
                assert_int_equal(l->top[2].token, l->token + 2);
            }
            n_seeds += w->has_seed;
            n_usages += w->usage != NULL;
            if (w->usage) {
                assert_int_equal(w->usage->scored_tokens, N);
                assert_int_equal(w->usage->completion_tokens, 0);
            }
            wire_free_generate_response(w);
            buf_clear(&out);
        }
        assert_int_equal(n, N);
        assert_int_equal(n_usages, !with_next);
        assert_int_equal(n_seeds, with_next);
        stream_free(s);
        buf_deinit(&out);
    }
    request_free(next);
    reader_deinit(&x);
    request_free(scored);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_chunking_stops_at_the_same_place),
        cmocka_unit_test(test_nothing_of_a_stop_text_is_sent),
        cmocka_unit_test(test_blanks_end_at_stop_texts),
        cmocka_unit_test(test_best_of),
        cmocka_unit_test(test_prompt_logprobs),
    };
    return cmocka_run_group_tests(tests, golden_set_up, golden_tear_down);
}
