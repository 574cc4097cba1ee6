"""The API over HTTP when much comes at once: what holds the loop, full queues, deadlines, draining, what a
client that leaves costs, and one that does not read."""

import json
import re
import signal
import socket
import threading
import time

import pytest

from conftest import SANITIZED, SOURCE
from http_client import PROMPT, complete, counted, events, get, open_stream, post, running, wait_idle

DEMO = SOURCE / "deploy/demo/model"
SLOW = "fake:step_us=20000"  # nothing is computed; a step takes 20 ms, and no text ends


@pytest.fixture(scope="module")
def server(module_cluster):
    return module_cluster("http-load", DEMO, tp=2)


@pytest.fixture
def slow(cluster):
    def start(**settings):
        return cluster(DEMO, group__devices=SLOW, **settings)

    return start


# ---- what holds the loop ----


def test_a_large_batch_does_not_hold_up_the_others(slow):
    """128 prompts of 2,000 ids, 1.5 MB: they are parsed and admitted beside the loop."""
    c = slow(coordinator__limits__max_queue=4)
    batch = json.dumps({"prompt": [[200 + i % 50] * 1000 + [300] * 1000 for i in range(128)],
                        "max_tokens": 1}).encode()
    s = open_stream(c.http_port, "/v1/completions",
                    {"prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True})
    gaps, stop, last = [], threading.Event(), [0.0]

    def read():
        before = None
        while not stop.is_set() and s.recv(1 << 20):
            now = time.monotonic()
            if before:
                gaps.append((now - before, now))
            before = now

    reader = threading.Thread(target=read)
    reader.start()
    c.wait(lambda: len(gaps) > 20, "tokens")
    holds = []
    for _ in range(5):
        begin = time.monotonic()
        answer = post(c.http_port, "/v1/completions", batch)
        end = time.monotonic()
        assert answer.status == 429, (answer.status, answer.body[:200])  # more than the queue takes
        c.wait(lambda: gaps[-1][1] > end, "a token behind it")
        holds.append(max(gap for gap, at in gaps if begin <= at <= end + 0.05))
    usual = sorted(gap for gap, _ in gaps)[len(gaps) // 2]
    stop.set()
    s.shutdown(socket.SHUT_RDWR)
    reader.join()
    s.close()
    print(f"usual gap {usual * 1e3:.1f} ms, longest with a batch {[round(h * 1e3, 1) for h in holds]}")
    if not SANITIZED:
        assert min(holds) < usual + 0.015, (holds, usual)


def test_clients_that_leave_while_their_long_request_is_parsed(server):
    body = json.dumps({"prompt": ["x " * 3000] * 100, "max_tokens": 1}).encode()
    head = (f"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.http_port)) as s:
            s.sendall(head + body)
    wait_idle(server)
    assert complete(server)["choices"]


# ---- admission ----


def test_deadline(slow):
    c = slow()
    begin = time.monotonic()
    answer = post(c.http_port, "/v1/completions", {"prompt": PROMPT, "max_tokens": 1000},
                  {"X-Request-Timeout": "0.5"})
    assert answer.status == 504 and time.monotonic() - begin < 5, answer.body
    status, pieces = events(c.http_port, "/v1/completions", {"prompt": PROMPT, "max_tokens": 1000},
                            {"X-Request-Timeout": "0.5"})
    assert status == 200 and "[DONE]" not in pieces
    assert json.loads(pieces[-1])["error"]["code"] == "deadline_exceeded"
    with open_stream(c.http_port, "/v1/completions", {"prompt": PROMPT, "max_tokens": 1000},
                     ["X-Request-Timeout: 0.5"]) as s:
        data = b"".join(iter(lambda: s.recv(65536), b""))  # to the end of the connection
    assert b"deadline_exceeded" in data and data.endswith(b"0\r\n\r\n"), data[-300:]
    wait_idle(c)
    bad = post(c.http_port, "/v1/completions", {"prompt": "a"}, {"X-Request-Timeout": "soon"})
    assert bad.status == 400


def test_queue_is_full(slow):
    c = slow(worker__slots=1, coordinator__limits__max_queue=2)
    held = [open_stream(c.http_port, "/v1/completions", {"prompt": PROMPT, "max_tokens": 1000})
            for _ in range(3)]
    c.wait(lambda: running(c) == 3, "three requests")
    answer = post(c.http_port, "/v1/completions", {"prompt": PROMPT, "max_tokens": 5})
    assert answer.status == 429 and answer.error["type"] == "rate_limit_error", answer.body
    # a batch of which only a part has room is refused as a whole, and leaves nothing behind
    held.pop().close()
    c.wait(lambda: running(c) == 2, "two requests")
    answer = post(c.http_port, "/v1/completions", {"prompt": ["a", "b", "c"], "max_tokens": 5})
    assert answer.status == 429 and running(c) == 2, answer.body
    for s in held:
        s.close()
    wait_idle(c)


def test_no_ranks_and_draining(cluster):
    c = cluster(DEMO, tp=0, ready=False, workers="external")
    assert get(c.http_port, "/health/live").status == 200
    for path in ("/health", "/health/ready", "/v2/health/ready", "/ping"):
        assert get(c.http_port, path).status == 503
    waiting = open_stream(c.http_port, "/v1/completions", {"prompt": PROMPT})
    c.wait(lambda: running(c) == 1, "a request")
    c.processes["coordinator"].send_signal(signal.SIGTERM)
    data = waiting.recv(65536)
    assert data.startswith(b"HTTP/1.1 503"), data
    assert c.processes["coordinator"].wait(60) == 0


def test_drain_finishes_streams(slow):
    c = slow()
    s = open_stream(c.http_port, "/v1/completions",
                    {"prompt": PROMPT, "max_tokens": 60, "ignore_eos": True})
    first = s.recv(65536)
    assert first.startswith(b"HTTP/1.1 200")
    c.processes["coordinator"].send_signal(signal.SIGTERM)
    c.wait(lambda: get(c.http_port, "/health").status == 503, "draining")
    refused = post(c.http_port, "/v1/completions", {"prompt": "a"})
    assert refused.status == 503 and int(refused.headers["Retry-After"]) >= 1, refused.body
    data = first
    while not data.endswith(b"0\r\n\r\n"):
        piece = s.recv(65536)
        assert piece, data[-200:]
        data += piece
    assert b"data: [DONE]" in data
    assert c.processes["coordinator"].wait(60) == 0


# ---- clients that leave, and clients that do not read ----


@pytest.mark.parametrize("stream", [True, False])
def test_client_leaves(slow, stream):
    """Its requests end within a step, whether they had been answered in part or not at all."""
    c = slow()
    for prompts in (PROMPT, [PROMPT, "b", "c"]):
        n = 1 if isinstance(prompts, str) else 3
        s = open_stream(c.http_port, "/v1/completions",
                        {"prompt": prompts, "max_tokens": 1000, "ignore_eos": True,
                         "stream": stream})
        c.wait(lambda: running(c) == n, f"{n} requests")
        begun = c.status().groups[0].decode_tokens
        c.wait(lambda: c.status().groups[0].decode_tokens > begun + 3 * n, "some tokens of each")
        s.close()
        left = time.monotonic()
        wait_idle(c)
        assert time.monotonic() - left < 1
    c.wait(lambda: counted(c, "glmd_cancel_to_free_seconds_count") == 4, "four cancellations")
    mean = counted(c, "glmd_cancel_to_free_seconds_sum") / 4
    assert 0 < mean < (1 if SANITIZED else 0.1), "the steps that were out, of 20 ms, take less"


def test_slow_reader_waits_and_others_do_not(cluster):
    c = cluster(DEMO, group__devices="fake:step_us=500", coordinator__limits__max_stream_bytes="16KiB",
                coordinator__deadlines__slow_reader="3s", worker__slots=8)
    body = {"prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True, "logprobs": 5, "n": 4}
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.settimeout(60)
    s.connect(("127.0.0.1", c.http_port))
    data = json.dumps({**body, "stream": True}).encode()
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
              b"Content-Length: %d\r\n\r\n" % len(data) + data)
    s.recv(100)
    for _ in range(5):  # the others go on while it does not read
        answer = post(c.http_port, "/v1/completions", {"prompt": "b", "max_tokens": 50,
                                                       "ignore_eos": True})
        assert answer.json["usage"]["completion_tokens"] == 50
    c.wait(lambda: running(c) == 0, "the end of what nobody reads")
    assert counted(c, 'glmd_requests_finished_total{reason="slow_reader"}') == 1
    s.close()


# ---- many connections ----


@pytest.mark.long
def test_a_thousand_idle_streams(cluster):
    """What a stream costs while it waits for its first token."""
    n = 1000
    c = cluster(DEMO, tp=0, ready=False, workers="external", coordinator__limits__max_queue=2 * n,
                coordinator__limits__max_connections=2 * n, coordinator__http__heartbeat="1s")
    pid = c.processes["coordinator"].pid

    def resident():
        text = open(f"/proc/{pid}/smaps_rollup").read()
        return int(re.search(r"Pss:\s+(\d+) kB", text)[1])

    get(c.http_port, "/health")
    before = resident()
    held = [open_stream(c.http_port, "/v1/completions", {"prompt": PROMPT, "max_tokens": 50})
            for _ in range(n)]
    for s in held:
        data = b""
        while b": waiting" not in data:
            piece = s.recv(4096)
            assert piece, data
            data += piece
    each = (resident() - before) / n
    print(f"{each:.1f} KiB for each of {n} idle streams")
    if not SANITIZED:  # whose shadow of the memory is most of it
        assert each < 100
    assert get(c.http_port, "/load").json["waiting"] == n
    for s in held:
        s.close()
    c.wait(lambda: get(c.http_port, "/load").json["waiting"] == 0, "an empty queue")
