"""`glmd bench`: small runs, and that their numbers hang together."""

import json
import os
import xml.etree.ElementTree as ElementTree

import pytest

from conftest import SOURCE, glmd

DEMO = SOURCE / "deploy/demo/model"


def engine(tmp_path, *options):
    out = tmp_path / "engine.json"
    glmd("bench", "engine", "--seconds", "0.05", "--batch", "1,3", "--prefill", "20", "--context", "40",
         "--threads", "1", "--json", out, "--svg", tmp_path / "engine.svg", *options)
    return json.loads(out.read_text())


def hashes(result):
    return [row["result_hash"] for row in result["prefill"] + result["decode"]]


def test_engine_rows(tmp_path):
    found = engine(tmp_path, "--synthetic", "glm-tiny")
    assert found["model"]["synthetic"] and found["activations"] == "fp16"
    assert [row["tokens"] for row in found["prefill"]] == [20]
    assert [row["batch"] for row in found["decode"]] == [1, 3]
    for row in found["decode"]:
        ms = row["step_ms"]["median"]
        assert row["step_ms"]["min"] <= ms <= row["step_ms"]["max"]
        assert row["tokens_per_s"] == pytest.approx(row["batch"] * 1000 / ms)
        assert row["weights_bytes_per_s"] == pytest.approx(found["weights_bytes"] * 1000 / ms)
        assert row["share_of_ceiling"] == pytest.approx(
            row["weights_bytes_per_s"] / found["memory_read_bytes_per_s"])
    ElementTree.parse(tmp_path / "engine.svg")
    assert hashes(engine(tmp_path, "--synthetic", "glm-tiny")) == hashes(found)
    assert hashes(engine(tmp_path, "--synthetic", "glm-tiny", "--layers", "1")) != hashes(found)


@pytest.mark.parametrize("head", ["fp16", "int8"])
def test_engine_hashes_see_the_arithmetic(tmp_path, head):
    """At a real width as well: no token is so likely that its log-probability says nothing."""
    found = {}
    for mode, threads in (("fp16", 1), ("fp16", 2), ("a8", 1), ("a8", 2)):
        found[mode, threads] = hashes(engine(tmp_path, "--synthetic", "glm-1.6b", "--layers", "1", "--head", head,
                                             "--activations", mode, "--threads", threads))
    assert found["fp16", 1] == found["fp16", 2]
    assert found["a8", 1] == found["a8", 2]
    same = [x for x, y in zip(found["fp16", 1], found["a8", 1], strict=True) if x == y]
    assert same == []


@pytest.mark.parametrize("tp, pp, layers", [(1, 2, None), (2, 2, "3,1"), (1, 3, None)])
def test_stages(tmp_path, tp, pp, layers):
    out = tmp_path / "stages.json"
    glmd("bench", "stages", "--synthetic", "glm-tiny", "--layers", "4", "--tp", tp, "--pp", pp,
         "--in-flight", "1,2,4", "--batch", "3", "--context", "20", "--seconds", "0.05",
         "--threads", tp * pp, "--json", out, *(["--stage-layers", layers] if layers else []))
    found = json.loads(out.read_text())
    assert (found["layers"], found["tp"], found["pp"]) == (4, tp, pp)
    assert [row["in_flight"] for row in found["rows"]] == [1, 2, 4]
    for row in found["rows"]:
        work = [stage["work_ms"] for stage in row["stages"]]
        assert len(work) == pp and min(work) > 0
        assert row["steps"] >= 8
        assert row["tokens_per_s"] == pytest.approx(3 * 1000 / row["step_ms"])
        assert row["step_ms_ideal"] == pytest.approx(max(max(work), sum(work) / row["in_flight"]))
        assert row["bubble"] == pytest.approx(1 - sum(work) / pp / row["step_ms"])
        for stage in row["stages"]:
            assert 0 < stage["busy"] <= stage["busy_ideal"] * 1.01


def test_engine_stages_have_the_same_results(tmp_path):
    options = ("--synthetic", "glm-tiny", "--layers", "3", "--activations", "fp32")
    assert hashes(engine(tmp_path, *options, "--pp", "2")) == hashes(engine(tmp_path, *options))


def test_a_written_model_runs(tmp_path):
    model = tmp_path / "model"
    glmd("bench", "model", "--synthetic", "glm-tiny", "--layers", "1", "--like", DEMO, "--out", model,
         "--weights", "int8")
    found = engine(tmp_path, "--model", model)
    assert found["model"]["layers"] == 1 and not found["model"]["synthetic"]
    inspected = glmd("inspect", model).stdout
    assert "int8" in inspected


