"""What a coordinator counts: the numbers of a few requests, and whether Prometheus can read them."""

import hashlib
import http.client
import re
import shutil
import subprocess

import grpc
import pytest

from conftest import SOURCE, glmd

TOOLS = SOURCE / "build/tools/prometheus/usr/bin"
PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=str(TOOLS))

SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")


def parse(text):
    """{(name, frozenset of labels): value}; every line must be a comment or a sample, each once."""
    samples = {}
    for line in text.splitlines():
        if line.startswith("# HELP ") or line.startswith("# TYPE "):
            continue
        match = SAMPLE.match(line)
        assert match, f"not a sample: {line!r}"
        labels = frozenset(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
        key = (match[1], labels)
        assert key not in samples, f"twice: {line!r}"
        samples[key] = float(match[3])
    return samples


def metrics(server, api):
    return parse(server.cluster.Metrics(api.MetricsRequest(), timeout=10).text)


def value(samples, name, **labels):
    return samples[(name, frozenset(labels.items()))]


def sums(samples, name, **labels):
    wanted = set(labels.items())
    return sum(v for (n, have), v in samples.items() if n == name and wanted <= have)


def generate(server, api, n, **sampling):
    return list(server.inference.Generate(
        api.GenerateRequest(text="The river", max_tokens=n,
                            sampling=api.SamplingParameters(ignore_end=True, **sampling)), timeout=60))


@pytest.fixture
def server(api, model, module_cluster):
    return module_cluster("metrics", model("ckpt-fp16-tp1", "--weights", "int4"), 2)


def test_the_numbers_of_a_stream(server, api):
    before = metrics(server, api)
    usage = generate(server, api, 12)[-1].usage
    after = metrics(server, api)

    def grown(name, **labels):
        return sums(after, name, **labels) - sums(before, name, **labels)

    assert usage.completion_tokens == 12
    assert grown("glmd_generation_tokens_total") == 12
    assert grown("glmd_prompt_tokens_total") == usage.prompt_tokens
    assert grown("glmd_requests_total") == 1
    assert grown("glmd_requests_finished_total", reason="length") == 1
    assert grown("glmd_requests_finished_total") == 1
    assert grown("glmd_time_to_first_token_seconds_count") == 1
    assert grown("glmd_inter_token_latency_seconds_count") == 11
    assert grown("glmd_request_generation_tokens_sum") == 12
    assert 0 < grown("glmd_time_to_first_token_seconds_sum") < 30
    parts = [grown(f"glmd_request_{p}_time_seconds_sum") for p in ("queue", "prefill", "decode")]
    assert sum(parts) <= grown("glmd_e2e_request_latency_seconds_sum")
    # under the names that others know, too
    assert grown("vllm:generation_tokens_total", engine="0") == 12
    assert grown("vllm:request_success_total", finished_reason="length") == 1
    assert grown("vllm:time_to_first_token_seconds_count") == 1
    # nothing is left behind
    assert value(after, "glmd_requests_running") == 0
    assert sums(after, "glmd_kv_cache_blocks", state="used") == 0
    assert value(after, "glmd_kv_cache_usage_ratio", group="0") == 0


def test_choices_side_by_side(server, api):
    """Each choice's tokens follow each other; those of the others do not come in between."""
    before = metrics(server, api)
    request = api.GenerateRequest(text="The river", max_tokens=12, n=4,
                                  sampling=api.SamplingParameters(ignore_end=True))
    list(server.inference.Generate(request, timeout=60))
    after = metrics(server, api)
    name = "glmd_inter_token_latency_seconds"
    n, seconds = [after[(f"{name}_{x}", frozenset())] - before[(f"{name}_{x}", frozenset())]
                  for x in ("count", "sum")]
    assert n == 4 * 11
    name = "glmd_request_time_per_output_token_seconds"
    n_requests, mean = [after[(f"{name}_{x}", frozenset())] - before[(f"{name}_{x}", frozenset())]
                        for x in ("count", "sum")]
    assert n_requests == 1 and abs(mean - seconds / n) < 1e-6, (mean, seconds / n)


def test_only_a_restart_changes_the_start(server, api):
    starts = {value(metrics(server, api), "process_start_time_seconds") for _ in range(5)}
    assert len(starts) == 1, starts


def post(server, path, body, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
    status = connection.getresponse().status
    connection.close()
    return status


def test_what_arrives_is_refused_or_ends(cluster, api, model, tmp_path):
    """Whatever way in it takes: arrived = refused + finished, once nothing runs any more."""
    keys = tmp_path / "keys"
    keys.write_text(f"user sha256:{hashlib.sha256(b'secret').hexdigest()} context=30\n")
    keys.chmod(0o600)
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 1, ready=False, coordinator__keys=keys)
    c.wait(lambda: "ready: " in c.logs(), "a ready group", "coordinator")
    known = [("authorization", "Bearer secret")]

    def counted():
        samples = parse(c.cluster.Metrics(api.MetricsRequest(), metadata=known, timeout=10).text)
        return (value(samples, "glmd_requests_total"), sums(samples, "glmd_requests_rejected_total"),
                sums(samples, "glmd_requests_finished_total"))

    def attempt(call, request, metadata=None):
        try:
            answer = call(request, timeout=30, metadata=metadata)
            return list(answer) if hasattr(answer, "__iter__") else answer
        except grpc.RpcError:
            return None

    good = api.GenerateRequest(text="a", max_tokens=2)
    infer = c.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    generate = c.channel.unary_stream("/glmd.v1.Inference/Generate")
    authorization = {"Authorization": "Bearer secret"}
    ways = {
        "well": (lambda: attempt(c.inference.Generate, good, known), False),
        "no key": (lambda: attempt(c.inference.Generate, good), True),
        "too long": (lambda: attempt(c.inference.Generate, api.GenerateRequest(
            text="a", max_tokens=64), known), True),
        "no message": (lambda: attempt(generate, b"\xff\xff", known), True),
        "tokens, no key": (lambda: attempt(c.inference.Tokenize, api.TokenizeRequest(text="a")), True),
        "tokens": (lambda: attempt(c.inference.Detokenize, api.DetokenizeRequest(ids=[-5]), known), True),
        "operators": (lambda: attempt(c.cluster.Abort, api.AbortRequest(request_id="x"), known), True),
        "kserve": (lambda: attempt(infer, b"\x0a\x01a", known), True),
        "kserve, no key": (lambda: attempt(infer, b"", None), True),
        "http": (lambda: post(c, "/v1/completions", '{"prompt": "a", "max_tokens": 2}',
                              **authorization), False),
        "http, no key": (lambda: post(c, "/v1/completions", '{"prompt": "a"}'), True),
        "http, no JSON": (lambda: post(c, "/v1/completions", '{"prompt": ', **authorization), True),
        "http, too long": (lambda: post(c, "/v1/completions", '{"prompt": "a", "max_tokens": 64}',
                                        **authorization), True),
        "http, tokens": (lambda: post(c, "/detokenize", '{"tokens": [-5]}', **authorization), True),
    }
    for name, (way, refused) in ways.items():
        before = counted()
        way()
        grown = tuple(b - a for a, b in zip(before, counted()))
        assert grown == (1, int(refused), int(not refused)), f"{name}: arrived, refused, finished {grown}"


def test_too_many_connections_are_counted(cluster, api, model):
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 1, coordinator__limits__max_connections=2)
    held = [http.client.HTTPConnection("127.0.0.1", c.http_port, timeout=60) for _ in range(2)]
    for h in held:
        h.request("GET", "/version")
        h.getresponse().read()
    before = metrics(c, api)
    assert post(c, "/v1/completions", '{"prompt": "a", "max_tokens": 2}') == 503
    after = metrics(c, api)
    for h in held:
        h.close()
    name = "glmd_requests_rejected_total"
    assert sums(after, name, reason="queue_full") - sums(before, name, reason="queue_full") == 1


