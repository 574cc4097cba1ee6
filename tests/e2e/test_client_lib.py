"""libglmd-client as another program finds it: installed, by pkg-config, in C and C++."""

import os
import signal
import subprocess
import time

import grpc
import pytest

from conftest import BIN, DEADLINE_S, SANITIZED, SOURCE

pytestmark = pytest.mark.skipif(SANITIZED, reason="what is installed is the release build")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    where = tmp_path_factory.mktemp("prefix")
    subprocess.run(["cmake", "--install", str(BIN.parent), "--prefix", str(where)], check=True,
                   capture_output=True)
    return where


@pytest.fixture(scope="module")
def env(prefix):
    [pc] = prefix.rglob("glmd-client.pc")
    return {**os.environ, "PKG_CONFIG_PATH": str(pc.parent), "LD_LIBRARY_PATH": str(pc.parents[1])}


def pkg_config(env, *args):
    return subprocess.run(["pkg-config", *args, "glmd-client"], check=True, env=env, text=True,
                          capture_output=True).stdout.split()


@pytest.fixture(scope="module")
def build(prefix, env, tmp_path_factory):
    """build(source) -> program, compiled with nothing but what pkg-config says."""
    out = tmp_path_factory.mktemp("programs")

    def compile_it(source):
        program = out / source.stem
        subprocess.run(["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", str(source), "-pthread",
                        *pkg_config(env, "--cflags", "--libs"), "-o", str(program)], check=True)
        return program

    return compile_it


@pytest.fixture(scope="module")
def program(build, env):
    path = build(SOURCE / "tests/e2e/client_lib.c")

    def run(*args, **kwargs):
        result = subprocess.run([str(path), *map(str, args)], env=env, capture_output=True,
                                text=True, timeout=DEADLINE_S, **kwargs)
        assert result.returncode == 0, result.stdout + result.stderr
        assert not result.stderr, "a library is silent"
        facts = {}
        for line in result.stdout.splitlines():
            key, _, value = line.partition(" ")
            facts.setdefault(key, []).append(value)
        return facts

    run.path = path
    return run


@pytest.fixture
def server(model, module_cluster):
    return module_cluster("client-lib", model("ckpt-fp16-tp1", "--weights", "int4"), 2)


def test_what_is_installed(prefix, env):
    headers = [str(p.relative_to(prefix)) for p in (prefix / "include").rglob("*") if p.is_file()]
    assert headers == ["include/glmd/client.h"], "no internal header leaves the tree"
    [library] = prefix.rglob("libglmd-client.so.0.*")
    links = {p.name for p in library.parent.glob("libglmd-client.so*")}
    assert {"libglmd-client.so", "libglmd-client.so.0"} <= links
    assert pkg_config(env, "--modversion") == [library.name.split(".so.")[1]]
    dynamic = subprocess.run(["readelf", "-d", str(library)], check=True, text=True,
                             capture_output=True).stdout
    assert "soname: [libglmd-client.so.0]" in dynamic


def test_only_what_the_header_declares_is_visible(prefix):
    [library] = prefix.rglob("libglmd-client.so.0.*")
    lines = subprocess.run(["nm", "-D", "--defined-only", str(library)], check=True, text=True,
                           capture_output=True).stdout.splitlines()
    symbols = {name for name in (line.split()[-1] for line in lines) if name != "GLMD_CLIENT_0"}
    assert all(name.endswith("@@GLMD_CLIENT_0") for name in symbols), symbols
    text = (prefix / "include/glmd/client.h").read_text()
    declared = set()
    for piece in text.split("GLMD_API ")[1:]:
        declared.add(piece.split("(")[0].split()[-1].lstrip("*"))
    declared = {d for d in declared if d.startswith("glmd_")}
    assert {s.split("@@")[0] for s in symbols} == declared


@pytest.mark.parametrize("compiler", ["cc -std=c99 -xc", "c++ -std=c++11 -xc++"])
def test_the_header_stands_alone(prefix, compiler, tmp_path):
    source = tmp_path / "alone.txt"
    source.write_text("#include <glmd/client.h>\n"
                      "int use(void); int use(void) { struct glmd_options o = glmd_options_init();\n"
                      "struct glmd_request r = glmd_request_init(\"x\"); return (int)(o.size+r.size); }\n")
    subprocess.run([*compiler.split(), "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only",
                    f"-I{prefix / 'include'}", str(source)], check=True)


