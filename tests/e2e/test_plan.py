"""`glmd plan`: what it says against what workers say when they have loaded; its exit codes."""

import json
import re

import pytest

from conftest import GOLDEN, glmd


def plan(*args, code=0):
    result = glmd("plan", *args, "--json", check=False)
    assert result.returncode == code, f"{args}: {result.returncode}\n{result.stdout}{result.stderr}"
    return json.loads(result.stdout)


@pytest.mark.parametrize("tp, kv_cache", [(1, "auto"), (2, "int8")])
def test_workers_print_what_was_planned(model, cluster, tp, kv_cache):
    folder = model("ckpt-fp16-tp1", "--weights", "int4")
    p = plan("--model", folder, "--devices", f"cpu:{tp}x400MiB", "--tp", tp, "--slots", 5,
             "--step-tokens", 100, "--kv-cache", kv_cache, "--activations", "fp16")
    assert p["fits"] and p["layout"]["tensor_parallel"] == tp and p["measured"]
    c = cluster(folder, tp, worker__activations="fp16", worker__slots=5,
                worker__max_step_tokens=100, worker__kv_cache=kv_cache,
                worker__kv_blocks=p["kv_blocks"])
    group = json.loads(glmd("status", "--coordinator", c.target, "--json").stdout)["groups"][0]
    assert group["kv_blocks_total"] == p["kv_blocks"]
    log = c.logs()
    for rank, planned in zip(group["ranks"], p["ranks"], strict=True):
        for key in ("weights_bytes", "kv_bytes", "scratch_bytes"):
            assert rank[key] == planned[key], f"rank {rank['rank']}: {key}"
        sizes = [planned[k] / 2**30 for k in ("weights_bytes", "kv_bytes", "scratch_bytes")]
        line = (f"memory {sum(sizes):.3f} GiB = weights {sizes[0]:.3f} + KV {sizes[1]:.3f} "
                f"({p['kv_blocks']} blocks of 16 tokens) + scratch {sizes[2]:.3f}")
        assert line in log, f"expected \"{line}\", found {re.findall('memory .*', log)}"
    loaded = re.findall(r"weights: ([\d.]+) MB read in [\d.]+ s by \d+ threads, [\d.]+ GB/s", log)
    assert len(loaded) == tp and all(float(read) > 0 for read in loaded)
    assert len(re.findall(r"loaded \d+\.\d{3} s after the start", log)) == tp


def test_published_cases():
    for devices, layout, sequences in [("4x24GiB", (4, 1), 3), ("8x11GiB", (8, 1), 1),
                                       ("1x141GB", (1, 1), 9)]:
        p = plan("--model", "glm-130b", "--devices", devices)
        found = p["layout"]["tensor_parallel"], p["layout"]["pipeline_parallel"]
        assert (found, p["sequences"]) == (layout, sequences), devices
        assert not p["measured"]
        for r in p["ranks"]:
            used = r["weights_bytes"] + r["kv_bytes"] + r["scratch_bytes"] - r["scratch_host_bytes"]
            assert used + r["reserve_bytes"] + r["free_bytes"] == r["device_bytes"]


def test_text_has_the_settings_and_the_caveat():
    out = glmd("plan", "--model", "glm-130b", "--devices", "2x24GiB,1x48GiB").stdout
    for words in ("not measured", "reserve", "group.pipeline_parallel: 3", "group.stage_layers: [",
                  "worker.kv_blocks: ", "in proportion to memory"):
        assert words in out, words


def test_does_not_fit_says_why_and_what_helps():
    result = glmd("plan", "--model", "glm-130b", "--devices", "8x11GiB", "--concurrency", "3",
                  check=False)
    assert result.returncode == 1
    assert "DOES NOT FIT" in result.stdout and "need 6144" in result.stdout
    assert "--kv-cache int8" in result.stdout
    p = plan("--model", "glm-130b", "--devices", "3x24GiB", code=1)
    assert not p["fits"] and "missing" in p["reason"] and p["help"]


def test_a_folder_with_config_json_is_enough(tmp_path):
    (tmp_path / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    assert plan("--model", tmp_path, "--devices", "cpu:1GiB")["weights"] == "fp16"
    assert plan("--model", tmp_path, "--devices", "cpu:1GiB", "--weights", "int4", "--group",
                "32")["weights"].startswith("int4, one scale per 32")


@pytest.mark.parametrize("args, words", [
    (["--devices", "8x24GiB"], "--model is missing"),
    (["--model", "glm-130b"], "--devices is missing"),
    (["--model", "glm-130b", "--devices", "8x24"], "8x24GiB"),
    (["--model", "glm-130b", "--devices", "8x24GiB", "--context", "4096"], "2048"),
    (["--model", "glm-130b", "--devices", "8x24GiB", "--tp", "0"], "--tp"),
    (["--model", "glm-130b", "--devices", "8x24GiB", "--weights", "int3"], "int4, int8 or fp16"),
    (["--model", "glm-130b", "--devices", "8x24GiB", "--weights", "fp16", "--group", "32"],
     "no scales"),
    (["--model", "glm-130b", "--devices", "8x24GiB", "--kv-cache", "int2"], "--kv-cache"),
    (["--model", "glm-130b", "--devices", "8x24GiB", "more"], "more"),
])
def test_usage(args, words):
    result = glmd("plan", *args, check=False)
    assert result.returncode == 2 and words in result.stderr, result.stderr


def test_impossible_layouts_and_unknown_models_are_failures():
    result = glmd("plan", "--model", "glm-130b", "--devices", "8x24GiB", "--tp", "5", check=False)
    assert result.returncode == 1 and "num_heads" in result.stderr
    result = glmd("plan", "--model", "glm-131b", "--devices", "8x24GiB", check=False)
    assert result.returncode == 1 and "glm-130b" in result.stderr
