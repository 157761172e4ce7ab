"""MAUVE: how near two sets of texts are, between 0 and 1 (arXiv:2102.01454, arXiv:2212.14578).

Both sets become histograms: features of all texts, at unit length, are projected on the principal
components that hold 90 % of their variance, and clustered. For mixtures R = w P + (1 - w) Q the
points (exp(-c KL(Q | R)), exp(-c KL(P | R))), c = 5, are a curve from (1, 0) to (0, 1), and MAUVE
is the area under it. The order of the steps and the constants are those of the authors' code (PyPI:
mauve-text), whose k-means is another library's: numbers agree within what seeds make.

Numbers of different numbers of texts, of buckets, or of different judges do not compare.
"""

import dataclasses
import warnings

import numpy as np
from scipy.special import rel_entr

# The authors' choices: eq. 2 and section 4 of arXiv:2102.01454, and 500 buckets at most.
SCALING = 5.0
_VARIANCE = 0.9
_TEXTS_PER_BUCKET = 10
_MOST_BUCKETS = 500
_ITERATIONS = 500
# Mixture weights. The authors take 25, which on random histograms changes the area by up to 0.0006.
_POINTS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mauve:
  """The figure, a mean over clusterings with different seeds.

  Attributes:
    mauve: in [0, 1]; 1 where the histograms are equal.
    mauve_spread: standard deviation between clusterings; 0 of a single one.
    num_buckets: clusters.
    texts: of the smaller set.
  """

  mauve: float
  mauve_spread: float
  num_buckets: int
  texts: int


def mauve(
  features: np.ndarray,
  reference: np.ndarray,
  *,
  num_buckets: int | None = None,
  seeds: int = 5,
  restarts: int = 5,
) -> Mauve:
  """MAUVE of two sets of texts; the same where they change places, but for the seeds.

  Args:
    features: float[N, D], of a judge (`Judge.features`), one row for each text.
    reference: float[M, D], of real text, by the same judge. The paper takes 5000 of each.
    num_buckets: clusters; by default a tenth of the smaller number of texts, 2 to 500.
    seeds: number of clusterings.
    restarts: of each clustering; the best is kept.

  Raises:
    ValueError: the shapes do not fit, there are fewer than 2 texts in a set or fewer than buckets
      in both, or a number is not finite or not positive.
  """
  features, reference = np.asarray(features, np.float64), np.asarray(reference, np.float64)
  if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
    raise ValueError(
      f"features {features.shape} and reference {reference.shape} must be [N, D] and [M, D]"
    )
  texts = min(len(features), len(reference))
  if texts < 2:
    raise ValueError(f"MAUVE of {len(features)} and {len(reference)} texts: 2 at least of each")
  if not (np.isfinite(features).all() and np.isfinite(reference).all()):
    raise ValueError("features hold values that are not finite")
  if num_buckets is None:
    num_buckets = min(max(2, round(texts / _TEXTS_PER_BUCKET)), _MOST_BUCKETS)
  for name, value, least in (
    ("num_buckets", num_buckets, 2), ("seeds", seeds, 1), ("restarts", restarts, 1)
  ):  # fmt: skip
    if value < least:
      raise ValueError(f"{name}={value} must be at least {least}")
  if num_buckets > len(features) + len(reference):
    raise ValueError(
      f"num_buckets={num_buckets} exceeds the {len(features) + len(reference)} texts of both sets"
    )
  points = _projected(np.concatenate([features, reference]))
  found = []
  for seed in range(seeds):
    labels = _clustered(points, num_buckets, seed, restarts)
    ours, theirs = np.split(labels, [len(features)])
    counts = [np.bincount(part, minlength=num_buckets) for part in (ours, theirs)]
    found.append(mauve_of_histograms(*counts))
  return Mauve(
    mauve=float(np.mean(found)),
    mauve_spread=float(np.std(found, ddof=min(1, seeds - 1))),
    num_buckets=num_buckets,
    texts=texts,
  )


def mauve_of_histograms(p: np.ndarray, q: np.ndarray, *, points: int = _POINTS) -> float:
  """The area under the divergence curve of two histograms.

  Args:
    p: float[K], counts or probabilities, not negative.
    q: float[K].
    points: mixture weights; the area is a sum over trapezoids.

  Raises:
    ValueError: the shapes differ, or a histogram is negative or sums to 0.
  """
  p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
  if p.ndim != 1 or p.shape != q.shape:
    raise ValueError(f"histograms of shapes {p.shape} and {q.shape} must be of one and the same")
  if min(p.min(), q.min()) < 0 or not (p.sum() > 0 and q.sum() > 0):
    raise ValueError("a histogram must not be negative, nor sum to 0")
  p, q = p / p.sum(), q / q.sum()
  weight = np.linspace(0.0, 1.0, points + 2)[1:-1, None]
  mixture = weight * p[None, :] + (1.0 - weight) * q[None, :]
  x = np.concatenate([[1.0], np.exp(-SCALING * rel_entr(q, mixture).sum(-1)), [0.0]])
  y = np.concatenate([[0.0], np.exp(-SCALING * rel_entr(p, mixture).sum(-1)), [1.0]])
  # Along the curve x falls and y rises; by parts, both sums over trapezoids are this one.
  return float(np.sum(0.5 * (y[1:] + y[:-1]) * (x[:-1] - x[1:])))


def _projected(points: np.ndarray) -> np.ndarray:
  """Unit vectors on their first principal components, float32[N, D']."""
  from sklearn.decomposition import PCA  # Slow to import.
  from sklearn.preprocessing import normalize

  points = np.asarray(normalize(points))
  if np.ptp(points, axis=0).max() == 0.0:
    return points[:, :1].astype(np.float32)  # Nothing varies.
  pca = PCA(n_components=None, svd_solver="full").fit(points)
  share = np.cumsum(pca.explained_variance_ratio_)
  kept = int(np.argmax(share >= _VARIANCE)) + 1
  return pca.transform(points)[:, :kept].astype(np.float32)


def _clustered(points: np.ndarray, num_buckets: int, seed: int, restarts: int) -> np.ndarray:
  """The cluster of each point, int[N]."""
  from sklearn.cluster import KMeans
  from sklearn.exceptions import ConvergenceWarning

  means = KMeans(
    num_buckets,
    n_init=restarts,  # pyright: ignore[reportArgumentType]  (its stubs take the default for all)
    max_iter=_ITERATIONS,
    random_state=seed,
  )
  with warnings.catch_warnings():
    # Fewer different points than clusters: some stay empty, which is no harm to a histogram.
    warnings.simplefilter("ignore", ConvergenceWarning)
    return means.fit_predict(points)
