"""The client API on one small cluster: streams, options, bad input, cancellation, many at once."""

import threading

import grpc
import pytest


@pytest.fixture
def server(api, model, module_cluster):
    return module_cluster("tp2", model("ckpt-fp16-tp1", "--weights", "int4"), 2)


def text_of(responses):
    return "".join(d.text for r in responses for d in r.choices if d.index == 0)


def test_models_and_tokens(server, api):
    (info,) = server.inference.ListModels(api.ListModelsRequest(), timeout=10).models
    assert (info.context_length, info.vocab_size, info.layers, info.weights) == (256, 640, 3, "int4")
    ids = server.inference.Tokenize(
        api.TokenizeRequest(text="The river [MASK] flows", parse_masks=True), timeout=10).ids
    assert 512 in ids
    plain = server.inference.Tokenize(api.TokenizeRequest(text="The river"), timeout=10).ids
    assert server.inference.Detokenize(
        api.DetokenizeRequest(ids=plain), timeout=10).text == "The river"


def test_stream_has_seed_text_usage_and_reason(server, api):
    responses = list(server.inference.Generate(
        api.GenerateRequest(text="The river", max_tokens=12, return_token_ids=True,
                            request_id="e2e-1", sampling=api.SamplingParameters(top_k=1, ignore_end=True)),
        timeout=60))
    assert responses[0].HasField("seed") and responses[0].request_id == "e2e-1"
    usage = responses[-1].usage
    assert usage.completion_tokens == 12 and usage.prompt_tokens > 3
    reasons = [d.finish_reason for r in responses for d in r.choices if d.finish_reason]
    assert reasons == [api.FINISH_REASON_LENGTH]
    tokens = [t for r in responses for d in r.choices for t in d.tokens]
    assert len(tokens) == 12
    whole = server.inference.Detokenize(api.DetokenizeRequest(ids=tokens), timeout=10).text
    assert text_of(responses).strip() == whole.strip()


def test_a_seed_replays_exactly_whoever_shares_the_batch(server, api):
    def run(seed, out):
        request = api.GenerateRequest(
            text="今天学生", max_tokens=24,
            sampling=api.SamplingParameters(seed=seed, temperature=1.3, top_p=0.95, ignore_end=True))
        out[seed] = out.get(seed, []) + [text_of(server.inference.Generate(request, timeout=60))]

    alone, together = {}, {}
    for seed in range(6):
        run(seed, alone)
    threads = [threading.Thread(target=run, args=(seed, together)) for seed in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert alone == together
    assert len({texts[0] for texts in alone.values()}) > 3, "seeds should differ"


def test_choices_are_independent_draws_of_one_context(server, api):
    request = api.GenerateRequest(text="The teacher", max_tokens=16, n=4, return_token_ids=True,
                                  sampling=api.SamplingParameters(seed=11, temperature=2, top_p=1, ignore_end=True))
    tokens = {}
    for r in server.inference.Generate(request, timeout=60):
        for d in r.choices:
            tokens.setdefault(d.index, []).extend(d.tokens)
    assert sorted(tokens) == [0, 1, 2, 3]
    assert all(len(t) == 16 for t in tokens.values())
    assert len({tuple(t) for t in tokens.values()}) == 4


def test_logprobs_and_bias(server, api):
    request = api.GenerateRequest(
        text="The river", max_tokens=4,
        sampling=api.SamplingParameters(top_k=1, logprobs=True, top_logprobs=5, ignore_end=True))
    entries = [e for r in server.inference.Generate(request, timeout=60)
               for d in r.choices for e in d.logprobs]
    assert len(entries) == 4
    for entry in entries:
        assert len(entry.top) == 5 and entry.top[0].logprob <= 0
        assert [t.logprob for t in entry.top] == sorted((t.logprob for t in entry.top), reverse=True)
    wanted = entries[0].top[3].token
    request.sampling.logit_bias.add(token=wanted, bias=100)
    request.return_token_ids = True
    tokens = [t for r in server.inference.Generate(request, timeout=60)
              for d in r.choices for t in d.tokens]
    assert tokens == [wanted] * 4


def test_default_output_is_text_only(server, api):
    """Image ids, padding rows and special tokens never come out unless a client allows them."""
    request = api.GenerateRequest(text="The river", max_tokens=60, return_token_ids=True,
                                  sampling=api.SamplingParameters(temperature=5, top_p=1, seed=3, ignore_end=True))
    tokens = [t for r in server.inference.Generate(request, timeout=60)
              for d in r.choices for t in d.tokens]
    assert len(tokens) == 60
    assert all(32 <= t < 512 for t in tokens), tokens


BAD = {
    "empty text": lambda api: api.GenerateRequest(text=""),
    "no input": lambda api: api.GenerateRequest(),
    "no tokens": lambda api: api.GenerateRequest(tokens=api.TokenIds()),
    "over the context length": lambda api: api.GenerateRequest(text="river " * 400),
    "token out of range": lambda api: api.GenerateRequest(tokens=api.TokenIds(ids=[640])),
    "negative token": lambda api: api.GenerateRequest(tokens=api.TokenIds(ids=[-1])),
    "unknown model": lambda api: api.GenerateRequest(text="a", model="gpt"),
    "temperature": lambda api: api.GenerateRequest(
        text="a", sampling=api.SamplingParameters(temperature=-1)),
    "temperature nan": lambda api: api.GenerateRequest(
        text="a", sampling=api.SamplingParameters(temperature=float("nan"))),
    "top_p": lambda api: api.GenerateRequest(text="a", sampling=api.SamplingParameters(top_p=1.5)),
    "n": lambda api: api.GenerateRequest(text="a", n=17),
    "beams": lambda api: api.GenerateRequest(text="a", sampling=api.SamplingParameters(
        strategy=api.STRATEGY_BEAM, beam=api.BeamParameters(num_beams=65))),
    "bias token": lambda api: api.GenerateRequest(text="a", sampling=api.SamplingParameters(
        logit_bias=[api.LogitBias(token=640, bias=1)])),
    "too many biases": lambda api: api.GenerateRequest(text="a", sampling=api.SamplingParameters(
        logit_bias=[api.LogitBias(token=1, bias=1)] * 1025)),
    "range": lambda api: api.GenerateRequest(text="a", sampling=api.SamplingParameters(
        invalid_ids=api.IdRanges(ranges=[api.IdRange(begin=5, end=4)]))),
    "everything forbidden": lambda api: api.GenerateRequest(text="a", sampling=api.SamplingParameters(
        invalid_ids=api.IdRanges(ranges=[api.IdRange(begin=0, end=640)]))),
    "top_logprobs": lambda api: api.GenerateRequest(
        text="a", sampling=api.SamplingParameters(top_logprobs=21)),
    "request id": lambda api: api.GenerateRequest(text="a", request_id="x" * 129),
    "strategy": lambda api: api.GenerateRequest(
        text="a", sampling=api.SamplingParameters(strategy=99)),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_generate_is_explained(what, server, api):
    with pytest.raises(grpc.RpcError) as e:
        list(server.inference.Generate(BAD[what](api), timeout=30))
    assert e.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), e.value
    if what != "unknown model":
        assert e.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(e.value.details()) > 10
    assert "/" not in e.value.details().replace("w/", ""), "no paths in messages to clients"


def test_a_million_masks(server, api):
    with pytest.raises(grpc.RpcError) as e:
        list(server.inference.Fill(api.FillRequest(text="[MASK]" * 500_000), timeout=60))
    assert e.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as e:
        list(server.inference.Fill(api.FillRequest(tokens=api.TokenIds(ids=[512] * 1_000_000)), timeout=60))
    assert e.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)


