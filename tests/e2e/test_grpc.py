"""What gRPC itself promises: health by name, statuses with details, limits; stock clients throughout."""

import signal
import statistics
import subprocess
import sys
import time

import grpc
import pytest

from conftest import DEADLINE_S, SANITIZED, SOURCE

RETRY = "type.googleapis.com/google.rpc.RetryInfo"
BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
QUOTA_FAILURE = "type.googleapis.com/google.rpc.QuotaFailure"


@pytest.fixture(scope="module")
def weights(model):
    return model("ckpt-fp16-tp1", "--weights", "int4")


@pytest.fixture(scope="module")
def standard(tmp_path_factory):
    """(health messages, messages of status details), from our .proto files under names of their own."""
    flat, out = tmp_path_factory.mktemp("flat"), tmp_path_factory.mktemp("standard")
    for name, path in (("glmd_e2e_health", "grpc/health/v1/health"),
                       ("glmd_e2e_details", "glmd/status/details")):
        text = (SOURCE / f"proto/{path}.proto").read_text()
        text = text.replace("package grpc.health.v1;", "package e2e.health;")
        (flat / f"{name}.proto").write_text(text)
    subprocess.run(["protoc", f"-I{flat}", f"--python_out={out}", "glmd_e2e_health.proto",
                    "glmd_e2e_details.proto"], check=True)
    sys.path.insert(0, str(out))
    import glmd_e2e_details_pb2
    import glmd_e2e_health_pb2

    return glmd_e2e_health_pb2, glmd_e2e_details_pb2


class Failure:
    """A refused call: code, message and what the details say."""

    def __init__(self, error, details_pb2):
        self.code, self.message = error.code(), error.details()
        self.retry_seconds, self.fields, self.reason, self.metadata = None, {}, None, {}
        self.quotas = []
        trailers = {m.key: m.value for m in error.trailing_metadata() or ()}
        self.pushback = trailers.get("grpc-retry-pushback-ms")
        raw = trailers.get("grpc-status-details-bin")
        self.has_details = raw is not None
        if raw is None:
            return
        status = details_pb2.Status.FromString(raw)
        assert (status.code, status.message) == (self.code.value[0], self.message)
        for d in status.details:
            if d.type_url == RETRY:
                delay = details_pb2.RetryInfo.FromString(d.value).retry_delay
                self.retry_seconds = delay.seconds + delay.nanos / 1e9
            elif d.type_url == BAD_REQUEST:
                for v in details_pb2.BadRequest.FromString(d.value).field_violations:
                    self.fields[v.field] = v.description
            elif d.type_url == ERROR_INFO:
                info = details_pb2.ErrorInfo.FromString(d.value)
                assert info.domain == "glmd"
                self.reason, self.metadata = info.reason, {m.key: m.value for m in info.metadata}
            elif d.type_url == QUOTA_FAILURE:
                self.quotas += details_pb2.QuotaFailure.FromString(d.value).violations


@pytest.fixture
def failure(standard):
    def of(call, *args, **kwargs):
        kwargs.setdefault("timeout", DEADLINE_S)
        with pytest.raises(grpc.RpcError) as e:
            result = call(*args, **kwargs)
            if isinstance(result, grpc.Call):  # a stream
                list(result)
        return Failure(e.value, standard[1])

    return of


# ---- health ----


class Health:
    def __init__(self, channel, pb):
        self.pb = pb
        self.check_call = channel.unary_unary("/grpc.health.v1.Health/Check",
                                              pb.HealthCheckRequest.SerializeToString,
                                              pb.HealthCheckResponse.FromString)
        self.watch_call = channel.unary_stream("/grpc.health.v1.Health/Watch",
                                               pb.HealthCheckRequest.SerializeToString,
                                               pb.HealthCheckResponse.FromString)

    def check(self, service):
        try:
            status = self.check_call(self.pb.HealthCheckRequest(service=service), timeout=10).status
        except grpc.RpcError as e:
            return e.code().name
        return self.pb.HealthCheckResponse.ServingStatus.Name(status)

    def watch(self, service):
        """Statuses with the time of their arrival, as they come."""
        for response in self.watch_call(self.pb.HealthCheckRequest(service=service),
                                        timeout=3 * DEADLINE_S):
            yield (self.pb.HealthCheckResponse.ServingStatus.Name(response.status),
                   time.monotonic())


