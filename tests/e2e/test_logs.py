"""What is in the logs, and what is not: fields in JSON; prompts and outputs at no level unless asked."""

import calendar
import http.client
import json
import os
import re
import subprocess
import time

import grpc
import pytest

from conftest import BIN

PROMPT = "Canary7391"  # in every text that a client sends
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def logs(server):
    return {p.name: p.read_text(errors="replace") for p in server.folder.glob("*.log")}


def forced(api, server, word):
    """Sampling that says nothing but this word."""
    ids = server.inference.Tokenize(api.TokenizeRequest(text=word), timeout=10).ids
    bias = [api.LogitBias(token=i, bias=100) for i in ids]
    return api.SamplingParameters(ignore_end=True, logit_bias=bias, top_k=1)


def text_of(responses):
    return "".join(d.text for r in responses for d in r.choices)


def post(server, path, body, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    data = body if isinstance(body, str) else json.dumps(body)
    connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def say_everything(server, api, word):
    """Every call with the canary in it, also those that fail; returns what was generated."""
    sampling = forced(api, server, word)
    texts = [text_of(server.inference.Generate(
        api.GenerateRequest(text=f"The river {PROMPT}", max_tokens=12, request_id=f"good-{i}",
                            user=f"user-{PROMPT}", sampling=sampling), timeout=60))
        for i in range(2)]
    list(server.inference.Fill(api.FillRequest(text=f"The {PROMPT} [MASK] flows", sampling=sampling),
                               timeout=60))
    server.inference.Score(api.ScoreRequest(text=f"The {PROMPT}", choices=[PROMPT, "other"]),
                           timeout=60)
    server.inference.Tokenize(api.TokenizeRequest(text=PROMPT), timeout=10)
    bad = [
        api.GenerateRequest(text=PROMPT * 3000, max_tokens=4),
        api.GenerateRequest(text=PROMPT, max_tokens=4, n=1000),
        api.GenerateRequest(text=PROMPT, max_tokens=4, model=f"no-{PROMPT}"),
        api.GenerateRequest(text=PROMPT, max_tokens=4, request_id=f"\t{PROMPT}"),
        api.GenerateRequest(text=PROMPT, max_tokens=4,
                            sampling=api.SamplingParameters(stop=[PROMPT] * 100)),
    ]
    for i, request in enumerate(bad):
        request.request_id = request.request_id or f"bad-{i}"
        with pytest.raises(grpc.RpcError):
            list(server.inference.Generate(request, timeout=10))
    for path, body in [
        ("/v1/completions", {"prompt": f"The {PROMPT}", "max_tokens": 4}),
        ("/v1/completions", {"prompt": f"The {PROMPT}", "max_tokens": 4, "stream": True}),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": -1}),
        ("/v1/completions", f'{{"prompt": "{PROMPT}", '),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}],
                                  "max_tokens": 4}),
        ("/v1/fill", {"text": f"The {PROMPT} [MASK] flows"}),
        ("/v1/fill", {"text": f"{PROMPT} [MASK]", "temperature": -1}),
        ("/v1/fill", {"text": f"The {PROMPT} [MASK] flows", "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": PROMPT, "content": PROMPT}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}],
                                  "max_tokens": 4, "stream": True}),
        ("/generate", {"contexts": [f"The {PROMPT} [gMASK]"], "seed": 1, "out_seq_length": 40,
                       "sampling_strategy": "BaseStrategy"}),
        ("/generate", {"text": [f"The {PROMPT}", f"{PROMPT} [MASK]"], "out_seq_length": 40}),
        ("/generate", {"text": PROMPT, "out_seq_length": PROMPT}),
        ("/detokenize", {"tokens": PROMPT}),
        ("/tokenize", {"prompt": PROMPT}),
        (f"/v1/{PROMPT}?q={PROMPT}", {"prompt": PROMPT}),
    ]:
        post(server, path, body)
    with pytest.raises(grpc.RpcError):
        list(server.inference.Fill(api.FillRequest(text=PROMPT + " [MASK]" * 1000), timeout=10))
    say_by_kserve(server)
    return texts


def varint(n):
    return bytes([n & 0x7f | 0x80]) + varint(n >> 7) if n > 127 else bytes([n])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def infer_request(text, parameter=b""):
    """ModelInferRequest: a text_input, and a parameter of that name that is a string."""
    tensor = (field(1, b"text_input") + field(2, b"BYTES") + field(3, varint(1)) +
              field(5, field(8, text.encode())))
    more = field(4, field(1, parameter) + field(2, field(3, PROMPT.encode()))) if parameter else b""
    return field(3, f"id-{text[:9]}".encode()) + more + field(5, tensor)


def say_by_kserve(server):
    infer = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    stream = server.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    assert PROMPT.encode() in infer(infer_request(f"The {PROMPT}"), timeout=60)
    for parameter in (b"temperature", PROMPT.encode(), b"stop_token_ids"):
        with pytest.raises(grpc.RpcError):
            infer(infer_request(PROMPT, parameter), timeout=60)
    with pytest.raises(grpc.RpcError):
        infer(infer_request(PROMPT * 3000), timeout=60)
    answers = list(stream(iter([infer_request(f"The {PROMPT}"),
                                infer_request(PROMPT, b"temperature")]), timeout=60))
    assert len(answers) == 2


