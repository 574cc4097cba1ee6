"""The API over HTTP, against the running daemons with the demo model: OpenAI's routes, fills, the
published server's /generate, scoring, errors, probes and keys."""

import hashlib
import json
import math
import os

import pytest

from conftest import SOURCE
from http_client import PROMPT, call, complete, counted, events, get, post

DEMO = SOURCE / "deploy/demo/model"
FIXTURE = [line.split() for line in (SOURCE / "tests/e2e/http_routes.txt").read_text().splitlines()
           if not line.startswith("#")]


@pytest.fixture(scope="module")
def server(module_cluster):
    return module_cluster("http", DEMO, tp=2)


# ---- routes ----


def test_routes_that_are_listed(server):
    for method, path, _ in FIXTURE:
        path = path.replace("*", "glm-demo")
        answer = call(server.http_port, method, path, {} if method == "POST" else None)
        assert answer.status == (400 if method == "POST" else 200), (path, answer.body)
        other = "GET" if method == "POST" else "POST"
        answer = call(server.http_port, other, path)
        allowed = "GET, HEAD" if method == "GET" else method
        assert (answer.status, answer.headers["Allow"]) == (405, allowed), path


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/", "/v1/completions/", "/V1/models",
                                  "/v1/engines", "/v1/models/other", "/../etc/passwd", "/%2e%2e/x",
                                  "//v1/models", "/page/", "/page/../main.js", "/generate/x"])
def test_routes_that_are_not(server, path):
    answer = get(server.http_port, path)
    assert answer.status == 404 and answer.error["type"] == "not_found_error", answer.body


def test_description_names_the_routes(server):
    described = {(method.upper(), path) for path, item in
                 get(server.http_port, "/openapi.json").json["paths"].items() for method in item}
    served = {(method, path.replace("*", "{model}")) for method, path, _ in FIXTURE}
    assert described <= served, f"described, but not served: {described - served}"
    missing = {p for p in served - described if p[0] == "POST" or p[1].startswith("/v1/")}
    assert not missing, f"served, but not described: {missing}"


def test_head_is_a_get_without_its_body(server):
    answer = call(server.http_port, "HEAD", "/health")
    assert (answer.status, answer.body) == (200, b"")


def test_ready_line(server):
    log = (server.folder / "coordinator.log").read_text()
    assert f"glmd-coordinator ready: grpc={server.target} http=127.0.0.1:{server.http_port}\n" in log


# ---- completions ----


def test_completion_is_the_same_over_both_protocols(server, api):
    over_http = complete(server)
    request = api.GenerateRequest(text=PROMPT, max_tokens=12, sampling=api.SamplingParameters(
        seed=3, temperature=1, top_p=1))
    text = "".join(d.text for r in server.inference.Generate(request) for d in r.choices)
    choice = over_http["choices"][0]
    assert choice["text"].strip() == text.strip()
    assert (over_http["object"], over_http["model"]) == ("text_completion", "glm-demo")
    assert over_http["usage"]["completion_tokens"] == 12 and choice["finish_reason"] == "length"


def test_stream_is_the_whole_in_pieces(server):
    whole = complete(server)
    status, pieces = events(server.http_port, "/v1/completions", {
        "prompt": PROMPT, "max_tokens": 12, "seed": 3, "stream_options": {"include_usage": True}})
    assert status == 200 and pieces.pop() == "[DONE]"
    chunks = [json.loads(p) for p in pieces]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    assert "".join(c["choices"][0]["text"] for c in chunks[:-1]) == whole["choices"][0]["text"]
    assert len(chunks) > 6, "one event for every few tokens"
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert len({c["id"] for c in chunks}) == 1


def test_batch_of_prompts_and_choices(server):
    prompts = [PROMPT, "子曰：", "In the beginning"]
    batch = complete(server, prompts, n=2)
    assert [c["index"] for c in batch["choices"]] == list(range(6))
    alone = [c["text"] for p in prompts for c in complete(server, p, n=2)["choices"]]
    assert [c["text"] for c in batch["choices"]] == alone
    assert batch["usage"]["completion_tokens"] <= 72


