"""The tool as a person uses it."""

import json
import os
import re
import shutil
import subprocess

import pytest

from conftest import BIN, DEADLINE_S, GOLDEN, SOURCE, glmd


@pytest.fixture
def server(model, module_cluster):
    c = module_cluster("cli", model("ckpt-fp16-tp1", "--weights", "int4"), 2)
    os.environ["GLMD_COORDINATOR"] = c.target
    yield c
    del os.environ["GLMD_COORDINATOR"]


def names(*args):
    """What a list of --help begins its lines with."""
    found = re.findall(r"^  (\w+) ", glmd(*args, "--help").stdout, re.MULTILINE)
    assert len(found) > 6, found
    return found


def explains_itself(*words):
    """Of the verbs with tables of options, also that help and tables agree: exit code 0."""
    text = glmd(*words, "--help").stdout
    assert text.startswith(f"usage: glmd {' '.join(words)} "), text
    wrong = glmd(*words, "--no-such-option", check=False)
    assert wrong.returncode == 2 and wrong.stderr


def test_every_verb_explains_itself():
    for verb in names():
        if verb != "bench":
            explains_itself(verb)


def test_every_benchmark_explains_itself():
    for name in names("bench"):
        explains_itself("bench", name)


@pytest.mark.parametrize("args, words", [
    (["compare", "a"], "two model directories"),
    (["compare", "a", "b", "--tokens", "0"], "--tokens 0"),
    (["compare", "a", "b", "--activations-b", "int2"], "--activations-b int2: expected fp32, fp16 or a8"),
    (["compare", "a", "b", "--kv-cache-b", "fp32"], "--kv-cache-b fp32: expected auto, fp16 or int8"),
    (["logits", "--model", "a"], "--cases"),
    (["logits", "--backend", "rocm"], "cpu or cuda"),
    (["logits", "--stage-layers", "17,,18"], "17,18,18,17"),
    (["convert", "--from", "a"], "--out"),
    (["convert", "--from", "a", "--out", "b", "more"], "more"),
    (["convert", "--weights", "int2"], "--weights int2: expected fp16, int8 or int4"),
    (["convert", "--group", "33"], "33"),
    (["convert", "--threads", "65"], "from 1 to 64"),
    (["config", "list"], "check or show"),
    (["config", "check"], "one FILE"),
    (["config", "show", "a", "b"], "one FILE"),
])
def test_wrong_command_lines(args, words):
    result = glmd(*args, check=False)
    assert result.returncode == 2 and words in result.stderr, result.stderr
    assert f"glmd {args[0]} --help" in result.stderr and not result.stdout


def test_fill(server):
    out = glmd("fill", "--top-k", "1", "The train [MASK] to the city.").stdout
    assert out.startswith("The train") and out.rstrip().endswith("to the city.")
    data = json.loads(glmd("fill", "--json", "--beams", "2", "The train [MASK] to the city.").stdout)
    assert len(data["results"]) == 2


def test_generate_streams_and_reports(server):
    result = glmd("generate", "--max-tokens", "12", "--seed", "5", "--stats", "今天")
    assert result.stdout.strip()
    assert "tokens/s" in result.stderr + result.stdout
    again = glmd("generate", "--max-tokens", "12", "--seed", "5", "今天")
    assert again.stdout.strip() in result.stdout


def test_text_from_standard_input(server):
    out = glmd("fill", "--top-k", "1", "-", input="The train [MASK] to the city.").stdout
    assert out.startswith("The train")


def test_score(server):
    out = glmd("score", "--choice", "train", "--choice", "city", "The [MASK] opens.").stdout
    assert "train" in out and "city" in out


def test_status_is_health(server):
    result = glmd("status")
    assert "ready" in result.stdout.lower() and "rank" in result.stdout.lower()
    status = json.loads(glmd("status", "--json").stdout)
    assert all(r["collectives"].startswith(("host: ", "none: "))
               for g in status["groups"] for r in g["ranks"])
    assert status["groups"]
    loop = status["loop"]
    assert sorted(loop) == ["plan_ns", "result_ns", "steps", "update_ns", "updates"]
    assert loop["result_ns"] > 0  # the ranks have said hello
    nobody = glmd("status", "--coordinator", "127.0.0.1:1", check=False)
    assert nobody.returncode == 3 and "127.0.0.1:1" in nobody.stderr