def test_no_prompt_and_no_output_at_any_level(cluster, api, model):
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 2, workers="external",
                log__level="debug", expect={"worker1": -9})
    (text, _) = say_everything(c, api, "river")
    assert text.count("river") >= 6, f"the output was not forced: {text!r}"
    # a rank dies under a stream: whatever is logged then, too
    stream = c.inference.Generate(
        api.GenerateRequest(text=f"The {PROMPT}", max_tokens=100,
                            sampling=forced(api, c, "river")), timeout=120)
    next(stream)
    c.processes["worker1"].kill()
    c.processes["worker1"].wait()
    c.start_worker(1, name="again")
    list(stream)
    # nor is it in what operators see
    told = [c.cluster.Metrics(api.MetricsRequest(), timeout=10).text, str(c.status())]
    for name in ("good-0", "bad-0", "bad-1", "bad-2", "bad-4"):
        answer = c.cluster.Why(api.WhyRequest(request_id=name), timeout=10)
        assert len(answer.requests) == 1, name
        told.append(str(answer))
    for text in told:
        assert PROMPT not in text, text
    ids = list(c.inference.Tokenize(api.TokenizeRequest(text=f"The river {PROMPT}"), timeout=10).ids)
    found = logs(c)
    assert set(found) >= {"coordinator.log", "worker0.log", "worker1.log", "again.log"}
    assert "good-1" in found["coordinator.log"] and "is ready" in found["coordinator.log"], \
        "the log is not at level debug"
    numbers = re.compile(r"\D+".join(map(str, ids[-4:])))
    for name, content in found.items():
        assert PROMPT not in content, name
        assert "river river" not in content and "riverriver" not in content, name
        assert not numbers.search(content), name


def test_a_setting_brings_them(cluster, api, model):
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 1, log__prompts="true")
    text = say_everything(c, api, "river")[0]
    content = logs(c)["coordinator.log"]
    assert "log.prompts is on" in content
    assert "good-1 prompt: " in content and text.strip() in content
    metrics = c.cluster.Metrics(api.MetricsRequest(), timeout=10).text
    assert "glmd_prompts_logged 1\n" in metrics


def test_json_has_the_fields(cluster, api, model):
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 2, log__format="json",
                log__level="debug")
    before = time.time()
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "X-Request-Id": "over-http"}
    assert post(c, "/v1/completions", {"prompt": "The river", "max_tokens": 3}, **headers).status == 200
    list(c.inference.Generate(
        api.GenerateRequest(text="The river", max_tokens=3, request_id='quote"d'), timeout=60,
        metadata=[("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")]))
    lines = [line for line in logs(c)["coordinator.log"].splitlines()
             if not line.startswith("glmd-coordinator ")]  # its words on standard output
    events = [json.loads(line) for line in lines]
    (done,) = [e for e in events if e.get("request") == 'quote"d']
    assert (done["trace"], done["level"], done["name"]) == (TRACE, "debug", "coordinator")
    over_http = [e for e in events if e.get("request", "").startswith("over-http")]
    assert len(over_http) == 2 and all(e["trace"] == TRACE for e in over_http), over_http
    stamp = time.strptime(done["time"][:19], "%Y-%m-%dT%H:%M:%S")
    assert abs(calendar.timegm(stamp) - before) < 120
    ready = [e for e in events if "rank 1 is ready" in e["message"]]
    assert ready and (ready[0]["group"], ready[0]["rank"]) == ("0", 1) and ready[0]["epoch"] > 0
    ranks = {e["rank"] for e in events if e["name"].startswith("worker/")}
    assert ranks == {0, 1}, "spawned ranks log the same way"
    granted = [e for e in events if e["message"].startswith("granted epoch")]
    assert len(granted) == 2 and all(e["epoch"] > 0 and e["group"] == "0" for e in granted)


# A journald of its own, in a file system and process namespace that end with the script.
JOURNAL = """
export SYSTEMD_COLORS=0
mount -t tmpfs none /run && mount -t tmpfs none /var/log && mkdir -p /run/systemd /var/log/journal || exit 77
/lib/systemd/systemd-journald >/dev/null 2>&1 &
for i in $(seq 100); do [ -S /run/systemd/journal/socket ] && break; sleep 0.1; done
[ -S /run/systemd/journal/socket ] || exit 77
"$1" --rank 3 --coordinator 127.0.0.1:1 --set group.tensor_parallel=4 --set log.format=journal \
    --set model.dir="$2" --set worker.threads=1 &
worker=$!
for i in $(seq 100); do
    journalctl -q --no-pager -o json GLMD_RANK=3 PRIORITY=4 | grep -q 'no coordinator' && break
    sleep 0.1
done
kill "$worker" && wait "$worker"
journalctl -q --no-pager -o json GLMD_RANK=3
"""


def test_journald_has_the_fields(tmp_path, model):
    directory = model("ckpt-fp16-tp1", "--weights", "int4")
    try:
        result = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", JOURNAL, "journal",
             BIN / "glmd-worker", directory], capture_output=True, text=True, timeout=60,
            # the leak checker cannot look into a process of another name space
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if result.returncode == 77 or result.stderr.startswith("unshare:"):
        pytest.skip("no name spaces or no journald here")
    entries = [json.loads(line) for line in result.stdout.splitlines()]
    (lost,) = [e for e in entries if e["MESSAGE"].startswith("no coordinator at 127.0.0.1:1")]
    assert (lost["PRIORITY"], lost["SYSLOG_IDENTIFIER"]) == ("4", "glmd-worker/3")
    assert (lost["GLMD_GROUP"], lost["_TRANSPORT"]) == ("0", "journal")
    assert not result.stderr, "what is in the journal is not on standard error"
