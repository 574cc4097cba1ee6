"""What clients of other servers take for granted over HTTP, beyond the fields: when to come back, what
every answer carries, forms of requests that are rare and legal."""

import hashlib
import json
import os
import re
import signal
import socket

import pytest

from conftest import SOURCE
from http_client import call, events, get, open_stream, post

DEMO = SOURCE / "deploy/demo/model"
PROMPT = "And it came to pass"
SLOW = "fake:step_us=20000"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(module_cluster):
    return module_cluster("conventions", DEMO, tp=2)


def raw(server, data):
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=60) as s:
        s.sendall(data)
        answer = b"".join(iter(lambda: s.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    return int(head.split()[1]), fields, body


def waiting(c):
    return c.status().waiting


# ---- Retry-After ----


def retry_after(answer):
    seconds = answer.headers["Retry-After"]
    assert seconds and re.fullmatch("[1-9][0-9]*", seconds), (answer.status, answer.body, seconds)
    return int(seconds)


def test_a_full_queue_says_when_to_come_back(cluster):
    c = cluster(DEMO, group__devices=SLOW, worker__slots=1, coordinator__limits__max_queue=1)
    held = [open_stream(c.http_port, "/v1/completions", {"prompt": PROMPT, "max_tokens": 1000})]
    assert held[0].recv(100)
    held.append(open_stream(c.http_port, "/v1/completions", {"prompt": PROMPT, "max_tokens": 9}))
    c.wait(lambda: waiting(c) == 1, "one that waits")
    for path, body in (("/v1/completions", {"prompt": "a"}),
                       ("/v1/completions", {"prompt": "a", "stream": True}),
                       ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
                       ("/v1/fill", {"text": "a [MASK]"}), ("/generate", {"prompt": "a"})):
        answer = post(c.http_port, path, body)
        assert (answer.status, answer.error["type"]) == (429, "rate_limit_error"), answer.body
        assert retry_after(answer) < 3600
    for s in held:
        s.close()


def test_a_key_that_is_used_up_says_when_to_come_back(cluster, tmp_path):
    keys = tmp_path / "keys"
    digest = hashlib.sha256(b"secret").hexdigest()
    keys.write_text(f"user sha256:{digest} tokens_per_minute=100\n")
    os.chmod(keys, 0o640)
    c = cluster(DEMO, ready=False, coordinator__keys=keys)
    c.wait(lambda: get(c.http_port, "/health").status == 200, "health, which needs no key")
    headers = {"Authorization": "Bearer secret"}
    body = {"prompt": "a", "max_tokens": 60, "ignore_eos": True}
    assert post(c.http_port, "/v1/completions", body, headers).status == 200
    answer = post(c.http_port, "/v1/completions", body, headers)
    assert answer.status == 429, answer.body
    assert retry_after(answer) <= 60


def test_a_server_that_stops_says_when_to_come_back(cluster):
    """What waited for ranks that never came, and what comes while it drains."""
    c = cluster(DEMO, tp=0, ready=False, workers="external", coordinator__deadlines__request="300ms")
    answer = post(c.http_port, "/v1/completions", {"prompt": "a"})
    assert (answer.status, answer.error["type"]) == (503, "server_error"), answer.body
    retry_after(answer)


def test_too_many_connections_say_when_to_come_back(cluster):
    c = cluster(DEMO, tp=0, ready=False, workers="external", coordinator__limits__max_connections=2)
    held = [open_stream(c.http_port, "/v1/completions", {"prompt": PROMPT}) for _ in range(2)]

    def crowded():
        answer = get(c.http_port, "/v1/models")
        return answer.status == 503 and answer

    retry_after(c.wait(crowded, "one connection too many"))
    for s in held:
        s.close()


# ---- what every answer carries ----


@pytest.mark.parametrize("head, status", [
    (b"GET /health HTTP/1.1\r\nX-Request-Id: mine-1\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\nX-Request-Id: mine-1\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine-1\r\nX-A: " + b"a" * 17000
     + b"\r\n\r\n", 431),
    (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine-1\r\n"
     b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine-1\r\nContent-Length: 1\r\n"
     b"Content-Length: 1\r\n\r\nx", 400),
    (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine-1\r\n"
     b"Content-Type: text/plain\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx", 415),
    (b"OPTIONS /v1/completions HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine-1\r\n\r\n", 405),
])
def test_refused_heads_look_like_other_answers(server, head, status):
    found, fields, body = raw(server, head)
    assert (found, fields["X-Request-Id"]) == (status, "mine-1"), body
    assert fields["Content-Type"] == "application/json"
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")


def test_usage_says_what_the_cache_had(server):
    body = {"prompt": "And the LORD spake unto Moses, saying, Speak unto the children of Israel, and "
                      "say unto them, " * 3, "max_tokens": 2, "top_k": 1}
    first = post(server.http_port, "/v1/completions", body).json["usage"]
    again = post(server.http_port, "/v1/completions", body).json["usage"]
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    n = again["prompt_tokens_details"]["cached_tokens"]
    assert 0 < n < again["prompt_tokens"] and n >= again["prompt_tokens"] - 2, again
    _, lines = events(server.http_port, "/v1/completions",
                      {**body, "stream_options": {"include_usage": True}})
    assert json.loads(lines[-2])["usage"] == again
    batch = post(server.http_port, "/v1/completions", {**body, "prompt": [body["prompt"]] * 2})
    assert batch.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 2 * n


# ---- requests that are rare and legal ----


def test_absolute_targets_are_the_same_routes(server):
    target = f"http://127.0.0.1:{server.http_port}"
    status, _, body = raw(server, f"GET {target}/version?x=1 HTTP/1.1\r\nHost: a\r\n"
                                  "Connection: close\r\n\r\n".encode())
    assert status == 200 and json.loads(body)["version"]
    status, _, _ = raw(server, f"GET {target}/nothing HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert status == 404


def test_compressed_bodies_are_refused_by_name(server):
    body = {"prompt": "a", "max_tokens": 1}
    answer = post(server.http_port, "/v1/completions", body, {"Content-Encoding": "gzip"})
    assert answer.status == 415 and "Content-Encoding" in answer.error["message"], answer.body
    answer = post(server.http_port, "/v1/completions", body, {"Content-Encoding": "Identity"})
    assert answer.status == 200, answer.body


def test_nothing_in_front_of_a_suffix(server):
    body = {"prompt": "", "suffix": " and the king of Egypt.", "max_tokens": 4, "echo": True}
    answer = post(server.http_port, "/v1/completions", body)
    assert answer.status == 200 and answer.json["choices"][0]["text"], answer.body
    status, lines = events(server.http_port, "/v1/completions", {**body, "logprobs": None, "n": 2})
    assert status == 200 and lines[-1] == "[DONE]"


def test_a_chat_goes_on_until_it_ends(server):
    """Without max_tokens: to an end token, or as far as the server lets it."""
    answer = post(server.http_port, "/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Go on."}], "ignore_eos": True, "seed": 1,
        "min_tokens": 400, "stop_token_ids": []}).json
    assert answer["usage"]["completion_tokens"] >= 400, answer