def serve(c, tmp_path, *options):
    out = tmp_path / "serve.json"
    glmd("bench", "serve", "-c", c.target, "--json", out, "--svg", tmp_path / "serve.svg", *options)
    ElementTree.parse(tmp_path / "serve.svg")
    return json.loads(out.read_text())


@pytest.fixture
def fake(cluster, model):
    return cluster(model("ckpt-fp16-tp1", "--weights", "int4"), tp=2, worker__slots=8,
                   group__devices="fake:step_us=4000:end=0.5")


def test_serve_random_prompts(fake, tmp_path):
    found = serve(fake, tmp_path, "--num-prompts", "20", "--random-input-len", "12",
                  "--random-output-len", "10", "--max-concurrency", "5", "--num-warmups", "2",
                  "--goodput", "ttft:60000", "tpot:60000", "e2e:0.001")
    assert (found["completed"], found["failed"], found["errors"]) == (20, 0, {})
    assert found["max_concurrent_requests"] == 5
    assert found["total_output_tokens"] == 20 * 10
    assert found["total_input_tokens"] >= 20 * 12
    assert found["output_throughput"] == pytest.approx(200 / found["duration"], rel=1e-6)
    # a step takes 4 ms: one for the first token, one for each of the others
    assert found["median_ttft_ms"] >= 4
    assert found["median_tpot_ms"] >= 3.9
    assert found["median_e2e_ms"] >= found["median_ttft_ms"] + 9 * 3.9
    assert found["p99_e2e_ms"] >= found["median_e2e_ms"]
    assert found["request_goodput"] == 0  # nothing ends within a microsecond
    at_rate = serve(fake, tmp_path, "--num-prompts", "10", "--request-rate", "100",
                    "--random-output-len", "2", "--goodput", "ttft:60000")
    assert at_rate["request_rate"] == 100
    assert at_rate["request_goodput"] == pytest.approx(at_rate["request_throughput"])


def test_serve_a_file(fake, tmp_path):
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "The river", "max_tokens": 3}\n\n{"prompt": "今天"}\n')
    found = serve(fake, tmp_path, "--dataset", lines, "--num-prompts", "5", "--random-output-len", "4",
                  "--ignore-end")
    assert found["completed"] == 5
    assert found["total_output_tokens"] == 3 * 3 + 2 * 4
    ended = serve(fake, tmp_path, "--dataset", lines, "--num-prompts", "5", "--random-output-len", "40")
    assert ended["total_output_tokens"] < 3 * 3 + 2 * 40  # every other token ends a text
    lines.write_text('{"prompt": 5}\n')
    refused = glmd("bench", "serve", "-c", fake.target, "--dataset", lines, check=False)
    assert refused.returncode == 1 and "prompts.jsonl:1" in refused.stderr


def test_serve_counts_failures(fake, tmp_path):
    result = glmd("bench", "serve", "-c", fake.target, "--num-prompts", "3", "--random-input-len", "5000",
                  "--json", tmp_path / "x.json", check=False)
    found = json.loads((tmp_path / "x.json").read_text())
    assert result.returncode == 1 and "no request ended well" in result.stderr
    assert (found["completed"], found["failed"]) == (0, 3)
    assert sum(found["errors"].values()) == 3


