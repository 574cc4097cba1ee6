"""cpu-speed's plot, and its products in any order beside ours."""

import re
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

from conftest import BIN

SMALL = ["--model", "glm-1.6b", "--only", "dense", "--tp", "8", "--threads", "1", "--seconds", "0.001"]


def cpu_speed(*args):
    return subprocess.run([BIN / "cpu-speed", *SMALL, *map(str, args)], capture_output=True, text=True,
                          timeout=300)


def test_plot(tmp_path):
    path = tmp_path / "shares.svg"
    run = cpu_speed("--mode", "a8", "--batch", "1,3,16", "--svg", path)
    assert run.returncode == 0, run.stderr
    tags = [e.tag.split("}")[1] for e in ElementTree.parse(path).iter()]
    assert (tags.count("circle"), tags.count("polyline")) == (3, 1)
    assert "dense 2048 x 256, TP 8" in path.read_text()


def test_plot_that_cannot_be_written(tmp_path):
    run = cpu_speed("--batch", "1", "--svg", tmp_path / "none" / "shares.svg")
    assert run.returncode == 1 and "No such file" in run.stderr


@pytest.mark.parametrize("mode, weights", [("a8", "i4"), ("fp16", "i4"), ("fp32", "i8"), ("fp16", "f16")])
def test_order(mode, weights):
    """It checks the sums of both itself: they differ by rounding only."""
    run = cpu_speed("--order", "--mode", mode, "--weights", weights, "--batch", "1,2,5,24")
    if "is for avx512gfni" in run.stderr:
        pytest.skip(run.stderr)
    assert run.returncode == 0, run.stderr
    assert len(re.findall(r"^dense +8 +2048 x 256 ", run.stdout, re.M)) == 4, run.stdout
