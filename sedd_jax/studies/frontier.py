"""Quality against diversity and against network calls: each sampler's line, and autoregressive
sampling at several temperatures as the line to beat.

The paper's headline is a point of it: fewer steps than an autoregressive model takes, for equal
quality. Equal means here: at the same entropy of tokens inside a sample, since a sharper law has a
lower perplexity for nothing.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.diffusion.categorical import PRECISION
from sedd_jax.generation.model import LanguageModel
from sedd_jax.generation.samples import Order, SampleFile, generate
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.generation.templates import Template
from sedd_jax.studies.jury import Jury, common_length, cut
from sedd_jax.studies.samples import REAL, read_samples

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
  """A model and a way to sample from it: one point.

  Attributes:
    label: what the model is called.
    settings: how it is sampled.
  """

  label: str
  settings: SamplerSettings

  @property
  def name(self) -> str:
    """Of its file; other than that of any other way."""
    settings = dataclasses.asdict(self.settings)
    default = dataclasses.asdict(SamplerSettings())
    words = [f"{k}={v}" for k, v in settings.items() if v != default[k]]
    return "_".join([self.label, *words]).replace("/", "-").replace(":", "-")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Frontier:
  """What is compared.

  Attributes:
    models: by label; the last is the autoregressive baseline.
    ways: every point.
    num: samples of each.
    length: tokens of a sample.
    seed: of all samples.
    batch: samples at a time.
  """

  models: dict[str, LanguageModel]
  ways: Sequence[Way]
  num: int
  length: int
  seed: int
  batch: int


def ways_of(
  labels: Sequence[str],
  baseline: str,
  samplers: Sequence[str],
  steps: Sequence[int],
  temperatures: Sequence[float],
) -> list[Way]:
  """All samplers at all numbers of steps for each model, and the baseline at all temperatures."""
  found = []
  for label in labels:
    for sampler in samplers:
      one = SamplerSettings(sampler=sampler)
      free = not one.make_sampler().sets_times
      counts: Sequence[int | None] = steps if free else [None]
      found += [Way(label=label, settings=dataclasses.replace(one, steps=n)) for n in counts]
  found += [Way(label=baseline, settings=SamplerSettings(temperature=t)) for t in temperatures]
  return found


def measure(
  frontier: Frontier, jury: Jury, folder: Path, say: Say, judged_length: int | None = None
) -> dict[str, Any]:
  """Samples every way, into files of their own that a killed run goes on with, and grades them.

  Args:
    frontier: what is compared.
    jury: grades.
    folder: gets `samples/WAY.jsonl`.
    say: told what is going on.
    judged_length: tokens of the judge's that all are cut to, as in `samples.grade_files`.

  Returns:
    `kind`, `settings`, `rows` and `headline`, for JSON.

  Raises:
    ValueError: samples are too short.
  """
  (folder / "samples").mkdir(exist_ok=True)
  files = []
  for way in frontier.ways:
    file = folder / "samples" / f"{way.name}.jsonl"
    if not file.exists():
      say(f"sampling {way.name}")
      _sample(frontier, way, file)
    files.append(file)
  read = [read_samples(file) for file in files]
  tokens = [jury.tokens([line["text"] for line in lines]) for lines in read]
  length = common_length([row for rows in tokens for row in rows], judged_length)
  grader = jury.grader(length)
  rows = []
  for way, lines, found in zip(frontier.ways, read, tokens, strict=True):
    samples = cut(found, length, way.name)
    model = frontier.models[way.label]
    said = model.said(way.settings)
    rows.append({
      "label": way.label,
      "sampler": said["sampler"],
      "steps": way.settings.steps,
      "temperature": way.settings.temperature,
      "calls": float(np.mean([line["calls"] for line in lines])),
      **grader(samples),
      "left_out": len(found) - len(samples),
    })  # fmt: skip
    say(_line(rows[-1]))
  baseline = frontier.ways[-1].label
  add_gaps(rows, baseline)
  return {
    "kind": "frontier",
    "settings": {
      **jury.said(),
      "precision": PRECISION,
      "num": frontier.num,
      "length": frontier.length,
      "judged_length": length,
      "seed": frontier.seed,
    },
    "rows": [*rows, {"label": REAL, "calls": None, **grader.of_real_text()}],
    "headline": headline(rows, baseline),
  }


def add_gaps(rows: Sequence[dict[str, Any]], baseline: str) -> None:
  """Adds `nats_above_baseline` to rows: log perplexity minus that of the baseline at the same token
  entropy, between its temperatures; left out where its entropies do not reach."""
  line = sorted(
    (row["token_entropy"], math.log(row["perplexity"])) for row in rows if row["label"] == baseline
  )
  entropies, levels = (np.array(column) for column in zip(*line, strict=True))
  for row in rows:
    if row["label"] != baseline and entropies[0] <= row["token_entropy"] <= entropies[-1]:
      level = float(np.interp(row["token_entropy"], entropies, levels))
      row["nats_above_baseline"] = math.log(row["perplexity"]) - level


def headline(rows: Sequence[dict[str, Any]], baseline: str) -> list[str]:
  """A sentence for each line: the fewest calls for the baseline's quality, if any are enough.
  Degenerate text never is, whatever its perplexity."""
  plain = min(
    (row for row in rows if row["label"] == baseline),
    key=lambda row: abs(math.log(row["temperature"])),
  )
  said = [
    f"{baseline} at temperature {plain['temperature']:g}: perplexity {plain['perplexity']:.4g} at "
    f"entropy {plain['token_entropy']:.4g} nats, {plain['calls']:g} calls"
  ]
  lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
  for row in rows:
    if row["label"] != baseline:
      lines.setdefault((row["label"], row["sampler"]), []).append(row)
  for (label, sampler), points in lines.items():
    sound = [row for row in points if row["verdict"] != "degenerate"]
    # Within two standard errors of the estimate.
    enough = [
      row
      for row in sound
      if row.get("nats_above_baseline", math.inf)
      <= 2 * row.get("perplexity_stderr", 0.0) / row["perplexity"]
    ]
    if enough:
      least = min(enough, key=lambda row: row["calls"])
      said.append(
        f"{label}, {sampler}: as good as {baseline} at the same entropy "
        f"({least['token_entropy']:.4g} nats) with {least['calls']:g} calls, "
        f"{_compared(least['calls'], plain['calls'])}"
      )
    else:
      said.append(
        f"{label}, {sampler}: not as good as {baseline} with up to "
        f"{max(row['calls'] for row in points):g} calls; {_shortfall(points)}"
      )
  return said


def _compared(calls: float, baseline: float) -> str:
  if calls == baseline:
    return "as many"
  many, few = max(calls, baseline), min(calls, baseline)
  return f"{many / few:.3g} times {'fewer' if calls < baseline else 'more'}"


def _shortfall(points: Sequence[dict[str, Any]]) -> str:
  """Why none of the points of a line is enough."""
  sound = [row for row in points if row["verdict"] != "degenerate"]
  gap = min(row.get("nats_above_baseline", math.inf) for row in sound or points)
  how = "beyond the baseline's entropies" if gap == math.inf else f"{gap:.3g} nats a token worse"
  if gap < 0:
    how = f"{-gap:.3g} nats a token better"
  return f"at best {how}" if sound else f"all of it is degenerate, at best {how}"


def _sample(frontier: Frontier, way: Way, path: Path) -> None:
  model = frontier.models[way.label]
  nothing = np.zeros(frontier.length, np.int32)
  template = Template("[[*]]", nothing, nothing.astype(bool))
  order = Order(templates=[template], num=frontier.num, seed=frontier.seed, settings=way.settings)
  file = SampleFile(path, model, order)
  for numbers, made in generate(model, order, batch=frontier.batch, skip=file.there):
    file.write(numbers, made)
  file.close()


def _line(row: dict[str, Any]) -> str:
  steps = "" if row["steps"] is None else f" {row['steps']} steps"
  return (
    f"{row['label']} {row['sampler']}{steps} at temperature {row['temperature']:g}: perplexity "
    f"{row['perplexity']:.4g}, entropy {row['token_entropy']:.4g}, {row['calls']:g} calls, "
    f"{row['verdict']}"
  )
