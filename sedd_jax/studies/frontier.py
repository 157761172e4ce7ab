"""Quality against diversity and calls of the network: one line for each sampler, and autoregressive
sampling at several temperatures as the baseline.

A frontier answers the question of the paper: how many steps does a diffusion model need for the
quality of an autoregressive one? Quality is compared at the same token entropy of a sample, since a
sharper distribution has a lower perplexity at no cost.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.diffusion.categorical import PRECISION
from sedd_jax.generation.model import LanguageModel
from sedd_jax.generation.samples import SampleRequest, write_samples
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.generation.templates import blank
from sedd_jax.studies.grades import REAL, read_samples
from sedd_jax.studies.setup import EvaluationSetup, common_length, cut
from sedd_jax.studies.study import Say, StudyConfig, in_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontierConfig(StudyConfig):
  """Settings of `frontier`.

  Attributes, beside those of `StudyConfig`:
    samplers: of the diffusion models.
    steps: numbers of sampling steps.
    temperatures: of the baseline.
    num: samples of each variant.
  """

  samplers: Sequence[str] = ("tweedie",)
  steps: Sequence[int] = (4, 8, 16, 32, 64)
  temperatures: Sequence[float] = (0.6, 0.8, 0.9, 1.0, 1.1, 1.2)
  num: int = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """One point: a model and how it is sampled.

  Attributes:
    label: of the model.
    settings: of its sampler.
  """

  label: str
  settings: SamplerSettings

  @property
  def name(self) -> str:
    """Name of its file, different for each variant."""
    settings = dataclasses.asdict(self.settings)
    default = dataclasses.asdict(SamplerSettings())
    words = [f"{k}={v}" for k, v in settings.items() if v != default[k]]
    return "_".join([self.label, *words]).replace("/", "-").replace(":", "-")


def frontier(config: FrontierConfig, say: Say) -> dict[str, Any]:
  """The report of a config's models and samplers; see `measure`."""
  setup, models = config.setup(), config.models()
  variants = variants_of(config, list(models))
  for variant in variants:  # Before anything is sampled.
    models[variant.label].check(variant.settings)
  names = [variant.name for variant in variants]
  settings = {"mode": "frontier", "ways": names, "num": config.num}
  assert config.out is not None
  return in_folder(
    config, settings, setup, models, lambda folder: measure(config, models, setup, folder, say), say
  )


def variants_of(config: FrontierConfig, labels: Sequence[str]) -> list[Variant]:
  """All samplers with all numbers of steps for each diffusion model, and the baseline, whose label
  is the last, at all temperatures."""
  *labels, baseline = labels
  variants = []
  for label in labels:
    for sampler in config.samplers:
      settings = SamplerSettings(sampler=sampler)
      sets_times = settings.make_sampler().sets_times
      counts: Sequence[int | None] = [None] if sets_times else config.steps
      variants += [
        Variant(label=label, settings=dataclasses.replace(settings, steps=n)) for n in counts
      ]
  return variants + [
    Variant(label=baseline, settings=SamplerSettings(temperature=t)) for t in config.temperatures
  ]