def test_every_name_has_a_health(weights, cluster, standard):
    c = cluster(weights, 2, model__name="river/glm")
    health, group = Health(c.channel, standard[0]), c.status().groups[0].id
    for name in ("", "glmd.v1.Inference", "glmd.v1.Cluster", "glmd.v1.Worker",
                 "inference.GRPCInferenceService", "river/glm",
                 f"group/{group}", f"rank/{group}/0", f"rank/{group}/1"):
        assert health.check(name) == "SERVING", name
    for name in ("nothing", f"rank/{group}/2", f"rank/{group}", "group/", "x" * 5000):
        assert health.check(name) == "NOT_FOUND", name
    assert next(health.watch("nothing"))[0] == "SERVICE_UNKNOWN"


def test_watch_says_within_100_ms_that_a_rank_is_gone(weights, cluster, standard):
    rounds = 3
    killed = {f"worker1-{i}": -signal.SIGKILL for i in range(1, rounds)}
    c = cluster(weights, 2, workers="external", expect={"worker1": -signal.SIGKILL, **killed})
    health, group = Health(c.channel, standard[0]), c.status().groups[0].id
    watched = ["", c.status().model.id, f"group/{group}", f"rank/{group}/1"]
    watches = {name: health.watch(name) for name in watched}
    other = health.watch(f"rank/{group}/0")
    for watch in [*watches.values(), other]:
        assert next(watch)[0] == "SERVING"
    late = {name: [] for name in watched}
    process = c.processes["worker1"]
    for i in range(1, rounds + 1):
        start = time.monotonic()
        process.kill()
        for name, watch in watches.items():
            status, at = next(watch)
            assert status == "NOT_SERVING", name
            late[name].append(at - start)
        assert health.check(f"rank/{group}/0") == "SERVING", "a rank whose peer is gone"
        process.wait()
        process = c.start_worker(1, name=f"worker1-{i}")
        for name, watch in watches.items():
            assert next(watch)[0] == "SERVING", name
    print({name: [round(s * 1000, 1) for s in seconds] for name, seconds in late.items()})
    limit = 1.0 if SANITIZED else 0.1
    for name, seconds in late.items():
        assert statistics.median(seconds) < limit, (name, seconds)


def test_watch_tells_of_a_drain_and_of_the_end(weights, cluster, standard):
    c = cluster(weights, 1)
    watch = Health(c.channel, standard[0]).watch("")
    assert next(watch)[0] == "SERVING"
    c.processes["coordinator"].send_signal(signal.SIGTERM)
    assert next(watch)[0] == "NOT_SERVING"
    with pytest.raises(grpc.RpcError) as e:
        next(watch)
    assert e.value.code() == grpc.StatusCode.UNAVAILABLE
    assert c.processes["coordinator"].wait(timeout=DEADLINE_S) == 0


# ---- statuses ----


def endless(api, **more):
    return api.GenerateRequest(text="The river", max_tokens=230, **more,
                               sampling=api.SamplingParameters(ignore_end=True, seed=1))


@pytest.fixture
def server(weights, module_cluster):
    return module_cluster("grpc", weights, 1)


def test_ok_has_no_details(server, api):
    call = server.inference.Generate(api.GenerateRequest(text="The river", max_tokens=2),
                                     timeout=DEADLINE_S)
    assert list(call) and call.code() == grpc.StatusCode.OK
    assert "grpc-status-details-bin" not in {m.key for m in call.trailing_metadata()}


BAD_FIELDS = {
    "text": lambda api: api.GenerateRequest(text=""),
    "tokens": lambda api: api.GenerateRequest(tokens=api.TokenIds(ids=[-1])),
    "n": lambda api: api.GenerateRequest(text="a", n=17),
    "best_of": lambda api: api.GenerateRequest(text="a", n=3, best_of=2),
    "max_tokens": lambda api: api.GenerateRequest(text="a", max_tokens=10**6),
    "request_id": lambda api: api.GenerateRequest(text="a", request_id="\n"),
    "priority": lambda api: api.GenerateRequest(text="a", priority=101),
    "temperature": lambda api: api.GenerateRequest(
        text="a", sampling=api.SamplingParameters(temperature=11)),
    "stop": lambda api: api.GenerateRequest(text="a", sampling=api.SamplingParameters(stop=[""])),
    "beam.num_beams": lambda api: api.GenerateRequest(text="a", sampling=api.SamplingParameters(
        strategy=api.STRATEGY_BEAM, beam=api.BeamParameters(num_beams=65))),
}


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_invalid_argument_names_the_field(field, server, api, failure):
    f = failure(server.inference.Generate, BAD_FIELDS[field](api))
    assert f.code == grpc.StatusCode.INVALID_ARGUMENT
    assert f.fields == {field: f.message}
    assert f.retry_seconds is None, "never worth another try"
    assert (f.reason, f.metadata) == ("INVALID_REQUEST", {}), "nothing ran"


