"""The demo model: GLM-130B's architecture in PyTorch, its tokenizer, and its checkpoint layout.

Post-LN with the normalised residual (alpha = sqrt(2 L)), rotary positions over the whole head with
FP16-rounded tables, GeGLU with the erf GELU on the second half, query/key/value grouped by head,
head tied to the embedding. This is a training implementation: it has no KV cache and no tensor
parallelism, and it computes in bfloat16 where the device is good at that.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from torch import nn

IMAGE_IDS = 16  # ids below this stand for GLM-130B's image codes and never occur in text
SPECIALS = ["[MASK]", "[gMASK]", "[sMASK]", "eod", "sop", "eop", "ENC", "dBLOCK"]
MAX_SEQ = 2048
EPS = 1e-5
ROPE_BASE = 10000

# our parameter name -> name in the published checkpoints
LAYER_NAMES = {
    "ln_in": "input_layernorm",
    "qkv": "attention.query_key_value",
    "dense": "attention.dense",
    "ln_post": "post_attention_layernorm",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}


@dataclass(frozen=True)
class Config:
    """Sizes; everything else is fixed by the architecture."""

    layers: int = 4
    hidden: int = 256
    heads: int = 8
    inner: int = 768
    vocab: int = 10112

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def alpha(self) -> float:
        return math.sqrt(2 * self.layers)

    def parameters(self) -> int:
        """Number of parameters, the tied embedding counted once."""
        h, i = self.hidden, self.inner
        layer = 4 * h * h + 3 * h * i + 4 * h + 2 * i + h + 4 * h
        return self.vocab * h + self.layers * layer + 2 * h


class Tokenizer:
    """SentencePiece in icetk's conventions: image ids first, then pieces, then the specials."""

    def __init__(self, path: Path | str) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.special_base = IMAGE_IDS + self.pieces.get_piece_size()
        self.specials = {name: self.special_base + i for i, name in enumerate(SPECIALS)}
        self.mask, self.gmask, self.smask = (self.specials[n] for n in SPECIALS[:3])
        self.sop, self.eop = self.specials["sop"], self.specials["eop"]
        self.unk = IMAGE_IDS
        self.eos = IMAGE_IDS + 2
        self.pad = IMAGE_IDS + 3
        self.bare_prefix = IMAGE_IDS + self.pieces.piece_to_id("\u2581")

    @property
    def vocab(self) -> int:
        """Rows of the embedding: all ids, rounded up to a multiple of 128."""
        return (self.special_base + len(SPECIALS) + 127) // 128 * 128

    def encode(self, text: str) -> list[int]:
        return [IMAGE_IDS + t for t in self.pieces.encode(text)]

    def decode(self, ids: list[int]) -> str:
        inside = [t - IMAGE_IDS for t in ids if IMAGE_IDS <= t < self.special_base]
        return self.pieces.decode(inside)

    def piece(self, token: int) -> str:
        """The piece of an id, with its word-start mark (U+2581)."""
        return self.pieces.id_to_piece(token - IMAGE_IDS)

    def encode_masked(self, text: str) -> list[int]:
        """A text with one [MASK], [sMASK] or [gMASK], as inference encodes it: the parts alone,
        the mask id between, eos at the end unless the mask is there."""
        name = next((n for n in SPECIALS[:3] if n in text), None)
        if name is None:
            return self.encode(text) + [self.gmask]
        before, after = text.split(name, 1)
        ids = self.encode(before) + [self.specials[name]] + self.encode(after)
        return ids if ids[-1] == self.specials[name] else ids + [self.eos]