@pytest.mark.parametrize("choices", [[], [[]], [[1]] * 300, [[640]]])
def test_bad_score(choices, server, api):
    with pytest.raises(grpc.RpcError) as e:
        server.inference.Score(api.ScoreRequest(
            text="a", choice_tokens=[api.TokenIds(ids=c) for c in choices]), timeout=30)
    assert e.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def raw(server, method, data, **kwargs):
    call = server.channel.unary_stream(f"/glmd.v1.Inference/{method}",
                                       request_serializer=lambda b: b, response_deserializer=lambda b: b)
    return list(call(data, timeout=30, **kwargs))


@pytest.mark.parametrize("data", [
    b"\x12\x02\xff\xfe",                    # text that is not UTF-8
    b"\xff\xff\xff\xff",                    # no message at all
    b"\x12\xff\xff\xff\xff\x7f",            # a length beyond the message
    b"".join(b"\xfa\x7f\x00" for _ in range(100_000)),  # unknown fields without end
], ids=["not UTF-8", "no message", "length beyond the message", "unknown fields"])
def test_hostile_bytes(data, server):
    with pytest.raises(grpc.RpcError) as e:
        raw(server, "Generate", data)
    assert e.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_oversized_message_and_unknown_method(server, api):
    with pytest.raises(grpc.RpcError) as e:
        raw(server, "Generate", b"\x12\x80\x80\x80\x05" + b"a" * (10 << 20))
    assert e.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(grpc.RpcError) as e:
        raw(server, "Nothing", b"")
    assert e.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_cancel_and_deadline_free_everything(server, api):
    idle = server.wait_ready().groups[0].kv_blocks_free
    request = api.GenerateRequest(text="The river", max_tokens=240,
                                  sampling=api.SamplingParameters(ignore_end=True))
    calls = [server.inference.Generate(request, timeout=60) for _ in range(4)]
    for call in calls:
        next(iter(call))
        call.cancel()
    with pytest.raises(grpc.RpcError) as e:
        list(server.inference.Generate(request, timeout=0.001))
    assert e.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    server.wait(lambda: (s := server.status()) and s.groups[0].running == 0
                and s.groups[0].kv_blocks_free == idle, "all KV blocks to be free again")


def test_a_reader_that_stops_holds_up_nobody(server, api):
    request = api.GenerateRequest(text="The river", max_tokens=200,
                                  sampling=api.SamplingParameters(ignore_end=True))
    stalled = server.inference.Generate(request, timeout=60)  # nobody reads it
    text = text_of(server.inference.Generate(
        api.GenerateRequest(text="The teacher", max_tokens=8,
                            sampling=api.SamplingParameters(ignore_end=True)), timeout=30))
    assert text
    stalled.cancel()


def test_many_streams_at_once(server, api):
    results, errors = [], []

    def run(i):
        try:
            kind = i % 3
            if kind == 0:
                r = list(server.inference.Fill(api.FillRequest(
                    text=f"The teacher [MASK] number {i} and the river [MASK]."), timeout=120))
                results.append(r[-1].results[0].text)
            elif kind == 1:
                results.append(text_of(server.inference.Generate(api.GenerateRequest(
                    text=f"学生 {i}", max_tokens=20,
                    sampling=api.SamplingParameters(seed=i, ignore_end=True)), timeout=120)))
            else:
                results.append(server.inference.Score(api.ScoreRequest(
                    text="The river [MASK].", choices=["train", "city"]), timeout=120).best)
        except grpc.RpcError as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(48)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors[0]
    assert len(results) == 48
