"""The Open Inference Protocol with a stock gRPC client: what KServe's and Triton's clients send."""

import importlib
import json
import queue
import struct
import subprocess
import sys
import time

import grpc
import pytest

from conftest import DEADLINE_S, SOURCE
from http_client import post
from test_keys import OPS, STRANGER, USER, code_of, keyed, line  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def kserve(tmp_path_factory):
    """Messages and stub in one namespace."""
    out = tmp_path_factory.mktemp("kserve")
    subprocess.run(
        ["protoc", f"-I{SOURCE / 'proto'}", f"--python_out={out}", f"--grpc_python_out={out}",
         "--plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin",
         str(SOURCE / "proto/inference/kserve.proto")], check=True)
    sys.path.insert(0, str(out))

    class Api:
        pass

    for module in ("inference.kserve_pb2", "inference.kserve_pb2_grpc"):
        for key, value in vars(importlib.import_module(module)).items():
            if not key.startswith("_"):
                setattr(Api, key, value)
    return Api


@pytest.fixture
def server(model, module_cluster):
    return module_cluster("kserve", model("ckpt-fp16-tp1", "--weights", "int4"), 2)


@pytest.fixture
def stub(server, kserve):
    return kserve.GRPCInferenceServiceStub(server.channel)


def raw(data):
    return struct.pack("<I", len(data)) + data


def request(kserve, text="The river", id="", **parameters):
    """As KServe's client builds it: contents, and parameters by their type."""
    r = kserve.ModelInferRequest(model_name="glm", id=id)
    tensor = r.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(text.encode())
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param",
                str: "string_param"}[type(value)]
        setattr(r.parameters[name], kind, value)
    return r


def raw_request(kserve, tensors, id=""):
    """As Triton's client builds it: every tensor in raw_input_contents."""
    r = kserve.ModelInferRequest(model_name="glm", id=id)
    for name, value in tensors.items():
        if isinstance(value, bool):
            r.inputs.add(name=name, datatype="BOOL", shape=[1])
            r.raw_input_contents.append(struct.pack("?", value))
        else:
            r.inputs.add(name=name, datatype="BYTES", shape=[1])
            r.raw_input_contents.append(raw(value.encode()))
    return r


def texts(response):
    """Of text_output, whichever way it came."""
    [index] = [i for i, o in enumerate(response.outputs) if o.name == "text_output"]
    tensor = response.outputs[index]
    assert tensor.datatype == "BYTES"
    if not response.raw_output_contents:
        found = [b.decode() for b in tensor.contents.bytes_contents]
    else:
        data, found = response.raw_output_contents[index], []
        while data:
            (n,) = struct.unpack_from("<I", data)
            found.append(data[4:4 + n].decode())
            data = data[4 + n:]
    assert tensor.shape == [len(found)]
    return found


SEEDED = dict(temperature=0.9, top_p=0.8, seed=5, max_tokens=12, ignore_eos=True)


def generated(server, api, text="The river"):
    """The same by our own API, and as it reads behind its prompt: over HTTP."""
    messages = list(server.inference.Generate(api.GenerateRequest(
        text=text, max_tokens=12, sampling=api.SamplingParameters(
            temperature=0.9, top_p=0.8, seed=5, ignore_end=True)), timeout=DEADLINE_S))
    found = "".join(d.text for m in messages for d in m.choices)
    behind = post(server.http_port, "/v1/completions", {"prompt": text, **SEEDED}).json
    assert behind["choices"][0]["text"] in (found, " " + found)
    return behind["choices"][0]["text"]


