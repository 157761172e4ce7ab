"""Wall time to a given bound: our recipe, in turn with the original's in PyTorch.

For each seed PyTorch trains by the original's recipe (AdamW, independent times, moving average) for
`--baseline_steps`; then ours trains, and is bounded at its checkpoints. Both bounds are taken by
the same estimator on the same rows, the baseline's weights loaded here as any of the original's.
Time is that of the training steps: no compilation, checkpoints and bounds. One JSON line a seed,
and a plot of bounds over seconds. Needs torch.

  python -m benchmarks.quality --files=text8.txt --steps=1200 --baseline_steps=1500 \\
    --seeds=1,2,3 --out=quality

--set changes our recipe, --recipe the baseline's. Its default here is the peers' learning rate,
warm-up and cosine, which serve it better at this length than the original's own.
"""

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.report import print_line
from benchmarks.shapes import SHAPES, Shape, assigned
from sedd_jax.data import load_dataset
from sedd_jax.generation.model import Model
from sedd_jax.interop.info import kept_steps
from sedd_jax.interop.load import load
from sedd_jax.interop.original import original_config
from sedd_jax.training.checkpoints import Checkpoints
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.loop import train
from sedd_jax.training.metrics import read_metrics

# The quickstart's recipe.
_OURS: dict[str, Any] = {
  "diffusion": {"parameterization": "conditional"},
  "optimizer": {
    "name": "muon", "learning_rate": 3e-3, "warmup": 50, "schedule": "cosine", "b2": 0.98,
    "ema": 0.99, "weight_decay": 0.1,
  },
  "train": {"batch_size": 16},
}  # fmt: skip
_THEIRS = {"learning_rate": 3e-3, "warmup": 50, "beta2": 0.98, "ema": 0.99}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
  """A bound on the way.

  Attributes:
    step: updates made.
    seconds: of the steps so far.
    bound, error: bits per character, and its standard error.
  """

  step: int
  seconds: float
  bound: float
  error: float


def seconds_to(bound: float, points: list[Point]) -> float | None:
  """When a curve, of straight lines between its points, first has the bound; None if never."""
  before = None
  for point in points:
    if point.bound <= bound:
      if before is None:
        return point.seconds
      share = (before.bound - bound) / (before.bound - point.bound)
      return before.seconds + share * (point.seconds - before.seconds)
    before = point
  return None


def strict_bound(model: Model, rows: np.ndarray, num_times: int) -> tuple[float, float]:
  """Bits per character of rows int32[N, L] of characters, and the standard error."""
  bounds = np.concatenate([
    np.asarray(model.bound(rows[i : i + 64], num_times=num_times, seed=i).strict)
    for i in range(0, len(rows), 64)
  ])  # fmt: skip
  bits = bounds / rows.shape[1] / np.log(2)
  return float(bits.mean()), float(bits.std() / np.sqrt(len(bits)))