def test_the_example(server, build, env):
    source = SOURCE / "examples/generate.c"
    assert len(source.read_text().splitlines()) < 60
    example = build(source)
    done = subprocess.run([str(example), server.target, "The river"], env=env, text=True,
                          capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    assert "tokens, seed " in done.stdout.splitlines()[-1]
    done = subprocess.run([str(example), server.target, ""], env=env, text=True,
                          capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 1
    assert done.stderr.startswith("INVALID_ARGUMENT: ") and "look at: text" in done.stderr


def test_generate(server, program, api):
    facts = program(server.target, "generate")
    stub = list(server.inference.Generate(api.GenerateRequest(
        text="The river", max_tokens=12, n=2, sampling=api.SamplingParameters(
            temperature=0.9, top_p=0.8, seed=5, ignore_end=True)), timeout=DEADLINE_S))
    expected = ["".join(d.text for m in stub for d in m.choices if d.index == i) for i in (0, 1)]
    assert facts["text"] == [f"2 {t}" for t in expected]
    for i, text in enumerate(expected):
        pieces = [p[2:] for p in facts["piece"] if p.startswith(f"{i} ")]
        assert "".join(pieces) == text and len(pieces) > 2
    assert facts["tokens"] == [f"{stub[-1].usage.prompt_tokens} 24"]
    assert facts["seed"] == ["5"] and facts["id"] == ["from-c"]


def test_fill_and_the_rest(server, program, api):
    facts = program(server.target, "fill")
    stub = list(server.inference.Fill(api.FillRequest(
        text="The [MASK] train to [MASK].", max_length=60,
        sampling=api.SamplingParameters(temperature=0)), timeout=DEADLINE_S))[-1]
    assert facts["text"] == [f"0 {stub.results[0].text}"]
    assert facts["blank"] == list(stub.results[0].blanks) and len(facts["blank"]) == 2
    facts = program(server.target, "others")
    score = server.inference.Score(api.ScoreRequest(text="The river", choices=["flows", "eats"]),
                                   timeout=DEADLINE_S)
    a, b = (f"{c.logprob:.4f}" for c in score.choices)
    assert facts["scores"] == [f"{a} {b} best {score.best}"]
    assert facts["text"] == ["The river"] and facts["ready"] == ["1"]
    m = server.inference.ListModels(api.ListModelsRequest(), timeout=10).models[0]
    assert facts["model"] == [f"{m.id} glm int4 256 640 3 {m.hidden_size}"]


def test_errors_are_told(server, program):
    facts = program(server.target, "cancel")
    assert facts["code"] == ["CANCELLED"] and len(facts["piece"]) == 2
    facts = program(server.target, "bad")
    assert facts["code"] == ["INVALID_ARGUMENT"] and facts["field"] == ["temperature"]
    assert facts["message"][0].startswith("temperature: expected")
    facts = program(server.target, "misuse")
    assert facts["code"] == ["FAILED_PRECONDITION", "FAILED_PRECONDITION", "CANCELLED"]
    facts = program("127.0.0.1:1", "generate")
    assert facts["code"] == ["UNAVAILABLE"]
    facts = program("nonsense", "generate")
    assert facts["code"] == ["INVALID_ARGUMENT"]


def test_refused_for_now_is_tried_again(model, cluster, api, program, env):
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 0, ready=False, workers="external",
                coordinator__limits__max_queue=1)
    waiting = c.inference.Generate(api.GenerateRequest(text="a"), timeout=DEADLINE_S)
    c.wait(lambda: (s := c.status()) and s.waiting == 1, "the first request to wait")
    facts = program(c.target, "generate", 5, 1)
    assert facts["code"] == ["RESOURCE_EXHAUSTED"] and float(facts["retry"][0]) >= 1
    rejected = c.status().requests.rejected
    start = time.monotonic()
    running = subprocess.Popen([str(program.path), c.target, "generate", "4", "2"], env=env,
                               stdout=subprocess.PIPE, text=True)
    c.wait(lambda: c.status().requests.rejected > rejected, "the first attempt to be refused")
    waiting.cancel()  # there is room now
    out = running.communicate(timeout=DEADLINE_S)[0]
    assert time.monotonic() - start >= 1, "it waited as long as the server said"
    assert "code UNAVAILABLE" in out or "code DEADLINE_EXCEEDED" in out, "queued: there are no ranks"


def test_a_server_that_freezes_is_given_up_within_seconds(model, cluster, program, env):
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 1)
    running = subprocess.Popen([str(program.path), c.target, "wait", "60", "1"], env=env,
                               stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "connected\n"
    c.processes["coordinator"].send_signal(signal.SIGSTOP)
    try:
        start = time.monotonic()
        out = running.communicate("\n", timeout=DEADLINE_S)[0]
        seconds = time.monotonic() - start
        print(f"given up after {seconds:.1f} s")
        assert "code UNAVAILABLE" in out and seconds < 12, out
    finally:
        c.processes["coordinator"].send_signal(signal.SIGCONT)
    c.wait_ready()