def test_metadata(stub, kserve):
    assert stub.ServerLive(kserve.ServerLiveRequest(), timeout=10).live
    assert stub.ServerReady(kserve.ServerReadyRequest(), timeout=10).ready
    for version in ("", "1"):
        assert stub.ModelReady(kserve.ModelReadyRequest(name="glm", version=version),
                               timeout=10).ready
    server = stub.ServerMetadata(kserve.ServerMetadataRequest(), timeout=10)
    assert server.name == "glmd" and server.version
    model = stub.ModelMetadata(kserve.ModelMetadataRequest(name="glm"), timeout=10)
    assert model.name == "glm" and list(model.versions) == ["1"]
    assert ("text_input", "BYTES", [1]) in [(t.name, t.datatype, t.shape) for t in model.inputs]
    assert ("text_output", "BYTES", [-1]) in [(t.name, t.datatype, t.shape) for t in model.outputs]
    for call, message in ((stub.ModelReady, kserve.ModelReadyRequest(name="gpt")),
                          (stub.ModelReady, kserve.ModelReadyRequest(name="glm", version="2")),
                          (stub.ModelMetadata, kserve.ModelMetadataRequest(name="gpt"))):
        with pytest.raises(grpc.RpcError) as e:
            call(message, timeout=10)
        assert e.value.code() == grpc.StatusCode.NOT_FOUND


def test_infer_with_contents(server, stub, kserve, api):
    expected = generated(server, api)
    r = stub.ModelInfer(request(kserve, id="42", exclude_input_in_output=True, **SEEDED),
                        timeout=DEADLINE_S)
    assert (r.model_name, r.model_version, r.id) == ("glm", "1", "42")
    assert texts(r) == [expected] and not r.raw_output_contents
    r = stub.ModelInfer(request(kserve, **SEEDED), timeout=DEADLINE_S)
    assert texts(r) == ["The river" + expected], "the input comes first, as Triton's backend does it"
    r = stub.ModelInfer(request(kserve, echo=False, **SEEDED), timeout=DEADLINE_S)
    assert texts(r) == [expected]


def test_infer_with_raw_contents_and_json(server, stub, kserve, api):
    # numbers as texts: as the samples of Triton's vLLM backend send them
    sampling = {"temperature": "0.9", "top_p": "0.8", "seed": 5, "max_tokens": "12",
                "ignore_eos": True}
    r = stub.ModelInfer(raw_request(kserve, {
        "text_input": "The river", "stream": False, "sampling_parameters": json.dumps(sampling),
        "exclude_input_in_output": True}), timeout=DEADLINE_S)
    assert texts(r) == [generated(server, api)]
    assert r.raw_output_contents and not r.outputs[0].HasField("contents")


def test_more_outputs(stub, kserve):
    q = request(kserve, n=2, exclude_input_in_output=True, return_finish_reason=True,
                return_num_input_tokens=True, return_num_output_tokens=True,
                return_cumulative_logprob=True, **SEEDED)
    r = stub.ModelInfer(q, timeout=DEADLINE_S)
    outputs = {o.name: o.contents for o in r.outputs}
    assert len(texts(r)) == 2 and len(set(texts(r))) == 2
    assert list(outputs["finish_reason"].bytes_contents) == [b"length"] * 2
    assert list(outputs["num_output_tokens"].uint_contents) == [12, 12]
    assert outputs["num_input_tokens"].uint_contents[0] > 3
    assert all(v < 0 for v in outputs["cumulative_logprob"].fp32_contents)
    q = request(kserve, **SEEDED)
    q.outputs.add(name="num_output_tokens")
    assert [o.name for o in stub.ModelInfer(q, timeout=DEADLINE_S).outputs] == ["num_output_tokens"]


def test_stop_texts(server, stub, kserve):
    whole = texts(stub.ModelInfer(request(kserve, exclude_input_in_output=True, **SEEDED),
                                  timeout=DEADLINE_S))[0]
    stop = whole[5:8]
    cut = whole[:whole.index(stop)]
    for value in (stop, json.dumps(["never there", stop])):
        r = stub.ModelInfer(request(kserve, exclude_input_in_output=True, stop=value,
                                    return_finish_reason=True, **SEEDED), timeout=DEADLINE_S)
        assert texts(r) == [cut]
        assert r.outputs[1].contents.bytes_contents[0] == b"stop"


def test_stream_tells_what_is_new(server, stub, kserve, api):
    responses = list(stub.ModelStreamInfer(iter([request(kserve, id="s", stream=True, **SEEDED)]),
                                           timeout=DEADLINE_S))
    assert len(responses) > 3 and not any(r.error_message for r in responses)
    assert {r.infer_response.id for r in responses} == {"s"}
    assert "".join(t for r in responses for t in texts(r.infer_response)) == generated(server, api)
    final = [r.infer_response.parameters["triton_final_response"].bool_param for r in responses]
    assert final == [False] * (len(final) - 1) + [True]


