"""The mathematics of discrete diffusion: pure functions of arrays (docs/math.md)."""

from sedd_jax.diffusion.bounds import Terms, bound_terms, mean_and_stderr
from sedd_jax.diffusion.categorical import sample_categorical
from sedd_jax.diffusion.losses import (
  MIN_TIME,
  LogScoreFn,
  StatsFn,
  TimeSampling,
  denoising_score_entropy,
  enumerated_denoising_score_entropy,
  example_keys,
  explicit_score_entropy,
  from_log_score,
  implicit_score_entropy,
  sample_times,
)
from sedd_jax.diffusion.noise import Geometric, LogLinear, Noise
from sedd_jax.diffusion.process import Absorbing, Process, Uniform
from sedd_jax.diffusion.sampling import (
  END_TIME,
  STEPS,
  EachRow,
  Euler,
  Given,
  RowsFn,
  Step,
  Tweedie,
  dense_rows,
  sample,
  sample_rows,
)
from sedd_jax.diffusion.score import (
  Parameterization,
  ScoreStats,
  dense_log_score,
  dense_stats,
  stats_of_columns,
)
from sedd_jax.diffusion.tiles import Columns, map_rows

__all__ = [
  "END_TIME",
  "MIN_TIME",
  "STEPS",
  "Absorbing",
  "Columns",
  "EachRow",
  "Euler",
  "Geometric",
  "Given",
  "LogLinear",
  "LogScoreFn",
  "Noise",
  "Parameterization",
  "Process",
  "RowsFn",
  "ScoreStats",
  "StatsFn",
  "Step",
  "Terms",
  "TimeSampling",
  "Tweedie",
  "Uniform",
  "bound_terms",
  "denoising_score_entropy",
  "dense_log_score",
  "dense_rows",
  "dense_stats",
  "enumerated_denoising_score_entropy",
  "example_keys",
  "explicit_score_entropy",
  "from_log_score",
  "implicit_score_entropy",
  "map_rows",
  "mean_and_stderr",
  "sample",
  "sample_categorical",
  "sample_rows",
  "sample_times",
  "stats_of_columns",
]
