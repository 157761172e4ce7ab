"""Infilling: prompts at the start, at the end and around a gap, against an autoregressive model.

The prompts are held-out text. An autoregressive baseline sees only the tokens before the gap; the
given tokens after the gap are appended to its continuation. All models are graded alike: by the
judge, on the whole text and from the first filled token on, and against the original text.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sedd_jax.data.rows import spread
from sedd_jax.diffusion.categorical import PRECISION
from sedd_jax.evaluation.grading import Grader
from sedd_jax.generation.causal import CausalModel
from sedd_jax.generation.model import LanguageModel
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.studies.setup import EvaluationSetup, common_length, cut, heldout_rows
from sedd_jax.studies.study import Say, StudyConfig, in_folder

_ORIGINAL = "the text itself"
# Share of the row where the gap starts and ends.
PROMPTS: Mapping[str, tuple[float, float]] = {
  "prefix": (0.5, 1.0),
  "suffix": (0.0, 0.5),
  "middle": (0.25, 0.75),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfillingConfig(StudyConfig):
  """Settings of `infilling`.

  Attributes, beside those of `StudyConfig`:
    sampler: of the diffusion models.
    steps: its sampling steps.
    num: rows to fill in.
  """

  sampler: str = "tweedie"
  steps: int = 64
  num: int = 256

  def samplers(self, labels: Iterable[str]) -> dict[str, SamplerSettings]:
    """How each model is sampled; the last is the baseline."""
    *diffusion, baseline = labels
    settings = SamplerSettings(sampler=self.sampler)
    if not settings.make_sampler().sets_times:
      settings = dataclasses.replace(settings, steps=self.steps)
    return dict.fromkeys(diffusion, settings) | {baseline: SamplerSettings()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filled:
  """Rows with a filled gap.

  Attributes:
    tokens: int32[N, L].
    calls: mean number of calls of the network for a batch.
  """

  tokens: np.ndarray
  calls: float


def gap_of(prompt: str, length: int) -> np.ndarray:
  """bool[L]: true for tokens that a prompt leaves open."""
  start, end = (round(share * length) for share in PROMPTS[prompt])
  return (np.arange(length) >= start) & (np.arange(length) < end)


def fill(
  model: LanguageModel,
  rows: np.ndarray,
  gap: np.ndarray,
  settings: SamplerSettings,
  *,
  seed: int,
  batch: int,
) -> Filled:
  """The rows with the gap filled by a model, which does not see the tokens in the gap.

  Args:
    model: an autoregressive one is given only the tokens before the gap.
    rows: int[N, L].
    gap: bool[L].
    settings: how to sample.
    seed: row i depends on (seed, i) only.
    batch: rows at a time.
  """
  known = ~gap
  if isinstance(model, CausalModel):
    known = np.arange(len(gap)) < np.flatnonzero(gap)[0]
  made, calls = [], []
  for first in range(0, len(rows), batch):
    # The last batch is padded, so that one program is compiled.
    numbers = np.minimum(np.arange(first, first + min(batch, len(rows))), len(rows) - 1)
    given = np.broadcast_to(known, (len(numbers), len(gap)))
    done = model.generate(
      rows[numbers], given, settings=settings, seed=seed, numbers=[int(n) for n in numbers]
    )
    made.append(done.tokens[: len(rows) - first])
    calls.append(done.calls)
  tokens = np.where(gap, np.concatenate(made), rows).astype(np.int32)
  return Filled(tokens=tokens, calls=float(np.mean(calls)))


def infilling(config: InfillingConfig, say: Say) -> dict[str, Any]:
  """The report of a config's models; see `measure`."""
  setup, models = config.setup(), config.models()
  first, *_ = models
  rows = heldout_rows(models[first], config.checkpoints[0], config.moved)
  length = min(model.length for model in models.values())
  rows = rows[spread(len(rows), config.num), :length]
  settings = {"mode": "infilling", "num": config.num, "ways": _settings(config, models)}
  return in_folder(
    config, settings, setup, models, lambda _: measure(config, models, rows, setup, say), say
  )