def test_what_ranks_and_groups_say(server, api):
    generate(server, api, 4)
    # heartbeats bring the ranks' numbers
    samples = server.wait(
        lambda: (lambda m: m if all(
            sums(m, "glmd_rank_collectives_total", op="all_reduce", rank=rank) > 0
            for rank in "01") and sums(m, "glmd_rank_step_age_seconds") == 0 else None)(
                metrics(server, api)), "the ranks' numbers")
    assert value(samples, "glmd_group_ready", group="0") == 1
    assert value(samples, "glmd_group_epoch", group="0") >= 1
    for rank in ("0", "1"):
        assert value(samples, "glmd_rank_ready", group="0", rank=rank) == 1
        assert value(samples, "glmd_rank_step_age_seconds", group="0", rank=rank) == 0
        assert value(samples, "glmd_rank_collective_seconds_total", group="0", rank=rank,
                     op="all_reduce") > 0
        assert value(samples, "glmd_rank_resident_memory_bytes", group="0", rank=rank) > 1 << 20
        for way in ("shared", "gathered"):  # CPUs: the host samples
            assert value(samples, "glmd_rank_sampled_rows_total", group="0", rank=rank, way=way) == 0
        assert value(samples, "glmd_rank_device_memory_bytes", group="0", rank=rank,
                     kind="weights") > 0
    phases = {p: value(samples, "glmd_time_to_ready_seconds", group="0", phase=p)
              for p in ("load", "join", "total")}
    assert 0 < phases["join"] <= phases["total"] and 0 < phases["load"] <= phases["total"]
    assert value(samples, "process_resident_memory_bytes") > 1 << 20
    assert value(samples, "process_open_fds") > 3