def experiment_of(shape: Shape, flags: argparse.Namespace, seed: int) -> Experiment:
  """Our run."""
  names = ("width", "blocks", "heads", "cond_dim", "dropout", "dtype", "remat")
  values = {
    "data": {"files": flags.files, "tokenizer": "chars", "length": shape.length},
    "model": {name: getattr(shape, name) for name in names},
    "report": {"evaluate_every": 0, "preview_every": 0, "samples": 1, "preview_steps": 1,
               "log_every": max(flags.every // 4, 1), "final_blocks": 2},
    "checkpoint": {"every": flags.every, "keep_last": 1, "keep_every": flags.every},
    "seed": seed,
  }  # fmt: skip
  values |= {name: values.get(name, {}) | section for name, section in _OURS.items()}
  values["train"] = values["train"] | {"steps": flags.steps}
  return Experiment.from_config(assigned(values, flags.set))


def ours(
  experiment: Experiment, workdir: Path, rows: np.ndarray, num_times: int
) -> tuple[list[Point], float]:
  """Bounds at the checkpoints, and the seconds until the first step, with compilation."""
  with contextlib.redirect_stdout(sys.stderr):  # Lines are on standard output alone.
    if (code := train(experiment, workdir)) != 0:
      raise SystemExit(code)
  model = load(workdir)
  assert isinstance(model, Model)
  lines = read_metrics(workdir)
  steps, seconds = [0], [0.0]
  for line in lines:
    if "step_seconds" in line:
      seconds.append(seconds[-1] + line["step_seconds"] * (line["step"] - steps[-1]))
      steps.append(line["step"])
  points = []
  with Checkpoints(workdir, model.network) as checkpoints:
    for step in kept_steps(workdir):
      at_step = dataclasses.replace(model, params=checkpoints.load_average(step))
      bound, error = strict_bound(at_step, rows, num_times)
      points.append(
        Point(step=step, seconds=float(np.interp(step, steps, seconds)), bound=bound, error=error)
      )
  first = next(line["seconds_to_first_step"] for line in lines if "seconds_to_first_step" in line)
  return points, first


def theirs(
  shape: Shape, flags: argparse.Namespace, seed: int, folder: Path, like: Model
) -> tuple[Model, list[float]]:
  """The baseline's model, and the seconds of its steps."""
  recipe = _THEIRS | {"decay_steps": flags.baseline_steps}
  command = [
    *(sys.executable, "-m", "benchmarks.pytorch", "--mode=fit", f"--config={flags.config}"),
    *(f"--rows={flags.out / 'rows.npy'}", f"--steps={flags.baseline_steps}", f"--seed={seed}"),
    *(f"--out={folder}", f"--set=vocab={like.vocab_size}"),
    *(f"--recipe={name}={value}" for name, value in recipe.items()),
    *(f"--recipe={one}" for one in flags.recipe),
  ]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise SystemExit(done.stderr)
  (folder / "config.json").write_text(json.dumps(original_config(like)))
  model = load(folder)
  assert isinstance(model, Model)
  return model, json.loads(done.stdout)["times"]


def plot(lines: list[dict[str, Any]], path: Path) -> None:
  """Bounds over seconds of all seeds."""
  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(6, 4))
  for line in lines:
    points = line["ours"]
    axes.plot([p["seconds"] for p in points], [p["bound"] for p in points], "o-", color="C0")
    axes.plot(line["baseline"]["seconds"], line["baseline"]["bound"], "x", color="C3", ms=9)
  axes.plot([], [], "o-", color="C0", label="this package")
  axes.plot([], [], "x", color="C3", label="the original's recipe in PyTorch, at its end")
  axes.set(xlabel="seconds of training steps", ylabel="strict bound, bits/char")
  axes.legend()
  axes.grid(alpha=0.3)
  figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
  """Prints a line for each seed."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
  parser.add_argument("--files", default="embedded", help="text, in characters")
  parser.add_argument("--config", choices=SHAPES, default="Q")
  parser.add_argument("--steps", type=int, default=1200, help="of ours")
  parser.add_argument("--baseline_steps", type=int, default=1500)
  parser.add_argument("--every", type=int, default=100, help="steps between our bounds")
  parser.add_argument("--seeds", default="1", help="with commas")
  parser.add_argument("--rows", type=int, default=512, help="held-out rows that are bounded")
  parser.add_argument("--num_times", type=int, default=32)
  parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
  parser.add_argument("--recipe", action="append", default=[], metavar="NAME=VALUE")
  parser.add_argument("--out", type=Path, required=True, help="folder of runs, lines and plot")
  flags = parser.parse_args()
  shape, lines = SHAPES[flags.config], []
  flags.out.mkdir(parents=True, exist_ok=True)
  dataset = load_dataset(experiment_of(shape, flags, 0).data)
  (train_rows,) = dataset.train_rows
  np.save(flags.out / "rows.npy", train_rows[:].tokens.astype(np.uint16))
  held = np.asarray(dataset.heldout_rows[:].tokens)
  rows = held[np.linspace(0, len(held) - 1, min(flags.rows, len(held))).astype(int)]
  vocab_size = dataset.tokenizer.vocab_size
  scaled = Experiment.from_config(
    assigned(
      dataclasses.asdict(experiment_of(shape, flags, 0)), ["diffusion.parameterization=scaled"]
    )
  )
  network = scaled.network(vocab_size)
  like = Model(network=network, params={}, noise=scaled.diffusion.make_noise(), length=shape.length)
  for seed in map(int, flags.seeds.split(",")):
    baseline, times = theirs(shape, flags, seed, flags.out / f"pytorch-{seed}", like)
    bound, error = strict_bound(baseline, rows, flags.num_times)
    experiment = experiment_of(shape, flags, seed)
    points, first = ours(experiment, flags.out / f"ours-{seed}", rows, flags.num_times)
    reached = seconds_to(bound, points)
    line = {
      "seed": seed,
      "baseline": {"steps": len(times), "seconds": sum(times), "bound": bound, "error": error},
      "ours": [dataclasses.asdict(point) for point in points],
      "seconds_to_first_step": first,
      "seconds_to_bound": reached,
      "share_of_baseline": None if reached is None else reached / sum(times),
    }
    lines.append(line)
    print_line("quality", [], config=dataclasses.asdict(experiment), files=flags.files, **line)
  (flags.out / "lines.json").write_text(json.dumps(lines, indent=1) + "\n")
  plot(lines, flags.out / "quality.png")


if __name__ == "__main__":
  main()
