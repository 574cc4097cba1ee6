"""API keys: who may call what, what a key may use, and a key file that changes under way."""

import hashlib
import http.client
import json
import os
import re
import subprocess

import grpc
import pytest

from conftest import BIN, DEADLINE_S, SOURCE, glmd

USER, OPS, STRANGER = "glmd-user", "glmd-ops", "glmd-stranger"


def line(name, key, options=""):
    return f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()} {options}\n"


def write(path, *lines):
    """As an editor does it: a new file in the place of the old one."""
    new = path.with_suffix(".new")
    new.write_text("".join(lines))
    os.chmod(new, 0o640)
    os.replace(new, path)


def bearer(key):
    return [("authorization", f"Bearer {key}")] if key else []


def end_of(call, request, key):
    """(code, message, bytes of the details) of a call."""
    try:
        answer = call(request, metadata=bearer(key), timeout=DEADLINE_S)
        if hasattr(answer, "__iter__"):
            list(answer)
        return grpc.StatusCode.OK, "", b""
    except grpc.RpcError as e:
        trailers = {m.key: m.value for m in e.trailing_metadata() or ()}
        return e.code(), e.details(), trailers.get("grpc-status-details-bin", b"")


def code_of(call, request, key):
    return end_of(call, request, key)[:2]


@pytest.fixture
def keyed(cluster, model, tmp_path):
    def start(*lines):
        path = tmp_path / "keys"
        write(path, *lines)
        c = cluster(model("ckpt-fp16-tp1"), ready=False, coordinator__keys=path, log__level="debug")
        c.keys = path
        c.wait(lambda: any(g.state == c.api.GROUP_STATE_READY for g in status(c, OPS).groups),
               "a ready group", "coordinator")
        return c

    return start


def status(c, key):
    return c.cluster.Status(c.api.StatusRequest(), metadata=bearer(key), timeout=5)


def test_every_call_asks_for_the_right_key(keyed):
    c = keyed(line("user", USER), line("ops", OPS, "admin"))
    api, s = c.api, grpc.StatusCode
    calls = {
        "Generate": (c.inference.Generate, api.GenerateRequest(text="a river", max_tokens=2)),
        "Fill": (c.inference.Fill, api.FillRequest(text="a [MASK] river", max_length=32)),
        "Score": (c.inference.Score, api.ScoreRequest(text="a", choices=["b"])),
        "Tokenize": (c.inference.Tokenize, api.TokenizeRequest(text="a")),
        "Detokenize": (c.inference.Detokenize, api.DetokenizeRequest(ids=[200])),
        "ListModels": (c.inference.ListModels, api.ListModelsRequest()),
        "Status": (c.cluster.Status, api.StatusRequest()),
        "Drain": (c.cluster.Drain, api.DrainRequest(group="none")),
        "Abort": (c.cluster.Abort, api.AbortRequest(request_id="none")),
        "Metrics": (c.cluster.Metrics, api.MetricsRequest()),
        "Why": (c.cluster.Why, api.WhyRequest(request_id="none")),
    }
    admin = {"Drain", "Abort", "Why"}
    # whatever is added to the services has to be listed here
    served = {m for service in ("Inference", "Cluster")
              for m in vars(getattr(api, f"{service}Servicer")) if not m.startswith("_")}
    assert set(calls) <= served
    assert served - set(calls) == set(), "calls without a row in this table"
    for name, (call, request) in calls.items():
        assert code_of(call, request, None)[0] == s.UNAUTHENTICATED, name
        assert code_of(call, request, STRANGER)[0] == s.UNAUTHENTICATED, name
        with_user = code_of(call, request, USER)[0]
        with_ops = code_of(call, request, OPS)[0]
        if name in admin:
            assert (with_user, with_ops) == (s.PERMISSION_DENIED, s.NOT_FOUND), name
        else:
            assert (with_user, with_ops) == (s.OK, s.OK), name
    logs = c.logs()
    assert "request 1 " in logs, "the log is not at level debug"
    for key in (USER, OPS, STRANGER):
        assert key not in logs and hashlib.sha256(key.encode()).hexdigest() not in logs


def methods_of_the_services():
    """Every method of every service that a .proto file of ours describes."""
    found = set()
    for file in (SOURCE / "proto").rglob("*.proto"):
        text = file.read_text()
        package = re.search(r"^package (\S+);", text, re.M)[1]
        for service, body in re.findall(r"^service (\w+) \{(.*?)^\}", text, re.M | re.S):
            found |= {f"/{package}.{service}/{rpc}" for rpc in re.findall(r"^ *rpc (\w+)", body, re.M)}
    return found


