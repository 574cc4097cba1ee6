"""How tokens are chosen and where outputs end, through real workers: against a NumPy sampler that
replays every draw from the logits of `glmd logits`, and against searches over the whole text."""

import json
import struct
import threading

import grpc
import numpy as np
import pytest

from conftest import GOLDEN, glmd

GMASK, SOP, END_TOKENS = 513, 516, (34, 517)
WORDS = "今天学生 the river of the teacher"


@pytest.fixture
def folder(model):
    return model("ckpt-fp16-tp1", "--weights", "fp16")


@pytest.fixture
def server(folder, module_cluster):
    return module_cluster("tp2", folder, 2)


# ---- a client ----

class Answer:
    """Everything a Generate stream said, by choice."""

    def __init__(self, responses):
        self.text, self.tokens, self.logprobs, self.last, self.prompt = {}, {}, {}, {}, []
        self.n_messages = len(responses)
        for r in responses:
            self.prompt += r.prompt_logprobs
            for d in r.choices:
                assert d.index not in self.last, "nothing comes behind the end"
                self.text[d.index] = self.text.get(d.index, "") + d.text
                self.tokens.setdefault(d.index, []).extend(d.tokens)
                self.logprobs.setdefault(d.index, []).extend(d.logprobs)
                if d.finish_reason:
                    self.last[d.index] = d
        self.usage = responses[-1].usage


def generate(server, request):
    request.return_token_ids = True
    return Answer(list(server.inference.Generate(request, timeout=120)))


def together(jobs):
    """Runs all of them at the same time, so that they share steps."""
    results = [None] * len(jobs)

    def run(i):
        results[i] = jobs[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(r is not None for r in results)
    return results


# ---- the reference ----

def philox_uniform(seed, request, choice, index):
    """Philox4x32-10 (Salmon and others, 2011): key = seed, counter = request, choice, index."""
    mask = 0xFFFFFFFF
    k0, k1 = seed & mask, seed >> 32
    c = [request & mask, request >> 32, choice, index]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & mask, (p0 >> 32) ^ c[3] ^ k1, p0 & mask]
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return ((c[0] >> 5) * 2.0**26 + (c[1] >> 6)) * 2.0**-53


def reference_token(logits, s, prompt, output, choice):
    """One token, and its log-probability, in float64."""
    x = logits.astype(np.float64)
    for b in s.logit_bias:
        x[b.token] += b.bias
    log_probs = x - x.max() - np.log(np.exp(x - x.max()).sum())
    r = s.repetition_penalty or 1.0
    for t in set(prompt) | set(output):
        x[t] = x[t] / r if x[t] > 0 else x[t] * r
    for t in set(output):
        x[t] -= s.frequency_penalty * output.count(t) + s.presence_penalty
    if s.ignore_end or len(output) < s.min_tokens:
        x[list(END_TOKENS)] = -65504
    if s.top_k == 1:
        token = int(np.argmax(x))
        return token, log_probs[token]
    x /= s.temperature if s.HasField("temperature") else 1.0
    keep = np.ones(len(x), bool)
    if s.top_k:
        keep &= x >= np.sort(x)[-s.top_k]
    p = np.where(keep, np.exp(x - x.max()), 0)
    top_p = s.top_p if s.HasField("top_p") else 0.7
    if 0 < top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p[order[before > top_p * p.sum()]] = 0
    p[p < s.min_p] = 0
    u = philox_uniform(s.seed, 0, choice, len(output)) * p.sum()
    token = int(np.searchsorted(np.cumsum(p), u, side="right"))
    return token, log_probs[token]


def read_safetensors(path):
    data = path.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + n])
    return {name: np.frombuffer(data[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]],
                                np.float32).reshape(t["shape"])
            for name, t in header.items() if name != "__metadata__"}


