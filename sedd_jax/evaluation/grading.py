"""Grades of samples: what a judge says of them, never without what counting says.

A grade is a flat row of numbers for tables and JSON. Samples, reference and judge share one
tokenizer by now, and all sequences one length.

N: samples, R: rows of real text, L: tokens of each.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from sedd_jax.evaluation.judge import Judge, Nats
from sedd_jax.evaluation.mauve import mauve
from sedd_jax.evaluation.quality import flat, quality, verdict

# Of fewer texts MAUVE is about the clusters: 6 samples of noise have 1.
_FEWEST_FOR_MAUVE = 50


class Grader:
  """Grades sets of samples against one judge and one piece of real text.

  Args:
    judge: reads samples and real text.
    reference: int[R, L], 100 rows or more of held-out text in the judge's tokens; half of them are
      kept to be graded themselves.

  Raises:
    ValueError: there are too few rows.
  """

  def __init__(self, judge: Judge, reference: np.ndarray):
    if len(reference) < 100:
      raise ValueError(
        f"{len(reference)} rows of {reference.shape[1]} tokens of real text: 100 at least are "
        "needed, half of them to be graded themselves; give more text, or shorter rows"
      )
    self._judge = judge
    # Neighbours in the text go to different halves.
    self._reference, self._held_back = reference[::2], reference[1::2]

  @property
  def length(self) -> int:
    """L."""
    return self._reference.shape[1]

  def of_real_text(self) -> dict[str, Any]:
    """The grade of one half of the real text against the other: what the best samples would get."""
    return self(self._held_back)

  def __call__(self, samples: np.ndarray) -> dict[str, Any]:
    """The grade of samples int[N, L].

    Returns:
      `perplexity` (of all tokens together) and `mean_sequence_perplexity` under the judge, the
      fields of `Quality`, `mauve`, its spread and its number of texts (50 at least, or these are
      left out), `verdict` and its `reasons`.

    Raises:
      ValueError: samples are of another length.
    """
    if samples.shape[1] != self.length:
      raise ValueError(f"samples of {samples.shape[1]} tokens, real text of {self.length}")
    nats = self._judge.nats(samples)
    judged = verdict(
      samples,
      self._reference,
      nats=nats.per_token,
      reference_nats=self._reference_nats.per_token,
    )
    return {
      **_perplexities(nats),
      **flat(quality(samples)),
      **self._mauve(samples),
      "verdict": judged.word,
      "reasons": "; ".join(judged.reasons),
    }

  def _mauve(self, samples: np.ndarray) -> Mapping[str, Any]:
    # Numbers of texts change the figure: as many of either, of the set that has more the first.
    size = min(len(samples), len(self._reference))
    if size < _FEWEST_FOR_MAUVE:
      return {}
    found = mauve(
      self._judge.features(samples[:size]),
      self._reference_features[:size],
    )
    return {"mauve": found.mauve, "mauve_spread": found.mauve_spread, "mauve_texts": found.texts}

  @functools.cached_property
  def _reference_nats(self) -> Nats:
    return self._judge.nats(self._reference)

  @functools.cached_property
  def _reference_features(self) -> np.ndarray:
    return self._judge.features(self._reference)


def _perplexities(nats: Nats) -> Mapping[str, float]:
  row = {}
  for name, (value, stderr) in (
    ("perplexity", nats.perplexity()),
    ("mean_sequence_perplexity", nats.mean_sequence_perplexity()),
  ):
    row[name] = value
    if np.isfinite(stderr):  # A single sample has none.
      row[f"{name}_stderr"] = stderr
  return row
