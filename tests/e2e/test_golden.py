"""The original code's generations, beams, filled blanks and choice scores, through a coordinator and
real worker processes, tensor parallel and in pipeline stages (FP32 mode: token for token)."""

import pytest

END_TOKENS = {34, 517}  # eos, eop of the golden model
WEIGHTS = {"fp16": ("ckpt-fp16-tp1", "--weights", "fp16"), "int4-tp1": ("ckpt-int4-tp1",)}


LAYOUTS = ["1x1", "2x1", "4x1", "1x2", "2x2", "1x3"]  # ranks of a stage x stages; three layers


def server(weights, layout, model, module_cluster):
    tp, pp = map(int, layout.split("x"))
    return module_cluster((weights, layout), model(*WEIGHTS[weights]), tp,
                          group__pipeline_parallel=pp)


def strip_end(tokens):
    return tokens[:-1] if tokens and tokens[-1] in END_TOKENS else tokens


def sampling(api, case):
    """The golden runs forbid nothing and bias the end tokens."""
    bias = case.get("end_token_logit_bias") or 0
    parameters = api.SamplingParameters(
        invalid_ids=api.IdRanges(
            ranges=[api.IdRange(begin=b, end=e) for b, e in case.get("invalid_id_ranges", [])]),
        logit_bias=[api.LogitBias(token=t, bias=bias) for t in sorted(END_TOKENS)] if bias else [],
    )
    if case["strategy"] == "greedy":
        parameters.top_k = 1
        return parameters
    p = case.get("params") or {"num_beams": 4, "length_penalty": 1.0, "no_repeat_ngram_size": 3,
                               "min_gen_length": 0}
    parameters.strategy = api.STRATEGY_BEAM
    parameters.beam.num_beams = p["num_beams"]
    parameters.beam.length_penalty = p["length_penalty"]
    parameters.beam.no_repeat_ngram_size = p["no_repeat_ngram_size"]
    parameters.min_tokens = p["min_gen_length"]
    return parameters


def generate(api, c, request):
    choices = {}
    usage = None
    for response in c.inference.Generate(request, timeout=120):
        for delta in response.choices:
            choice = choices.setdefault(delta.index, {"tokens": [], "score": None, "reason": 0})
            choice["tokens"] += delta.tokens
            choice["reason"] = delta.finish_reason or choice["reason"]
            if delta.HasField("score"):
                choice["score"] = delta.score
        if response.HasField("usage"):
            usage = response.usage
    assert usage is not None, "no usage in the last message"
    return [choices[i] for i in sorted(choices)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weights", ["fp16", "int4-tp1"])
def test_generations(weights, layout, api, manifest, model, module_cluster):
    c = server(weights, layout, model, module_cluster)
    cases = [g for g in manifest["generation"] if g["weights"] == weights and "prompt" in g]
    assert cases
    for case in cases:
        beams = case["params"]["num_beams"] if case["strategy"] == "beam" else 1
        request = api.GenerateRequest(
            tokens=api.TokenIds(ids=case["prompt"]), sampling=sampling(api, case),
            max_tokens=case["max_new_tokens"], n=beams, return_token_ids=True)
        choices = generate(api, c, request)
        expected = [strip_end(tokens) for tokens in case["generated"]]
        assert [choice["tokens"] for choice in choices] == expected, case["name"]
        for choice, tokens in zip(choices, case["generated"]):
            stopped = tokens and tokens[-1] in END_TOKENS
            assert choice["reason"] == (api.FINISH_REASON_STOP if stopped
                                        else api.FINISH_REASON_LENGTH), case["name"]
        if case["strategy"] == "beam":
            for choice, score in zip(choices, case["penalized_scores"]):
                assert choice["score"] == pytest.approx(score, abs=2e-4), case["name"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_of_greedy_generations(layout, api, manifest, model, module_cluster):
    """The padded batch of the original, as concurrent requests."""
    c = server("fp16", layout, model, module_cluster)
    case = next(g for g in manifest["generation"] if g["name"] == "batch_greedy_eval")
    logits = next(l for l in manifest["logits"] if l["name"] == case["logits_case"])
    prompts = [t[:n] for t, n in zip(logits["tokens"], logits["valid_lengths"])]
    calls = [
        c.inference.Generate(
            api.GenerateRequest(tokens=api.TokenIds(ids=p), max_tokens=case["max_new_tokens"],
                                sampling=sampling(api, case), return_token_ids=True), timeout=120)
        for p in prompts
    ]
    for call, expected in zip(calls, case["generated"]):
        tokens = [t for r in call for d in r.choices for t in d.tokens]
        assert tokens == strip_end(expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blank_filling(layout, api, manifest, model, module_cluster):
    c = server("fp16", layout, model, module_cluster)
    for case in manifest["blank_filling"]:
        request = api.FillRequest(text=case["text"], sampling=sampling(api, case),
                                  max_length=case["out_seq_length"], return_token_ids=True)
        responses = list(c.inference.Fill(request, timeout=120))
        last = responses[-1]
        context = (case["text"], case["strategy"])
        answers = case["answers"]
        assert [r.text for r in last.results] == answers, context
        assert [list(r.blanks) for r in last.results] == case["blanks"], context
        calls = [(list(call.input), [list(o.ids) for o in call.outputs]) for call in last.calls]
        expected = [(call["input"], [[t for t in o if t != -1] for o in call["output"]])
                    for call in case["calls"]]
        assert calls == expected, context
        streamed = {}
        for response in responses:
            for blank in response.blanks:
                streamed[blank.index] = streamed.get(blank.index, "") + blank.text
        assert [streamed[i] for i in sorted(streamed)] == case["blanks"][0], context


@pytest.mark.parametrize("layout", LAYOUTS)
def test_multiple_choice(layout, api, manifest, model, module_cluster):
    c = server("fp16", layout, model, module_cluster)
    for case in manifest["scores"]:
        if case["task"] != "multiple_choice":
            continue
        response = c.inference.Score(api.ScoreRequest(
            tokens=api.TokenIds(ids=case["text"]), use_gmask=case["use_task_mask"],
            choice_tokens=[api.TokenIds(ids=choice) for choice in case["choices"]]), timeout=60)
        logprobs = [choice.logprob for choice in response.choices]
        assert logprobs == pytest.approx(case["log_probs"], abs=2e-4), case["name"]
        assert response.best == case["argmax"], case["name"]
        assert [len(choice.token_logprobs) for choice in response.choices] == [
            len(choice) for choice in case["choices"]]
