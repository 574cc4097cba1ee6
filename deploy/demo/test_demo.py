#!/usr/bin/python3
"""Tests of the demo programs: /usr/bin/python3 -m unittest test_demo (in this folder).

They need no corpus: a tiny tokenizer is trained on a few made-up sentences.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import unittest
from pathlib import Path

import torch

import corpus
import evaluate
from model import (
    GLM,
    Config,
    FakeQuant,
    HeadLoss,
    Tokenizer,
    attend,
    load_published,
    save_published,
)
from muon import Muon
from samples import Blanker, pack, tensors
from train import Trainer, train_tokenizer

WORDS = "the river bends slowly around an old stone mill and nobody knows who built it".split()
CHINESE = "春风不度玉门关，明月何时照我还。"
PIECES = 120


def documents() -> list[dict]:
    """Made-up documents under the names of real sources, every tenth held out."""
    rng = random.Random(3)
    found = []
    for index in range(60):
        english = " ".join(rng.choice(WORDS) for _ in range(60)) + "."
        chinese = "".join(rng.choice(CHINESE) for _ in range(60))
        for lang, source, text in (("en", "fortunes", english), ("zh", "classics", chinese)):
            held = index % 10 == 7
            found.append(corpus.document(lang, source, "", text) | {"held_out": held})
    return found


class DemoTest(unittest.TestCase):
    """Everything here shares one tiny tokenizer."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.temporary.name)
        train_tokenizer(documents(), cls.folder / "tokenizer.model", PIECES)
        cls.tokenizer = Tokenizer(cls.folder / "tokenizer.model")

    @classmethod
    def tearDownClass(cls) -> None:
        cls.temporary.cleanup()

    def blanker(self, seed: int = 1) -> Blanker:
        return Blanker(self.tokenizer, random.Random(seed))

    def test_a_blank_hides_its_answer_and_takes_its_position(self) -> None:
        t = self.tokenizer
        ids = t.encode("the river bends slowly around an old stone mill")
        sample = self.blanker().blanks(ids, [(2, 2), (6, 3)], t.mask)
        masks = [i for i, token in enumerate(sample.tokens) if token == t.mask]
        self.assertEqual(len(masks), 2)
        for block, (start, length) in zip((1, 2), ((2, 2), (6, 3))):
            members = [i for i, b in enumerate(sample.blocks) if b == block]
            self.assertEqual(sample.tokens[members[0]], t.sop)
            targets = [sample.targets[i] for i in members]
            self.assertEqual(targets, ids[start : start + length] + [t.eop])
            self.assertEqual({sample.positions[i] for i in members}, {masks[block - 1]})

    def test_positions_of_a_continuation_run_on(self) -> None:
        t = self.tokenizer
        sample = self.blanker().gmask(t.encode("the river bends slowly around an old mill"), True)
        self.assertEqual(sample.positions, list(range(len(sample.tokens))))
        self.assertEqual(sample.targets[-1], t.eos)

    def test_loss_by_slices_equals_cross_entropy(self) -> None:
        torch.manual_seed(5)
        for rows in (1, HeadLoss.ROWS, HeadLoss.ROWS + 7):
            x = torch.randn(rows, 24, requires_grad=True)
            head = torch.randn(50, 24, requires_grad=True)
            targets = torch.randint(50, (rows,))
            HeadLoss.apply(x, head, targets).mul(0.5).backward()
            found = x.grad.clone(), head.grad.clone()
            x.grad = head.grad = None
            expected = torch.nn.functional.cross_entropy(x @ head.t(), targets, reduction="sum")
            expected.mul(0.5).backward()
            self.assertAlmostEqual(
                HeadLoss.apply(x, head, targets).item(), expected.item(), delta=1e-3 * rows
            )
            for one, other in zip(found, (x.grad, head.grad)):
                self.assertLess((one - other).abs().max().item(), 1e-4)

    def test_attention_equals_its_formula(self) -> None:
        torch.manual_seed(6)
        q, k, v = torch.randn(3, 2, 3, 9, 8)
        bias = (torch.rand(2, 1, 9, 9) < 0.3).float() * -10000.0
        bias[..., 0] = 0
        scores = q @ k.transpose(-1, -2) / 8**0.5 + bias
        worst = (attend(q, k, v, bias) - scores.softmax(-1) @ v).abs().max().item()
        self.assertLess(worst, 1e-5)

    def test_who_sees_whom(self) -> None:
        t = self.tokenizer
        blanker = self.blanker()
        ids = t.encode("the river bends slowly around an old stone mill")
        row = [blanker.blanks(ids, [(1, 2), (5, 2)], t.mask) for _ in range(2)]
        width = sum(len(s.tokens) for s in row) + 3
        allow = tensors([row], width, t.pad)[2][0]
        n = len(row[0].tokens)
        for query in range(n):
            for key in range(n):
                block_q, block_k = row[0].blocks[query], row[0].blocks[key]
                seen = block_k == 0 or (block_q == block_k and key <= query)
                self.assertEqual(bool(allow[query, key]), seen, (query, key))
        self.assertFalse(allow[:n, n:].any())
        self.assertFalse(allow[n : 2 * n, :n].any())

    def test_packing_loses_nothing(self) -> None:
        t = self.tokenizer
        blanker = self.blanker()
        ids = t.encode(" ".join(WORDS))
        samples = [blanker.mask(ids) for _ in range(20)]
        rows = pack(samples, 128)
        self.assertEqual(sum(len(row) for row in rows), len(samples))
        self.assertTrue(all(sum(len(s.tokens) for s in row) <= 128 for row in rows))

    def test_text_behind_a_mask_is_encoded_as_at_inference(self) -> None:
        t = self.tokenizer
        for token, ids in self.blanker().alone.items():
            self.assertEqual(t.encode(t.piece(token)), ids)

    def test_checkpoint_round_trip(self) -> None:
        net = GLM(Config(2, 32, 4, 64, self.tokenizer.vocab), gain=2)
        net.half().float()
        save_published(net, self.tokenizer, self.folder, 5)
        again = load_published(self.folder)
        for (name, one), (_, two) in zip(net.named_parameters(), again.named_parameters()):
            self.assertTrue(torch.equal(one, two), name)
        total = sum(p.numel() for p in net.parameters())
        self.assertEqual(total, net.config.parameters())

    def test_muon_pieces_are_inverted(self) -> None:
        net = GLM(Config(1, 32, 4, 64, self.tokenizer.vocab))
        muon = Muon(net, 0.01)
        for weight in muon.weights:
            pieces = muon.pieces(weight.data)
            self.assertTrue(torch.equal(muon.whole(pieces, weight.shape), weight.data))

    def test_training_and_export_round_alike(self) -> None:
        weight = torch.randn(16, 64)
        difference = (FakeQuant.apply(weight) - evaluate.round_int4(weight)).abs()
        steps = weight.abs().amax(1, keepdim=True) / 7
        off = (difference > 0.01 * steps).float().mean().item()
        self.assertLess(off, 0.01)  # only quotients within FP16 rounding of a half

    def trainer(self, out: Path, steps: int) -> Trainer:
        path = self.folder / "corpus.json"
        tasks = [corpus.task("zh", "classics", "问：春风？答：", "明月。")] * 3
        path.write_text(json.dumps({"documents": documents(), "tasks": tasks}), "utf8")
        fixed = dict(layers=1, hidden=32, heads=4, inner=64, pieces=PIECES, rows=2, width=256)
        rates = dict(lr=5e-3, rest_lr=0.5, warmup=2, decay=0.05, gain=2, shrink=1, tasks=0.1)
        rest = dict(minutes=1e9, quantised=0.5, bf16=False, seed=1, threads=1)
        often = dict(print_every=100, save_every=2)
        return Trainer(
            argparse.Namespace(corpus=path, out=out, steps=steps, **fixed, **rates, **rest, **often)
        )

    def test_a_resumed_run_ends_like_an_uninterrupted_one(self) -> None:
        whole = self.trainer(self.folder / "whole", 4)
        whole.run()
        first = self.trainer(self.folder / "parts", 4)
        for _ in range(2):
            first.train_step()
            first.step += 1
        first.save()
        second = self.trainer(self.folder / "parts", 4)
        self.assertEqual(second.step, 2)
        second.run()
        for one, two in zip(whole.net.parameters(), second.net.parameters()):
            self.assertTrue(torch.equal(one, two))

    def test_cloze_cases_hide_one_token(self) -> None:
        held = evaluate.HeldOut({"documents": documents()}, self.tokenizer)
        cases = evaluate.cloze_cases(held, self.tokenizer, 10, 1)
        self.assertEqual(len(cases), 20)
        for case in cases:
            self.assertEqual(case["text"].count("[MASK]"), 1)
            self.assertEqual(case["ids"].count(self.tokenizer.mask), 1)
        self.assertEqual(cases, evaluate.cloze_cases(held, self.tokenizer, 10, 1))

    def test_held_out_text_is_not_repeated_in_training(self) -> None:
        text = " ".join(WORDS)
        entries = [corpus.document("en", "fortunes", "", f"{i} {text[:10]} {i}") for i in range(7)]
        entries.append(corpus.document("en", "fortunes", "", text))
        entries.append(corpus.document("en", "more", "", text + " at all."))
        kept = corpus.split_held_out(entries)
        self.assertEqual([e["held_out"] for e in kept].count(True), 1)
        self.assertNotIn("more", [e["source"] for e in kept])


if __name__ == "__main__":
    unittest.main()