def test_what_can_never_fit_is_invalid(server, api, failure):
    f = failure(server.inference.Generate, api.GenerateRequest(text="river " * 400))
    assert (f.code, list(f.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, ["text"])
    assert "context length of 256" in f.message and f.retry_seconds is None


def test_not_found(server, api, failure):
    f = failure(server.inference.Generate, api.GenerateRequest(text="a", model="gpt"))
    assert (f.code, list(f.fields)) == (grpc.StatusCode.NOT_FOUND, ["model"])
    assert f.reason == "UNKNOWN_MODEL"
    for call, request in ((server.cluster.Abort, api.AbortRequest(request_id="nobody")),
                          (server.cluster.Drain, api.DrainRequest(group="nowhere"))):
        f = failure(call, request)
        assert f.code == grpc.StatusCode.NOT_FOUND and not f.has_details


def test_unimplemented_and_malformed(server, failure):
    f = failure(server.channel.unary_unary("/glmd.v1.Inference/Nothing"), b"")
    assert f.code == grpc.StatusCode.UNIMPLEMENTED
    f = failure(server.channel.unary_stream("/glmd.v1.Inference/Generate"), b"\xff\xff")
    assert f.code == grpc.StatusCode.INVALID_ARGUMENT


def test_a_large_message_is_refused_without_a_retry(server, api, failure):
    f = failure(server.inference.Generate, api.GenerateRequest(text="x" * (5 << 20)))
    assert f.code == grpc.StatusCode.RESOURCE_EXHAUSTED and f.retry_seconds is None


def test_large_metadata_is_refused(server, api):
    with grpc.insecure_channel(server.target, options=[("grpc.use_local_subchannel_pool", 1)]) as c:
        stub = api.InferenceStub(c)
        with pytest.raises(grpc.RpcError) as e:
            stub.ListModels(api.ListModelsRequest(), timeout=DEADLINE_S,
                            metadata=[("x-large", "m" * 9000)])
        assert e.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.inference.ListModels(api.ListModelsRequest(), timeout=DEADLINE_S).models


def test_cancelled_by_an_operator_and_by_the_client(server, api, standard):
    call = server.inference.Generate(endless(api, request_id="to-abort"), timeout=DEADLINE_S)
    next(call)
    assert server.cluster.Abort(api.AbortRequest(request_id="to-abort"), timeout=10).aborted == 1
    with pytest.raises(grpc.RpcError) as e:
        list(call)
    f = Failure(e.value, standard[1])
    assert (f.code, f.reason) == (grpc.StatusCode.CANCELLED, "ABORTED_BY_OPERATOR")
    assert 1 <= int(f.metadata["committed_tokens"]) < 230
    before = server.status().requests.cancelled
    call = server.inference.Generate(endless(api), timeout=DEADLINE_S)
    next(call)
    call.cancel()
    server.wait(lambda: server.status().requests.cancelled > before, "the request to end")


def test_a_full_queue_says_when_to_come_back(weights, cluster, api, failure):
    c = cluster(weights, 0, ready=False, workers="external", coordinator__limits__max_queue=1)
    waiting = c.inference.Generate(endless(api), timeout=DEADLINE_S)
    c.wait(lambda: (s := c.status()) and s.waiting == 1, "the first request to wait")
    f = failure(c.inference.Generate, endless(api))
    assert f.code == grpc.StatusCode.RESOURCE_EXHAUSTED, f.message
    assert f.retry_seconds >= 1 and not f.fields
    assert f.reason == "QUEUE_FULL" and int(f.pushback) == f.retry_seconds * 1000
    waiting.cancel()


def test_a_full_server_says_when_to_come_back(weights, cluster, api, failure):
    c = cluster(weights, 0, ready=False, workers="external", coordinator__limits__max_connections=2)
    waiting = []

    def full():  # a Status on its way may have taken the place of one of them
        waiting[:] = [call for call in waiting if call.is_active()]
        while len(waiting) < 2:
            waiting.append(c.inference.Generate(endless(api), timeout=DEADLINE_S))
        return c.status() is None

    c.wait(full, "the server to be full")
    f = failure(c.inference.ListModels, api.ListModelsRequest())
    assert f.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f.retry_seconds == 1 and "limit of 2 calls" in f.message
    assert (f.reason, f.pushback) == ("SERVER_FULL", "1000")
    for call in waiting:
        call.cancel()
    assert c.wait(c.status, "room for another call")


def test_deadline_exceeded(weights, cluster, api, failure):
    c = cluster(weights, 1, workers="external", deadlines__step="60s", deadlines__lease="60s")
    c.processes["worker0"].send_signal(signal.SIGSTOP)
    f = failure(c.inference.Generate, endless(api), timeout=0.5)
    assert f.code == grpc.StatusCode.DEADLINE_EXCEEDED, f.message
    if f.reason:  # else the client's own clock was faster
        assert (f.reason, f.metadata) == ("DEADLINE", {"committed_tokens": "0"})
    c.wait(lambda: c.status().requests.failed == 1, "the request to end at its deadline")
    c.processes["worker0"].send_signal(signal.SIGCONT)


def test_without_ranks_it_is_unavailable(weights, cluster, api, failure):
    c = cluster(weights, 0, ready=False, workers="external",
                coordinator__deadlines__request="500ms")
    f = failure(c.inference.Generate, endless(api), timeout=None)
    assert f.code == grpc.StatusCode.UNAVAILABLE and "no group of workers" in f.message
    assert (f.reason, f.retry_seconds, f.pushback) == ("NO_GROUP_READY", 1, "1000")
    assert f.metadata == {"committed_tokens": "0"}


def test_a_server_that_drains_is_unavailable_with_a_retry(weights, cluster, api, failure):
    c = cluster(weights, 1)
    running = c.inference.Generate(endless(api), timeout=DEADLINE_S)
    next(running)
    c.processes["coordinator"].send_signal(signal.SIGTERM)
    c.wait(lambda: (s := c.status()) is None or s.draining, "the drain to begin")
    f = failure(c.inference.Generate, endless(api))
    assert f.code == grpc.StatusCode.UNAVAILABLE
    if "draining" in f.message:  # else the process is gone already: the transport's own words
        assert (f.reason, f.retry_seconds) == ("DRAINING", 1)
    assert list(running)[-1].usage.completion_tokens == 230
    assert c.processes["coordinator"].wait(timeout=DEADLINE_S) == 0


def test_a_stream_that_the_end_of_the_server_cuts_says_how_far_it_came(weights, cluster, api,
                                                                       standard):
    """What runs when the time to drain is over: ABORTED where a part was told, else UNAVAILABLE."""
    c = cluster(weights, 1, workers="external", deadlines__step="60s", deadlines__lease="60s",
                coordinator__deadlines__drain="200ms")
    running = c.inference.Generate(endless(api), timeout=DEADLINE_S)
    told = len(next(running).choices)
    assert told == 1
    c.processes["worker0"].send_signal(signal.SIGSTOP)
    waiting = c.inference.Generate(endless(api), timeout=DEADLINE_S)
    c.wait(lambda: (s := c.status()) and s.requests.total >= 2, "the second request to be there")
    c.processes["coordinator"].send_signal(signal.SIGTERM)
    ends = []
    for call in (running, waiting):
        with pytest.raises(grpc.RpcError) as e:
            list(call)
        ends.append(Failure(e.value, standard[1]))
    c.processes["worker0"].send_signal(signal.SIGCONT)
    assert c.processes["coordinator"].wait(timeout=DEADLINE_S) == 0
    lost, never_begun = ends
    assert (lost.code, lost.reason) == (grpc.StatusCode.ABORTED, "STOPPING"), lost.message
    assert int(lost.metadata["committed_tokens"]) >= 1
    assert lost.retry_seconds is None and lost.pushback is None
    assert (never_begun.code, never_begun.reason) == (grpc.StatusCode.UNAVAILABLE, "STOPPING")
    assert never_begun.metadata == {"committed_tokens": "0"} and never_begun.retry_seconds == 1
