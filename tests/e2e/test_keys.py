"""API keys: who may call what, what a key may use, and a key file that changes under way."""

import hashlib
import os

import grpc
import pytest

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


def code_of(call, request, key):
    try:
        answer = call(request, metadata=bearer(key), timeout=30)
        if hasattr(answer, "__iter__"):
            list(answer)
        return grpc.StatusCode.OK, ""
    except grpc.RpcError as e:
        return e.code(), e.details()


@pytest.fixture
def keyed(cluster, model, tmp_path):
    def start(*lines):
        path = tmp_path / "keys"
        write(path, *lines)
        c = cluster(model("ckpt-fp16-tp1"), ready=False, coordinator__keys=path)
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
        "Fill": (c.inference.Fill, api.FillRequest(text="a [MASK] river")),
        "Score": (c.inference.Score, api.ScoreRequest(text="a", choices=["b"])),
        "Tokenize": (c.inference.Tokenize, api.TokenizeRequest(text="a")),
        "Detokenize": (c.inference.Detokenize, api.DetokenizeRequest(ids=[200])),
        "ListModels": (c.inference.ListModels, api.ListModelsRequest()),
        "Status": (c.cluster.Status, api.StatusRequest()),
        "Drain": (c.cluster.Drain, api.DrainRequest(group="none")),
        "Abort": (c.cluster.Abort, api.AbortRequest(request_id="none")),
    }
    admin = {"Drain", "Abort"}
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
    assert "glmd-" not in c.logs().replace("glmd-coordinator", "").replace("glmd-worker", "")


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
    assert "60 tokens a minute" in generate(max_tokens=10)[1]


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
