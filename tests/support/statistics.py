"""Do draws follow a law, and do estimates have a mean?

G: groups, M: clean sequences, R: repetitions.
"""

import numpy as np
import scipy.special


def chi_square_p_value(counts: np.ndarray, p: np.ndarray) -> float:
  """How likely counts of independent draws from p lie at least this far from it."""
  assert (counts[p == 0] == 0).all(), "drew what has probability 0"
  counts, expected = counts[p > 0], counts.sum() * p[p > 0]
  if len(counts) == 1:
    return 1.0
  assert expected.min() > 5, "too few draws for this test"
  statistic = ((counts - expected) ** 2 / expected).sum()
  return float(scipy.special.chdtrc(len(counts) - 1, statistic))


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
  """Half the sum of absolute differences."""
  return float(np.abs(p - q).sum() / 2)


def assert_mean(estimates_RGM, exact_M, errors=4.0):
  """Each mean within so many standard errors of the exact value; the errors are small."""
  values = np.asarray(estimates_RGM).mean(1)
  stderr = values.std(axis=0, ddof=1) / len(values) ** 0.5
  np.testing.assert_array_less(np.abs(values.mean(0) - exact_M), errors * stderr + 1e-12)
  assert (stderr < 0.1 * exact_M).all()
