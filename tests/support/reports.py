"""Runs and evaluations as they lie in folders, without weights."""

import dataclasses
import json

from sedd_jax.data import Chars
from support.experiments import TINY

NASTY = '</pre><script>alert("x")</script> & | `` <b>'
WHEN = {"made": 1.7e9, "version": "1.2.3"}


def bound(step, strict, stderr=0.02):
  return {
    "step": step,
    "heldout_bits_per_char_strict": strict,
    "heldout_bits_per_char_strict_stderr": stderr,
    "heldout_bits_per_char_paper": strict - 0.01,
    "heldout_bits_per_char_paper_stderr": stderr,
    "heldout_bigram_bits_per_char": 3.5,
    "heldout_unigram_bits_per_char": 4.75,
  }


def make_run(workdir, *, saved=(4, 8), strict=3.25, samples=("One text.", "Another."), **changes):
  """A run directory as training leaves it, without weights."""
  experiment = dataclasses.replace(TINY, **changes)
  workdir.mkdir(parents=True)
  files = {
    "config.json": dataclasses.asdict(experiment),
    "corpus.json": {"name": "text", "sha256": "0" * 64, "characters": 1000},
    "tokenizer.json": Chars("abc").to_json(),
    "versions.json": {"jax": "0"},
  }
  if saved[-1:] == (8,):
    files["evaluation.json"] = bound(8, strict)
  for name, value in files.items():
    (workdir / name).write_text(json.dumps(value))
  for step in saved:
    (workdir / "checkpoints" / str(step)).mkdir(parents=True)
  last = max(saved, default=2)
  lines = [
    {"step": s, "time": 1.0, "train_bits_per_char": 6 - s / 4, "tokens_per_second": 100.0 * s}
    for s in range(2, last + 1, 2)
  ]
  lines += [{"time": 1.0, **bound(s, strict + (8 - s) / 8)} for s in range(4, last + 1, 4)]
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (workdir / "samples").mkdir()
  if samples:
    text = "".join(f"--- sample {i}\n{text}\n" for i, text in enumerate(samples))
    (workdir / "samples" / f"final_{last:08d}.txt").write_text(text)
  return workdir


def make_result(folder, kind, rows, **more):
  folder.mkdir(parents=True)
  found = {"kind": kind, "rows": rows, "settings": {"judge": "gpt2", "seed": 0}, **more}
  (folder / "evaluation.json").write_text(json.dumps(found))
  return folder


def frontier():
  return [
    {
      "model": model,
      "temperature": t,
      "calls": calls,
      "perplexity": base / t,
      "perplexity_stderr": 2.0,
      "token_entropy": 5 - t / 2,
      "verdict": "degenerate" if t > 1 else "like text",
      "samples": 64,
    }
    for model, base in (("absorbing", 80.0), ("uniform", 95.0))
    for t, calls in ((0.8, 16), (1.0, 64), (1.2, 256))
  ]


def make_folders(folder):
  """Two runs, one that is broken and one that has only begun, and evaluations of three kinds."""
  runs = folder / "runs"
  make_run(runs / "a")
  make_run(runs / "b", strict=3.5, seed=7, samples=(NASTY,))
  make_run(runs / "begun", saved=(), samples=())
  broken = make_run(runs / "broken")
  (broken / "config.json").write_text('{"train": ')
  (broken / "metrics.jsonl").write_text("[1]\n")
  make_result(folder / "evaluations" / "frontier", "frontier", frontier())
  rows = [
    {"model": m, "set": s, "bits_per_char": v, "bits_per_char_stderr": 0.01, "sha256": "ab" * 32}
    for m, v in (("a", 1.5), ("b", 1.6))
    for s in ("wikitext2", "lambada")
  ]
  make_result(runs / "a" / "likelihood", "likelihood", rows, settings={"protocol": NASTY})