def test_stream_of_whole_answers(server, stub, kserve, api):
    [r] = stub.ModelStreamInfer(iter([request(kserve, **SEEDED)]), timeout=DEADLINE_S)
    assert texts(r.infer_response) == ["The river" + generated(server, api)]


def test_many_requests_side_by_side_on_one_stream(server, stub, kserve):
    n = 150  # more than are read at once
    prompts = [f"The river {i}" for i in range(n)]
    requests = [request(kserve, text=p, id=str(i), stream=True, temperature=0.0, max_tokens=8,
                        ignore_eos=True) for i, p in enumerate(prompts)]
    found, order = {}, []
    for r in stub.ModelStreamInfer(iter(requests), timeout=DEADLINE_S):
        assert not r.error_message, r.error_message
        order.append(r.infer_response.id)
        found[r.infer_response.id] = found.get(r.infer_response.id, "") + "".join(
            texts(r.infer_response))
    assert len(found) == n
    assert order != sorted(order, key=int), "side by side"
    one = stub.ModelInfer(request(kserve, text=prompts[77], temperature=0.0, max_tokens=8,
                                  ignore_eos=True, echo=False), timeout=DEADLINE_S)
    assert texts(one) == [found["77"]], "whoever shares the batch"


def test_a_stream_outlives_the_failure_of_a_request(server, stub, kserve):
    requests = queue.Queue()
    call = stub.ModelStreamInfer(iter(requests.get, None), timeout=DEADLINE_S)
    for bad, word in ((request(kserve, id="bad", temperature=-1.0), "temperature"),
                      (request(kserve, id="bad", temprature=1.0), "temprature"),
                      (request(kserve, id="bad", text=""), "empty")):
        requests.put(bad)
        r = next(call)
        assert r.infer_response.id == "bad" and r.error_message.startswith("INVALID_ARGUMENT: ")
        assert word in r.error_message
    requests.put(request(kserve, id="good", **SEEDED))
    r = next(call)
    assert (r.error_message, r.infer_response.id) == ("", "good")
    requests.put(None)
    assert list(call) == [] and call.code() == grpc.StatusCode.OK


def test_a_stream_whose_answers_are_not_read_is_not_read_either(server, stub, kserve):
    n, before = 150, server.status().requests.rejected

    def taken():
        return server.status().requests.rejected - before

    bad = [request(kserve, id=f"{i}" + "x" * 200_000, temperature=-1.0)
           for i in range(n)]
    call = stub.ModelStreamInfer(iter(bad), timeout=DEADLINE_S)
    server.wait(lambda: taken() > 0, "the first request")
    for _ in range(300):  # time enough to take all of them
        stub.ServerLive(kserve.ServerLiveRequest(), timeout=DEADLINE_S)
    assert taken() < n // 2, "gRPC holds some megabytes, the server 256 KiB more"
    answers = list(call)
    assert [r.infer_response.id for r in answers] == [r.id for r in bad]
    assert call.code() == grpc.StatusCode.OK


def test_a_stream_whose_answers_are_never_read_ends(model, cluster, kserve):
    """It is not read any more while its answers wait, and that is no way to stay for ever."""
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 1,
                coordinator__deadlines__slow_reader="1s")
    stub = kserve.GRPCInferenceServiceStub(c.channel)
    bad = [request(kserve, id=f"{i}" + "x" * 200_000, temperature=-1.0) for i in range(150)]
    start = time.monotonic()
    call = stub.ModelStreamInfer(iter(bad), timeout=DEADLINE_S)
    c.wait(lambda: time.monotonic() - start > 4, "twice slow_reader, and the next look at it")
    answers = []
    with pytest.raises(grpc.RpcError) as e:
        for answer in call:
            answers.append(answer)
    assert e.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, e.value
    assert "not read in time" in e.value.details() and len(answers) < len(bad)


