"""Blank-infilling samples: what the model sees and what it must predict.

A sample is a context with masks, followed by one answer block per mask:

    context                                  block of mask 1      block of mask 2
    In the [MASK] God created the [MASK] ... sop beginning        sop heaven and
    0  1   2      3   4       5   6          2   2                6   6   6        <- positions
                                             beginning eop        heaven  and eop  <- targets

The context is seen in both directions by everything; a block is causal and invisible to the other
blocks, so each answer is predicted exactly as at inference with the other masks still open. [MASK]
hides one to six tokens, [sMASK] a clause; all positions of a block are the index of its mask. A
[gMASK] context has one block, a continuation, whose positions run on. Rows are packed: several
samples stand side by side and do not see each other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import torch

from model import Tokenizer

SPAN_LENGTHS = [1] * 11 + [2] * 4 + [3] * 2 + [4, 5, 6]
LONGEST_CLAUSE = 32


@dataclass
class Sample:
    """tokens, positions and targets (-1 where none) of equal length; block 0 is the context."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)

    def add_context(self, ids: list[int]) -> None:
        """Context tokens, seen in both directions."""
        self.positions += range(len(self.tokens), len(self.tokens) + len(ids))
        self.tokens += ids
        self.blocks += [0] * len(ids)
        self.targets += [-1] * len(ids)

    def add_block(self, sop: int, answer: list[int], mask_at: int | None) -> None:
        """One answer; answer includes its end token. mask_at None: positions run on."""
        inputs = [sop] + answer[:-1]
        first = len(self.tokens)
        if mask_at is None:
            self.positions += range(first, first + len(inputs))
        else:
            self.positions += [mask_at] * len(inputs)
        self.tokens += inputs
        self.blocks += [max(self.blocks) + 1] * len(inputs)
        self.targets += answer


class Blanker:
    """Turns token windows into samples."""

    def __init__(self, tokenizer: Tokenizer, rng: random.Random) -> None:
        self.tokenizer, self.rng = tokenizer, rng
        self.stops = {t for mark in "，。；：？！,.;:?!" for t in tokenizer.encode("a" + mark)[-1:]}
        self.alone = self._pieces_alone()

    def _pieces_alone(self) -> dict[int, list[int]]:
        """Pieces without a word-start mark, as they come out when a text begins with them. At
        inference the text behind a mask is encoded alone, so this is what follows a mask."""
        t = self.tokenizer
        found = {}
        for token in range(t.unk + 5, t.special_base):
            piece = t.piece(token)
            if not piece.startswith("\u2581"):
                ids = t.encode(piece)
                if ids != [token]:
                    found[token] = ids
        return found

    def restart(self, ids: list[int]) -> list[int]:
        """ids as the beginning of a text part: usually re-encoded, as inference would."""
        if ids and ids[0] in self.alone and self.rng.random() < 0.8:
            return self.alone[ids[0]] + ids[1:]
        return ids

    def blanks(self, ids: list[int], spans: list[tuple[int, int]], mask: int) -> Sample:
        """Replace each span (start, length) of ids by the mask and append its answer."""
        t, sample, masks, last = self.tokenizer, Sample(), [], 0
        for start, length in spans:
            sample.add_context(self.restart(ids[last:start]))
            masks.append(len(sample.tokens))
            sample.add_context([mask])
            last = start + length
        if last < len(ids):
            sample.add_context(self.restart(ids[last:]) + [t.eos])
        for (start, length), mask_at in zip(spans, masks):
            answer = ids[start : start + length]
            # A one-token answer need not always pay for its end token.
            if length > 1 or self.rng.random() < 0.4:
                answer = answer + [t.eop]
            sample.add_block(t.sop, answer, mask_at)
        return sample

    def mask(self, ids: list[int]) -> Sample:
        """[MASK]: scattered short spans, sometimes a single one."""
        rng = self.rng
        budget = 1 if rng.random() < 0.08 else max(1, round(len(ids) * rng.uniform(0.06, 0.30)))
        taken = [False] * (len(ids) + 2)
        spans = []
        for _ in range(budget * 2):
            if budget <= 0:
                break
            length = min(rng.choice(SPAN_LENGTHS), len(ids))
            start = rng.randint(0, len(ids) - length)
            if not any(taken[max(0, start - 1) : start + length + 1]):
                taken[start : start + length] = [True] * length
                spans.append((start, length))
                budget -= length
        return self.blanks(ids, sorted(spans), self.tokenizer.mask)

    def smask(self, ids: list[int]) -> Sample:
        """[sMASK]: one clause, from one punctuation mark to another where there are such."""
        rng = self.rng
        ends = [i + 1 for i, token in enumerate(ids) if token in self.stops]
        pairs = [(a, b) for a in [0] + ends for b in ends if 3 <= b - a <= LONGEST_CLAUSE]
        if pairs:
            start, end = rng.choice(pairs)
        else:
            length = min(len(ids), rng.randint(4, 16))
            start = rng.randint(0, len(ids) - length)
            end = start + length
        return self.blanks(ids, [(start, end - start)], self.tokenizer.smask)

    def gmask(self, ids: list[int], at_end: bool) -> Sample:
        """[gMASK]: a continuation; short prompts are the most common."""
        cut = 1 + int((len(ids) - 1) * 0.6 * self.rng.random() ** 2)
        answer = ids[cut:] + ([self.tokenizer.eos] if at_end else [])
        return self.answer(self.restart(ids[:cut]), answer or [self.tokenizer.eos])

    def answer(self, prompt: list[int], answer: list[int]) -> Sample:
        """A prompt, [gMASK], and the answer with its end token."""
        sample = Sample()
        sample.add_context(prompt + [self.tokenizer.gmask])
        sample.add_block(self.tokenizer.sop, answer, None)
        return sample


def pack(samples: list[Sample], width: int) -> list[list[Sample]]:
    """Rows of at most width tokens, first fit; samples that are too long are left out."""
    rows: list[list[Sample]] = []
    free: list[int] = []
    for sample in sorted(samples, key=lambda s: -len(s.tokens)):
        n = len(sample.tokens)
        if n > width:
            continue
        at = next((i for i, room in enumerate(free) if room >= n), None)
        if at is None:
            rows.append([])
            free.append(width)
            at = len(rows) - 1
        rows[at].append(sample)
        free[at] -= n
    return rows


def tensors(rows: list[list[Sample]], width: int, pad: int) -> tuple[torch.Tensor, ...]:
    """tokens, positions [B, T] int64; allow [B, T, T] bool; targets [B, T] int64."""
    shape = (len(rows), width)
    tokens, positions = np.full(shape, pad), np.zeros(shape, dtype=np.int64)
    targets, blocks, owner = np.full(shape, -1), np.zeros(shape, int), np.full(shape, -1)
    for r, row in enumerate(rows):
        at = 0
        for index, sample in enumerate(row):
            end = at + len(sample.tokens)
            tokens[r, at:end] = sample.tokens
            positions[r, at:end] = sample.positions
            targets[r, at:end] = sample.targets
            blocks[r, at:end] = sample.blocks
            owner[r, at:end] = index
            at = end
    same_sample = owner[:, :, None] == owner[:, None, :]
    same_block = blocks[:, :, None] == blocks[:, None, :]
    causal = np.tril(np.ones((width, width), dtype=bool))
    allow = same_sample & ((blocks[:, None, :] == 0) | (same_block & causal))
    return tuple(torch.from_numpy(a) for a in (tokens, positions, allow, targets))