def test_rpc(tmp_path):
    """A coordinator of its own, four ranks; nothing is left behind."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    out = tmp_path / "rpc.json"
    result = glmd("bench", "rpc", "--like", DEMO, "--ranks", "4", "--batch", "16", "--best-of", "4",
                  "--streams", "40", "--seconds", "1", "--step-us", "4000", "--decode-us", "10",
                  "--json", out, "--svg", tmp_path / "rpc.svg",
                  env={**os.environ, "TMPDIR": str(scratch)})
    assert "planning and dispatch of a step at batch 16" in result.stdout
    found = json.loads(out.read_text())
    ElementTree.parse(tmp_path / "rpc.svg")
    assert (found["ranks"], found["batch"], found["open_streams"]) == (4, 16, 40)
    assert found["streamed"]["messages_per_step"] == pytest.approx(16, rel=0.2)
    assert found["silent"]["messages_per_step"] < 1
    for phase in ("streamed", "silent", "open"):
        window = found[phase]
        assert window["seconds"] >= 0.9 and window["steps"] > 0
        assert 0 < window["cpu_share"] < 8
        assert 0 < window["cpu_us_per_step"]
        for part in ("plan_us_per_step", "result_us_per_step"):
            assert 0 < window[part] < window["loop_us_per_step"]
    messages = found["streamed"]["messages_per_step"] - found["silent"]["messages_per_step"]
    assert found["step_cpu_us"] == found["silent"]["cpu_us_per_step"]
    assert found["step_cpu_us"] + messages * found["message_cpu_us"] == \
        pytest.approx(found["streamed"]["cpu_us_per_step"], rel=1e-6)
    assert 1e6 < found["rss_start_bytes"] <= found["rss_end_bytes"] < 1e9
    assert list(scratch.iterdir()) == []


def test_daemon(tmp_path):
    """The same model through a daemon and without one, by turns."""
    out = tmp_path / "daemon.json"
    result = glmd("bench", "daemon", "--like", DEMO, "--synthetic", "glm-tiny", "--batch", "4", "--rounds", "2",
                  "--seconds", "0.3", "--activations", "a8", "--json", out,
                  env={**os.environ, "TMPDIR": str(tmp_path)})
    assert "daemon / engine, 4 streams" in result.stdout
    found = json.loads(out.read_text())
    assert (found["batch"], found["activations"], found["threads"]) == (4, "a8", 1)
    assert len(found["rounds"]) == 2
    shares = [r["daemon_many"]["tokens_per_s"] / r["engine_many"]["tokens_per_s"] for r in found["rounds"]]
    assert found["daemon_share"] == pytest.approx(sum(shares) / 2)
    for r in found["rounds"]:
        assert 16 < r["daemon_many"]["context"] and 16 < r["daemon_one"]["context"]
        assert abs(r["engine_many"]["context"] - r["daemon_many"]["context"]) < 1
        for speed in r.values():
            assert 0 < speed["run"] <= 1.02 and 0 <= speed["queued"] and speed["run"] + speed["queued"] < 1.05
    assert [p.name for p in tmp_path.iterdir()] == ["daemon.json"]


def test_rpc_says_why_it_cannot_start(tmp_path):
    refused = glmd("bench", "rpc", "--like", DEMO, "--set", "no.such=1", check=False,
                   env={**os.environ, "TMPDIR": str(tmp_path)})
    assert refused.returncode == 1 and "no.such" in refused.stderr
    missing = glmd("bench", "rpc", "--like", tmp_path, check=False)
    assert missing.returncode == 1 and str(tmp_path) in missing.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [
    ["engine"], ["engine", "--synthetic", "glm-9"], ["engine", "--synthetic", "glm-tiny", "--batch", "0,1"],
    ["engine", "--synthetic", "glm-tiny", "--head", "int4"], ["engine", "--model", "x", "--backend", "rocm"],
    ["engine", "--model", "x", "--synthetic", "glm-tiny"], ["stages", "--model", "x", "--in-flight", "99"],
    ["stages", "--model", "x", "more"], ["model", "--seed", "-1"],
    ["model", "--synthetic", "glm-tiny"], ["serve", "--goodput", "ttft"], ["serve", "--request-rate", "0"],
    ["serve", "--ignore-end", "--stop-at-end"], ["rpc"], ["rpc", "--like", "x", "--batch", "5"], ["rpc", "--like", "x", "--ranks", "3"],
    ["daemon"], ["daemon", "--like", "x", "--activations", "int2"],
    ["nothing"], [],
])
def test_wrong_command_lines(args):
    result = glmd("bench", *args, check=False)
    assert result.returncode in (1, 2) and result.stderr and not result.stdout


def test_loading(tmp_path):
    """One round: the shares are of its own yardsticks."""
    out = tmp_path / "loading.json"
    table = glmd("bench", "loading", "--model", DEMO, "--rounds", "1", "--threads", "1", "--json", out).stdout
    found = json.loads(out.read_text())
    load, read, into = (found[f"{k}_gb_per_s"]["median"] for k in ("load", "read", "read_into_memory"))
    assert 0 < load and 0 < into and 0 < read
    assert found["share_of_read"]["median"] == pytest.approx(load / read)
    assert found["share_of_read_into_memory"]["median"] == pytest.approx(load / into)
    assert f"reading into such memory {into:.2f} GB/s" in table