def test_batch_in_a_stream(server):
    prompts = [PROMPT, "子曰：", "In the beginning"]
    status, pieces = events(server.http_port, "/v1/completions",
                            {"prompt": prompts, "max_tokens": 8, "seed": 3, "n": 2})
    assert status == 200 and pieces.pop() == "[DONE]"
    texts = [""] * 6
    for piece in pieces:
        for c in json.loads(piece)["choices"]:
            texts[c["index"]] += c["text"]
    assert texts == [c["text"] for c in complete(server, prompts, n=2, max_tokens=8)["choices"]]


def test_token_ids_in_and_out(server):
    ids = post(server.http_port, "/tokenize", {"prompt": PROMPT}).json["tokens"]
    text = post(server.http_port, "/detokenize", {"tokens": ids}).json["prompt"]
    assert text.strip() == PROMPT
    a, b = complete(server, return_token_ids=True), complete(server, ids, return_token_ids=True)
    assert a["choices"][0]["text"].strip() == b["choices"][0]["text"].strip()


def test_suffix_is_a_blank(server):
    a = complete(server, "And the king said unto his ", suffix=", Let us go up.", top_k=1)
    filled = post(server.http_port, "/v1/fill",
                  {"text": "And the king said unto his [MASK], Let us go up.", "top_k": 1}).json
    assert a["choices"][0]["text"].strip() == filled["blanks"][0]["text"].strip()


def test_stop_and_seed_and_greedy(server):
    a, b = complete(server, seed=5)["choices"], complete(server, seed=5)["choices"]
    assert a[0]["text"] == b[0]["text"]
    greedy = complete(server, temperature=0, max_tokens=20)["choices"][0]["text"]
    word = greedy.split()[3]
    stopped = complete(server, temperature=0, max_tokens=20, stop=[word])["choices"][0]
    assert stopped["finish_reason"] == "stop" and stopped["stop_reason"] == word
    assert stopped["text"] == greedy[:greedy.index(word)]


def test_fields_beyond_openais_have_their_effect(server):
    def ids_of(**fields):
        answer = complete(server, return_token_ids=True, **{"max_tokens": 6, **fields})
        return [c["token_ids"] for c in answer["choices"]], answer["usage"]["completion_tokens"]

    [greedy], _ = ids_of(temperature=0, ignore_eos=True)
    assert ids_of(top_k=1, ignore_eos=True)[0] == [greedy]
    assert ids_of(min_p=1, ignore_eos=True)[0] == [greedy]
    [river] = post(server.http_port, "/tokenize", {"prompt": "river"}).json["tokens"][-1:]
    assert ids_of(logit_bias={str(river): 100})[0] == [[river] * 6]
    stops = {"temperature": 0, "stop_token_ids": greedy[:1]}
    assert ids_of(**stops)[0] == [[]]
    [late], _ = ids_of(**stops, min_tokens=4, ignore_eos=True)
    assert len(late) >= 4 and greedy[0] not in late[:4]
    [varied], _ = ids_of(temperature=0, ignore_eos=True, repetition_penalty=2, max_tokens=40)
    assert len(set(varied)) > len(set(ids_of(temperature=0, ignore_eos=True, max_tokens=40)[0][0]))
    best, n_tokens = ids_of(n=1, best_of=3, ignore_eos=True)
    assert len(best) == 1 and n_tokens == 18, "three were generated"
    assert len(ids_of(use_beam_search=True, n=2, best_of=3, temperature=0)[0]) == 2
    assert ids_of(priority=5, temperature=0, ignore_eos=True)[0] == [greedy]


# ---- scoring, as evaluation harnesses do it ----


def score(server, prompt, **fields):
    return complete(server, prompt, max_tokens=1, logprobs=1, echo=True, temperature=0,
                    seed=1234, **fields)