def test_refusals_and_cancellations_have_reasons(server, api):
    before = metrics(server, api)
    with pytest.raises(grpc.RpcError):
        list(server.inference.Generate(api.GenerateRequest(text="x", max_tokens=4, n=1000), timeout=10))
    stream = server.inference.Generate(
        api.GenerateRequest(text="The river", max_tokens=200, request_id="cancelled",
                            sampling=api.SamplingParameters(ignore_end=True)), timeout=60)
    next(stream)
    stream.cancel()
    after = server.wait(
        lambda: (lambda m: m if sums(m, "glmd_cancel_to_free_seconds_count") >
                 sums(before, "glmd_cancel_to_free_seconds_count") else None)(metrics(server, api)),
        "the cancellation")
    assert (sums(after, "glmd_requests_rejected_total", reason="invalid")
            - sums(before, "glmd_requests_rejected_total", reason="invalid")) == 1
    assert (sums(after, "glmd_requests_finished_total", reason="cancelled")
            - sums(before, "glmd_requests_finished_total", reason="cancelled")) == 1


def test_a_restarted_rank_is_counted(cluster, api, model):
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 1, workers="external",
                expect={"worker0": -9})
    assert sums(metrics(c, api), "glmd_rank_restarts_total") == 0
    epoch = value(metrics(c, api), "glmd_group_epoch", group="0")
    c.processes["worker0"].kill()
    c.processes["worker0"].wait()
    c.start_worker(0, name="again")
    samples = c.wait(lambda: (lambda m: m if sums(m, "glmd_group_epoch") > epoch and
                              sums(m, "glmd_group_ready") == 1 else None)(metrics(c, api)),
                     "the next epoch")
    assert value(samples, "glmd_rank_restarts_total", reason="lost") == 1
    assert sums(samples, "glmd_rank_restarts_total") == 1


def test_over_http(server, api):
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    samples = parse(answer.read().decode())
    connection.close()
    assert answer.status == 200
    assert answer.getheader("Content-Type").startswith("text/plain; version=0.0.4")
    assert {n for n, _ in samples} == {n for n, _ in metrics(server, api)}


def test_vllm_names_can_be_left_out(cluster, api, model):
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 1, metrics__vllm_names="false")
    text = c.cluster.Metrics(api.MetricsRequest(), timeout=10).text
    assert "vllm:" not in text and "glmd_requests_running 0\n" in text


@pytest.mark.skipif(not PROMTOOL, reason="promtool is not here (deploy/install-packages unpack)")
def test_promtool_has_nothing_to_say(server, api):
    generate(server, api, 3)
    text = glmd("metrics", "--coordinator", server.target).stdout
    assert parse(text)
    # Names with colons are for recording rules, it says; vLLM's have them.
    own = "\n".join(line for line in text.splitlines() if "vllm:" not in line) + "\n"
    for what in (own, text):
        result = subprocess.run([PROMTOOL, "check", "metrics"], input=what, capture_output=True,
                                text=True, timeout=60)
        said = [line for line in (result.stdout + result.stderr).splitlines()
                if not line.startswith("vllm:")]
        assert not said, "\n".join(said)
    result = subprocess.run([PROMTOOL, "check", "metrics"], input=own.replace("# TYPE", "# TYP3"),
                            capture_output=True, text=True, timeout=60)
    assert result.returncode != 0, "this test would not see a mistake"