def test_what_is_not_listed_is_denied(keyed):
    c = keyed(line("user", USER), line("ops", OPS, "admin"))
    s = grpc.StatusCode
    rows = [row.split() for row in (SOURCE / "tests/e2e/grpc_routes.txt").read_text().splitlines()
            if not row.startswith("#")]
    needs = dict(rows)
    assert len(rows) == len(needs) and set(needs) == methods_of_the_services()

    def code(method, key):
        answers = c.channel.stream_stream(method)(iter([b""]), timeout=3, metadata=bearer(key))
        try:
            next(answers, None)
            answers.cancel()
            return s.OK
        except grpc.RpcError as e:
            return e.code()

    denied = {s.UNAUTHENTICATED, s.PERMISSION_DENIED, s.UNIMPLEMENTED}
    for method, need in needs.items():
        found = [code(method, key) for key in (None, STRANGER, USER, OPS)]
        if need in ("public", "worker"):
            assert not denied & set(found), (method, found)
        else:
            assert found[:2] == [s.UNAUTHENTICATED] * 2 and found[3] not in denied, (method, found)
            assert (found[2] == s.PERMISSION_DENIED) == (need == "admin"), (method, found)
    for method in ("/glmd.v1.Inference/Other", "/glmd.v1.Other/Status", "/glmd.v1.Cluster/status", "/"):
        assert code(method, OPS) == s.UNIMPLEMENTED, method


def test_limits_of_a_key(keyed):
    c = keyed(line("user", USER, "context=20 choices=2 tokens_per_minute=60 requests=1"),
              line("ops", OPS, "admin"))
    api, s = c.api, grpc.StatusCode

    def generate(**fields):
        return code_of(c.inference.Generate, api.GenerateRequest(text="a river", **fields), USER)

    assert generate(max_tokens=4)[0] == s.OK
    assert generate(max_tokens=64)[0] == s.PERMISSION_DENIED
    assert generate(max_tokens=4, n=3)[0] == s.PERMISSION_DENIED
    assert generate(max_tokens=4, priority=1)[0] == s.PERMISSION_DENIED
    # what was used counts, not what was asked for: 60 tokens are gone only after several of these
    codes = [generate(max_tokens=10, sampling=api.SamplingParameters(ignore_end=True))[0]
             for _ in range(8)]
    assert codes[0] == s.OK and codes[-1] == s.RESOURCE_EXHAUSTED, codes
    message, details = end_of(c.inference.Generate, api.GenerateRequest(
        text="a river", max_tokens=10), USER)[1:]
    assert "60 tokens a minute" in message
    for what in (b"KEY_QUOTA", b"google.rpc.RetryInfo", b"google.rpc.QuotaFailure", b"api_key"):
        assert what in details, (what, details)
    for need, key, what in ((c.cluster.Abort, USER, b"KEY_NOT_ALLOWED"),
                            (c.cluster.Abort, STRANGER, b"KEY_NEEDED")):
        assert what in end_of(need, api.AbortRequest(request_id="none"), key)[2]


def test_a_key_with_all_its_requests_in_flight(keyed):
    c = keyed(line("user", USER, "requests=1"), line("ops", OPS, "admin"))
    api = c.api
    running = c.inference.Generate(
        api.GenerateRequest(text="a river", max_tokens=230,
                            sampling=api.SamplingParameters(ignore_end=True)),
        metadata=bearer(USER), timeout=30)
    next(running)
    code, message, details = end_of(c.inference.Generate, api.GenerateRequest(text="a"), USER)
    running.cancel()
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED and "in flight" in message
    assert b"KEY_QUOTA" in details and b"google.rpc.RetryInfo" in details, details


def test_a_changed_file_is_read_again(keyed):
    c = keyed(line("ops", OPS, "admin"))
    api, s = c.api, grpc.StatusCode
    request = api.TokenizeRequest(text="a")
    assert code_of(c.inference.Tokenize, request, USER)[0] == s.UNAUTHENTICATED
    write(c.keys, line("user", USER), line("ops", OPS, "admin"))
    c.wait(lambda: code_of(c.inference.Tokenize, request, USER)[0] == s.OK, "the new key")
    write(c.keys, "this is no key file\n")
    c.wait(lambda: "expected sha256:" in c.logs(), "a complaint about the file")
    assert code_of(c.inference.Tokenize, request, USER)[0] == s.OK
    write(c.keys, line("ops", OPS, "admin"))
    c.wait(lambda: code_of(c.inference.Tokenize, request, USER)[0] == s.UNAUTHENTICATED,
           "the key to be gone")
    assert code_of(c.inference.Tokenize, request, OPS)[0] == s.OK