def test_echo_and_logprobs_score_a_prompt(server):
    """The request of lm-evaluation-harness' local-completions, by text and by token ids."""
    context, going_on = "And the LORD spake unto", " Moses, saying,"
    ids = [post(server.http_port, "/tokenize", {"prompt": t}).json["tokens"]
           for t in (context, context + going_on)]
    answer = score(server, [ids[1], ids[0] + ids[0]])
    for choice, prompt in zip(answer["choices"], (ids[1], ids[0] + ids[0])):
        logprobs = choice["logprobs"]
        values, top = logprobs["token_logprobs"], logprobs["top_logprobs"]
        assert len(values) == len(top) == len(logprobs["tokens"]) == len(prompt) + 1
        assert values[0] is None and all(v <= 0 for v in values[1:])
        greedy = [max(t.values()) <= v + 1e-6 for v, t in zip(values[1:], top[1:])]
        assert len(greedy) == len(prompt)
        of_the_end = sum(values[len(ids[0]):-1])
        assert math.isfinite(of_the_end)
    likely = sum(answer["choices"][0]["logprobs"]["token_logprobs"][1:-1]) / (len(ids[1]) - 1)
    wild = score(server, list(reversed(ids[1])))["choices"][0]["logprobs"]["token_logprobs"]
    assert likely > sum(wild[1:-1]) / (len(ids[1]) - 1), "the text is likelier than backwards"
    text = score(server, context + going_on)["choices"][0]
    assert text["logprobs"]["token_logprobs"] == answer["choices"][0]["logprobs"]["token_logprobs"]
    assert text["text"].startswith(context + going_on)


def test_echo_without_a_new_token(server):
    answer = complete(server, PROMPT, max_tokens=0, logprobs=2, echo=True)
    choice = answer["choices"][0]
    assert choice["text"] == PROMPT and answer["usage"]["completion_tokens"] == 0
    assert choice["logprobs"]["token_logprobs"][0] is None


def test_the_end_of_a_text_has_its_log_probability(server):
    """Who asks for one token behind the prompt, as harnesses do, cuts one entry off the lists."""
    ids = post(server.http_port, "/tokenize", {"prompt": PROMPT}).json["tokens"]
    whole = score(server, ids, return_token_ids=True)["choices"][0]
    [token] = whole["token_ids"]
    ended = score(server, ids, stop_token_ids=[token])["choices"][0]
    assert (ended["finish_reason"], ended["stop_reason"]) == ("stop", token)
    for name, values in ended["logprobs"].items():
        assert len(values) == len(ids) + 1, (name, values)
        if name != "text_offset":
            assert values == whole["logprobs"][name], name
    assert ended["logprobs"]["text_offset"][-1] == len(ended["text"])
    status, lines = events(server.http_port, "/v1/completions", {
        "prompt": ids, "max_tokens": 1, "logprobs": 1, "temperature": 0, "stop_token_ids": [token]})
    assert status == 200
    [lp] = [p for line in lines[:-1] for c in json.loads(line)["choices"] if (p := c["logprobs"])]
    assert lp["token_logprobs"] == ended["logprobs"]["token_logprobs"][-1:]


# ---- the other routes ----


def test_chat(server):
    body = {"model": "glm-demo", "max_tokens": 10, "seed": 4,
            "messages": [{"role": "system", "content": "Be brief."},
                         {"role": "user", "content": "Who was Moses?"}]}
    answer = post(server.http_port, "/v1/chat/completions", body).json
    assert answer["object"] == "chat.completion"
    message = answer["choices"][0]["message"]
    assert message["role"] == "assistant" and isinstance(message["content"], str)
    _, pieces = events(server.http_port, "/v1/chat/completions", body)
    assert pieces.pop() == "[DONE]"
    deltas = [json.loads(p)["choices"][0]["delta"] for p in pieces]
    assert deltas[0]["role"] == "assistant"
    assert "".join(d.get("content") or "" for d in deltas) == message["content"]


def test_fill(server):
    body = {"text": "人不知而不[MASK]，不亦君子乎？ And [MASK].", "seed": 1}
    whole = post(server.http_port, "/v1/fill", body).json
    assert [b["index"] for b in whole["blanks"]] == [0, 1]
    _, pieces = events(server.http_port, "/v1/fill", body)
    assert pieces.pop() == "[DONE]"
    texts = ["", ""]
    for piece in pieces:
        for blank in json.loads(piece).get("blanks", []):
            texts[blank["index"]] += blank["text"]
    assert texts == [b["text"] for b in whole["blanks"]]
    assert "[MASK]" not in whole["text"]


