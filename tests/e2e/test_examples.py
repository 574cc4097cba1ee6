"""The examples and what the README says to type, against running daemons."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import DEADLINE_S, SOURCE


@pytest.fixture
def server(model, module_cluster):
    return module_cluster("examples", model("ckpt-fp16-tp1", "--weights", "int4"), 1)


def sh(script, cwd):
    return subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=cwd, text=True,
                          capture_output=True, timeout=DEADLINE_S)


def usage_of(example):
    """The commands in its documentation, as they stand there."""
    lines = (SOURCE / "examples" / example).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    mkdir"))
    end = next(i for i, line in enumerate(lines) if line == '"""' and i > start)
    return "\n".join(line.strip() for line in lines[start:end])


@pytest.fixture
def checkout(tmp_path):
    """A place that looks like the repository's root, for what is made there."""
    for name in ("proto", "examples"):
        (tmp_path / name).symlink_to(SOURCE / name)
    return tmp_path


def run_commands(commands, server, checkout):
    """On this Python, and on the server that runs here."""
    assert "127.0.0.1:8130" in commands
    commands = commands.replace("127.0.0.1:8130", server.target)
    (checkout / "bin").mkdir()
    (checkout / "bin" / "python3").symlink_to(sys.executable)
    return sh(f'export PATH="$PWD/bin:$PATH"\n{commands}', checkout)


@pytest.mark.parametrize("example", ["generate.py", "kserve.py"])
def test_python(example, server, checkout):
    done = run_commands(usage_of(example), server, checkout)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) > 5


def test_python_says_what_is_wrong(server, checkout):
    commands = usage_of("generate.py").replace("The capital of France is", "")
    done = run_commands(commands, server, checkout)
    assert done.returncode == 1 and done.stderr.startswith("INVALID_ARGUMENT: text: ")


def node_with_grpc():
    node = shutil.which("node")
    found = node and subprocess.run(
        [node, "-e", "require('@grpc/grpc-js'); require('@grpc/proto-loader')"],
        cwd=SOURCE / "examples", capture_output=True).returncode == 0
    return node if found else None


@pytest.mark.skipif(not node_with_grpc(), reason="no node with @grpc/grpc-js and proto-loader")
def test_javascript(server):
    for text, code in (("The capital of France is", 0), ("", 1)):
        done = subprocess.run(["node", str(SOURCE / "examples/generate.mjs"), server.target, text],
                              text=True, capture_output=True, timeout=DEADLINE_S, env=os.environ)
        assert done.returncode == code, done.stderr
        if code:
            assert done.stderr.startswith("INVALID_ARGUMENT: text: "), done.stderr
        else:
            assert re.search(r"\[\d+ tokens\]", done.stdout)


def test_the_readme(server, checkout):
    text = (SOURCE / "README.md").read_text()
    [block] = [b for b in re.findall(r"```sh\n(.*?)```", text, re.S) if "grpc_python_out" in b]
    done = run_commands(block, server, checkout)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) > 5
