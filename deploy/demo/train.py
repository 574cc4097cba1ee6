#!/usr/bin/python3
"""Train the demo model: train.py CORPUS.json OUT [--minutes M]

Writes to OUT: tokenizer.model, config.json, log.json, latest and <iteration>/ in the published
layout, and state.pt, from which a later call resumes. The learning rate follows a cosine over the
steps or over the minutes, whichever runs out first; with --steps alone the run is a function of
the seed. The last part of the run trains against INT4 rounding of the linear weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F

from model import GLM, Config, Tokenizer, save_published
from muon import Muon
from samples import Blanker, Sample, pack, tensors

# Share of the training tokens, at the beginning and from the middle of the run on. Literature and
# aphorisms weigh far above documentation, and more so later; the small Chinese sources weigh far
# above their size.
SHARES = {
    ("kjv", "en"): (13, 14),
    ("austen", "en"): (20, 22),
    ("fortunes", "en"): (14, 15),
    ("classics", "zh"): (20, 24),
    ("more-fortunes", "en"): (4, 4),
    ("wesnoth", "en"): (6, 4),
    ("wesnoth", "zh"): (11, 10),
    ("libreoffice", "en"): (2, 1),
    ("libreoffice", "zh"): (4, 2),
    ("gnome", "en"): (1, 0.5),
    ("gnome", "zh"): (1, 0.5),
    ("debian", "en"): (0.5, 0.25),
    ("debian", "zh"): (1, 0.5),
    ("handbook", "en"): (1, 0.5),
    ("handbook", "zh"): (2.5, 1.5),
    ("installation", "en"): (0.5, 0.25),
    ("installation", "zh"): (1, 0.5),
    ("debian-edu", "zh"): (0.5, 0.25),
}
# Kinds of samples, likewise. Continuations have the most targets and teach the language quickest;
# blanks take over later.
KINDS = {"mask": (0.62, 0.75), "smask": (0.08, 0.07), "gmask": (0.30, 0.18)}
SHIFT = (0.2, 0.5)  # shares and kinds move between these parts of the run
TASK_SHARES = {"classics": 4, "kjv": 1, "austen": 0.5, "fortunes": 0.5, "wesnoth": 1}
WINDOW = (24, 150)


# ---- text ----------------------------------------------------------------------------------------


def train_tokenizer(documents: list[dict], model: Path, pieces: int) -> None:
    """A unigram SentencePiece model with icetk's conventions; Chinese counts three times."""
    text = model.with_suffix(".txt")
    with text.open("w", encoding="utf8") as out:
        for entry in documents:
            lines = re.split(r"(?<=[。.!?！？]) *", entry["text"])
            for _ in range(3 if entry["lang"] == "zh" else 1):
                out.writelines(line + "\n" for line in lines if line)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(model.with_suffix("")),
        vocab_size=pieces,
        model_type="unigram",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        user_defined_symbols=["<n>"],
        character_coverage=0.9997,
        normalization_rule_name="nmt_nfkc",
        max_sentencepiece_length=14,
        input_sentence_size=400000,
        shuffle_input_sentence=False,
        num_threads=1,
        minloglevel=2,
    )
    text.unlink()
    model.with_suffix(".vocab").unlink()


class Source:
    """The tokenised training documents of one source."""

    def __init__(self, documents: list[list[int]], rng: random.Random) -> None:
        self.documents, self.rng = documents, rng
        total, self.cumulative = 0.0, []
        for ids in documents:
            total += len(ids) ** 0.75
            self.cumulative.append(total)

    def window(self, ends: set[int]) -> tuple[list[int], bool]:
        """A piece of a random document, often from a sentence start; True at the document's end."""
        rng = self.rng
        ids = rng.choices(self.documents, cum_weights=self.cumulative)[0]
        length = rng.randint(*WINDOW)
        start = rng.randint(0, max(0, len(ids) - length))
        if start and rng.random() < 0.7:
            ahead = range(start, min(start + 40, len(ids) - length))
            start = next((i + 1 for i in ahead if ids[i] in ends), start)
        return ids[start : start + length], start + length >= len(ids)