def forced_logits(folder, tmp_path, prompt, outputs):
    """Logits of every output token, the output given: [len(output), vocab] for each output."""
    cases = [{"input_ids": prompt + o[:-1], "prefix_length": len(prompt) - 1} for o in outputs]
    (tmp_path / "cases.json").write_text(json.dumps({"cases": cases}))
    glmd("logits", "--model", folder, "--cases", tmp_path / "cases.json", "--out",
         tmp_path / "logits.safetensors", "--activations", "fp32", "--tp", "2")
    found = read_safetensors(tmp_path / "logits.safetensors")
    return [found[f"case{i}.logits"][len(prompt) - 1:] for i in range(len(outputs))]


# ---- choosing ----

MIXES = {
    "plain": dict(temperature=1.1, top_p=1),
    "min-p": dict(temperature=1.5, top_p=1, min_p=0.05),
    "repetition": dict(temperature=0.9, top_p=0.95, repetition_penalty=1.4),
    "presence and frequency": dict(temperature=1, top_p=1, presence_penalty=0.8, frequency_penalty=0.4),
    "negative": dict(temperature=1.2, top_p=0.9, presence_penalty=-1, frequency_penalty=-0.2),
    "everything": dict(temperature=1.3, top_k=60, top_p=0.9, min_p=0.02, repetition_penalty=1.2,
                       presence_penalty=0.5, frequency_penalty=0.3, min_tokens=8),
    "greedy": dict(top_k=1),
    "greedy with penalties": dict(top_k=1, repetition_penalty=1.8, frequency_penalty=0.5),
}


@pytest.fixture(scope="module")
def prompt_ids():
    cases = json.loads((GOLDEN / "tokenizer_cases.json").read_text())["encode"]
    ids = next(c["ids"] for c in cases if 6 <= len(c["ids"]) <= 40)
    return ids + [GMASK, SOP]


def mix_request(api, prompt_ids, i, options):
    s = api.SamplingParameters(seed=1000 + i, ignore_end=True, logprobs=True,
                               invalid_ids=api.IdRanges(), **options)
    s.logit_bias.add(token=100 + i, bias=1.5)
    return api.GenerateRequest(tokens=api.TokenIds(ids=prompt_ids), max_tokens=24,
                               n=1 if s.top_k == 1 else 3, sampling=s)


def test_every_draw_can_be_replayed_outside(server, api, folder, prompt_ids, tmp_path):
    """All mixes at once in one batch; every token of every choice is the reference's."""
    requests = [mix_request(api, prompt_ids, i, o) for i, o in enumerate(MIXES.values())]
    answers = together([lambda r=r: generate(server, r) for r in requests])
    outputs = [(r, i, a.tokens[i], a.logprobs[i])
               for r, a in zip(requests, answers) for i in sorted(a.tokens)]
    rows = forced_logits(folder, tmp_path, prompt_ids, [o[2] for o in outputs])
    for (request, choice, tokens, logprobs), logits in zip(outputs, rows):
        assert len(tokens) == 24 and len(logprobs) == 24
        for k, token in enumerate(tokens):
            expected, logprob = reference_token(logits[k], request.sampling, prompt_ids, tokens[:k],
                                                choice)
            assert token == expected, f"{request.sampling} choice {choice} token {k}"
            assert logprobs[k].token == token
            assert logprobs[k].logprob == pytest.approx(logprob, abs=2e-3)


def test_company_changes_nothing(server, api, prompt_ids):
    requests = [mix_request(api, prompt_ids, i, o) for i, o in enumerate(MIXES.values())]
    alone = [generate(server, r).tokens for r in requests]
    crowd = together([lambda r=r: generate(server, r).tokens for r in requests * 2])
    assert crowd == alone + alone


def test_penalties_change_the_output(server, api, prompt_ids):
    def tokens(**options):
        s = api.SamplingParameters(top_k=1, ignore_end=True, **options)
        return generate(server, api.GenerateRequest(tokens=api.TokenIds(ids=prompt_ids),
                                                    max_tokens=40, sampling=s)).tokens[0]

    plain = tokens()
    assert len(set(tokens(frequency_penalty=2, presence_penalty=2))) > len(set(plain))
    assert len(set(tokens(repetition_penalty=5))) > len(set(plain))
    assert tokens(repetition_penalty=1) == plain


# ---- ending ----

