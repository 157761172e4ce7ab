"""The bound of a run on its own held-out text."""

import math
import time
from typing import Any

from sedd_jax.evaluation.bounds import BoundEstimator, OnShare, evaluation_report
from sedd_jax.evaluation.entropies import heldout_entropies
from sedd_jax.interop.load import load
from sedd_jax.ranges import check_seed
from sedd_jax.studies.runtext import MovedText, run_dataset
from sedd_jax.studies.study import Say

_PROGRESS_SECONDS = 10.0


def evaluate_heldout(
  checkpoint: str,
  *,
  num_times: int,
  batch_size: int,
  seed: int,
  moved: MovedText = MovedText(),
  say: Say = lambda text: None,
) -> dict[str, Any]:
  """The report of a run's bound, for JSON.

  Args:
    checkpoint: the run.
    num_times: draws of time and noise for each block; even.
    batch_size: blocks per call of the network.
    seed: of times and noise.
    moved: where the run's text is now.
    say: receives progress messages.

  Raises:
    ValueError: the model is no run of ours, or the text is not the one it was trained on.
    FileNotFoundError: the text is not there.
  """
  check_seed(seed, "--seed")
  model = load(checkpoint)
  dataset = run_dataset(model, checkpoint, moved)
  experiment = model.info["experiment"]
  blocks = dataset.heldout_rows[:]
  # In discrete time, if the run was trained so.
  objective = experiment.make_objective(model.vocab_size)
  estimator = BoundEstimator(objective.estimator(num_times), batch_size=batch_size)
  bound = estimator.bound(
    model.params,
    blocks,
    chars_per_block=dataset.heldout_rows.characters() / len(blocks.tokens),
    seed=seed,
    on_progress=_progress(say),
  )
  return evaluation_report(
    bound,
    heldout_entropies(dataset),
    step=model.info["step"],
    objective=experiment.objective,
    exact=objective.exact,
    num_times=None if objective.exact else num_times,
    blocks=len(blocks.tokens),
    tokens=dataset.heldout_rows.tokens(),
    chars_per_token=dataset.chars_per_token,
    perplexity_per_token_strict=math.exp(bound.strict * math.log(2.0) * dataset.chars_per_token),
    corpus=dict(dataset.identity),
    seed=seed,
    checkpoint=checkpoint,
  )


def _progress(say: Say) -> OnShare:
  """Says how far the bound has come, at most every ten seconds."""
  began = last = time.monotonic()

  def show(share: float) -> None:
    nonlocal last
    now = time.monotonic()
    if now - last >= _PROGRESS_SECONDS and share < 1.0:
      last = now
      say(f"{share:.0%} done, {(now - began) * (1.0 - share) / share / 60:.1f} min left")

  return show