def measure(
  config: InfillingConfig,
  models: Mapping[str, LanguageModel],
  rows: np.ndarray,
  setup: EvaluationSetup,
  say: Say,
) -> dict[str, Any]:
  """A row for each model and prompt, and one for the real text of each prompt.

  Args:
    config: how the models are sampled.
    models: by label; the last is the baseline. All have one tokenizer.
    rows: int[N, L], held-out text in their tokens.
    setup: grades the texts.
    say: receives progress messages.

  Returns:
    `kind`, `settings` and `rows`, for JSON. Beside the grade of the whole text each row has
    `nats_from_gap`, the judge's nats per token from the first token of the gap on; `accuracy`, the
    share of gap tokens that equal the original; and `calls`.
  """
  source, filled = next(iter(models.values())), {}
  gaps = {prompt: gap_of(prompt, rows.shape[1]) for prompt in PROMPTS}
  for label, settings in config.samplers(models).items():
    for prompt, gap in gaps.items():
      say(f"filling in: {label}, {prompt}")
      filled[prompt, label] = fill(
        models[label], rows, gap, settings, seed=config.seed, batch=config.batch_size
      )
  real = setup.retokenize(source, rows)
  texts = {key: setup.retokenize(source, one.tokens) for key, one in filled.items()}
  length = common_length([row for found in [real, *texts.values()] for row in found], config.length)
  grader, samplers = setup.grader(length), _settings(config, models)
  found = []
  for prompt, gap in gaps.items():
    before = rows[:, : np.flatnonzero(gap)[0]]
    heads = setup.retokenize(source, before) if before.size else None
    found.append({
      "prompt": prompt,
      "label": _ORIGINAL,
      "nats_from_gap": _nats_from(setup, real, heads),
      **_graded(grader, cut(real, length, _ORIGINAL), gap),
    })  # fmt: skip
    for label in models:
      one, text = filled[prompt, label], texts[prompt, label]
      found.append({
        "prompt": prompt,
        "label": label,
        "sampler": samplers[label]["sampler"],
        "calls": one.calls,
        "nats_from_gap": _nats_from(setup, text, heads),
        "accuracy": float(np.mean((one.tokens == rows)[:, gap])),
        **_graded(grader, cut(text, length, f"{label}, {prompt}"), gap),
      })  # fmt: skip
      say(f"{prompt}, {label}: {found[-1]['nats_from_gap']:.4f} nats a token from the gap on")
  shape = {"num": len(rows), "length": rows.shape[1], "seed": config.seed}
  settings = {**setup.settings, "precision": PRECISION, **shape, "samplers": samplers}
  return {"kind": "infilling", "settings": settings, "rows": found}


def _settings(
  config: InfillingConfig, models: Mapping[str, LanguageModel]
) -> dict[str, dict[str, Any]]:
  """The sampler settings of each model, for JSON."""
  return {
    label: models[label].relevant_settings(settings)
    for label, settings in config.samplers(models).items()
  }


def _graded(grader: Grader, samples: np.ndarray, gap: np.ndarray) -> dict[str, Any]:
  """A grade, without MAUVE where the last token is given: MAUVE looks at the state behind that
  token, so it would measure real text."""
  grade = grader(samples)
  return grade if gap[-1] else {k: v for k, v in grade.items() if not k.startswith("mauve")}


def _nats_from(
  setup: EvaluationSetup, texts: Sequence[np.ndarray], heads: Sequence[np.ndarray] | None
) -> float:
  """Mean nats of the tokens behind the head of each text: log p of the whole text minus that of the
  head."""
  nats = setup.judge.nats(texts)
  sums, counts = nats.sums.sum(), nats.counts.sum()
  if heads is not None:
    before = setup.judge.nats(heads)
    sums, counts = sums - before.sums.sum(), counts - before.counts.sum()
  return float(sums / counts)
