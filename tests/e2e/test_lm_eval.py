"""lm-evaluation-harness against the running daemons, unchanged: what it finds is what the engine says
itself over its own API. Skipped where lm_eval cannot be imported (docs/http.md has the commands)."""

import json
import os
import subprocess
import sys

import pytest

from conftest import DEADLINE_S, SOURCE

pytest.importorskip("lm_eval")

DEMO = SOURCE / "deploy/demo/model"
CHOICES = [
    ("And the LORD spake unto", ["Moses, saying,", "the river of water", "he and they begat"]),
    ("In the beginning God created", ["the heaven and the earth.", "a thousand shekels", "thee"]),
    ("And it came to pass in those", ["days, that he", "saying Moses God", "of of of"]),
    ("Blessed are the", ["poor in spirit", "days of the tenth", "begat and begat"]),
    ("And God said, Let there be", ["light: and there", "Moses and Aaron", "shekels"]),
    ("起初神创造", ["天地", "摩西说", "river"]),
]
GENERATIONS = ["And it came to pass", "The LORD is my", "And Moses said unto", "In the beginning"]

CHOICE_TASK = """task: glmd_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""
GENERATION_TASK = """task: glmd_generation
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
generation_kwargs: {{until: ["."], max_gen_toks: 8, temperature: 0.0, do_sample: false}}
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def server(module_cluster):
    return module_cluster("lm-eval", DEMO, tp=2)


def tokens(server, api, text):
    request = api.TokenizeRequest(text=text, parse_masks=True)
    return list(server.inference.Tokenize(request, timeout=DEADLINE_S).ids)


def log_likelihood(server, api, context, going_on):
    """Of the engine: the sum over the tokens behind the context."""
    n, ids = len(tokens(server, api, context)), tokens(server, api, context + going_on)
    [first, *_] = server.inference.Generate(api.GenerateRequest(
        tokens=api.TokenIds(ids=ids), prompt_only=True, prompt_logprobs=0), timeout=DEADLINE_S)
    assert [t.token for t in first.prompt_logprobs] == ids
    return sum(t.logprob for t in first.prompt_logprobs[n:])


def greedy(server, api, context):
    messages = server.inference.Generate(api.GenerateRequest(
        tokens=api.TokenIds(ids=tokens(server, api, context)), max_tokens=8,
        sampling=api.SamplingParameters(temperature=0, stop=["."])), timeout=DEADLINE_S)
    return "".join(c.text for m in messages for c in m.choices)


def write_task(folder, name, template, docs):
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(d) + "\n" for d in docs))
    (folder / f"{name}.yaml").write_text(template.format(data=data))


@pytest.mark.parametrize("batch", [1, 4])
def test_its_results_are_those_of_the_engine(server, api, tmp_path, batch):
    likely = [[log_likelihood(server, api, context, " " + c) for c in choices]
              for context, choices in CHOICES]
    gold = [i % 3 for i in range(len(CHOICES))]
    best = [values.index(max(values)) for values in likely]
    texts = [greedy(server, api, g) for g in GENERATIONS]
    answers = [t if i % 2 else "something else" for i, t in enumerate(texts)]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    write_task(tasks, "glmd_choice", CHOICE_TASK,
               [{"context": c, "choices": o, "gold": g} for (c, o), g in zip(CHOICES, gold)])
    write_task(tasks, "glmd_generation", GENERATION_TASK,
               [{"context": c, "answer": a} for c, a in zip(GENERATIONS, answers)])
    address = f"http://127.0.0.1:{server.http_port}/v1/completions"
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args",
         f"model=glm-demo,base_url={address},num_concurrent=1,max_retries=1",
         "--tasks", "glmd_choice,glmd_generation", "--include_path", tasks, "--batch_size",
         str(batch), "--output_path", tmp_path / "out", "--log_samples"],
        capture_output=True, text=True, timeout=10 * DEADLINE_S,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1",
             "HF_DATASETS_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    assert "remote tokenizer" in done.stdout + done.stderr, "it asks the server for its tokens"
    [report] = (tmp_path / "out").glob("**/results_*.json")
    results = json.loads(report.read_text())["results"]
    right = sum(b == g for b, g in zip(best, gold)) / len(gold)
    assert results["glmd_choice"]["acc,none"] == pytest.approx(right)
    assert results["glmd_generation"]["exact_match,none"] == pytest.approx(0.5)

    def samples(task):
        [file] = (tmp_path / "out").glob(f"**/samples_{task}_*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return [r["resps"] for r in sorted(rows, key=lambda r: r["doc_id"])]

    for row, values in zip(samples("glmd_choice"), likely):
        found = [float(answer[0][0]) for answer in row]
        assert found == pytest.approx(values, abs=1e-3), (found, values)
    assert [row[0][0] for row in samples("glmd_generation")] == texts
