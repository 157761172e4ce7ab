"""Held-out bounds and samples of a run."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from sedd_jax.data import Dataset
from sedd_jax.data.rows import Joined, spread
from sedd_jax.evaluation.bounds import BoundEstimator, OnShare, evaluation_report
from sedd_jax.evaluation.entropies import heldout_entropies
from sedd_jax.evaluation.words import known_share, words_of
from sedd_jax.models import Params
from sedd_jax.parallel.mesh import batch_multiple
from sedd_jax.training.program import Program

_SEED = 0
_TOKENS_PER_BATCH = 8192
# Tokens of each side that words are looked up in.
_WORD_TOKENS = 1_000_000
# The final bound takes this many times the draws of an intermediate one.
_FINAL_PASSES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldoutBound:
  """The bound on the negative log likelihood of held-out rows.

  Attributes:
    rows: all held-out rows.
    estimator: estimates the bound of some of them.
    entropies: name to bits per character, of simple models of the same text.
  """

  rows: Joined
  estimator: BoundEstimator
  entropies: Mapping[str, float]

  def metrics(
    self,
    params: Params,
    numbers: np.ndarray,
    passes: int,
    on_progress: OnShare = lambda share: None,
  ) -> dict[str, float]:
    """The bound of some rows, as metrics.

    Args:
      numbers: indices of the rows.
      passes: how often each row is estimated.
    """
    bound = self.estimator.bound(
      params,
      self.rows[numbers],
      chars_per_block=self.rows.characters(numbers) / len(numbers),
      seed=_SEED,
      passes=passes,
      on_progress=on_progress,
    )
    report = evaluation_report(bound, self.entropies)
    return {f"heldout_{name}": value for name, value in report.items()}


class Reporter:
  """Held-out bounds and samples of a run.

  Args:
    program: the run's programs.
    dataset: its text.

  Attributes:
    entropies: name to bits per character, of simple models of the held-out text.
  """

  def __init__(self, program: Program, dataset: Dataset):
    report = program.experiment.report
    rows = dataset.heldout_rows
    self.entropies = heldout_entropies(dataset)
    self._bound = HeldoutBound(
      rows=rows,
      estimator=BoundEstimator(
        program.objective.estimator(report.evaluate_times),
        batch_size=max(1, _TOKENS_PER_BATCH // rows.shape[1]),
        mesh=program.mesh,
      ),
      entropies=self.entropies,
    )
    self._few = spread(len(rows), report.evaluate_blocks)
    self._many = spread(len(rows), report.final_blocks)
    self._exact = program.objective.exact
    self._tokenizer = dataset.tokenizer
    self._heads = dataset.train_head[:_WORD_TOKENS], dataset.heldout_head[:_WORD_TOKENS]
    self._one_document = program.experiment.data.packing == "pad"
    self._draw = program.previews(report.preview_steps)
    self._multiple = batch_multiple(program.mesh)

  def evaluate(self, params: Params, on_progress: OnShare) -> dict[str, float]:
    """The bound of `report.evaluate_blocks` rows, as metrics."""
    return self._bound.metrics(params, self._few, 1, on_progress)

  def evaluate_fully(self, params: Params, on_progress: OnShare) -> dict[str, float]:
    """The bound of `report.final_blocks` rows from more draws, as metrics."""
    return self._bound.metrics(params, self._many, _FINAL_PASSES, on_progress)

  def samples(self, params: Params, count: int) -> list[str]:
    """Texts of one row each."""
    drawn = -(-count // self._multiple) * self._multiple
    tokens = np.asarray(self._draw(params, np.arange(drawn, dtype=np.int32)))
    return [self._text(row) for row in tokens[:count]]

  def known_words(self, samples: Sequence[str]) -> dict[str, float]:
    """The shares of words in samples and in held-out text that occur in the training text, as
    metrics; both of the first million tokens. Empty where there are no words."""
    train, heldout = map(self._tokenizer.decode, self._heads)
    vocabulary = frozenset(words_of(train))
    shares = {
      "sample_known_words": known_share(samples, vocabulary),
      "heldout_known_words": known_share([heldout], vocabulary),
    }
    return {name: share for name, share in shares.items() if share is not None}

  def describe(self, step: int, line: Mapping[str, float]) -> str:
    """One line of text about a bound."""
    bits = f"{line['heldout_bits_per_char_strict']:.3f}"
    if self._exact:
      name = "cross entropy"
    else:
      name, bits = "bound", f"{bits} ± {line['heldout_bits_per_char_strict_stderr']:.3f}"
    return f"step {step} held-out {name} {bits} bits/char (bigram {self.entropies['bigram']:.3f})"

  def _text(self, row: np.ndarray) -> str:
    """The text of a row; where a row holds one document, only up to its end."""
    ends = np.flatnonzero(row == self._tokenizer.eos_id)
    return self._tokenizer.decode(row[: ends[0]] if len(ends) and self._one_document else row)