def test_generate_of_the_published_server(server):
    """Clients of GLM-130B's own server send lines of text and get lists of texts."""
    older = {"text": f"{PROMPT}\nAnd the king said unto his [MASK], Let us go up.", "seed": 1234,
             "out_seq_length": 100, "topk": 40, "topp": 0.7, "temperature": 1.0, "num_beams": 1,
             "no_repeat_ngram_size": 3, "length_penalty": 0.7, "strategy": "BaseStrategy"}
    newer = {"prompt": [PROMPT, "子曰："], "max_tokens": 16, "seed": 1234, "top_k": 40, "top_p": 0.7,
             "temperature": 1.0, "num_beams": 1, "sampling_strategy": "BaseStrategy"}
    for body in (older, newer):
        answer = post(server.http_port, "/generate", body)
        assert answer.status == 200, answer.body
        texts = answer.json["text"]
        assert len(texts) == 2 and all(texts), texts
        assert "[MASK]" not in json.dumps(texts)
    beams = post(server.http_port, "/generate", {**older, "strategy": "BeamSearchStrategy",
                                                 "num_beams": 2, "out_seq_length": 60})
    assert beams.status == 200, beams.body


def test_models_and_housekeeping(server):
    port = server.http_port
    model, = get(port, "/v1/models").json["data"]
    assert model["id"] == "glm-demo" and get(port, "/v1/models/glm-demo").json == model
    assert get(port, "/version").json["version"]
    assert get(port, "/load").json["server_load"] == 0
    assert get(port, "/status").json["model"]["id"] == "glm-demo"
    metrics = get(port, "/metrics")
    assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"\nglmd_requests_total" in metrics.body or b"glmd_" in metrics.body
    page = get(port, "/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]


# ---- errors ----


@pytest.mark.parametrize("path, body, status, param", [
    ("/v1/completions", b"{", 400, None),
    ("/v1/completions", b"", 400, None),
    ("/v1/completions", b"\xff\xfe", 400, None),
    ("/v1/completions", {"prompt": "a", "temperature": -1}, 400, "temperature"),
    ("/v1/completions", {"prompt": "a", "max_tokens": 1 << 40}, 400, "max_tokens"),
    ("/v1/completions", {"prompt": "a", "n": 1000}, 400, "n"),
    ("/v1/completions", {"prompt": 7}, 400, "prompt"),
    ("/v1/completions", {"prompt": ["a", 7]}, 400, "prompt"),
    ("/v1/completions", {"prompt": [10 ** 9]}, 400, None),
    ("/v1/completions", {"prompt": "a", "model": "gpt-4"}, 404, "model"),
    ("/v1/completions", {"prompt": "a", "response_format": {"type": "json_object"}}, 400,
     "response_format"),
    ("/v1/chat/completions", {"messages": []}, 400, "messages"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}],
                              "tools": [{"type": "function"}]}, 400, "tools"),
    ("/v1/fill", {"text": ""}, 400, None),
    ("/tokenize", {}, 400, None),
    ("/detokenize", {"tokens": [-5]}, 400, None),
])
def test_bad_requests(server, path, body, status, param):
    answer = post(server.http_port, path, body)
    assert answer.status == status, answer.body
    error = answer.error
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    if param:
        assert error["param"] == param
    assert get(server.http_port, "/health").status == 200


def test_what_is_ignored_or_refused_is_counted(server):
    names = ("glmd_unknown_fields_total", "glmd_requests_total",
             'glmd_requests_rejected_total{reason="invalid"}')
    before = [counted(server, name) for name in names]
    complete(server, frobnicate=1, Temperature=2)
    assert [counted(server, name) for name in names] == [before[0] + 2, before[1] + 1, before[2]]
    assert post(server.http_port, "/v1/completions", b"{").status == 400
    assert [counted(server, name) for name in names] == [before[0] + 2, before[1] + 2,
                                                         before[2] + 1]