def test_bad_input_is_exit_1_with_the_reason(server):
    result = glmd("generate", "--max-tokens", "4", "river " * 400, check=False)
    assert result.returncode == 1 and "256" in result.stderr


def test_tokenize_round_trip(model):
    folder = model("ckpt-fp16-tp1", "--weights", "int4")
    ids = glmd("tokenize", "--model", folder, "The river").stdout.split()
    assert glmd("detokenize", "--model", folder, *ids).stdout.strip() == "The river"


def test_convert_says_what_is_missing(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / "ckpt-fp16-tp2", source)
    result = glmd("convert", "--from", source, "--out", tmp_path / "out", check=False)
    assert result.returncode == 1 and "--config" in result.stderr
    (source / "49300/mp_rank_01_model_states.pt").write_bytes(b"PK")
    result = glmd("convert", "--from", source, "--out", tmp_path / "out", "--config",
                  GOLDEN / "config.json", check=False)
    assert result.returncode == 1 and "mp_rank_01" in result.stderr
    assert not (tmp_path / "out/manifest.json").exists()


def test_inspect_finds_damage(model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(model("ckpt-fp16-tp1", "--weights", "int4"), copy)
    assert "recorded" in glmd("inspect", "--known-answer", copy).stdout
    assert "again" in glmd("inspect", "--known-answer", "--verify", copy).stdout
    file = next(copy.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    damaged = glmd("inspect", "--verify", copy, check=False)
    assert damaged.returncode == 1 and "checksum" in damaged.stderr + damaged.stdout


def test_config(tmp_path):
    default = tmp_path / "glmd.yaml"
    default.write_text(glmd("config", "show").stdout)
    glmd("config", "check", default)
    default.write_text("coordinator:\n  lissten: 127.0.0.1:1\n")
    wrong = glmd("config", "check", default, check=False)
    assert wrong.returncode != 0 and "lissten" in wrong.stderr and "2" in wrong.stderr
    wrong = glmd("config", "show", "--set", "worker.slotts=3", check=False)
    assert wrong.returncode == 1 and "worker.slotts" in wrong.stderr
    shown = glmd("config", "show", "--plain", "--set", "worker.slots=3", "--set", "worker.slots=5")
    assert "slots: 5" in shown.stdout and "#" not in shown.stdout


def test_daemons_refuse_a_bad_configuration(tmp_path):
    file = tmp_path / "glmd.yaml"
    file.write_text("worker:\n  slots: many\n")
    for daemon in ("glmd-coordinator", "glmd-worker"):
        result = subprocess.run([BIN / daemon, "--config", file], capture_output=True, text=True,
                                timeout=DEADLINE_S)
        assert result.returncode == 64, result
        assert "slots" in result.stderr


def test_a_worker_without_a_gpu_never_falls_back(model):
    folder = model("ckpt-fp16-tp1", "--weights", "int4")
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this host has a GPU driver")
    result = subprocess.run(
        [BIN / "glmd-worker", "--rank", "0", "--coordinator", "127.0.0.1:1", "--model", folder,
         "--device", "cuda:0"], capture_output=True, text=True, timeout=DEADLINE_S)
    assert result.returncode == 71, result.stderr
    # with the library: the driver is missing; without: the library is
    assert "no usable GPU" in result.stderr or "cannot open libglmd_cuda.so" in result.stderr


def test_int8_head_of_the_demo_model(tmp_path):
    """Asked for in config.json; the files stay as they are."""
    demo, other = SOURCE / "deploy/demo/model", tmp_path / "model"
    shutil.copytree(demo, other)
    config = json.loads((other / "config.json").read_text())
    config["quantization_config"]["head"] = "int8"
    (other / "config.json").write_text(json.dumps(config))
    found = json.loads(glmd("compare", demo, other, "--json").stdout)
    print(found)
    assert found["top1_agreement"] >= 0.99 and 0 < found["kl_mean"] < 0.0005
    assert found["perplexity_b"] < 1.005 * found["perplexity_a"]