def rotary_tables(head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, [MAX_SEQ, head_dim / 2] float32 holding FP16 values, rounded as GLM-130B does:
    the frequencies, then the angles, then the results."""
    power = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequency = (ROPE_BASE**-power).half().float()
    angle = (torch.arange(MAX_SEQ, dtype=torch.float32)[:, None] * frequency).half().float()
    return angle.cos().half().float(), angle.sin().half().float()


class FakeQuant(torch.autograd.Function):
    """Per-row INT4 rounding in the forward pass, identity in the backward pass."""

    @staticmethod
    def forward(ctx, weight: torch.Tensor) -> torch.Tensor:
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-8) / 7
        return (weight / scale).round_().mul_(scale)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return grad


class Linear(nn.Linear):
    """A linear layer that can train against its own INT4 rounding."""

    quantised = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = FakeQuant.apply(self.weight) if self.quantised else self.weight
        return F.linear(x, weight, self.bias)


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        h, i = config.hidden, config.inner
        self.config = config
        self.ln_in, self.ln_post = nn.LayerNorm(h, eps=EPS), nn.LayerNorm(h, eps=EPS)
        self.qkv, self.dense = Linear(h, 3 * h), Linear(h, h)
        self.up, self.down = Linear(h, 2 * i), Linear(i, h)

    def attention(
        self, a: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """a [B, T, H]; cos, sin [B, 1, T, D/2]; bias [B, 1, T, T], 0 or -10000."""
        b, t, h = a.shape
        c = self.config
        qkv = self.qkv(a).view(b, t, c.heads, 3, c.head_dim).permute(3, 0, 2, 1, 4)
        q, k = rotate(qkv[:2], cos, sin)  # both [B, N, T, D]
        out = attend(q, k, qkv[2], bias)
        return self.dense(out.transpose(1, 2).reshape(b, t, h))

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        a = self.ln_in(x)
        x = self.config.alpha * a + self.attention(a, cos, sin, bias)
        b = self.ln_post(x)
        first, second = self.up(b).chunk(2, -1)
        # Contiguous, because oneDNN's GELU is nine times as fast then.
        return self.config.alpha * b + self.down(first * F.gelu(second.contiguous()))


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Softmax attention; q, k, v [B, N, T, D], bias as in Layer.attention."""
    if hasattr(F, "scaled_dot_product_attention"):  # torch 2: one fused kernel
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    with torch.autocast(q.device.type, enabled=False):
        weights = (scores + bias.to(scores.dtype)).softmax(-1)
    return torch.matmul(weights, v)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions, pairs (i, i + D/2); x [..., B, N, T, D]."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class HeadLoss(torch.autograd.Function):
    """Sum of the negative log-likelihoods of `targets` [n] under x [n, H] times the tied head
    [V, H]. Forward and backward in one pass over slices of rows that stay in the cache: n * V
    logits never exist at once."""

    ROWS = 128

    @staticmethod
    def forward(ctx, x: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        dx, dhead, loss = torch.empty_like(x), torch.zeros_like(head), x.new_zeros(())
        for begin in range(0, len(x), HeadLoss.ROWS):
            rows = slice(begin, begin + HeadLoss.ROWS)
            logits = x[rows] @ head.t()
            wanted = targets[rows, None]
            best = logits.amax(1, keepdim=True)
            loss -= (logits.gather(1, wanted) - best).sum()
            logits.sub_(best).exp_()
            total = logits.sum(1, keepdim=True)
            loss += total.log().sum()
            logits.div_(total).scatter_add_(1, wanted, torch.full_like(total, -1.0))
            torch.mm(logits, head, out=dx[rows])
            dhead.addmm_(logits.t(), x[rows])
        ctx.save_for_backward(dx, dhead)
        return loss

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        dx, dhead = ctx.saved_tensors
        return dx * grad, dhead * grad, None


class GLM(nn.Module):
    """The whole model."""

    def __init__(self, config: Config, gain: float = 0.0, shrink: float = 1.0) -> None:
        """gain: initial gain of values, output and MLP projections, 0 = DeepNorm's (2 L)^-1/2;
        shrink: share of the gradient that reaches the input embedding."""
        super().__init__()
        self.config, self.shrink = config, shrink
        self.emb = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.ln = nn.LayerNorm(config.hidden, eps=EPS)
        cos, sin = rotary_tables(config.head_dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialise(gain or (2 * config.layers) ** -0.5)

    def initialise(self, gain: float) -> None:
        """Xavier; values, output and MLP projections times the gain."""
        c = self.config
        nn.init.normal_(self.emb.weight, std=0.02)
        for layer in self.layers:
            nn.init.xavier_normal_(layer.qkv.weight)
            by_head = layer.qkv.weight.detach().view(c.heads, 3, c.head_dim, c.hidden)
            by_head[:, 2] *= gain
            for linear in (layer.dense, layer.up, layer.down):
                nn.init.xavier_normal_(linear.weight, gain=gain)
            for linear in (layer.qkv, layer.dense, layer.up, layer.down):
                nn.init.zeros_(linear.bias)

    def quantise(self, on: bool) -> None:
        """Switch INT4 rounding of the linear weights on or off."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.quantised = on

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        allow: torch.Tensor,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits, [rows, V] or [B, T, V]; arguments as of hidden()."""
        return F.linear(self.hidden(tokens, positions, allow, rows), self.emb.weight)

    def loss(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        allow: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """Mean negative log-likelihood of the targets [B, T], -1 = none."""
        rows = targets >= 0
        x = self.hidden(tokens, positions, allow, rows).float()
        wanted = targets[rows]
        return HeadLoss.apply(x, self.emb.weight, wanted) / len(wanted)

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        allow: torch.Tensor,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """tokens, positions [B, T]; allow [B, T, T] bool, True = the query sees the key;
        rows [B, T] bool selects the outputs wanted. Returns what the head reads."""
        x = self.emb(tokens)
        if self.shrink != 1:
            x = x * self.shrink + x.detach() * (1 - self.shrink)
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        bias = (~allow[:, None]).to(torch.bfloat16) * -10000.0
        for layer in self.layers:
            x = layer(x, cos, sin, bias)
        return self.ln(x if rows is None else x[rows])


# ---- checkpoints ---------------------------------------------------------------------------------


def published_state(net: GLM) -> dict[str, torch.Tensor]:
    """The weights as FP16 under the published names."""
    state = {name: value.detach().half().cpu().clone() for name, value in net.state_dict().items()}
    module = {"transformer.word_embeddings.weight": state["emb.weight"]}
    for index in range(net.config.layers):
        for ours, theirs in LAYER_NAMES.items():
            for part in ("weight", "bias"):
                name = f"transformer.layers.{index}.{theirs}.{part}"
                module[name] = state[f"layers.{index}.{ours}.{part}"]
    for part in ("weight", "bias"):
        module[f"transformer.final_layernorm.{part}"] = state[f"ln.{part}"]
    return module


def save_published(net: GLM, tokenizer: Tokenizer, out: Path, iteration: int) -> None:
    """Write latest, <iteration>/mp_rank_00_model_states.pt and config.json."""
    folder = out / str(iteration)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"module": published_state(net)}, folder / "mp_rank_00_model_states.pt")
    (out / "latest").write_text(str(iteration))
    c = net.config
    fields = {
        "num_layers": c.layers,
        "hidden_size": c.hidden,
        "num_heads": c.heads,
        "inner_size": c.inner,
        "vocab_size": c.vocab,
        "num_image_tokens": IMAGE_IDS,
        "special_base": tokenizer.special_base,
        "max_seq": MAX_SEQ,
        "layernorm_eps": EPS,
        "rope_base": ROPE_BASE,
        "special_tokens": {**tokenizer.specials, "eos": tokenizer.eos},
        "iteration": str(iteration),
    }
    (out / "config.json").write_text(json.dumps(fields, indent=1) + "\n")


def load_published(folder: Path) -> GLM:
    """A model from a directory in the published layout (one rank, FP16, with config.json)."""
    fields = json.loads((folder / "config.json").read_text())
    config = Config(
        layers=fields["num_layers"],
        hidden=fields["hidden_size"],
        heads=fields["num_heads"],
        inner=fields["inner_size"],
        vocab=fields["vocab_size"],
    )
    iteration = (folder / "latest").read_text().strip()
    path = folder / iteration / "mp_rank_00_model_states.pt"
    module = torch.load(path, map_location="cpu")["module"]
    state = {"emb.weight": module["transformer.word_embeddings.weight"]}
    for part in ("weight", "bias"):
        state[f"ln.{part}"] = module[f"transformer.final_layernorm.{part}"]
    for index in range(config.layers):
        for ours, theirs in LAYER_NAMES.items():
            for part in ("weight", "bias"):
                name = f"transformer.layers.{index}.{theirs}.{part}"
                state[f"layers.{index}.{ours}.{part}"] = module[name]
    net = GLM(config)
    net.load_state_dict({name: value.float() for name, value in state.items()})
    return net
