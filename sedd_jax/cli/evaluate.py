"""sedd evaluate: bounds the perplexity of a trained model, on its held-out text or on test sets."""

import json
import math

from absl import flags

import sedd_jax
from sedd_jax.cli import app, study, suite
from sedd_jax.data import load_dataset
from sedd_jax.diffusion import TIME_SAMPLINGS
from sedd_jax.evaluation.bounds import ESTIMATORS, BoundEstimator, evaluation_report
from sedd_jax.evaluation.entropies import heldout_entropies

USAGE = """Bounds on the held-out text of a run, in bits per character.

  sedd evaluate --checkpoint=runs/quickstart
  sedd evaluate --checkpoint=runs/quickstart --num_times=128 --json

With --suite, perplexities on the test sets that papers compare on, by one of their protocols
(docs/evaluation.md). A killed one goes on where it stopped, if it has --out.

  sedd evaluate --checkpoint=runs/owt --suite=zero-shot --protocol=sedd --out=evaluations/owt
  sedd evaluate --checkpoint=louaaron/sedd-small --tokenizer=gpt2 --suite=zero-shot \\
    --protocol=strict --data=lambada=lambada_test.jsonl --num_times=32

Samples are graded by a judge, an autoregressive run or GPT-2, and by counting, since a perplexity
alone can be had for repeating one word (docs/quality.md). A frontier samples in many ways, with
several temperatures of a baseline as the line to beat.

  sedd evaluate --samples=a.jsonl,b.jsonl --judge=runs/ar --out=evaluations/samples
  sedd evaluate --frontier --checkpoint=runs/sedd --baseline=runs/ar --judge=runs/ar \\
    --samplers=tweedie,euler --steps=4,16,64 --out=evaluations/frontier
  sedd evaluate --infilling --checkpoint=runs/sedd --baseline=runs/ar --judge=runs/ar --out=fill
"""
_HELDOUT_TIMES = 32
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Run directory; of a suite any model, of a frontier several with commas."
)
_NUM_TIMES = flags.DEFINE_integer(
  "num_times",
  None,
  f"Draws of time and noise for each block and pass; even. Default: {_HELDOUT_TIMES}, or what the "
  "protocol says.",
)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Sequences per call of the network.")
_SEED = flags.DEFINE_integer("seed", 0, "Of times and corruptions.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
_SUITE = flags.DEFINE_string("suite", None, "Test sets to evaluate on: zero-shot.")
_PROTOCOL = flags.DEFINE_string("protocol", None, "How: sedd, mdlm or strict.")
_SETS = flags.DEFINE_list("sets", [], "Some of the protocol's sets, separated by commas.")
_DATA = flags.DEFINE_multi_string(
  "data",
  [],
  "SET=SOURCE: where the text of a set is (files, tfds:NAME@SPLIT, hf:NAME@SPLIT). May be given "
  "several times; without --sets these are the sets to evaluate.",
)
_ESTIMATOR = flags.DEFINE_enum(
  "estimator",
  None,
  ESTIMATORS,
  "What is drawn: times, masking probabilities (lambda) or orders. Default: times, and exact for "
  "autoregressive models.",
)
_TIME_SAMPLING = flags.DEFINE_enum(
  "time_sampling", TIME_SAMPLINGS[0], TIME_SAMPLINGS, "How draws are spaced."
)
_PASSES = flags.DEFINE_integer("passes", 1, "Independent passes over every block.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Of weights that have none, e.g. gpt2:FOLDER.")
_OUT = flags.DEFINE_string("out", None, "New folder for what is found, or one to go on with.")
_OF_SUITES = (_PROTOCOL, _SETS, _DATA, _ESTIMATOR, _TIME_SAMPLING, _PASSES, _TOKENIZER, _OUT)


_SAMPLES = flags.DEFINE_list("samples", [], "Files of samples to grade: .jsonl, or .txt.")
_FRONTIER = flags.DEFINE_bool("frontier", False, "Sample in many ways, and grade them all.")
_INFILLING = flags.DEFINE_bool("infilling", False, "Fill in held-out text, and grade that.")
_JUDGE = flags.DEFINE_string("judge", None, "Autoregressive run, folder or hub id of GPT-2.")
_JUDGE_TOKENIZER = flags.DEFINE_string("judge_tokenizer", None, "gpt2:FOLDER, where it has none.")
_REFERENCE = flags.DEFINE_string("reference", "", "Real text: a run or files; else the judge's.")
_LENGTH = flags.DEFINE_integer("length", None, "Tokens of the judge's that samples are cut to.")
_BASELINE = flags.DEFINE_string("baseline", None, "Autoregressive model to compare with.")
_SAMPLERS = flags.DEFINE_list("samplers", ["tweedie"], "Of a frontier; of infilling the first.")
_STEPS = flags.DEFINE_list("steps", ["4", "8", "16", "32", "64"], "Of a frontier; the last else.")
_TEMPERATURES = flags.DEFINE_list(
  "temperatures", ["0.6", "0.8", "0.9", "1", "1.1", "1.2"], "Of the baseline."
)
_NUM = flags.DEFINE_integer("num", 256, "Samples of each way, or rows to fill in.")
_OF_STUDIES = (
  _JUDGE, _JUDGE_TOKENIZER, _REFERENCE, _LENGTH, _BASELINE, _SAMPLERS, _STEPS, _TEMPERATURES, _NUM,
)  # fmt: skip


def main() -> None:
  for flag in (_NUM_TIMES, _BATCH, _NUM):
    if flag.value is not None and flag.value < 1:
      raise ValueError(f"--{flag.name}={flag.value} must be at least 1")
  if (_NUM_TIMES.value or 0) % 2:
    raise ValueError(f"--num_times={_NUM_TIMES.value} must be even")
  modes = [flag for flag in (_SUITE, _SAMPLES, _FRONTIER, _INFILLING) if flag.value]
  if len(modes) > 1:
    raise ValueError(f"{' and '.join(f'--{flag.name}' for flag in modes)}: one at a time")
  if modes and modes[0] is not _SUITE:
    foreign = (_PROTOCOL, _SETS, _DATA, _ESTIMATOR, _TIME_SAMPLING, _PASSES, _NUM_TIMES)
    if given := [f"--{flag.name}" for flag in foreign if flag.present]:
      raise ValueError(f"{', '.join(given)}: of bounds, not of --{modes[0].name}")
    study.show(_study(modes[0].name), as_json=_JSON.value)
    return
  if given := [f"--{flag.name}" for flag in _OF_STUDIES if flag.present]:
    raise ValueError(f"{', '.join(given)}: of --samples, --frontier and --infilling only")
  (checkpoint,) = app.require(USAGE, _CHECKPOINT)
  if _SUITE.value is None:
    _heldout(checkpoint)
  else:
    suite.show(suite.evaluate(_request(checkpoint, _SUITE.value)), as_json=_JSON.value)


def _study(mode: str) -> dict:
  request = study.Request(
    checkpoints=[] if _CHECKPOINT.value is None else _CHECKPOINT.value.split(","),
    tokenizer=_TOKENIZER.value,
    samples=_SAMPLES.value,
    judge=_JUDGE.value,
    judge_tokenizer=_JUDGE_TOKENIZER.value,
    reference=_REFERENCE.value,
    length=_LENGTH.value,
    baseline=_BASELINE.value,
    samplers=_SAMPLERS.value,
    steps=study.numbers("steps", _STEPS.value, int),
    temperatures=study.numbers("temperatures", _TEMPERATURES.value, float),
    num=_NUM.value,
    batch_size=_BATCH.value,
    seed=_SEED.value,
    out=_OUT.value,
  )
  return {"samples": study.samples, "frontier": study.frontier, "infilling": study.infilling}[mode](
    request
  )


def _request(checkpoint: str, name: str) -> suite.Request:
  return suite.Request(
    checkpoint=checkpoint,
    suite=name,
    protocol=_PROTOCOL.value,
    data=_DATA.value,
    sets=_SETS.value,
    tokenizer=_TOKENIZER.value,
    estimator=_ESTIMATOR.value,
    time_sampling=_TIME_SAMPLING.value,
    num_times=_NUM_TIMES.value,
    passes=_PASSES.value,
    batch_size=_BATCH.value,
    seed=_SEED.value,
    out=_OUT.value,
  )


def _heldout(checkpoint: str) -> None:
  if given := [f"--{flag.name}" for flag in _OF_SUITES if flag.present]:
    raise ValueError(f"{', '.join(given)}: of suites only, name one with --suite=zero-shot")
  num_times = _NUM_TIMES.value or _HELDOUT_TIMES
  model = sedd_jax.load(checkpoint)
  if model.tokenizer is None or "experiment" not in model.info:
    raise ValueError(f"{checkpoint} is no run of ours: it names no held-out text")
  dataset = load_dataset(
    model.info["experiment"].data, expected=model.info["corpus"], tokenizer=model.tokenizer
  )
  blocks = dataset.heldout_rows[:]
  # As the run itself is judged: in discrete time, where it was trained so.
  objective = model.info["experiment"].make_objective(model.vocab_size)
  estimator = BoundEstimator(objective.estimator(num_times), batch_size=_BATCH.value)
  bound = estimator.bound(
    model.params,
    blocks,
    chars_per_block=dataset.heldout_rows.characters() / len(blocks.tokens),
    seed=_SEED.value,
  )
  report = evaluation_report(
    bound,
    heldout_entropies(dataset),
    step=model.info["step"],
    objective=model.info["experiment"].objective,
    exact=objective.exact,
    num_times=None if objective.exact else num_times,
    blocks=len(blocks.tokens),
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

  draws, error = f", {report['num_times']} draws each", "; ± one standard error of the estimate"
  bounds = f"{bound('strict')}\n{bound('paper')}"
  what = "strict"
  if report["exact"]:
    draws = error = ""
    bounds, what = f"  cross entropy    {report['bits_per_char_strict']:.4f}", "exact"
  return f"""step {report["step"]}: {report["blocks"]} held-out blocks{draws}
bits per character (lower is better{error})
{bounds}
  bigram entropy   {report["bigram_bits_per_char"]:.4f}
  unigram entropy  {report["unigram_bits_per_char"]:.4f}
perplexity per token ({what})  {report["perplexity_per_token_strict"]:.3f}"""


def run() -> None:
  app.run(main, USAGE)


if __name__ == "__main__":
  run()
