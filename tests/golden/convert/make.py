#!/usr/bin/env python3
"""Writes the tiny checkpoints of this folder with PyTorch: one model in the forms that torch.save
may give it. Run in this folder; the files are kept in the repository because the tests do not need
PyTorch.

  plain   one shard, every tensor by itself
  views   the same values: two shards whose tensors are views into shared storages (offsets, row
          strides), nn.Parameter, OrderedDict with metadata, other top-level keys, tensors that the
          model does not have
  transposed   a matrix that is stored column by column: refused
  odd     two shards that do not quite belong together: a norm differs, and one weight is infinite
"""
import json
from collections import OrderedDict
from pathlib import Path

import torch

H, N, I, V, L = 8, 2, 12, 32, 1
CONFIG = {
    "num_layers": L, "hidden_size": H, "num_heads": N, "inner_size": I, "vocab_size": V,
    "num_image_tokens": 4, "special_base": 20, "max_seq": 16, "layernorm_eps": 1e-5,
    "rope_base": 10000,
    "special_tokens": {"[MASK]": 20, "[gMASK]": 21, "[sMASK]": 22, "eod": 23, "sop": 24, "eop": 25,
                       "ENC": 26, "dBLOCK": 27, "eos": 6},
}
ROWS = ["word_embeddings.weight", "query_key_value.weight", "query_key_value.bias"]
HALVES = ["dense_h_to_4h.weight", "dense_h_to_4h.bias"]
COLUMNS = ["attention.dense.weight", "dense_4h_to_h.weight"]


def full_model():
    torch.manual_seed(130)
    shapes = {"transformer.word_embeddings.weight": (V, H)}
    for layer in range(L):
        p = f"transformer.layers.{layer}."
        shapes |= {
            p + "input_layernorm.weight": (H,), p + "input_layernorm.bias": (H,),
            p + "attention.query_key_value.weight": (3 * H, H),
            p + "attention.query_key_value.bias": (3 * H,),
            p + "attention.dense.weight": (H, H), p + "attention.dense.bias": (H,),
            p + "post_attention_layernorm.weight": (H,),
            p + "post_attention_layernorm.bias": (H,),
            p + "mlp.dense_h_to_4h.weight": (2 * I, H), p + "mlp.dense_h_to_4h.bias": (2 * I,),
            p + "mlp.dense_4h_to_h.weight": (H, I), p + "mlp.dense_4h_to_h.bias": (H,),
        }
    shapes |= {"transformer.final_layernorm.weight": (H,), "transformer.final_layernorm.bias": (H,)}
    return {name: torch.randn(shape).half() for name, shape in shapes.items()}


def part(name, tensor, rank, ranks):
    """The part of one rank; a view where that is possible."""
    if any(name.endswith(s) for s in ROWS):
        return tensor.chunk(ranks, 0)[rank]
    if any(name.endswith(s) for s in HALVES):
        return torch.cat([half.chunk(ranks, 0)[rank] for half in tensor.chunk(2, 0)], 0)
    if any(name.endswith(s) for s in COLUMNS):
        return tensor.chunk(ranks, 1)[rank]
    return tensor


def save(name, shards, **other):
    folder = Path(name) / "49300"
    folder.mkdir(parents=True, exist_ok=True)
    (Path(name) / "latest").write_text("49300\n")
    (Path(name) / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    for rank, module in enumerate(shards):
        torch.save({"module": module, **other}, folder / f"mp_rank_{rank:02d}_model_states.pt")


def main():
    model = full_model()
    save("plain", [model])

    pool = torch.zeros(4096).half()  # all tensors of all ranks live in one storage
    pooled, at = {}, 3
    for name, tensor in model.items():
        view = pool[at:at + tensor.numel()].view(tensor.shape)
        view.copy_(tensor)
        pooled[name] = view
        at += tensor.numel() + 1
    shards = []
    for rank in range(2):
        module = OrderedDict()
        for name, tensor in pooled.items():
            module[name] = part(name, tensor, rank, 2)
        module["transformer.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(2)
        module["mixins.extra.weight"] = torch.nn.Parameter(torch.ones(2, 3, 4).half())
        name = "transformer.layers.0.mlp.dense_4h_to_h.bias"
        module[name] = torch.nn.Parameter(module[name])
        module._metadata = OrderedDict(version=1)
        shards.append(module)
    save("views", shards, iteration=49300, lr=0.1, finished=True, notes=None, ranks=[0, 1, (2, 3)])

    name = "transformer.layers.0.attention.dense.weight"
    save("transposed", [{**model, name: model[name].t().contiguous().t()}])

    shards = [{n: part(n, t, r, 2).clone() for n, t in model.items()} for r in range(2)]
    shards[1]["transformer.final_layernorm.weight"][3] += 1
    shards[1]["transformer.layers.0.attention.dense.weight"][2, 1] = float("inf")
    save("odd", shards)


if __name__ == "__main__":
    main()