@pytest.mark.parametrize("limit", ["context=300", "tokens_per_minute=300"])
def test_a_chat_without_a_length_bends_to_its_key(cluster, tmp_path, limit):
    keys = tmp_path / "keys"
    keys.write_text(f"user sha256:{hashlib.sha256(b'secret').hexdigest()} {limit}\n")
    os.chmod(keys, 0o640)
    c = cluster(DEMO, ready=False, coordinator__keys=keys)
    c.wait(lambda: get(c.http_port, "/health").status == 200, "health, which needs no key")
    headers = {"Authorization": "Bearer secret"}
    body = {"messages": [{"role": "user", "content": "Go on."}], "n": 2, "stop": None,
            "ignore_eos": True, "min_tokens": 100}
    answer = post(c.http_port, "/v1/chat/completions", {**body, "max_tokens": 300}, headers)
    assert answer.status == 403, answer.body
    answer = post(c.http_port, "/v1/chat/completions", body, headers)
    assert answer.status == 200, answer.body
    usage = answer.json["usage"]
    most = usage["prompt_tokens"] + usage["completion_tokens"] // (2 if "context" in limit else 1)
    assert 200 <= usage["completion_tokens"] and most <= 300, usage


def test_drawn_seeds_survive_every_reader(server):
    """JavaScript's numbers have 53 bits: who is told a seed can ask for it again."""
    for _ in range(8):
        choice = post(server.http_port, "/v1/completions", {"prompt": PROMPT, "max_tokens": 6})
        choice = choice.json["choices"][0]
        assert 0 <= choice["seed"] == int(float(choice["seed"])) < 1 << 53
        again = post(server.http_port, "/v1/completions", {"prompt": PROMPT, "max_tokens": 6,
                                                           "seed": float(choice["seed"])})
        assert again.json["choices"][0]["text"] == choice["text"]