def test_what_is_too_long_or_no_text_is_counted(server):
    name = 'glmd_requests_rejected_total{reason="invalid"}'
    for path, body in (("/v1/completions", b'{"prompt": "' + b"x" * (5 << 20) + b'"}'),
                       ("/tokenize", {"prompt": 1}), ("/detokenize", {"tokens": [-1]}),
                       ("/tokenize", {"prompt": "x" * (1 << 20)})):
        before, total = counted(server, name), counted(server, "glmd_requests_total")
        assert post(server.http_port, path, body).status in (400, 413)
        assert counted(server, name) == before + 1, path
        assert counted(server, "glmd_requests_total") == total + 1, path


def test_body_too_long(server):
    answer = post(server.http_port, "/v1/completions", {"prompt": "x" * 5_000_000})
    assert answer.status == 413, answer.body
    answer = post(server.http_port, "/v1/completions", b"", {
        "Content-Length": "5000000000", "Expect": "100-continue"})
    assert answer.status == 413, "before it is sent"
    assert call(server.http_port, "GET", "/health", b"a body where none belongs").status == 413


def test_prompt_too_long(server):
    answer = post(server.http_port, "/v1/completions", {"prompt": "x y " * 20_000})
    assert answer.status == 400, answer.body


def test_only_json(server):
    """Another site's page can send forms and plain text to a server on this host, but no JSON."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = post(server.http_port, "/v1/completions", {"prompt": "a"}, {"Content-Type": kind})
        assert answer.status == 415, kind
    answer = post(server.http_port, "/v1/completions", {"prompt": "a", "max_tokens": 1},
                  {"Content-Type": "Application/JSON; charset=utf-8"})
    assert answer.status == 200
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_request_id(server):
    headers = {"X-Request-Id": "mine-17"}
    ok = post(server.http_port, "/v1/completions", {"prompt": "a", "max_tokens": 1}, headers)
    assert ok.headers["X-Request-Id"] == "mine-17" and "mine-17" in ok.json["id"]
    assert get(server.http_port, "/nothing", headers).headers["X-Request-Id"] == "mine-17"
    made = [get(server.http_port, "/health").headers["X-Request-Id"] for _ in range(2)]
    assert all(made) and made[0] != made[1]
    long = get(server.http_port, "/health", {"X-Request-Id": "x" * 500})
    assert long.headers["X-Request-Id"] != "x" * 500


def test_traceparent_is_logged(cluster):
    c = cluster(DEMO, log__level="debug")
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    post(c.http_port, "/v1/completions", {"prompt": "a", "max_tokens": 1},
         {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X-Request-Id": "traced"})
    why = c.cluster.Why(c.api.WhyRequest(request_id="traced"))
    assert trace in str(why)


# ---- keys ----


def test_keys(cluster, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"user sha256:{hashlib.sha256(b'secret').hexdigest()} requests=1\n")
    os.chmod(keys, 0o640)
    c = cluster(DEMO, ready=False, coordinator__keys=keys)
    c.wait(lambda: get(c.http_port, "/health").status == 200, "health, which needs no key")
    for method, path, need in FIXTURE:
        path = path.replace("*", "glm-demo")
        body = {} if method == "POST" else None
        for headers, expected in (({}, {"user": 401}), ({"Authorization": "Bearer no"}, {"user": 401}),
                                  ({"Authorization": "Bearer secret"}, {})):
            answer = call(c.http_port, method, path, body, headers)
            assert answer.status == expected.get(need, 400 if method == "POST" else 200), path
            if answer.status == 401:
                assert answer.error["type"] == "authentication_error"
                assert answer.headers["WWW-Authenticate"] == "Bearer"
    good = {"Authorization": "Bearer secret"}
    answer = post(c.http_port, "/v1/completions", {"prompt": ["a", "b"], "max_tokens": 900,
                                                   "ignore_eos": True}, good)
    assert answer.status == 429, "two at once, and the key may have one"