def test_a_stream_outlives_its_key(cluster, model, tmp_path):
    """Nothing new for a key that is gone, and nothing is taken from what runs with it."""
    path = tmp_path / "keys"
    user, ops = line("user", USER, "requests=1 tokens_per_minute=1000"), line("ops", OPS, "admin")
    write(path, user, ops)
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), ready=False, coordinator__keys=path,
                group__devices="fake:step_us=20000")
    c.wait(lambda: any(g.state == c.api.GROUP_STATE_READY for g in status(c, OPS).groups),
           "a ready group", "coordinator")
    api, s = c.api, grpc.StatusCode
    request = api.GenerateRequest(text="a river", max_tokens=200, return_token_ids=True,
                                  sampling=api.SamplingParameters(ignore_end=True, top_k=1))

    def tokens_of(messages):
        return [t for m in messages for choice in m.choices for t in choice.tokens]

    def start():
        messages = c.inference.Generate(request, metadata=bearer(USER), timeout=60)
        return messages, tokens_of([next(messages)])

    stream, first = start()
    write(path, ops)
    tokenize = api.TokenizeRequest(text="a")
    c.wait(lambda: code_of(c.inference.Tokenize, tokenize, USER)[0] == s.UNAUTHENTICATED,
           "the key to be gone")
    assert code_of(c.inference.Generate, request, USER)[0] == s.UNAUTHENTICATED
    running = status(c, OPS).groups[0].running
    assert running == 1, f"the stream was to run while its key was taken away, {running} do"
    lived = first + tokens_of(stream)
    assert len(lived) == 200 and stream.code() == s.OK
    # the same key again is one that has used nothing: the other one's request gives it nothing, either
    write(path, user, ops)
    c.wait(lambda: code_of(c.inference.Tokenize, tokenize, USER)[0] == s.OK, "the key to be back")
    again, first = start()
    assert first + tokens_of(again) == lived


def test_a_file_that_is_half_written(keyed):
    """In its place, where it stops for as long as it likes; then something that is no file."""
    user, ops = line("user", USER), line("ops", OPS, "admin")
    c = keyed(user, ops)
    s = grpc.StatusCode
    code = {key: lambda key=key: code_of(c.inference.Tokenize, c.api.TokenizeRequest(text="a"), key)[0]
            for key in (USER, STRANGER)}
    with open(c.keys, "w") as file:
        file.write(line("stranger", STRANGER) + user[:40])
        file.flush()
        c.wait(lambda: "expected sha256: and 64" in c.logs(), "a complaint about half a line")
        assert code[USER]() == s.OK and code[STRANGER]() == s.UNAUTHENTICATED
        file.write(user[40:] + ops)
    c.wait(lambda: code[STRANGER]() == s.OK, "the rest of the file")
    assert code[USER]() == s.OK
    c.keys.unlink()
    os.mkfifo(c.keys)
    c.wait(lambda: "expected a file of" in c.logs(), "a complaint about what is no file")
    assert code[USER]() == s.OK
    write(c.keys, user, ops)
    c.wait(lambda: code[STRANGER]() == s.UNAUTHENTICATED, "the file to be read again")
    assert code[USER]() == s.OK
    assert c.logs().count("the API keys stay as they were") == 2, c.logs()


def test_operators_have_an_address_of_their_own(cluster, model, tmp_path):
    path, socket = tmp_path / "keys", tmp_path / "admin.sock"
    write(path, line("user", USER), line("ops", OPS, "admin"))
    c = cluster(model("ckpt-fp16-tp1"), ready=False, coordinator__keys=path,
                coordinator__admin_listen=f"unix:{socket}")
    api, s = c.api, grpc.StatusCode
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        ops = api.ClusterStub(channel)
        c.wait(lambda: any(g.state == api.GROUP_STATE_READY
                           for g in ops.Status(api.StatusRequest(), timeout=5).groups),
               "a ready group", "coordinator")
        abort = api.AbortRequest(request_id="none")
        assert code_of(ops.Abort, abort, None)[0] == s.NOT_FOUND
        assert code_of(c.cluster.Abort, abort, OPS)[0] == s.UNIMPLEMENTED
        assert code_of(c.cluster.Status, api.StatusRequest(), USER)[0] == s.OK
        assert code_of(c.cluster.Status, api.StatusRequest(), None)[0] == s.UNAUTHENTICATED


def refused(model_dir, *sets):
    """What the coordinator says of a configuration that it does not take."""
    command = [str(BIN / "glmd-coordinator"), "--model", str(model_dir)]
    for value in sets:
        command += ["--set", value]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 64, (ended.returncode, ended.stderr)
    return ended.stderr


