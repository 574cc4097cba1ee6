#!/usr/bin/env python3
"""Writes a checkpoint in the published (SwissArmyTransformer) layout with random FP16 weights, for
measuring `glmd convert` at sizes that matter.

    make_synthetic_checkpoint.py DIR [--layers 8] [--hidden 4096] [--heads 32] [--inner 10880]
                                     [--vocab 150528] [--shards 2]

The default is 4.5 GB: two shards of a model with GLM-130B's vocabulary. Needs PyTorch and one
shard's size of memory.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

BLOCK = torch.empty(1 << 22).normal_(std=0.02, generator=torch.Generator().manual_seed(1)).half()


def weights(*shape: int) -> torch.Tensor:
    """Normally distributed values, repeated every few million: fast, and enough for a quantizer."""
    n = 1
    for size in shape:
        n *= size
    return BLOCK.repeat(-(-n // BLOCK.numel()))[:n].reshape(shape).clone()


def shard(a: argparse.Namespace) -> dict[str, torch.Tensor]:
    """One rank's tensors; all ranks have the same shapes (and, here, the same values)."""
    h, p, i = a.hidden, a.shards, a.inner
    t = {"transformer.word_embeddings.weight": weights(a.vocab // p, h)}
    for layer in range(a.layers):
        prefix = f"transformer.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            t[prefix + norm + ".weight"] = torch.ones(h, dtype=torch.half)
            t[prefix + norm + ".bias"] = torch.zeros(h, dtype=torch.half)
        t[prefix + "attention.query_key_value.weight"] = weights(3 * h // p, h)
        t[prefix + "attention.query_key_value.bias"] = weights(3 * h // p)
        t[prefix + "attention.dense.weight"] = weights(h, h // p)
        t[prefix + "attention.dense.bias"] = weights(h)
        t[prefix + "mlp.dense_h_to_4h.weight"] = weights(2 * i // p, h)
        t[prefix + "mlp.dense_h_to_4h.bias"] = weights(2 * i // p)
        t[prefix + "mlp.dense_4h_to_h.weight"] = weights(h, i // p)
        t[prefix + "mlp.dense_4h_to_h.bias"] = weights(h)
    t["transformer.final_layernorm.weight"] = torch.ones(h, dtype=torch.half)
    t["transformer.final_layernorm.bias"] = torch.zeros(h, dtype=torch.half)
    return t


def config(a: argparse.Namespace) -> dict[str, object]:
    """What the shapes do not tell; special tokens where GLM-130B has them, or at the end."""
    base = 150000 if a.vocab >= 150008 else a.vocab - 8
    names = ["[MASK]", "[gMASK]", "[sMASK]", "eod", "sop", "eop", "ENC", "dBLOCK"]
    image = 20000 if base > 20003 else 0
    return {
        "num_layers": a.layers,
        "hidden_size": a.hidden,
        "num_heads": a.heads,
        "inner_size": a.inner,
        "vocab_size": a.vocab,
        "num_image_tokens": image,
        "special_base": base,
        "max_seq": 2048,
        "layernorm_eps": 1e-5,
        "rope_base": 10000,
        "special_tokens": {n: base + k for k, n in enumerate(names)} | {"eos": image + 2},
    }


def main() -> None:
    """Parses the sizes and writes the files."""
    parser = argparse.ArgumentParser(description="random checkpoint in the published layout")
    parser.add_argument("dir", type=Path)
    for name, size in [("layers", 8), ("hidden", 4096), ("heads", 32), ("inner", 10880),
                       ("vocab", 150528), ("shards", 2)]:
        parser.add_argument(f"--{name}", type=int, default=size)
    a = parser.parse_args()
    folder = a.dir / "49300"
    folder.mkdir(parents=True)
    (a.dir / "latest").write_text("49300")
    (a.dir / "config.json").write_text(json.dumps(config(a), indent=1) + "\n")
    module = shard(a)
    for rank in range(a.shards):
        torch.save({"module": module}, folder / f"mp_rank_{rank:02d}_model_states.pt")
    total = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{a.dir}: {total / 1e9:.2f} GB in {a.shards} shards")


if __name__ == "__main__":
    main()
