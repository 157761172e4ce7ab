"""What samples are like, by counting tokens: entropy, distinct n-grams, repetition, and a verdict.

A low perplexity under a judge is no proof of good text: one word said again and again may have the
lowest of all. The statistics here see that, and `verdict` holds them against those of real text.

N: samples, L: tokens of a sample, T: tokens of all samples, n: length of an n-gram.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

# Samples int[N, L], or one int[L_i] for each.
Sequences = np.ndarray | Sequence[np.ndarray]

_DISTINCT = (1, 2, 3, 4)
# Tokens of an n-gram that counts as repeated inside a sample, or as shared between samples.
_REPEATED = 4
_SHARED = 8
# The range of real text: all but the outermost 1 % on either side.
_QUANTILES = (0.01, 0.99)
_FEWEST_ROWS = 50
# The largest share of samples beyond one end of the range; real text has 1 %.
_MOST_OUTSIDE = 0.25
# Beyond these ends lies text that is noisier than real text, as of few steps; it is not collapsed.
_NOISY = {("nats_per_token", "high"), ("token_entropy", "high")}
# The ends of a range beyond which something is wrong. Text that never repeats itself, nor phrases
# of other texts, is no worse for that.
_FAULTS = {
  "token_entropy": ("low", "high"),
  "repetition": ("high",),
  "novelty": ("low",),
  "nats_per_token": ("low", "high"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
  """Statistics of a set of samples. Entropies in nats; standard errors over samples, NaN of one.

  Attributes:
    samples: N.
    tokens: T.
    unigram_entropy: of the frequencies of tokens in all samples together.
    token_entropy: mean over samples of the entropy of frequencies inside the sample: the "entropy"
      that MDLM, Duo and their followers report beside perplexity. log L at most.
    token_entropy_stderr: its standard error.
    distinct: for n = 1 to 4, different n-grams of all samples over all their n-grams. It falls with
      the number of samples.
    repetition: mean over samples of the share of tokens that lie in a 4-gram which stood before in
      the same sample.
    repetition_stderr: its standard error.
    novelty: mean over samples of the share of 8-grams that no other sample has; 0 where all samples
      are one. It falls with the number of samples.
    novelty_stderr: its standard error.
  """

  samples: int
  tokens: int
  unigram_entropy: float
  token_entropy: float
  token_entropy_stderr: float
  distinct: tuple[float, float, float, float]
  repetition: float
  repetition_stderr: float
  novelty: float
  novelty_stderr: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
  """One statistic of samples, with its range for real text.

  Attributes:
    name: of the statistic.
    mean: over samples.
    reference_mean: over rows of real text.
    low: the 1 % quantile of rows of real text.
    high: the 99 % quantile.
    below: share of samples below `low`.
    above: share of samples above `high`.
  """

  name: str
  mean: float
  reference_mean: float
  low: float
  high: float
  below: float
  above: float

  @property
  def side(self) -> str | None:
    """`low` or `high` if more than a quarter of the samples lies beyond that end and this is a
    fault, else None."""
    shares = {"low": self.below, "high": self.above}
    outside = {side: shares[side] for side in _FAULTS[self.name] if shares[side] > _MOST_OUTSIDE}
    return max(outside, key=outside.__getitem__, default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
  """Whether samples could be text.

  Attributes:
    word: `degenerate` where more than a quarter of the samples has less token entropy than real
      text, more repetition or less novelty, or is likelier under the judge than real text is; else
      `poor` where more than a quarter has more token entropy or is less likely than real text; else
      `like text`.
    ranges: each statistic.
  """

  word: str
  ranges: tuple[Range, ...]

  @property
  def reasons(self) -> tuple[str, ...]:
    """A sentence for each statistic outside its range."""
    return tuple(_reason(r) for r in self.ranges if r.side)


def _reason(r: Range) -> str:
  """The share of samples beyond the end, which is what counts: their mean may lie in the range."""
  share, beyond, end = (r.below, "below", r.low) if r.side == "low" else (r.above, "above", r.high)
  return (
    f"{r.name} {r.side}: {share:.0%} of the samples are {beyond} {end:.4g}, the end of the range "
    f"of text ({r.low:.4g} to {r.high:.4g}; their mean is {r.mean:.4g})"
  )


def quality(samples: Sequences) -> Quality:
  """Statistics of samples.

  Raises:
    ValueError: there are no samples, one is empty or holds negative ids or no integers, or none is
      4 tokens long.
  """
  tokens, of_sample = _joined(samples)
  per_sample = statistics(samples)
  distinct = []
  for n in _DISTINCT:
    grams, _ = _grams(tokens, of_sample, n)
    if not len(grams):
      raise ValueError(f"samples must have one of {n} tokens at least, to count {n}-grams")
    distinct.append(len(np.unique(grams)) / len(grams))
  counts = np.unique(tokens, return_counts=True)[1] / len(tokens)

  def mean(name: str) -> tuple[float, float]:
    values = per_sample[name]
    stderr = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return float(np.mean(values)), float(stderr)

  means = {name: mean(name) for name in per_sample}
  return Quality(
    samples=len(samples),
    tokens=len(tokens),
    unigram_entropy=float(-np.sum(counts * np.log(counts))),
    distinct=(distinct[0], distinct[1], distinct[2], distinct[3]),
    **{name: value for name, (value, _) in means.items()},
    **{f"{name}_stderr": stderr for name, (_, stderr) in means.items()},
  )


def statistics(samples: Sequences) -> dict[str, np.ndarray]:
  """`token_entropy`, `repetition` and `novelty` of each sample, float64[N]; see `Quality`.

  Samples shorter than an n-gram have repetition 0 and novelty 1.

  Raises:
    ValueError: there are no samples, or one is empty or holds negative ids or no integers.
  """
  return _within(*_joined(samples)) | {"novelty": _novelty(*_joined(samples))}


def verdict(
  samples: Sequences,
  reference: Sequences,
  *,
  nats: np.ndarray | None = None,
  reference_nats: np.ndarray | None = None,
) -> Verdict:
  """The verdict on samples, compared with real text of the same length.

  The range of a statistic is that of single rows of real text, from their 1 % to their 99 %
  quantile, and what counts is the share of samples beyond it: real text has 1 % on either side,
  whatever its kind and length, and a mean would let loops and noise make up for each other.

  Args:
    samples: at least one, all of L tokens.
    reference: rows of held-out text, at least 50, of L tokens each.
    nats: float[N], of each sample under a judge, per token; or None without a judge.
    reference_nats: the same of the reference.

  Raises:
    ValueError: lengths differ, there are fewer than 50 rows, or one of the nats is missing or of
      another length than its sequences.
  """
  ours, theirs = _joined(samples), _joined(reference)
  lengths = sorted({*np.bincount(ours[1]), *np.bincount(theirs[1])})
  if len(lengths) > 1:
    raise ValueError(
      f"samples and reference have {lengths[0]} to {lengths[-1]} tokens: cut all to one length, "
      "since the statistics depend on it"
    )
  if len(reference) < _FEWEST_ROWS:
    raise ValueError(f"{len(reference)} rows of reference text: {_FEWEST_ROWS} at least are needed")
  of_samples, of_reference = _within(*ours), _within(*theirs)
  # Novelty depends on the number of texts, so real rows are taken in groups of as many as samples.
  size = min(len(samples), len(reference))
  of_samples["novelty"] = _novelty(*_joined(samples[:size]))
  firsts = range(0, len(reference) - size + 1, size)
  of_reference["novelty"] = np.concatenate(
    [_novelty(*_joined(reference[first : first + size])) for first in firsts]
  )
  if (nats is None) != (reference_nats is None):
    raise ValueError("nats and reference_nats belong together: give both or none")
  if nats is not None and reference_nats is not None:
    for name, values, of in (
      ("nats", nats, samples),
      ("reference_nats", reference_nats, reference),
    ):
      if np.shape(values) != (len(of),):
        raise ValueError(f"{name} has shape {np.shape(values)}, not one for each of {len(of)}")
    of_samples["nats_per_token"] = np.asarray(nats, np.float64)
    of_reference["nats_per_token"] = np.asarray(reference_nats, np.float64)
  ranges = tuple(_range(name, of_samples[name], of_reference[name]) for name in of_samples)
  return Verdict(word=_word(ranges), ranges=ranges)


def _within(tokens: np.ndarray, of_sample: np.ndarray) -> dict[str, np.ndarray]:
  """The statistics that depend on one sample alone."""
  lengths = np.bincount(of_sample)
  return {
    "token_entropy": _token_entropy(tokens, of_sample, lengths),
    "repetition": _repetition(tokens, of_sample, lengths),
  }


def _word(ranges: Sequence[Range]) -> str:
  sides = {(r.name, r.side) for r in ranges if r.side}
  if sides and sides <= _NOISY:
    return "poor"
  return "degenerate" if sides else "like text"


def _range(name: str, ours: np.ndarray, theirs: np.ndarray) -> Range:
  # Values that occur, outwards: of fewer than 100 rows the least and the greatest. Many rows may
  # share one value, and what lies between two would cut them off.
  low = np.quantile(theirs, _QUANTILES[0], method="lower")
  high = np.quantile(theirs, _QUANTILES[1], method="higher")
  return Range(
    name=name,
    mean=float(np.mean(ours)),
    reference_mean=float(np.mean(theirs)),
    low=float(low),
    high=float(high),
    below=float(np.mean(ours < low)),
    above=float(np.mean(ours > high)),
  )


def flat(found: Quality) -> dict[str, float]:
  """The fields of a `Quality` as one flat object for JSON: `distinct` as distinct_1 to distinct_4,
  and no standard error of a single sample."""
  fields = dataclasses.asdict(found)
  distinct = fields.pop("distinct")
  fields |= {f"distinct_{n}": share for n, share in zip(_DISTINCT, distinct, strict=True)}
  return {name: value for name, value in fields.items() if not math.isnan(value)}


def _joined(samples: Sequences) -> tuple[np.ndarray, np.ndarray]:
  """All tokens one after the other, int64[T], and the number of the sample of each, int64[T]."""
  rows = [np.asarray(row) for row in samples]
  if not rows:
    raise ValueError("there are no samples")
  for i, row in enumerate(rows):
    if row.ndim != 1 or not row.size or not np.issubdtype(row.dtype, np.integer) or row.min() < 0:
      raise ValueError(
        f"sample {i} must be token ids int[L], not empty and not negative, "
        f"not {row.dtype}{list(row.shape)}"
      )
  lengths = [len(row) for row in rows]
  return np.concatenate(rows).astype(np.int64), np.repeat(np.arange(len(rows)), lengths)


def _grams(tokens: np.ndarray, of_sample: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
  """A number for each n-gram that lies inside one sample, the same for the same n-gram, and the
  place of its first token; each int64[number of n-grams]."""
  kinds = np.unique(tokens, return_inverse=True)[1].astype(np.int64)
  number, base = kinds, int(kinds.max()) + 1
  for i in range(1, n):
    # Numbers stay below T, so that a pair of number and token fits into 64 bits.
    pairs = number[:-1] * base + kinds[i:] if len(number) > 1 else number[:0]
    number = np.unique(pairs, return_inverse=True)[1].astype(np.int64)
  place = np.arange(len(number))
  inside = of_sample[place] == of_sample[place + n - 1] if len(place) else np.zeros(0, bool)
  return number[inside], place[inside]


def _token_entropy(tokens: np.ndarray, of_sample: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  base = int(tokens.max()) + 1
  pairs, counts = np.unique(of_sample * base + tokens, return_counts=True)
  sample = pairs // base
  p = counts / lengths[sample]
  return np.bincount(sample, weights=-p * np.log(p), minlength=len(lengths)) + 0.0  # No -0.


def _repetition(tokens: np.ndarray, of_sample: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  grams, place = _grams(tokens, of_sample, _REPEATED)
  covered = np.zeros(len(tokens), bool)
  if len(grams):
    pairs = of_sample[place] * (int(grams.max()) + 1) + grams
    first = np.unique(pairs, return_index=True)[1]
    again = np.ones(len(grams), bool)
    again[first] = False
    for i in range(_REPEATED):
      covered[place[again] + i] = True
  return np.bincount(of_sample, weights=covered, minlength=len(lengths)) / lengths


def _novelty(tokens: np.ndarray, of_sample: np.ndarray) -> np.ndarray:
  num = int(of_sample[-1]) + 1
  grams, place = _grams(tokens, of_sample, _SHARED)
  if not len(grams):
    return np.ones(num)
  base, sample = int(grams.max()) + 1, of_sample[place]
  holders = np.bincount(np.unique(sample * base + grams) % base, minlength=base)
  count = np.bincount(sample, minlength=num)
  alone = np.bincount(sample, weights=holders[grams] == 1, minlength=num)
  return np.where(count > 0, alone / np.maximum(count, 1), 1.0)
