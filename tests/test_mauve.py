"""MAUVE: closed forms, its published properties, and features of known laws."""

import itertools
import math

import numpy as np
import pytest

from sedd_jax.evaluation.mauve import SCALING, mauve, mauve_of_histograms


def area(p, q):
  """The area under the curve as an integral over the mixture weight, by Gauss's quadrature on
  pieces that shrink towards both ends: independent of the code under test."""
  p, q = np.asarray(p, float), np.asarray(q, float)
  nodes, weights = np.polynomial.legendre.leggauss(40)
  edges = np.concatenate([[0.0], 0.5 ** np.arange(40, 0, -1), 1 - 0.5 ** np.arange(2, 41), [1.0]])
  total = 0.0
  for low, high in itertools.pairwise(edges):
    for node, weight in zip(nodes, weights, strict=True):
      w = low + (high - low) * (node + 1) / 2
      r = w * p + (1 - w) * q
      of_q = sum(b * math.log(b / c) for b, c in zip(q, r, strict=True) if b > 0)
      of_p = sum(a * math.log(a / c) for a, c in zip(p, r, strict=True) if a > 0)
      slope = -sum(
        b * (a - b) / c for a, b, c in zip(p, q, r, strict=True) if b > 0
      )  # d KL(q | r) / dw
      x, y = math.exp(-SCALING * of_q), math.exp(-SCALING * of_p)
      total += weight * (high - low) / 2 * y * SCALING * slope * x
  # At w = 1 the mixture is p: from there the curve runs level to the corner (0, 1).
  if any(b > 0 and a == 0 for a, b in zip(p, q, strict=True)):
    return total
  rest = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True) if b > 0)
  return total + math.exp(-SCALING * rest)


HISTOGRAMS = [
  ([0.5, 0.5], [0.9, 0.1]),
  ([0.2, 0.3, 0.5], [0.5, 0.3, 0.2]),
  ([1.0, 0.0], [0.5, 0.5]),
  ([0.6, 0.4, 0.0], [0.0, 0.4, 0.6]),
  ([0.97, 0.02, 0.01], [0.01, 0.02, 0.97]),
]


@pytest.mark.parametrize(("p", "q"), HISTOGRAMS)
def test_the_area_is_the_integral(p, q):
  assert mauve_of_histograms(np.array(p), np.array(q)) == pytest.approx(area(p, q), abs=5e-6)
  more = mauve_of_histograms(np.array(p), np.array(q), points=20_000)
  assert more == pytest.approx(area(p, q), abs=2e-8)


def test_disjoint_supports_have_the_beta_functions_value():
  """x = (1 - w)^c, y = w^c: the area is 1 / binomial(2 c, c)."""
  found = mauve_of_histograms(np.array([3, 1, 0, 0]), np.array([0, 0, 2, 9]))
  assert found == pytest.approx(1 / math.comb(10, 5), abs=1e-6)
  assert found < 0.004


def test_equal_histograms_have_one_and_counts_are_shares():
  p = np.array([4, 0, 1, 7])
  assert mauve_of_histograms(p, 3 * p) == pytest.approx(1.0, abs=1e-12)
  q = np.array([1, 2, 3, 4])
  assert mauve_of_histograms(p, q) == mauve_of_histograms(p / 12, q / 10)


def test_it_is_symmetric_and_lies_between_nothing_and_one():
  rng = np.random.default_rng(0)
  for _ in range(50):
    p, q = rng.dirichlet(np.full(6, 0.3)), rng.dirichlet(np.full(6, 2.0))
    found = mauve_of_histograms(p, q)
    assert 0 < found < 1
    assert found == pytest.approx(mauve_of_histograms(q, p), abs=1e-12)


def test_it_rises_as_one_is_mixed_into_the_other():
  rng = np.random.default_rng(1)
  for _ in range(10):
    p, q = rng.dirichlet(np.full(5, 0.5)), rng.dirichlet(np.full(5, 0.5))
    found = [mauve_of_histograms(p, (1 - a) * q + a * p) for a in np.linspace(0, 1, 11)]
    assert np.all(np.diff(found) > 0)
    assert found[-1] == pytest.approx(1.0, abs=1e-12)


def test_features_of_one_law_are_near_and_of_others_far():
  rng = np.random.default_rng(0)
  centers = rng.normal(size=(8, 16))

  def draw(law, num):
    return centers[rng.choice(8, num, p=law)] + 0.05 * rng.normal(size=(num, 16))

  even = np.full(8, 1 / 8)
  halves = np.repeat([0.25, 0.0], 4), np.repeat([0.0, 0.25], 4)
  options = {"num_buckets": 8, "seeds": 2, "restarts": 2}
  same = mauve(draw(even, 400), draw(even, 400), **options)
  assert same.mauve > 0.97
  apart = mauve(draw(halves[0], 400), draw(halves[1], 400), **options)
  assert apart.mauve == pytest.approx(1 / math.comb(10, 5), abs=1e-4)
  # Clusters are the law's own, so the exact figure is known.
  half = mauve(draw(halves[0], 2000), draw(even, 2000), **options)
  assert half.mauve == pytest.approx(mauve_of_histograms(halves[0], even), abs=0.03)
  assert half.mauve_spread < 0.02


def test_places_change_and_nothing_else():
  rng = np.random.default_rng(0)
  one, other = rng.normal(size=(120, 4)), rng.normal(size=(150, 4)) + 0.7
  options = {"seeds": 3, "restarts": 1}
  there, back = mauve(one, other, **options), mauve(other, one, **options)
  assert (there.num_buckets, there.texts) == (12, 120)
  spread = max(there.mauve_spread, back.mauve_spread, 0.005)
  assert abs(there.mauve - back.mauve) < 4 * spread
  assert mauve(one, other, **options) == there, "it depends on the seeds alone"


def test_features_that_do_not_vary_are_one_bucket():
  one = np.ones((30, 3))
  assert mauve(one, 2 * one, seeds=1).mauve == pytest.approx(1.0, abs=1e-12), "lengths do not count"


def test_few_texts_look_farther():
  """Of 40 texts in 40 buckets, most of the distance is chance."""
  rng = np.random.default_rng(0)
  options = {"seeds": 2, "restarts": 1}
  few = mauve(rng.normal(size=(40, 8)), rng.normal(size=(40, 8)), num_buckets=40, **options)
  many = mauve(rng.normal(size=(400, 8)), rng.normal(size=(400, 8)), num_buckets=4, **options)
  assert few.mauve < 0.8 < 0.95 < many.mauve


WRONG = {
  r"must be \[N, D\] and \[M, D\]": {"features": np.ones((9, 3))},
  "2 at least of each": {"features": np.ones((1, 2))},
  "not finite": {"features": np.full((9, 2), np.nan)},
  "num_buckets=1 must be at least 2": {"num_buckets": 1},
  "num_buckets=99 exceeds the 18 texts": {"num_buckets": 99},
  "seeds=0 must be at least 1": {"seeds": 0},
  "restarts=0 must be at least 1": {"restarts": 0},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_refused(message):
  good = np.random.default_rng(0).normal(size=(9, 2))
  with pytest.raises(ValueError, match=message):
    mauve(**{"features": good, "reference": good} | WRONG[message])


def test_histograms_that_are_refused():
  with pytest.raises(ValueError, match="one and the same"):
    mauve_of_histograms(np.ones(2), np.ones(3))
  with pytest.raises(ValueError, match="must not be negative"):
    mauve_of_histograms(np.array([1, -1]), np.ones(2))
  with pytest.raises(ValueError, match="nor sum to 0"):
    mauve_of_histograms(np.zeros(2), np.ones(2))