def sampled(api, **more):
    return api.SamplingParameters(temperature=1.2, top_p=1, ignore_end=True, **more)


def first_end(text, stops):
    """(begin, end, stop) of the stop text that is complete first, the longest of equal ones."""
    found = [(text.find(s) + len(s), -len(s), s) for s in stops if s in text]
    if not found:
        return None
    end, size, stop = min(found)
    return end + size, end, stop


def test_stop_texts_end_every_choice_where_they_are(server, api):
    n_stopped = 0
    for seed in range(12):
        request = api.GenerateRequest(text=WORDS, max_tokens=40, n=3, sampling=sampled(api, seed=seed))
        plain = generate(server, request)
        text = plain.text[seed % 3]
        middle = len(text) // 2
        stops = [text[middle:middle + 1 + seed % 6], "never there", text[-3:]]
        request.sampling.stop.extend(stops)
        request.sampling.include_stop = seed % 4 == 3
        found = generate(server, request)
        for i in range(3):
            end = first_end(plain.text[i], stops)
            last = found.last[i]
            if end is None:
                assert found.text[i] == plain.text[i] and last.stop == ""
                continue
            n_stopped += 1
            assert found.text[i] == plain.text[i][:end[1 if request.sampling.include_stop else 0]]
            assert (last.finish_reason, last.stop) == (api.FINISH_REASON_STOP, end[2])
            assert found.tokens[i] == plain.tokens[i][:len(found.tokens[i])]
        assert found.usage.completion_tokens <= plain.usage.completion_tokens
    assert n_stopped > 12


def test_stop_ids(server, api):
    request = api.GenerateRequest(text=WORDS, max_tokens=30, sampling=sampled(api, seed=5))
    plain = generate(server, request).tokens[0]
    wanted = plain[12]
    request.sampling.stop_token_ids.append(wanted)
    found = generate(server, request)
    n = plain.index(wanted)
    assert found.tokens[0] == plain[:n]
    assert found.last[0].finish_reason == api.FINISH_REASON_STOP
    assert found.last[0].HasField("stop_token") and found.last[0].stop_token == wanted
    assert found.usage.completion_tokens == n + 1


