"""Cross entropies of held-out text under counts of the training text: yardsticks for a bound."""

import numpy as np

from sedd_jax.data import Dataset


def heldout_entropies(dataset: Dataset) -> dict[str, float]:
  """`unigram` and `bigram`: bits per character of the held-out text under counts of the training
  text, both of their first 20 million tokens at most."""
  arguments = (dataset.train_head, dataset.heldout_head, dataset.tokenizer.vocab_size)
  return {
    "unigram": unigram_bits(*arguments) / dataset.chars_per_token,
    "bigram": bigram_bits(*arguments) / dataset.chars_per_token,
  }


def unigram_bits(train: np.ndarray, heldout: np.ndarray, vocab_size: int) -> float:
  """Bits per token of heldout under the unigram law of train, one count added to each token.

  Args:
    train: int[T], in [0, vocab_size).
    heldout: int[U].
  """
  return float(-np.log2(_unigram(train, vocab_size)[heldout]).mean())


def bigram_bits(train: np.ndarray, heldout: np.ndarray, vocab_size: int) -> float:
  """Bits per token of heldout, each given the one before it, under the bigrams of train.

  p(b | a) = (count(a, b) + p(b)) / (count(a) + 1): one count is shared out by the unigram law, so
  that unseen pairs have a probability. The first token has no context and is left out.

  Args:
    train: int[T], in [0, vocab_size).
    heldout: int[U], U >= 2.
  """
  pairs, counts = np.unique(_pairs(train, vocab_size), return_counts=True)
  wanted = _pairs(heldout, vocab_size)
  position = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
  joint = np.where(pairs[position] == wanted, counts[position], 0)
  context = np.bincount(train[:-1], minlength=vocab_size)[heldout[:-1]]
  p = (joint + _unigram(train, vocab_size)[heldout[1:]]) / (context + 1.0)
  return float(-np.log2(p).mean())


def _unigram(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
  counts = np.bincount(tokens, minlength=vocab_size) + 1.0
  return counts / counts.sum()


def _pairs(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
  return tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]
