"""What the default activation mode and keys and values in INT8 may lose: the demo model against itself
in FP32.

`data/held_out.txt` is text that the demo model has never seen (of every 40th document of its corpus): parts
of the King James Bible and of Jane Austen, old Chinese verse, sayings and classics, in turns; the texts are
in the public domain. The same conditions on activations with outliers: tests/ops/test_quality.c.
"""

import functools
import json
import pathlib
import re

import pytest

from conftest import SANITIZED, SOURCE, glmd

DEMO = SOURCE / "deploy/demo/model"
TEXT = pathlib.Path(__file__).parent / "data/held_out.txt"
AGREEMENT, DIVERGENCE = 0.995, 0.002  # at least, below


def default_mode():
    """What a worker computes with unless it is told otherwise."""
    return re.search(r"^ *activations: *(\S+)", glmd("config", "show").stdout, re.M)[1]


@functools.cache
def lost(mode, tokens, context=0, kv="auto"):
    """context: of each 256 tokens, those that see each other, as a prompt's do; the rest count."""
    found = json.loads(
        glmd("compare", DEMO, DEMO, "--text", TEXT, "--tokens", tokens, "--context", context,
             "--activations", "fp32", "--activations-b", mode, "--kv-cache-b", kv, "--json",
             timeout=1200).stdout)
    print(f"{mode}, {kv} keys and values, context {context}: {found}")
    return found


def hold(found, tokens):
    assert found["tokens"] >= tokens
    assert found["top1_agreement"] >= AGREEMENT
    assert 0 <= found["kl_mean"] < DIVERGENCE
    assert abs(found["perplexity_b"] / found["perplexity_a"] - 1) < DIVERGENCE


def hold_int8_keys_and_values(tokens, n_scored, context):
    """And they must lose more than those of the mode itself, or they are none."""
    as_they_come = lost(default_mode(), tokens, context)
    int8 = lost(default_mode(), tokens, context, "int8")
    hold(int8, n_scored)
    assert int8["kl_mean"] > 10 * as_they_come["kl_mean"]


@pytest.mark.parametrize("context", [0, 128])
def test_default_mode_keeps_the_demo_models_choices(context):
    windows = 2 if SANITIZED else 8
    hold(lost(default_mode(), 256 * windows, context), (256 - context) * windows)


@pytest.mark.parametrize("context", [0, 128])
def test_int8_keys_and_values_keep_them_too(context):
    windows = 2 if SANITIZED else 8
    hold_int8_keys_and_values(256 * windows, (256 - context) * windows, context)


@pytest.mark.long
@pytest.mark.skipif(SANITIZED, reason="minutes; the short one runs with sanitizers")
@pytest.mark.parametrize("context", [0, 128])
def test_default_mode_on_the_whole_text(context):
    """And a8, which has no promise on choices: it must lose more, or the text tells nothing."""
    default, a8 = lost(default_mode(), 1 << 20, context), lost("a8", 1 << 20, context)
    hold(default, 15000 if context == 0 else 7500)
    assert a8["kl_mean"] > 10 * default["kl_mean"]
    assert a8["kl_mean"] < DIVERGENCE


@pytest.mark.long
@pytest.mark.skipif(SANITIZED, reason="minutes; the short one runs with sanitizers")
@pytest.mark.parametrize("context", [0, 128])
def test_int8_keys_and_values_on_the_whole_text(context):
    hold_int8_keys_and_values(1 << 20, 15000 if context == 0 else 7500, context)