def measure(
  config: FrontierConfig,
  models: Mapping[str, LanguageModel],
  setup: EvaluationSetup,
  folder: Path,
  say: Say,
) -> dict[str, Any]:
  """Grades of all variants. Each is sampled into its own file, so that a killed study resumes.

  Args:
    config: the variants.
    models: by label; the last is the autoregressive baseline.
    setup: grades the samples.
    folder: gets `samples/NAME.jsonl`.
    say: receives progress messages.

  Returns:
    `kind`, `settings`, `rows` and `headline`, for JSON.

  Raises:
    ValueError: samples are too short.
  """
  (folder / "samples").mkdir(exist_ok=True)
  length = min(model.length for model in models.values())
  variants, read = variants_of(config, list(models)), []
  for variant in variants:
    file = folder / "samples" / f"{variant.name}.jsonl"
    if not file.exists():
      say(f"sampling {variant.name}")
      request = SampleRequest(
        templates=[blank(length)], num=config.num, seed=config.seed, settings=variant.settings
      )
      write_samples(models[variant.label], request, file, batch=config.batch_size)
    read.append(read_samples(file))
  tokens = [setup.encode([line["text"] for line in lines]) for lines in read]
  judged_length = common_length([row for rows in tokens for row in rows], config.length)
  grader = setup.grader(judged_length)
  rows = []
  for variant, lines, encoded in zip(variants, read, tokens, strict=True):
    samples = cut(encoded, judged_length, variant.name)
    rows.append({
      "label": variant.label,
      "sampler": models[variant.label].relevant_settings(variant.settings)["sampler"],
      "steps": variant.settings.steps,
      "temperature": variant.settings.temperature,
      "calls": float(np.mean([line["calls"] for line in lines])),
      **grader(samples),
      "left_out": len(encoded) - len(samples),
    })  # fmt: skip
    say(_line(rows[-1]))
  baseline = variants[-1].label
  add_gaps(rows, baseline)
  settings = {"precision": PRECISION, "num": config.num, "length": length}
  settings |= {"judged_length": judged_length, "seed": config.seed}
  return {
    "kind": "frontier",
    "settings": {**setup.settings, **settings},
    "rows": [*rows, {"label": REAL, "calls": None, **grader.of_real_text()}],
    "headline": headline(rows, baseline),
  }


def add_gaps(rows: Sequence[dict[str, Any]], baseline: str) -> None:
  """Adds `nats_above_baseline` to rows: the log perplexity minus that of the baseline at the same
  token entropy, interpolated between its temperatures. Rows outside its entropies get none."""
  line = sorted(
    (row["token_entropy"], math.log(row["perplexity"])) for row in rows if row["label"] == baseline
  )
  entropies, levels = (np.array(column) for column in zip(*line, strict=True))
  for row in rows:
    if row["label"] != baseline and entropies[0] <= row["token_entropy"] <= entropies[-1]:
      level = float(np.interp(row["token_entropy"], entropies, levels))
      row["nats_above_baseline"] = math.log(row["perplexity"]) - level


def headline(rows: Sequence[dict[str, Any]], baseline: str) -> list[str]:
  """A sentence for the baseline, and one for each sampler: its fewest calls for the quality of the
  baseline, if it reaches that. Degenerate text does not count, whatever its perplexity."""
  plain = min(
    (row for row in rows if row["label"] == baseline),
    key=lambda row: abs(math.log(row["temperature"])),
  )
  sentences = [
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
      sentences.append(
        f"{label}, {sampler}: as good as {baseline} at the same entropy "
        f"({least['token_entropy']:.4g} nats) with {least['calls']:g} calls, "
        f"{_compared(least['calls'], plain['calls'])}"
      )
    else:
      sentences.append(
        f"{label}, {sampler}: not as good as {baseline} with up to "
        f"{max(row['calls'] for row in points):g} calls; {_shortfall(points)}"
      )
  return sentences


def _compared(calls: float, baseline: float) -> str:
  if calls == baseline:
    return "as many"
  many, few = max(calls, baseline), min(calls, baseline)
  return f"{many / few:.3g} times {'fewer' if calls < baseline else 'more'}"


def _shortfall(points: Sequence[dict[str, Any]]) -> str:
  """Why no point of a sampler reaches the baseline."""
  sound = [row for row in points if row["verdict"] != "degenerate"]
  gap = min(row.get("nats_above_baseline", math.inf) for row in sound or points)
  how = "beyond the baseline's entropies" if gap == math.inf else f"{gap:.3g} nats a token worse"
  if gap < 0:
    how = f"{-gap:.3g} nats a token better"
  return f"at best {how}" if sound else f"all of it is degenerate, at best {how}"


def _line(row: dict[str, Any]) -> str:
  steps = "" if row["steps"] is None else f" {row['steps']} steps"
  return (
    f"{row['label']} {row['sampler']}{steps} at temperature {row['temperature']:g}: perplexity "
    f"{row['perplexity']:.4g}, entropy {row['token_entropy']:.4g}, {row['calls']:g} calls, "
    f"{row['verdict']}"
  )
