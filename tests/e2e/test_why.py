"""`glmd why`: the timelines of requests that ran well, were cancelled, waited, moved to another group."""

import json

import grpc
import pytest

from conftest import glmd
from http_client import post

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def why(server, request_id):
    return json.loads(glmd("why", request_id, "--json", "--coordinator", server.target).stdout)


def events(timeline):
    return [e["event"] for e in timeline["events"]]


def request(api, request_id, n, text="The river", **more):
    return api.GenerateRequest(text=text, max_tokens=n, request_id=request_id,
                               sampling=api.SamplingParameters(ignore_end=True), **more)


@pytest.fixture
def server(api, model, module_cluster):
    return module_cluster("why", model("ckpt-fp16-tp1", "--weights", "int4"), 1)


def test_a_request_that_went_well(server, api):
    list(server.inference.Generate(request(api, "well", 8), timeout=60,
                                   metadata=[("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")]))
    (t,) = why(server, "well")
    assert events(t) == ["queued", "started", "prefill", "first_token", "ended"]
    assert (t["kind"], t["end"], t["status"], t["completion_tokens"]) == ("generate", "length", "OK", 8)
    assert t["trace_id"] == TRACE and t["ended"]
    times = [e["at_seconds"] for e in t["events"]]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= t["age_seconds"]
    started, prefill = t["events"][1:3]
    assert started["group"] == prefill["group"] == "0" and started["epoch"] > 0
    assert prefill["n"] == t["prompt_tokens"]
    text = glmd("why", "well", "--coordinator", server.target).stdout
    assert f"trace {TRACE}" in text and "ended: length, OK" in text and "first token" in text


def test_the_newest_of_the_same_name_is_first(server, api):
    for n in (2, 3):
        list(server.inference.Generate(request(api, "again", n), timeout=60))
    assert [t["completion_tokens"] for t in why(server, "again")] == [3, 2]


def test_the_id_in_an_answer_over_http(server):
    for route, body in (("/v1/completions", {"prompt": "The river"}),
                        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})):
        answer = post(server.http_port, route, dict(body, max_tokens=3, ignore_eos=True))
        (t,) = why(server, answer.json["id"])
        assert t["request_id"] == answer.headers["X-Request-Id"] and t["completion_tokens"] == 3
        assert answer.json["id"].endswith("cmpl-" + t["request_id"])


def test_cancelled_and_unknown(server, api):
    stream = server.inference.Generate(request(api, "gone", 200), timeout=60)
    next(stream)
    running = why(server, "gone")[0]
    assert not running["ended"] and "ended" not in events(running)
    stream.cancel()
    t = server.wait(lambda: (lambda t: t if t["ended"] else None)(why(server, "gone")[0]),
                    "the end of the cancelled request")
    assert (t["end"], t["message"]) == ("cancelled", "the client went away")
    result = glmd("why", "nobody", "--coordinator", server.target, check=False)
    assert result.returncode != 0 and "no request of late had this id" in result.stderr


def test_why_a_request_was_refused(cluster, api, model):
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 1, worker__slots=1,
                coordinator__limits__max_queue=1)
    streams = [c.inference.Generate(request(api, f"r{i}", 200), timeout=120) for i in range(2)]
    next(streams[0])
    c.wait(lambda: c.status().waiting == 1, "the second one in the queue")
    with pytest.raises(grpc.RpcError) as refused:
        list(c.inference.Generate(request(api, "r2", 4), timeout=30))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    (t,) = why(c, "r2")
    assert (events(t), t["end"], t["ended"]) == (["refused"], "queue_full", True)
    assert "the queue is full" in t["message"]
    for s in streams:
        s.cancel()


def test_why_a_request_was_not_admitted(server, api):
    long, wrong = "x" * 128, api.SamplingParameters(temperature=-1)
    calls = [
        ("generate", server.inference.Generate, request(api, "long", 1 << 20)),
        ("generate", server.inference.Generate, api.GenerateRequest(
            text="a", max_tokens=2, request_id=long, sampling=wrong)),
        ("fill", server.inference.Fill, api.FillRequest(text="a", request_id="fill", priority=1000)),
        ("score", server.inference.Score, api.ScoreRequest(text="a", request_id="score", priority=1000)),
    ]
    for kind, call, message in calls:
        with pytest.raises(grpc.RpcError) as refused:
            answer = call(message, timeout=30)
            list(answer) if hasattr(answer, "__iter__") else answer
        (t,) = why(server, message.request_id)
        assert (t["kind"], events(t), t["ended"]) == (kind, ["refused"], True), t
        assert t["end"] == "invalid" and t["message"] == refused.value.details(), t
    # an id that no request may have is not kept
    for name in ("x" * 129, "tab\t"):
        for call in (lambda: list(server.inference.Generate(request(api, name, 2), timeout=30)),
                     lambda: server.cluster.Why(api.WhyRequest(request_id=name), timeout=10)):
            with pytest.raises(grpc.RpcError):
                call()
    assert len(why(server, long)) == 1


def test_a_replay_is_told(cluster, api, model):
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 1, workers="external",
                expect={"worker0": -9})
    stream = c.inference.Generate(request(api, "moved", 200), timeout=120)
    next(stream)
    c.processes["worker0"].kill()
    c.processes["worker0"].wait()
    c.start_worker(0, name="again")
    list(stream)
    (t,) = why(c, "moved")
    found = events(t)
    assert found == ["queued", "started", "prefill", "first_token", "lost", "started", "prefill", "ended"]
    first, lost, second = t["events"][1], t["events"][4], t["events"][5]
    assert lost["epoch"] == first["epoch"] < second["epoch"] and lost["n"] >= 1
    assert (t["end"], t["completion_tokens"]) == ("length", 200)


def test_who_made_room_is_told(cluster, api, model):
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 1, worker__slots=1)
    stream = c.inference.Generate(request(api, "low", 200, priority=0), timeout=120)
    next(stream)
    list(c.inference.Generate(request(api, "high", 4, priority=5), timeout=60))
    list(stream)
    low, high = why(c, "low")[0], why(c, "high")[0]
    assert "preempted" in events(low) and events(low)[-1] == "ended"
    assert (high["priority"], "preempted" in events(high)) == (5, False)
