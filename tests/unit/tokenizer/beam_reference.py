#!/usr/bin/python3
"""Writes beam_traces.json: beam search as published (BeamSearchStrategy of SwissArmyTransformer,
deterministic, one sample), run on random logits over a small vocabulary, so that end tokens and
repeated n-grams are frequent. The program under test is given the candidates and must come to the
same bans, beams, decisions and results.

usage: beam_reference.py > beam_traces.json
"""
import json
import numpy as np

LOW = -65504.0


class Reference:
    """Kept close to the published class, records of n-grams included."""

    def __init__(self, c):
        self.c = c
        self.end_beams, self.end_keys = [], []
        self.bans = [{}]
        self.scores = None
        self.generated = 0
        self.done = False

    def add_end(self, score, beam):
        key = float(score) / ((5.0 + len(beam)) / 6) ** self.c["length_penalty"]
        i = len(self.end_beams)
        while i > 0 and not key < self.end_keys[i - 1]:
            i -= 1
        self.end_beams.insert(i, (beam, float(score)))
        self.end_keys.insert(i, key)
        del self.end_beams[self.c["n_beams"]:], self.end_keys[self.c["n_beams"]:]

    def banned(self, tokens, i):
        n, ids = self.c["no_repeat_ngram"], []
        if self.c["min_new_tokens"] > self.generated:
            ids += self.c["end_tokens"]
        if n > 0 and len(tokens[i]) > n:
            ids += self.bans[i].get(tuple(tokens[i][-(n - 1):]), ())
        return sorted(set(ids))

    def step(self, tokens, logits):
        c, n = self.c, self.c["no_repeat_ngram"]
        banned = [self.banned(tokens, i) for i in range(len(tokens))]
        for i, ids in enumerate(banned):
            logits[i, ids] = LOW
        logp = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        logp -= logits.max(1, keepdims=True)
        if self.scores is not None:
            logp = logp + self.scores[:, None]
        flat = logp.reshape(-1).astype(np.float32)
        width = (max(1, len(c["end_tokens"])) + 1) * c["n_beams"]
        order = np.argsort(-flat, kind="stable")[:width]
        candidates = [(int(k // logits.shape[1]), int(k % logits.shape[1]), float(flat[k]))
                      for k in order]
        beams, scores, bans, parents = [], [], [], []
        for parent, token, score in candidates:
            beam = tokens[parent] + [token]
            if token in c["end_tokens"]:
                self.add_end(score, beam)
            elif len(beams) < c["n_beams"]:
                beams.append(beam)
                scores.append(score)
                parents.append(parent)
                record = dict(self.bans[parent])
                prefix = tuple(tokens[parent][-(n - 1):]) if n > 1 else tuple(tokens[parent])
                record[prefix] = record.get(prefix, ()) + (token,)
                bans.append(record)
            else:
                break
        before = len(tokens[0])
        self.bans, self.scores = bans, np.array(scores, np.float64)
        self.generated += 1
        self.done = (len(self.end_beams) == c["n_beams"] and
                     self.end_keys[-1] >= max(scores) / ((5.0 + before + 1) / 6) ** c["length_penalty"])
        return beams, {"bans": banned, "candidates": candidates, "parents": parents,
                       "scores": scores, "done": self.done}


def run(c, seed):
    rng = np.random.default_rng(seed)
    r, tokens, steps = Reference(c), [list(c["prompt"])], []
    base = rng.normal(0, 1.5, c["vocab"])
    base[c["end_tokens"]] += 1.5 * (seed // 3 % 3)
    while len(steps) < c["max_steps"] and not r.done:
        logits = base + rng.normal(0, 1.0, (len(tokens), c["vocab"]))
        tokens, step = r.step(tokens, logits)
        step["beams"] = [t[len(c["prompt"]):] for t in tokens]
        steps.append(step)
    if c["consider_end"] and not r.done:
        for t, s in zip(tokens, r.scores):
            r.add_end(s, t)
    results = [{"tokens": b[len(c["prompt"]):], "score": s, "key": k}
               for (b, s), k in zip(r.end_beams, r.end_keys)]
    return dict(c, steps=steps, results=results)


def main():
    cases, rng = [], np.random.default_rng(20)
    for seed in range(48):
        n_ends = seed % 3
        c = {
            "n_beams": int(rng.integers(1, 6)),
            "length_penalty": float(rng.choice([0.0, 0.7, 1.0, 3.0])),
            "no_repeat_ngram": int(rng.choice([0, 1, 2, 3, 4])),
            "min_new_tokens": int(rng.choice([0, 0, 3])),
            "consider_end": bool(n_ends == 0 or rng.integers(0, 4)),
            "end_tokens": [7, 2][:n_ends],
            "vocab": int(rng.integers(14, 18)),
            "prompt": [int(x) for x in rng.integers(8, 13, int(rng.integers(1, 6)))],
            "max_steps": 12,
        }
        cases.append(run(c, seed))
    print("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]")


main()