class Stream:
    """Endless training samples. Sources take turns as in fair queueing: each has a clock that its
    samples advance by tokens / share, and the clock that is furthest behind comes next."""

    def __init__(self, corpus: dict, tokenizer: Tokenizer, seed: int, tasks: float) -> None:
        self.rng = random.Random(seed)
        self.tokenizer = tokenizer
        self.blanker = Blanker(tokenizer, self.rng)
        self.ends = {t for mark in "。？！.?!" for t in tokenizer.encode("a" + mark)[-1:]}
        groups: dict[tuple[str, str], list[list[int]]] = {}
        for entry in corpus["documents"]:
            ids = tokenizer.encode(entry["text"])
            if not entry["held_out"] and len(ids) >= 6:
                groups.setdefault((entry["source"], entry["lang"]), []).append(ids)
        self.sources = {key: Source(docs, self.rng) for key, docs in groups.items()}
        self.tasks: dict[str, list[tuple[list[int], list[int]]]] = {}
        for entry in corpus["tasks"]:
            pair = (tokenizer.encode(entry["prompt"]), tokenizer.encode(entry["answer"]))
            self.tasks.setdefault(entry["source"], []).append(pair)
        self.task_share = tasks
        keys = list(self.sources) + [("task", name) for name in self.tasks]
        self.clock = {key: 0.0 for key in keys}
        self.share: dict[tuple[str, str], float] = {}
        self.kinds: dict[str, float] = {}
        self.set_progress(0.0)
        self.pending: list[Sample] = []

    def set_progress(self, progress: float) -> None:
        """Choose shares and kinds for this part of the run; the shares sum to 1."""
        late = min(1.0, max(0.0, (progress - SHIFT[0]) / (SHIFT[1] - SHIFT[0])))

        def now(pair: tuple[float, float]) -> float:
            return (1 - late) * pair[0] + late * pair[1]

        self.kinds = {kind: now(pair) for kind, pair in KINDS.items()}
        parts = {key: now(SHARES[key]) for key in self.sources}
        whole, tasks = sum(parts.values()), sum(TASK_SHARES[name] for name in self.tasks)
        self.share = {key: part * (1 - self.task_share) / whole for key, part in parts.items()}
        for name in self.tasks:
            self.share[("task", name)] = self.task_share * TASK_SHARES[name] / tasks

    def tokens(self) -> dict[str, int]:
        """Training tokens of each source."""
        return {"/".join(k): sum(map(len, s.documents)) for k, s in sorted(self.sources.items())}

    def sample(self) -> Sample:
        """The next sample."""
        key = min(self.clock, key=self.clock.__getitem__)
        if key[0] == "task":
            prompt, answer = self.rng.choice(self.tasks[key[1]])
            sample = self.blanker.answer(prompt, answer + [self.tokenizer.eop])
        else:
            ids, at_end = self.sources[key].window(self.ends)
            kind = self.rng.choices(list(self.kinds), list(self.kinds.values()))[0]
            if kind == "gmask":
                sample = self.blanker.gmask(ids, at_end)
            else:
                sample = getattr(self.blanker, kind)(ids)
        self.clock[key] += len(sample.tokens) / self.share[key]
        return sample

    def batch(self, rows: int, width: int) -> tuple[torch.Tensor, ...]:
        """A packed batch; what does not fit waits for the next one."""
        total = sum(len(s.tokens) for s in self.pending)
        while total < 1.15 * rows * width:
            sample = self.sample()
            if len(sample.tokens) <= width:
                self.pending.append(sample)
                total += len(sample.tokens)
        packed = pack(self.pending, width)
        packed.sort(key=lambda row: -sum(len(s.tokens) for s in row))
        self.pending = [s for row in packed[rows:] for s in row]
        return tensors(packed[:rows], width, self.tokenizer.pad)

    def state_dict(self) -> dict:
        return {"rng": self.rng.getstate(), "clock": self.clock, "pending": self.pending}

    def load_state_dict(self, state: dict) -> None:
        self.rng.setstate(state["rng"])
        self.clock, self.pending = state["clock"], state["pending"]