def test_what_is_reached_over_a_network_wants_tls(model):
    directory = model("ckpt-fp16-tp1")
    for address in ("0.0.0.0:0", "[::]:0", "192.0.2.1:8130", "127.example.com:8130"):
        said = refused(directory, f"coordinator.listen={address}")
        assert "coordinator.tls.ca" in said and "cluster.plaintext" in said
    assert "coordinator.worker_listen" in refused(
        directory, "coordinator.worker_listen=0.0.0.0:0")
    assert "coordinator.admin_listen" in refused(directory, "coordinator.admin_listen=0.0.0.0:0")
    for address in ("192.0.2.1:8130", "127.example.com:8130"):
        command = [str(BIN / "glmd-worker"), "--rank", "0", "--model", str(directory),
                   "--coordinator", address]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 64 and "worker.tls.ca" in ended.stderr, ended.stderr


def test_keys_that_the_tool_makes_are_taken(keyed):
    c = keyed(line("ops", OPS, "admin"))
    made = glmd("keys", "new", "alice", "--file", c.keys, "--context", 20, "--requests", 2)
    key = made.stdout.strip()
    assert len(key) == 69 and key.startswith("glmd-") and made.stderr == ""
    text = c.keys.read_text()
    assert key not in text and text.count("\n") == 2
    assert text.splitlines()[1] == line("alice", key, "requests=2 context=20").strip()
    tokenize = (c.inference.Tokenize, c.api.TokenizeRequest(text="a"))
    c.wait(lambda: code_of(*tokenize, key)[0] == grpc.StatusCode.OK, "the new key")
    again = glmd("keys", "new", "alice", "--file", c.keys, check=False)
    assert again.returncode == 1 and "alice already" in again.stderr and again.stdout == ""
    assert c.keys.read_text() == text
    printed = glmd("keys", "new", "bob", "--admin")
    assert printed.stderr == line("bob", printed.stdout.strip(), "admin").strip() + "\n"
    wrong = glmd("keys", "new", "a/b", check=False)
    assert wrong.returncode == 2 and "NAME" in wrong.stderr


def test_the_tool_sends_its_key(keyed, tmp_path):
    c = keyed(line("user", USER), line("ops", OPS, "admin"))
    command = ("status", "--coordinator", c.target)
    assert "an API key is needed" in glmd(*command, check=False).stderr
    glmd(*command, env={**os.environ, "GLMD_API_KEY": USER})
    file = tmp_path / "key"
    file.write_text(USER + "\n")
    glmd(*command, "--api-key-file", file)
    abort = ("abort", "none", "--coordinator", c.target, "--api-key-file", file)
    assert "API key of an operator" in glmd(*abort, check=False).stderr
    file.write_text("not printable: \x01\n")
    assert "printable ASCII" in glmd(*command, "--api-key-file", file, check=False).stderr


def test_operators_calls_are_not_for_everybody_on_a_network(cluster, model):
    c = cluster(model("ckpt-fp16-tp1"), ready=False, coordinator__listen="0.0.0.0:0",
                cluster__plaintext="true")
    c.wait_ready()
    abort = c.api.AbortRequest(request_id="none")
    assert code_of(c.cluster.Abort, abort, None)[0] == grpc.StatusCode.UNIMPLEMENTED
    assert "everybody who reaches" in c.logs()


def test_limits_of_a_key_over_http(keyed):
    c = keyed(line("user", USER, "context=20 tokens_per_minute=30"), line("ops", OPS, "admin"))

    def complete(max_tokens, key=USER):
        connection = http.client.HTTPConnection("127.0.0.1", c.http_port, timeout=60)
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connection.request("POST", "/v1/completions", headers=headers, body=json.dumps(
            {"prompt": "a river", "max_tokens": max_tokens, "ignore_eos": True}))
        response = connection.getresponse()
        body = json.loads(response.read())
        connection.close()
        return response.status, response.getheader("Retry-After"), body

    assert complete(4)[0] == 200
    assert complete(4, None)[0] == 401 and complete(4, STRANGER)[0] == 401
    status, retry, body = complete(64)
    assert (status, retry) == (403, None) and "20 tokens" in body["error"]["message"]
    answers = [complete(10) for _ in range(6)]
    refused = [(retry, body) for status, retry, body in answers if status == 429]
    assert answers[0][0] == 200 and refused, [a[0] for a in answers]
    assert 1 <= int(refused[0][0]) <= 60 and "30 tokens a minute" in refused[0][1]["error"]["message"]
