"""Runs for the tests of sweeps."""

import json
from pathlib import Path

from sedd_jax.sweeps import runs

CONFIG = {
  "seed": 0,
  "data": {"files": "embedded", "split": (0.9, 1.0)},
  "model": {"width": 768, "heads": 12, "dropout": 0.1, "dtype": "float32"},
  "train": {"steps": 50},
}


def make_runs(points, common=None, config=CONFIG):
  return runs.make_runs(
    points,
    config=config,
    config_flag="configs/x.py:a",
    common=common or {},
    root=Path("runs/a b"),
    program=["sedd", "train"],
  )


def run_directory(folder, *lines, evaluation=None, tail=""):
  folder.mkdir(parents=True, exist_ok=True)
  if lines:
    content = "".join(json.dumps(line) + "\n" for line in lines) + tail
    (folder / "metrics.jsonl").write_text(content)
  if evaluation:
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
  return folder