def held_out_batches(
    corpus: dict, tokenizer: Tokenizer, lang: str, kind: str, rows: int, width: int
) -> tuple[torch.Tensor, ...]:
    """One fixed batch of held-out text, for the loss curve."""
    rng = random.Random(7)
    blanker = Blanker(tokenizer, rng)
    texts = [d["text"] for d in corpus["documents"] if d["held_out"] and d["lang"] == lang]
    source = Source([tokenizer.encode(text) for text in texts], rng)
    samples = []
    while sum(len(s.tokens) for s in samples) < 0.9 * rows * width:
        ids, at_end = source.window(set())
        if len(ids) >= 8:
            samples.append(blanker.mask(ids) if kind == "mask" else blanker.gmask(ids, at_end))
    return tensors(pack(samples, width), width, tokenizer.pad)


# ---- training ------------------------------------------------------------------------------------


class Trainer:
    """Model, optimisers, data and the books."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, args.out
        torch.manual_seed(args.seed)
        torch.set_num_threads(args.threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        corpus = json.loads(args.corpus.read_text("utf8"))
        self.out.mkdir(parents=True, exist_ok=True)
        model = self.out / "tokenizer.model"
        if not model.exists():
            training = [d for d in corpus["documents"] if not d["held_out"]]
            train_tokenizer(training, model, args.pieces)
        self.tokenizer = Tokenizer(model)
        self.stream = Stream(corpus, self.tokenizer, args.seed, args.tasks)
        self.held_out = {
            (lang, kind): held_out_batches(corpus, self.tokenizer, lang, kind, 24, args.width)
            for lang in ("en", "zh")
            for kind in ("mask", "gmask")
        }
        config = Config(args.layers, args.hidden, args.heads, args.inner, self.tokenizer.vocab)
        self.net = GLM(config, args.gain, args.shrink).to(self.device)
        self.muon = Muon(self.net, args.lr, decay=args.decay)
        matrices = {id(w) for w in self.muon.weights}
        rest = [p for p in self.net.parameters() if id(p) not in matrices]
        self.adam = torch.optim.AdamW(rest, args.lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.step, self.seconds, self.seen, self.log = 0, 0.0, 0, []
        self.running: float | None = None
        self.resume()

    def resume(self) -> None:
        """Continue from state.pt where there is one."""
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=False)
        self.net.load_state_dict(state["net"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.stream.load_state_dict(state["stream"])
        for name in ("step", "seconds", "seen", "log", "running"):
            setattr(self, name, state[name])
        print("resumed at step", self.step, flush=True)

    def save(self) -> None:
        """The state and the published layout. state.pt is replaced in one go."""
        state = {
            name: getattr(self, name) for name in ("step", "seconds", "seen", "log", "running")
        }
        for name in ("net", "muon", "adam", "stream"):
            state[name] = getattr(self, name).state_dict()
        torch.save(state, self.out / "state.new")
        os.replace(self.out / "state.new", self.out / "state.pt")
        save_published(self.net, self.tokenizer, self.out, self.step)
        (self.out / "log.json").write_text(json.dumps(self.log, indent=1) + "\n")

    def autocast(self):
        """bfloat16 where it is asked for."""
        if not self.args.bf16:
            return nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def loss(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Mean negative log-likelihood of the targets."""
        tokens, positions, allow, targets = (t.to(self.device) for t in batch)
        with self.autocast():
            return self.net.loss(tokens, positions, allow, targets)

    def progress(self) -> float:
        """0 at the beginning, 1 at the end of the run."""
        return max(self.step / self.args.steps, self.seconds / 60 / self.args.minutes)

    def learning_rate(self) -> float:
        """Warm-up, then a cosine to 2 % of the peak."""
        a = self.args
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress())))
        return a.lr * min(1.0, (self.step + 1) / a.warmup) * (0.02 + 0.98 * cosine)

    def train_step(self) -> float:
        """One batch; returns the loss."""
        self.stream.set_progress(self.progress())
        batch = self.stream.batch(self.args.rows, self.args.width)
        rate = self.learning_rate()
        self.muon.lr = rate
        self.adam.param_groups[0]["lr"] = rate * self.args.rest_lr
        self.net.quantise(self.progress() >= 1 - self.args.quantised)
        loss = self.loss(batch)
        self.net.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.muon.step()
        self.adam.step()
        self.seen += int((batch[3] >= 0).sum())
        return loss.item()

    @torch.no_grad()
    def evaluate(self) -> dict:
        """Perplexity on the fixed held-out batches."""
        found: dict[str, dict[str, float]] = {}
        for (lang, kind), batch in self.held_out.items():
            found.setdefault(lang, {})[kind] = round(math.exp(self.loss(batch).item()), 2)
        return found

    def record(self) -> None:
        """Evaluate, write the log entry, save."""
        entry = {"step": self.step, "minutes": round(self.seconds / 60, 1)}
        entry |= {"loss": round(self.running or 0.0, 3), **self.evaluate()}
        self.log.append(entry)
        print(json.dumps(entry), flush=True)
        self.save()

    def run(self) -> None:
        """Train to the end of the schedule."""
        print("parameters %.2fM on %s" % (self.net.config.parameters() / 1e6, self.device))
        print("training tokens", self.stream.tokens(), flush=True)
        per_step = self.args.rows * self.args.width
        while self.progress() < 1:
            began = time.monotonic()
            loss = self.train_step()
            self.step += 1
            self.seconds += time.monotonic() - began
            self.running = loss if self.running is None else 0.98 * self.running + 0.02 * loss
            if self.step % self.args.print_every == 0:
                done = self.progress()
                print(
                    "step %d  loss %.3f  %.0f tokens/s  %d targets/step  %.1f min, %.1f to go"
                    % (
                        self.step,
                        self.running,
                        per_step * self.step / self.seconds,
                        self.seen / self.step,
                        self.seconds / 60,
                        self.seconds / 60 * (1 - done) / done,
                    ),
                    flush=True,
                )
            if self.step % self.args.save_every == 0:
                self.record()
        if not self.log or self.log[-1]["step"] != self.step:
            self.record()


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("corpus", type=Path, help="corpus.json of corpus.py")
    add("out", type=Path, help="directory of the checkpoint; resumed if it holds state.pt")
    add("--steps", type=int, default=10**9, help="end after so many steps")
    add("--minutes", type=float, default=1e9, help="or after so many minutes of training")
    add("--layers", type=int, default=4)
    add("--hidden", type=int, default=256)
    add("--heads", type=int, default=8)
    add("--inner", type=int, default=768)
    add("--pieces", type=int, default=10000, help="SentencePiece pieces")
    add("--rows", type=int, default=14, help="rows of a batch")
    add("--width", type=int, default=256, help="tokens of a row")
    add("--lr", type=float, default=6e-3, help="peak learning rate")
    add("--rest-lr", type=float, default=0.5, help="embedding, norms, biases: times --lr")
    add("--warmup", type=int, default=60, help="steps of linear warm-up")
    add("--decay", type=float, default=0.05, help="weight decay of the layers' matrices")
    add("--gain", type=float, default=2.0, help="initial gain; 0 = DeepNorm's")
    add("--shrink", type=float, default=1.0, help="embedding-gradient shrink; 1 = none")
    add("--tasks", type=float, default=0.07, help="share of instruction samples")
    add("--quantised", type=float, default=0.15, help="last part of the run, with INT4 rounding")
    add("--bf16", action="store_true", help="compute in bfloat16")
    add("--seed", type=int, default=130)
    add("--threads", type=int, default=1)
    add("--print-every", type=int, default=20)
    add("--save-every", type=int, default=250)
    return parser.parse_args()


def main() -> int:
    """Train."""
    Trainer(arguments()).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
