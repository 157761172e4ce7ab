"""Infilling: prompts at the start, at the end and around a gap, against an autoregressive model.

The prompts are held-out text. An autoregressive baseline knows only what comes before the gap; what
was given after it is put behind its continuation. All are graded alike: by the judge, on the whole
text and on what follows the first token that was filled in, and against the text that was there.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sedd_jax.diffusion.categorical import PRECISION
from sedd_jax.evaluation.grading import Grader
from sedd_jax.generation.causal import CausalModel
from sedd_jax.generation.model import LanguageModel
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.studies.jury import Jury, common_length, cut

Say = Callable[[str], None]
# Share of the row where the gap starts and ends.
PROMPTS: Mapping[str, tuple[float, float]] = {
  "prefix": (0.5, 1.0),
  "suffix": (0.0, 0.5),
  "middle": (0.25, 0.75),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filled:
  """A gap filled in some rows.

  Attributes:
    tokens: int32[N, L].
    calls: of the network, for a batch, on average.
  """

  tokens: np.ndarray
  calls: float


def gap_of(prompt: str, length: int) -> np.ndarray:
  """bool[L]: the tokens that a prompt leaves open."""
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
  """Fills the gap in each row with a model; what stands there before is not looked at.

  Args:
    model: an autoregressive one is given what stands before the gap alone.
    rows: int[N, L].
    gap: bool[L].
    settings: how to sample.
    seed: row i depends on (seed, i) alone.
    batch: rows at a time.
  """
  known = ~gap
  if isinstance(model, CausalModel):
    known = np.arange(len(gap)) < np.flatnonzero(gap)[0]
  made, calls = [], []
  for first in range(0, len(rows), batch):
    # The last batch is filled up, so that there is one program.
    numbers = np.minimum(np.arange(first, first + min(batch, len(rows))), len(rows) - 1)
    given = np.broadcast_to(known, (len(numbers), len(gap)))
    done = model.generate(
      rows[numbers], given, settings=settings, seed=seed, numbers=[int(n) for n in numbers]
    )
    made.append(done.tokens[: len(rows) - first])
    calls.append(done.calls)
  tokens = np.where(gap, np.concatenate(made), rows).astype(np.int32)
  return Filled(tokens=tokens, calls=float(np.mean(calls)))


def measure(
  models: Mapping[str, tuple[LanguageModel, SamplerSettings]],
  rows: np.ndarray,
  jury: Jury,
  *,
  seed: int,
  batch: int,
  say: Say,
  judged_length: int | None = None,
) -> dict[str, Any]:
  """A row for each model and prompt, and one for the real text.

  Args:
    models: by label, each with how it is sampled; of one tokenizer.
    rows: int[N, L], held-out text in their tokens.
    jury: grades.
    seed: of all samples.
    batch: rows at a time.
    say: told what is going on.
    judged_length: tokens of the judge's that all are cut to, as in `samples.grade_files`.

  Returns:
    `kind`, `settings` and `rows`, for JSON. Beside a grade of the whole text each row has
    `nats_from_gap`, of a token from the gap's first on, by the judge; `accuracy`, the share of gap
    tokens that are those of the text; and `calls`.
  """
  source = next(iter(models.values()))[0]
  real = jury.of_model(source, rows)
  filled = {}
  for label, (model, settings) in models.items():
    for prompt in PROMPTS:
      say(f"filling in: {label}, {prompt}")
      gap = gap_of(prompt, rows.shape[1])
      filled[label, prompt] = fill(model, rows, gap, settings, seed=seed, batch=batch)
  tokens = {key: jury.of_model(source, one.tokens) for key, one in filled.items()}
  length = common_length(
    [row for found in [real, *tokens.values()] for row in found], judged_length
  )
  grader = jury.grader(length)
  found = []
  for prompt in PROMPTS:
    gap = gap_of(prompt, rows.shape[1])
    heads = jury.of_model(source, rows[:, : np.flatnonzero(gap)[0]]) if not gap[0] else None
    found.append({
      "prompt": prompt,
      "label": "the text itself",
      "nats_from_gap": _nats_from(jury, real, heads),
      **_graded(grader, cut(real, length, "the text itself"), gap),
    })  # fmt: skip
    for label, (model, settings) in models.items():
      one = filled[label, prompt]
      found.append({
        "prompt": prompt,
        "label": label,
        "sampler": model.said(settings)["sampler"],
        "calls": one.calls,
        "nats_from_gap": _nats_from(jury, tokens[label, prompt], heads),
        "accuracy": float(np.mean((one.tokens == rows)[:, gap])),
        **_graded(grader, cut(tokens[label, prompt], length, f"{label}, {prompt}"), gap),
      })  # fmt: skip
      say(f"{prompt}, {label}: {found[-1]['nats_from_gap']:.4f} nats a token from the gap on")
  settings = {
    **jury.said(),
    "precision": PRECISION,
    "num": len(rows),
    "length": rows.shape[1],
    "seed": seed,
    "samplers": {label: model.said(settings) for label, (model, settings) in models.items()},
  }
  return {"kind": "infilling", "settings": settings, "rows": found}


def _graded(grader: Grader, samples: np.ndarray, gap: np.ndarray) -> dict[str, Any]:
  """A grade. MAUVE's features are those behind the last token: where that one is given, the figure
  would be one of real text, and is left out."""
  found = grader(samples)
  return found if gap[-1] else {k: v for k, v in found.items() if not k.startswith("mauve")}


def _nats_from(
  jury: Jury, texts: Sequence[np.ndarray], heads: Sequence[np.ndarray] | None
) -> float:
  """Nats of a token behind the head of each text, on average over all such tokens: log p of the
  whole minus that of the head."""
  nats = jury.judge.nats(texts)
  sums, counts = nats.sums.sum(), nats.counts.sum()
  if heads is not None:
    before = jury.judge.nats(heads)
    sums, counts = sums - before.sums.sum(), counts - before.counts.sum()
  return float(sums / counts)