def test_a_stop_text_ends_one_blank_of_a_fill(server, api):
    def fill(*stops):
        request = api.FillRequest(text="The river [MASK] and the [MASK] today.", max_length=60,
                                  return_token_ids=True, sampling=sampled(api, seed=3))
        request.sampling.stop.extend(stops)
        return list(server.inference.Fill(request, timeout=120))

    blank = fill()[-1].results[0].blanks[0]
    stop = blank[len(blank) // 2:][:3]
    responses = fill(stop)
    result = responses[-1].results[0]
    assert result.blanks[0] == blank[:blank.index(stop)]
    assert len(result.blanks) == 2 and all(stop not in b for b in result.blanks)
    streamed = {0: "", 1: ""}
    ends = {}
    for r in responses:
        for d in r.blanks:
            streamed[d.index] += d.text
            ends[d.index] = d.stop
    assert [streamed[0], streamed[1]] == list(result.blanks)
    assert ends[0] == stop
    inputs = [list(c.input) for c in responses[-1].calls]
    assert len(inputs[1]) > len(inputs[0]) - 1, "the second blank runs behind the first one's text"


# ---- several outputs ----

def test_best_of_returns_the_likeliest(server, api):
    request = api.GenerateRequest(text=WORDS, max_tokens=16, n=6,
                                  sampling=sampled(api, seed=21, logprobs=True))
    everything = generate(server, request)
    mean = {i: sum(e.logprob for e in l) / len(l) for i, l in everything.logprobs.items()}
    order = sorted(mean, key=lambda i: -mean[i])
    request.n, request.best_of = 2, 6
    best = generate(server, request)
    assert sorted(best.tokens) == [0, 1] and best.n_messages == 1
    for rank in range(2):
        assert best.tokens[rank] == everything.tokens[order[rank]]
        assert best.last[rank].score == pytest.approx(mean[order[rank]], abs=1e-5)
    assert best.usage.completion_tokens == everything.usage.completion_tokens == 96


# ---- log-probabilities of the prompt ----

def test_echo_equals_score(server, api, prompt_ids):
    ids = prompt_ids[:-2]
    score = server.inference.Score(
        api.ScoreRequest(tokens=api.TokenIds(ids=[GMASK]), use_gmask=True,
                         choice_tokens=[api.TokenIds(ids=ids)]), timeout=60).choices[0]
    request = api.GenerateRequest(tokens=api.TokenIds(ids=ids), max_tokens=10, prompt_logprobs=4,
                                  sampling=sampled(api, seed=8))
    found = generate(server, request)
    assert [e.token for e in found.prompt] == ids
    assert [e.logprob for e in found.prompt] == list(score.token_logprobs)
    for e in found.prompt:
        assert len(e.top) == 4 and e.top[0].logprob >= e.logprob
        assert [t.logprob for t in e.top] == sorted((t.logprob for t in e.top), reverse=True)
        assert all(t.logprob == e.logprob for t in e.top if t.token == e.token)
    assert found.usage.scored_tokens == len(ids)
    assert found.usage.completion_tokens == 10
    request.ClearField("prompt_logprobs")
    assert generate(server, request).tokens == found.tokens


def test_prompt_only_is_the_published_loss(server, api, manifest):
    """Windows of the language-modelling task, unidirectional: the sum is minus the loss."""
    n = 0
    for case in manifest["logits"]:
        if not case["name"].startswith("c_lm_uni"):
            continue
        ids = case["targets"][case["tokens"][0].index(SOP):]
        request = api.GenerateRequest(tokens=api.TokenIds(ids=ids), prompt_logprobs=0, prompt_only=True)
        found = generate(server, request)
        assert not found.text and not found.last
        assert found.usage.scored_tokens == len(ids) and found.usage.completion_tokens == 0
        assert -sum(e.logprob for e in found.prompt) == pytest.approx(case["loss"], abs=2e-3)
        n += 1
    assert n == 2


# ---- the tool ----

def test_the_tool_has_all_of_it(server):
    out = glmd("generate", "--coordinator", server.target, "--json", "--seed", "4", "--temperature",
               "1.2", "--top-p", "1", "--min-p", "0.01", "--repetition-penalty", "1.1",
               "--presence-penalty", "0.1", "--frequency-penalty", "0.1", "--ignore-end",
               "--max-tokens", "20", "--n", "2", "--best-of", "4", "--stop", "never there",
               "--stop-id", "34", "--priority", "3", "--user", "me", "--prompt-logprobs", "2",
               "--logprobs", WORDS)
    answer = json.loads(out.stdout)
    assert len(answer["choices"]) == 2
    assert answer["choices"][0]["score"] >= answer["choices"][1]["score"]
    assert answer["usage"]["scored_tokens"] == len(answer["prompt_logprobs"]) > 4
    assert all(len(e["top"]) == 2 for e in answer["prompt_logprobs"])
    summary = glmd("generate", "--coordinator", server.target, "--prompt-logprobs", "0",
                   "--prompt-only", WORDS).stdout
    total = sum(e["logprob"] for e in answer["prompt_logprobs"])
    assert f"log-probability {total:.5f}"[:26] in summary
    refused = glmd("generate", "--coordinator", server.target, "--best-of", "3", "--greedy", WORDS,
                   check=False)
    assert refused.returncode == 1 and "one greedy output" in refused.stderr


def test_a_prompt_is_not_scored_for_an_output_that_never_fits(cluster, model, api):
    server = cluster(model("ckpt-fp16-tp1"), worker__kv_blocks=4, worker__slots=2)
    request = api.GenerateRequest(text="a river", max_tokens=200)
    request.prompt_logprobs = 0
    got = []
    with pytest.raises(grpc.RpcError) as e:
        for message in server.inference.Generate(request, timeout=30):
            got.append(message)
    assert e.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "KV" in e.value.details()
    assert got == []
    request.max_tokens = 8
    assert len(list(server.inference.Generate(request, timeout=30))) > 1
