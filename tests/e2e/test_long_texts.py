"""Long texts are read, tokenized and admitted beside the loop, over gRPC as over HTTP: whoever
sends one holds up nobody, may leave meanwhile, and is waited for when the server stops.

What a text holds up is counted in events, not in time: how many messages another client's stream
brings between the question and its answer.
"""

import concurrent.futures
import json
import signal
import statistics
import threading

import grpc
import pytest

from conftest import DEADLINE_S, SOURCE
from http_client import post
from test_kserve import kserve, request  # noqa: F401 (a fixture)

DEMO = SOURCE / "deploy/demo/model"
FAST = "fake:step_us=2000"  # nothing is computed; a step takes 2 ms, and no text ends
WORDS = "and it came to pass that the river ran into the sea, "
TEXT = WORDS * (1_200_000 // len(WORDS))
IDS = [200 + i % 500 for i in range(1_000_000)]
CHOICES = [WORDS * 100] * 255 + [""]  # refused, but only when all the others are tokenized


class Stream:
    """A client that reads one generation after the other, and counts the messages."""

    def __init__(self, c, api):
        self.n, self.ends, self.stopped = 0, [], False
        self.c, self.api = c, api
        self.thread = threading.Thread(target=self.read)
        self.thread.start()
        c.wait(lambda: self.n > 20, "a stream's messages")

    def read(self):
        while not self.stopped:
            question = self.api.GenerateRequest(
                text="The river", max_tokens=1500,
                sampling=self.api.SamplingParameters(ignore_end=True, seed=1))
            self.call = self.c.inference.Generate(question, timeout=DEADLINE_S)
            try:
                for _ in self.call:
                    self.n += 1
            except grpc.RpcError as e:
                self.ends.append(e.code())

    def stop(self):
        self.stopped = True
        self.call.cancel()
        self.thread.join()


@pytest.fixture
def server(module_cluster):
    return module_cluster("long", DEMO, group__devices=FAST,
                          coordinator__limits__max_input_bytes="4MiB")


@pytest.fixture
def stream(server, api):
    s = Stream(server, api)
    yield s
    s.stop()
    assert all(code == grpc.StatusCode.CANCELLED for code in s.ends), s.ends


@pytest.fixture(scope="module")
def messages(api):
    """Bytes, so that no client's packing is counted."""
    return {"Tokenize": api.TokenizeRequest(text=TEXT).SerializeToString(),
            "Detokenize": api.DetokenizeRequest(ids=IDS).SerializeToString(),
            "Score": api.ScoreRequest(text="The river", choices=CHOICES).SerializeToString(),
            "HTTP": json.dumps({"prompt": TEXT}).encode()}


def ask(server, method, message):
    """Its answer is of no matter: it may be longer than a message can be, or a choice is bad."""
    if method == "HTTP":
        assert post(server.http_port, "/tokenize", message).status == 200
        return
    call = server.channel.unary_unary(f"/glmd.v1.Inference/{method}")
    try:
        call(message, timeout=DEADLINE_S)
    except grpc.RpcError as e:
        assert e.code() in (grpc.StatusCode.INVALID_ARGUMENT,
                            grpc.StatusCode.RESOURCE_EXHAUSTED), e


@pytest.mark.parametrize("method", ("Tokenize", "Detokenize", "Score", "HTTP"))
def test_a_long_text_does_not_hold_up_a_stream(method, server, stream, messages):
    between = []
    for _ in range(5):
        before = stream.n
        ask(server, method, messages[method])
        between.append(stream.n - before)
    print(f"{method}: messages of the stream meanwhile: {between}")
    assert statistics.median(between) >= 20, between  # at most a handful when the loop reads it


def test_clients_that_leave_while_their_texts_are_read(server, api, kserve, messages):  # noqa: F811
    stub = kserve.GRPCInferenceServiceStub(server.channel)
    infer = request(kserve, text=TEXT)
    for _ in range(3):
        calls = [server.channel.unary_unary(f"/glmd.v1.Inference/{method}").future(message)
                 for method, message in messages.items() if method != "HTTP"]
        calls += [server.channel.unary_stream("/glmd.v1.Inference/" + method)(
            api.FillRequest(text=TEXT + "[MASK]").SerializeToString())
            for method in ("Generate", "Fill")]
        calls += [stub.ModelInfer.future(infer), stub.ModelStreamInfer(iter([infer] * 3))]
        # the one that is behind them on the same connection is answered before they are
        assert server.inference.Tokenize(api.TokenizeRequest(text="a"), timeout=DEADLINE_S).ids
        for call in calls:
            call.cancel()
    server.wait(lambda: (s := server.status()) and s.waiting == 0
                and sum(g.running for g in s.groups) == 0, "no requests")


def test_a_server_that_stops_waits_for_them(cluster, api, messages):
    c = cluster(DEMO, group__devices=FAST, coordinator__limits__max_input_bytes="4MiB")
    tokenize = c.channel.unary_unary("/glmd.v1.Inference/Tokenize")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        over_http = [pool.submit(post, c.http_port, "/tokenize", messages["HTTP"])
                     for _ in range(4)]
        calls = [tokenize.future(messages["Tokenize"], timeout=DEADLINE_S) for _ in range(12)]
        concurrent.futures.wait(over_http, return_when=concurrent.futures.FIRST_COMPLETED)
        c.processes["coordinator"].send_signal(signal.SIGTERM)
        codes = [call.code() for call in calls]
        answers = [f.exception() or f.result().status for f in over_http]
    print(f"gRPC {[code.name for code in codes]}, HTTP {answers}")
    # answered (it may be too long for one), or told that the server stops
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED,
                          grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}, codes
    assert c.processes["coordinator"].wait(timeout=DEADLINE_S) == 0
