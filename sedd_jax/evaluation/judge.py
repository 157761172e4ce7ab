"""A judge: an autoregressive network that says how likely texts are, and what they are about.

The judge reads tokens of its own tokenizer; `retokenized` translates samples of another model.

N: texts, L: tokens of a text, B: texts in a batch, D: width, W: tokens that it reads at once.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.batch import Batch
from sedd_jax.data import Tokenizer
from sedd_jax.data.tokenizers import same_tokenizer
from sedd_jax.models import Autoregressive


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Nats:
  """How likely texts are.

  Attributes:
    sums: float64[N], minus the log likelihood of each text in nats: of those of its tokens that are
      scored.
    counts: int64[N], how many are.
  """

  sums: np.ndarray
  counts: np.ndarray

  @property
  def per_token(self) -> np.ndarray:
    """Nats per token of each text, float64[N]; of a text without a scored token 0."""
    return self.sums / np.maximum(self.counts, 1)

  def perplexity(self) -> tuple[float, float]:
    """Generative perplexity, and its standard error over texts.

    exp of the mean over all tokens, as MDLM (arXiv:2406.07524) and most papers since report it.
    """
    mean = self.sums.sum() / self.counts.sum()
    # Of a ratio of sums over texts, to first order.
    spread = self.sums - mean * self.counts
    return math.exp(mean), math.exp(mean) * _stderr(spread) / float(self.counts.mean())

  def mean_sequence_perplexity(self) -> tuple[float, float]:
    """Generative perplexity as SEDD's code takes it, and its standard error over texts.

    The mean over texts of the perplexity of each, which is at least that of the text's mean: one
    unlikely text weighs much.
    """
    each = np.exp(self.per_token)
    return float(each.mean()), _stderr(each)


class Judge:
  """Reads texts in batches; compiles once for each length.

  Args:
    network: the judge, for example GPT-2 (`models/gpt2.py`).
    params: its parameters.
    batch_size: texts in a batch.
    longest: W, where the network was trained to read fewer tokens than it can.

  Raises:
    ValueError: batch_size < 1.
  """

  def __init__(
    self, network: Autoregressive, params: Any, *, batch_size: int = 8, longest: int | None = None
  ):
    if batch_size < 1:
      raise ValueError(f"batch_size={batch_size} must be at least 1")
    self._longest = network.longest if longest is None else min(longest, network.longest)
    self.network, self.params, self.batch_size = network, params, batch_size
    self._log_prob = jax.jit(network.log_prob)
    self._hidden_at = jax.jit(
      lambda params, tokens, at: jnp.take_along_axis(
        network.hidden(params, tokens), at[:, None, None], axis=1
      )[:, 0]
    )

  def nats(self, texts: np.ndarray | Sequence[np.ndarray]) -> Nats:
    """How likely each text is.

    Nothing is put before a text: where the judge has no law of the first token, that one is not
    scored, as in the papers' figures. A text of more than W tokens is cut into windows, each judged
    by itself. They overlap by a token where the first has no law, so that every token but the first
    of the text is scored once.

    Args:
      texts: int[N, L], or int[L_i] for each text; token ids of the judge's tokenizer.

    Raises:
      ValueError: there are no texts, one is empty or holds other tokens, none has a scored token,
        or W is 1.
    """
    rows = self._checked(texts)
    unscored = 0 if self.network.scores_first else 1
    step = self._longest - unscored
    if step < 1:
      raise ValueError("a judge that reads one token at a time and has no law of it scores nothing")
    owner, windows = [], []
    for number, row in enumerate(rows):
      for first in range(0, max(1, len(row) - unscored), step):
        owner.append(number)
        windows.append(row[first : first + self._longest])
    sums = np.zeros(len(rows))
    for first, batch in self._batches(windows):
      log_prob = np.asarray(self._log_prob(self.params, batch.tokens), np.float64)
      scored = batch.loss_mask & (np.arange(log_prob.shape[1]) >= unscored)
      each = -np.sum(log_prob, axis=1, where=scored)
      count = min(len(each), len(windows) - first)
      np.add.at(sums, owner[first : first + count], each[:count])
    counts = np.array([len(row) - unscored for row in rows], np.int64)
    if not counts.any():
      raise ValueError("no text has a token to score: each is one token, and the first has no law")
    return Nats(sums=sums, counts=counts)

  def features(self, texts: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """What MAUVE compares: the last layer's state behind the last token, float32[N, D].

    Of a text of more than W tokens only the first W are read, as by the authors of MAUVE.

    Args:
      texts: as `nats`.

    Raises:
      ValueError: there are no texts, or one is empty or holds other tokens.
    """
    rows = [row[: self._longest] for row in self._checked(texts)]
    found = [
      np.asarray(self._hidden_at(self.params, batch.tokens, _last(batch)), np.float32)
      for _, batch in self._batches(rows)
    ]
    return np.concatenate(found)[: len(rows)]

  def _batches(self, rows: Sequence[np.ndarray]) -> Iterator[tuple[int, Batch]]:
    """The number of the first row, and a batch: behind shorter rows there are zeros that do not
    count, and that a causal judge does not see. The last row fills up the last batch."""
    size = min(self.batch_size, len(rows))
    longest = max(map(len, rows))
    for first in range(0, len(rows), size):
      chosen = [rows[min(i, len(rows) - 1)] for i in range(first, first + size)]
      batch = Batch(np.zeros((size, longest), np.int32), np.zeros((size, longest), bool))
      for row, tokens, counts in zip(chosen, batch.tokens, batch.loss_mask, strict=True):
        tokens[: len(row)], counts[: len(row)] = row, True
      yield first, batch

  def _checked(self, texts: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    rows = [np.asarray(row) for row in texts]
    if not rows:
      raise ValueError("there are no texts to judge")
    for i, row in enumerate(rows):
      if row.ndim != 1 or not row.size or not np.issubdtype(row.dtype, np.integer):
        raise ValueError(
          f"text {i} must be token ids int[L], not empty, not {row.dtype}{list(row.shape)}"
        )
      if row.min() < 0 or row.max() >= self.network.vocab_size:
        raise ValueError(
          f"text {i} holds tokens in [{row.min()}, {row.max()}], the judge knows "
          f"[0, {self.network.vocab_size}): has it another tokenizer?"
        )
    return rows


def retokenized(
  texts: np.ndarray | Sequence[np.ndarray], source: Tokenizer, target: Tokenizer
) -> list[np.ndarray]:
  """Texts in the tokens of a judge: decoded and encoded again, unless both tokenizers are one.

  Args:
    texts: int[N, L], or int[L_i] for each text, of `source`.
    source: the tokenizer of the model.
    target: that of the judge.

  Raises:
    ValueError: a text is empty, or the judge's tokenizer does not know one of its characters.
  """
  if same_tokenizer(source, target):
    return [np.asarray(row, np.int32) for row in texts]
  encoded = target.encode_batch([source.decode(row) for row in texts])
  for i, row in enumerate(encoded):
    if not len(row):
      raise ValueError(f"text {i} is empty, and a judge has nothing to say of it")
  return encoded


def _last(batch: Batch) -> np.ndarray:
  """The last place that counts in each row, int32[B]."""
  return np.asarray(np.sum(batch.loss_mask, axis=1) - 1, np.int32)


def _stderr(values: np.ndarray) -> float:
  """Of the mean of values float[N]; NaN of a single one."""
  if len(values) < 2:
    return math.nan
  return float(np.std(values, ddof=1) / len(values) ** 0.5)
