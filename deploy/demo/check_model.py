#!/usr/bin/python3
"""Check the training implementation against reference logits: check_model.py GOLDEN

GOLDEN is a directory with a tiny checkpoint in the published layout (ckpt-fp16-tp1), its
config.json, and manifest.json with reference logits (tests of glmd use the same). Prints the
largest difference of every logits file and fails above 1e-3.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy
import torch

from model import load_published

TOLERANCE = 1e-3


def load_golden(golden: Path) -> torch.nn.Module:
    """The tiny model; its config.json lies beside the checkpoint, so assemble a directory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoint"
        shutil.copytree(golden / "ckpt-fp16-tp1", folder)
        shutil.copy(golden / "config.json", folder / "config.json")
        return load_published(folder)


@torch.no_grad()
def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("golden", type=Path)
    args = parser.parse_args()
    net = load_golden(args.golden)
    failed = 0
    for case in json.loads((args.golden / "manifest.json").read_text())["logits"]:
        allowed = torch.from_numpy(numpy.load(args.golden / case["allowed"])).bool()
        expected = numpy.load(args.golden / case["logits"])
        tokens = torch.tensor(case["tokens"])
        positions = torch.tensor(case["position_ids"])
        got = net(tokens, positions, allowed.view(len(tokens), *allowed.shape[-2:])).numpy()
        worst = 0.0
        for row, length in enumerate(case["valid_lengths"]):
            worst = max(worst, float(abs(got[row, :length] - expected[row, :length]).max()))
        verdict = "ok" if worst <= TOLERANCE else "FAILED"
        failed += verdict != "ok"
        print(f"{case['name']:20s} largest difference {worst:.2e} {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
