#!/usr/bin/python3
"""Measure a demo checkpoint on held-out text: evaluate.py CORPUS.json CHECKPOINT

Prints, for English and Chinese, on the first four sources ("classic") and on the later ones
("new"):
    perplexity of the answers of [MASK] and [gMASK];
    one-token cloze: how often the hidden token is the model's first guess, or among its first five.
Cases are drawn with a seed from the documents marked held out, all tokens being equally likely
(or, with --by-documents, all documents: few Bible chapters and novels, many aphorisms).
--cloze FILE writes the cloze cases, so that another implementation can be measured on them;
--int4 rounds the linear weights as the INT4 converter does; --examples prints some completions.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from pathlib import Path
from typing import Iterable, Iterator

import torch
import torch.nn.functional as F

from model import GLM, Linear, Tokenizer, load_published
from samples import SPAN_LENGTHS, Blanker, Sample, tensors

CLASSIC = ("kjv", "austen", "fortunes", "classics")
LEAST, LONGEST = 24, 96  # tokens of a document, of a case
BATCH = 32

EXAMPLES = [
    "And the LORD said unto [MASK], Speak unto the children of Israel.",
    "She was [MASK] surprised to see him, and could not [MASK] a word.",
    "It is a truth [MASK] acknowledged, that a single man must be in want of a wife.",
    "The young prince drew his [MASK] and led his men into battle.",
    "道可道，非[MASK]道。",
    "学而时习之，不亦[MASK]乎？",
    "床前明月光，[sMASK]",
    "你可以在[MASK]中打开文件。",
    "And it came to pass [gMASK]",
    "Elizabeth was delighted to find that [gMASK]",
    "Never trust a [gMASK]",
    "春风[gMASK]",
    "子曰：[gMASK]",
    "国王对他的士兵说：[gMASK]",
    "问：“白日依山尽”的下一句是什么？答：[gMASK]",
]


# ---- cases ---------------------------------------------------------------------------------------


def group_of(source: str) -> str:
    """The first four sources, or those added later."""
    return "classic" if source in CLASSIC else "new"


class HeldOut:
    """Held-out documents as tokens, by group and language."""

    def __init__(self, corpus: dict, tokenizer: Tokenizer, by_documents: bool = False) -> None:
        """by_documents: all documents equally often, not in proportion to their length."""
        self.by_documents = by_documents
        self.documents: dict[tuple[str, str], list[tuple[str, list[int]]]] = {}
        for entry in corpus["documents"]:
            ids = tokenizer.encode(entry["text"])
            if entry["held_out"] and len(ids) >= LEAST:
                key = (group_of(entry["source"]), entry["lang"])
                self.documents.setdefault(key, []).append((entry["source"], ids))

    def window(self, key: tuple[str, str], rng: random.Random) -> tuple[str, list[int]]:
        """(source, tokens): a random document, or a random piece of a long one."""
        documents = self.documents[key]
        weights = [1 if self.by_documents else len(ids) for _, ids in documents]
        source, ids = rng.choices(documents, weights)[0]
        start = rng.randint(0, max(0, len(ids) - LONGEST))
        return source, ids[start : start + LONGEST]


def masked_text(t: Tokenizer, ids: list[int], at: int) -> str:
    """The text of ids with [MASK] for the token at `at`, spaced as the text was."""

    def spaced(token: int) -> str:
        return " " if t.piece(token).startswith("\u2581") else ""

    after = t.decode(ids[at + 1 :])
    gap = spaced(ids[at + 1]) if at + 1 < len(ids) else ""
    return t.decode(ids[:at]) + spaced(ids[at]) + "[MASK]" + gap + after


def cloze_cases(held: HeldOut, t: Tokenizer, count: int, seed: int) -> list[dict]:
    """count cases of every group and language."""
    cases = []
    for group, lang in sorted(held.documents):
        rng = random.Random(f"{seed} {group} {lang}")
        found = 0
        while found < count:
            source, ids = held.window((group, lang), rng)
            at = rng.randint(1, len(ids) - 2)
            text = masked_text(t, ids, at)
            before = text.split("[MASK]")[0]
            readable = ids[at] not in (t.unk, t.bare_prefix) and t.unk not in ids
            # The text in front of the mask must encode to the tokens it came from.
            if not readable or text.count("[MASK]") != 1 or t.encode(before) != ids[:at]:
                continue
            found += 1
            cases.append(
                {
                    "text": text,
                    "answer": t.decode([ids[at]]),
                    "answer_ids": [ids[at]],
                    "lang": lang,
                    "group": group,
                    "source": source,
                    "ids": t.encode_masked(text),
                    "plain_ids": ids[:at] + [t.mask] + ids[at + 1 :] + [t.eos],
                }
            )
    return cases


# ---- the model -----------------------------------------------------------------------------------


def round_int4(weight: torch.Tensor) -> torch.Tensor:
    """A weight as the INT4 converter stores it: per row, every step in FP16."""
    half = weight.half()
    scale = (half.float().abs().amax(1, keepdim=True) / 7).half()
    quotient = (half.float() / scale.float()).half().float().round()
    return (quotient * scale.float()).half().float()


def quantise(net: GLM) -> None:
    """INT4 rounding of every linear layer, in place."""
    for module in net.modules():
        if isinstance(module, Linear):
            module.weight.data = round_int4(module.weight.data)


def batches(samples: list[Sample], pad: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """One sample a row, padded to the longest of its batch."""
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        yield tensors([[s] for s in part], max(len(s.tokens) for s in part), pad)


def perplexity(net: GLM, samples: list[Sample], pad: int) -> float:
    """exp of the mean negative log-likelihood of all targets."""
    total, count = 0.0, 0
    for tokens, positions, allow, targets in batches(samples, pad):
        rows = targets >= 0
        logits = net(tokens, positions, allow, rows)
        total += F.cross_entropy(logits, targets[rows], reduction="sum").item()
        count += int(rows.sum())
    return math.exp(total / count)


def perplexity_samples(
    held: HeldOut, t: Tokenizer, key: tuple[str, str], kind: str, count: int, seed: int
) -> list[Sample]:
    """[MASK]: one blank of one to six tokens; [gMASK]: the rest after a third to two thirds."""
    rng = random.Random(f"{seed} {key} {kind}")
    blanker = Blanker(t, rng)
    samples = []
    while len(samples) < count:
        _, ids = held.window(key, rng)
        if kind == "gmask":
            cut = rng.randint(len(ids) // 3, len(ids) * 2 // 3)
            samples.append(blanker.answer(ids[:cut], ids[cut:]))
        else:
            length = rng.choice(SPAN_LENGTHS)
            start = rng.randint(1, len(ids) - length - 1)
            sample = Sample()
            sample.add_context(ids[:start] + [t.mask] + ids[start + length :] + [t.eos])
            sample.add_block(t.sop, ids[start : start + length] + [t.eop], start)
            samples.append(sample)
    return samples


def guesses(net: GLM, t: Tokenizer, cases: list[dict], form: str) -> list[list[int]]:
    """The five likeliest ids of every case."""
    samples = []
    for case in cases:
        sample = Sample()
        sample.add_context(case[form])
        sample.add_block(t.sop, case["answer_ids"], case[form].index(t.mask))
        samples.append(sample)
    found: list[list[int]] = []
    for tokens, positions, allow, targets in batches(samples, t.pad):
        logits = net(tokens, positions, allow, targets >= 0)
        found += logits.topk(5).indices.tolist()
    return found


def rank(t: Tokenizer, case: dict, five: list[int]) -> int:
    """Place of the answer among the guesses, 5 if it is not there. Tokens that print alike, with
    and without a word start, count as the same."""
    texts = [t.decode([token]) for token in five]
    return texts.index(case["answer"]) if case["answer"] in texts else 5


# ---- completions ---------------------------------------------------------------------------------


def complete(net: GLM, t: Tokenizer, text: str, longest: int, rng: torch.Generator) -> str:
    """Fill the first mask of a text: greedy for blanks, top-p 0.7 for continuations."""
    ids = t.encode_masked(text)
    at = next(i for i, token in enumerate(ids) if token in (t.mask, t.smask, t.gmask))
    continues = ids[at] == t.gmask
    answer: list[int] = []
    while len(answer) < longest:
        sample = Sample()
        sample.add_context(ids)
        sample.add_block(t.sop, answer + [t.eop], None if continues else at)
        tokens, positions, allow, _ = tensors([[sample]], len(sample.tokens), t.pad)
        logits = net(tokens, positions, allow)[0, -1]
        logits[: t.unk + 2] = -math.inf
        logits[t.special_base :][: t.eop - t.special_base] = -math.inf
        token = draw(logits, 0.7, rng) if continues else int(logits.argmax())
        if token in (t.eop, t.eos) or token >= t.special_base:
            break
        answer.append(token)
    return t.decode(answer)


def draw(logits: torch.Tensor, top_p: float, rng: torch.Generator) -> int:
    """One draw from the likeliest tokens that make up top_p."""
    probabilities, ids = logits.softmax(-1).sort(descending=True)
    kept = probabilities * (probabilities.cumsum(0) - probabilities < top_p)
    return int(ids[torch.multinomial(kept, 1, generator=rng)])


# ---- report --------------------------------------------------------------------------------------


def percent(ranks: Iterable[int], below: int) -> str:
    """Share of the ranks below a limit."""
    ranks = list(ranks)
    return "%5.1f" % (100 * sum(r < below for r in ranks) / max(1, len(ranks)))


def report_cloze(net: GLM, t: Tokenizer, cases: list[dict]) -> None:
    """The cloze table: overall and by source, all tokens and words only."""
    for form, label in (("ids", "as text"), ("plain_ids", "as tokens")):
        ranks = [rank(t, c, five) for c, five in zip(cases, guesses(net, t, cases, form))]
        rows: dict[tuple[str, str, str], list[tuple[int, bool]]] = {}
        for case, place in zip(cases, ranks):
            word = any(ch.isalnum() for ch in case["answer"])
            for source in ("all", case["source"]):
                rows.setdefault((case["group"], case["lang"], source), []).append((place, word))
        print(f"\none-token cloze, {label}        cases   top-1  top-5   words  top-1  top-5")
        for (group, lang, source), found in sorted(rows.items()):
            every = [place for place, _ in found]
            words = [place for place, word in found if word]
            print(
                f"  {group:8s}{lang:4s}{source:16s}{len(every):8d}   {percent(every, 1)}  "
                f"{percent(every, 5)}  {len(words):6d}  {percent(words, 1)}  {percent(words, 5)}"
            )


@torch.no_grad()
def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("corpus", type=Path, help="corpus.json of corpus.py")
    add("checkpoint", type=Path, help="directory with latest, config.json, tokenizer.model")
    add("--cases", type=int, default=400, help="cloze cases of every group and language")
    add("--samples", type=int, default=200, help="perplexity samples of every group and language")
    add("--seed", type=int, default=7)
    add("--by-documents", action="store_true", help="draw short documents as often")
    add("--int4", action="store_true", help="round the linear weights to INT4 first")
    add("--cloze", type=Path, help="write the cloze cases to this file")
    add("--examples", action="store_true", help="print completions of some texts")
    args = parser.parse_args()

    tokenizer = Tokenizer(args.checkpoint / "tokenizer.model")
    net = load_published(args.checkpoint)
    if args.int4:
        quantise(net)
    held = HeldOut(json.loads(args.corpus.read_text("utf8")), tokenizer, args.by_documents)
    cases = cloze_cases(held, tokenizer, args.cases, args.seed)
    if args.cloze:
        public = [{k: v for k, v in case.items() if k != "plain_ids"} for case in cases]
        text = json.dumps({"seed": args.seed, "cases": public}, ensure_ascii=False, indent=1)
        args.cloze.write_text(text + "\n", "utf8")

    print("perplexity of the answer           [MASK]    [gMASK]")
    for key in sorted(held.documents):
        found = [
            perplexity(
                net,
                perplexity_samples(held, tokenizer, key, kind, args.samples, args.seed),
                tokenizer.pad,
            )
            for kind in ("mask", "gmask")
        ]
        print(f"  {key[0]:8s}{key[1]:4s}                  {found[0]:8.1f}   {found[1]:8.1f}")
    report_cloze(net, tokenizer, cases)
    if args.examples:
        rng = torch.Generator().manual_seed(args.seed)
        for text in EXAMPLES:
            print(f"\n{text}\n  -> {complete(net, tokenizer, text, 60, rng)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
