"""sedd evaluate: bounds the perplexity of a trained model on its held-out text."""

import json
import math

from absl import flags

import sedd_jax
from sedd_jax.cli import app
from sedd_jax.data import load_dataset
from sedd_jax.evaluation.bounds import BoundEstimator, evaluation_report
from sedd_jax.evaluation.entropies import heldout_entropies

USAGE = """Bounds on the held-out text of a run, in bits per character.

  sedd evaluate --checkpoint=runs/quickstart
  sedd evaluate --checkpoint=runs/quickstart --num_times=128 --json
"""
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory.")
_NUM_TIMES = flags.DEFINE_integer("num_times", 32, "Draws of time and noise per block; even.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Blocks per call of the network.")
_SEED = flags.DEFINE_integer("seed", 0, "Of times and corruptions.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def main() -> None:
  (checkpoint,) = app.require(USAGE, _CHECKPOINT)
  for flag in (_NUM_TIMES, _BATCH):
    if flag.value < 1:
      raise ValueError(f"--{flag.name}={flag.value} must be at least 1")
  if _NUM_TIMES.value % 2:
    raise ValueError(f"--num_times={_NUM_TIMES.value} must be even")
  model = sedd_jax.load(checkpoint)
  if model.tokenizer is None or "experiment" not in model.info:
    raise ValueError(f"{checkpoint} is no run of ours: it names no held-out text")
  dataset = load_dataset(
    model.info["experiment"].data, expected=model.info["corpus"], tokenizer=model.tokenizer
  )
  blocks = dataset.heldout_rows[:]
  estimator = BoundEstimator(
    model.estimate(_NUM_TIMES.value),
    batch_size=_BATCH.value,
  )
  bound = estimator.bound(
    model.params,
    blocks,
    chars_per_block=dataset.heldout_rows.characters() / len(blocks),
    seed=_SEED.value,
  )
  report = evaluation_report(
    bound,
    heldout_entropies(dataset),
    step=model.info["step"],
    num_times=_NUM_TIMES.value,
    blocks=len(blocks),
    tokens=dataset.heldout_rows.tokens(),
    chars_per_token=dataset.chars_per_token,
    perplexity_per_token_strict=math.exp(bound.strict * math.log(2.0) * dataset.chars_per_token),
    corpus=dict(dataset.identity),
    seed=_SEED.value,
    checkpoint=checkpoint,
  )
  print(json.dumps(report) if _JSON.value else _table(report))


def _table(report: dict) -> str:
  def bound(name: str) -> str:
    value = report[f"bits_per_char_{name}"]
    return (
      f"  bound ({name})".ljust(19) + f"{value:.4f} ± {report[f'bits_per_char_{name}_stderr']:.4f}"
    )

  blocks, draws = report["blocks"], report["num_times"]
  return f"""step {report["step"]}: {blocks} held-out blocks, {draws} draws each
bits per character (lower is better; ± one standard error of the Monte Carlo estimate)
{bound("strict")}
{bound("paper")}
  bigram entropy   {report["bigram_bits_per_char"]:.4f}
  unigram entropy  {report["unigram_bits_per_char"]:.4f}
perplexity per token (strict)  {report["perplexity_per_token_strict"]:.3f}"""


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