BAD = {
    "unknown model": (grpc.StatusCode.NOT_FOUND, "model",
                      lambda r: setattr(r, "model_name", "gpt")),
    "version": (grpc.StatusCode.NOT_FOUND, "model_version",
                lambda r: setattr(r, "model_version", "2")),
    "no text": (grpc.StatusCode.INVALID_ARGUMENT, "text_input", lambda r: r.ClearField("inputs")),
    "tensor": (grpc.StatusCode.INVALID_ARGUMENT, "inputs",
               lambda r: setattr(r.inputs[0], "name", "input_ids")),
    "datatype": (grpc.StatusCode.INVALID_ARGUMENT, "text_input",
                 lambda r: setattr(r.inputs[0], "datatype", "INT32")),
    "batch": (grpc.StatusCode.INVALID_ARGUMENT, "text_input",
              lambda r: r.inputs[0].shape.append(2)),
    "stream": (grpc.StatusCode.INVALID_ARGUMENT, "stream",
               lambda r: setattr(r.parameters["stream"], "bool_param", True)),
    "top_p": (grpc.StatusCode.INVALID_ARGUMENT, "top_p",
              lambda r: setattr(r.parameters["top_p"], "double_param", 2.0)),
    "output": (grpc.StatusCode.INVALID_ARGUMENT, "outputs", lambda r: r.outputs.add(name="logits")),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_requests_are_explained(what, stub, kserve):
    code, field, spoil = BAD[what]
    r = request(kserve)
    spoil(r)
    with pytest.raises(grpc.RpcError) as e:
        stub.ModelInfer(r, timeout=DEADLINE_S)
    assert e.value.code() == code, e.value
    assert e.value.details().startswith(f"{field}: "), e.value.details()
    details = {m.key: m.value for m in e.value.trailing_metadata()}["grpc-status-details-bin"]
    assert field.encode() in details


def test_a_cancelled_stream_frees_its_requests(server, stub, kserve):
    before = server.status().requests.cancelled
    requests = queue.Queue()
    call = stub.ModelStreamInfer(iter(requests.get, None), timeout=DEADLINE_S)
    for i in range(5):
        requests.put(request(kserve, id=str(i), stream=True, max_tokens=230, ignore_eos=True))
    next(call)
    call.cancel()
    requests.put(None)
    server.wait(lambda: server.status().requests.cancelled > before, "the requests to end")
    server.wait(lambda: server.status().groups[0].running == 0, "nothing to run")
    groups = server.status().groups[0]
    assert groups.kv_blocks_free == groups.kv_blocks_total


def test_malformed_messages_end_the_call(server):
    for method in ("ModelInfer", "ServerLive"):
        with pytest.raises(grpc.RpcError) as e:
            server.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(
                b"\xff\xff", timeout=DEADLINE_S)
        assert e.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_every_call_asks_for_the_right_key(keyed, kserve):  # noqa: F811
    c = keyed(line("user", USER), line("ops", OPS, "admin"))
    stub, s = kserve.GRPCInferenceServiceStub(c.channel), grpc.StatusCode
    q = request(kserve, max_tokens=2)
    calls = {
        "ServerLive": (stub.ServerLive, kserve.ServerLiveRequest()),
        "ServerReady": (stub.ServerReady, kserve.ServerReadyRequest()),
        "ModelReady": (stub.ModelReady, kserve.ModelReadyRequest()),
        "ServerMetadata": (stub.ServerMetadata, kserve.ServerMetadataRequest()),
        "ModelMetadata": (stub.ModelMetadata, kserve.ModelMetadataRequest()),
        "ModelInfer": (stub.ModelInfer, q),
        "ModelStreamInfer": (lambda r, **more: stub.ModelStreamInfer(iter([r]), **more), q),
    }
    served = {m for m in vars(kserve.GRPCInferenceServiceServicer) if not m.startswith("_")}
    assert set(calls) == served, "calls without a row in this table"
    for name, (call, message) in calls.items():
        public = name in ("ServerLive", "ServerReady", "ModelReady")
        for key in (None, STRANGER):
            assert code_of(call, message, key)[0] == (s.OK if public else s.UNAUTHENTICATED), name
        assert code_of(call, message, USER)[0] == s.OK, name
