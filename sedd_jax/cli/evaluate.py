"""sedd evaluate: bounds the perplexity of a trained model, on its held-out text or on test sets."""

from typing import Any

from absl import flags

from sedd_jax.cli import app, path_flags, study_flags
from sedd_jax.diffusion import TIME_SAMPLINGS
from sedd_jax.evaluation.bounds import ESTIMATORS
from sedd_jax.files.paths import split_paths
from sedd_jax.reports.evaluations import grades_text, heldout_text, suite_text
from sedd_jax.studies.frontier import FrontierConfig, frontier
from sedd_jax.studies.grades import GradeConfig, grade
from sedd_jax.studies.heldout import evaluate_heldout
from sedd_jax.studies.infilling import InfillingConfig, infilling
from sedd_jax.studies.runtext import MovedText
from sedd_jax.studies.suites import SuiteConfig, evaluate_suite

USAGE = """Bounds on the held-out text of a run, in bits per character.

  sedd evaluate --checkpoint=runs/quickstart
  sedd evaluate --checkpoint=runs/quickstart --num_times=128 --json

With --suite, perplexities on the test sets that papers compare on, by one of their protocols
(docs/evaluation.md). With --out, the same command resumes a killed one.

  sedd evaluate --checkpoint=runs/owt --suite=zero-shot --protocol=sedd --out=evaluations/owt
  sedd evaluate --checkpoint=louaaron/sedd-small --tokenizer=gpt2 --suite=zero-shot \\
    --protocol=strict --data=lambada=lambada_test.jsonl --num_times=32

Samples are graded by other verbs: sedd grade, sedd frontier and sedd infilling.
"""
_HELDOUT_TIMES = 32
_CHECKPOINT = path_flags.define_model("checkpoint", None, "Run directory; with --suite any model.")
_NUM_TIMES = flags.DEFINE_integer(
  "num_times",
  None,
  f"Draws of time and noise for each block and pass; even. Default: {_HELDOUT_TIMES}, or the "
  "protocol's number.",
)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Sequences per call of the network.")
_SEED = flags.DEFINE_integer("seed", 0, "Of times and noise.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
_SUITE = flags.DEFINE_string("suite", None, "Test sets to evaluate on: zero-shot.")
_OF_SUITES = {
  "protocol": flags.DEFINE_string("protocol", None, "How: sedd, mdlm or strict."),
  "sets": flags.DEFINE_list("sets", [], "Some of the protocol's sets, separated by commas."),
  "data": flags.DEFINE_multi_string(
    "data",
    [],
    "SET=SOURCE: where the text of a set is (files, tfds:NAME@SPLIT, hf:NAME@SPLIT). May be given "
    "several times; without --sets these are the sets to evaluate.",
  ),
  "estimator": flags.DEFINE_enum(
    "estimator",
    None,
    ESTIMATORS,
    "What is drawn: times, masking probabilities (lambda) or orders. Default: times, and exact for "
    "autoregressive models.",
  ),
  "time_sampling": flags.DEFINE_enum(
    "time_sampling", TIME_SAMPLINGS[0], TIME_SAMPLINGS, "How draws are spaced."
  ),
  "passes": flags.DEFINE_integer("passes", 1, "Independent passes over every block."),
  "tokenizer": flags.DEFINE_string("tokenizer", None, "Of weights that have none, e.g. gpt2."),
  "tokenizer_eos": flags.DEFINE_string(
    "tokenizer_eos", "", "Its end-of-text token; by default found in its file."
  ),
  "out": path_flags.define_path("out", None, "Folder of the result: new, or one to resume."),
}
# Of suites, and of the verbs in `_VERBS`.
_SHARED = ("tokenizer", "tokenizer_eos", "out")
_OF_TEXT = study_flags.define("files", "heldout_files")
# Flags of older versions, whose work other verbs do: see `_older`.
_FRONTIER = flags.DEFINE_bool("frontier", False, "Now sedd frontier.")
_INFILLING = flags.DEFINE_bool("infilling", False, "Now sedd infilling.")
_OF_STUDIES = study_flags.define(
  "samples", "judge", "judge_tokenizer", "judge_tokenizer_eos", "reference", "length", "baseline",
  "samplers", "steps", "temperatures", "num",
)  # fmt: skip
_VERBS = {"samples": "grade", "frontier": "frontier", "infilling": "infilling"}


def main() -> None:
  if faults := _faults():
    raise ValueError("\n".join(faults))
  if older := _older_modes():
    app.note(f"sedd evaluate --{older[0]} is now the verb sedd {_VERBS[older[0]]}")
    app.show(_older(older[0]), grades_text, as_json=_JSON.value)
    return
  (checkpoint,) = app.require(USAGE, _CHECKPOINT)
  common: dict[str, Any] = {"batch_size": _BATCH.value, "seed": _SEED.value}
  if _SUITE.value is None:
    moved = MovedText(**study_flags.settings(_OF_TEXT))
    report = evaluate_heldout(
      checkpoint,
      num_times=_NUM_TIMES.value or _HELDOUT_TIMES,
      moved=moved,
      say=app.note,
      **common,
    )
    app.show(report, heldout_text, as_json=_JSON.value)
    return
  config = SuiteConfig(
    checkpoint=checkpoint,
    suite=_SUITE.value,
    num_times=_NUM_TIMES.value,
    **{name: flag.value for name, flag in _OF_SUITES.items()},
    **common,
  )
  app.show(evaluate_suite(config, app.note), suite_text, as_json=_JSON.value)


def _faults() -> list[str]:
  """A line for each flag that is out of range or does not go with the others."""
  faults = [
    f"--{flag.name}={flag.value} must be at least 1"
    for flag in (_NUM_TIMES, _BATCH)
    if flag.value is not None and flag.value < 1
  ]
  if (_NUM_TIMES.value or 0) % 2:
    faults.append(f"--num_times={_NUM_TIMES.value} must be even")
  modes = [*(["suite"] if _SUITE.value else []), *_older_modes()]
  if len(modes) > 1:
    faults.append(f"{' and '.join(f'--{name}' for name in modes)}: one at a time")
  elif modes in ([], ["suite"]):
    if given := _given(_OF_STUDIES.values()):
      faults.append(f"{given}: of sedd grade, sedd frontier and sedd infilling")
    if not modes and (given := _given(_OF_SUITES.values())):
      faults.append(f"{given}: only with --suite, for example --suite=zero-shot")
    if modes and (given := _given(_OF_TEXT.values())):
      faults.append(f"{given}: of a run's own text; with --suite --data=SET=SOURCE names it")
  else:
    bounds = [flag for name, flag in _OF_SUITES.items() if name not in _SHARED]
    if given := _given([*bounds, _NUM_TIMES]):
      faults.append(f"{given} cannot be combined with --{modes[0]}")
    if modes[0] != "samples":
      needed = (_CHECKPOINT, _OF_STUDIES["baseline"], _OF_SUITES["out"])
      if missing := [f"--{flag.name}" for flag in needed if flag.value is None]:
        faults.append(f"--{modes[0]} needs {' and '.join(missing)}")
  return faults


def _given(holders: Any) -> str:
  """The names of the flags that the command line has."""
  return ", ".join(f"--{flag.name}" for flag in holders if flag.present)


def _older_modes() -> list[str]:
  modes = (_OF_STUDIES["samples"], _FRONTIER, _INFILLING)
  return [flag.name for flag in modes if flag.value]


def _older(mode: str) -> dict[str, Any]:
  """The report of a study that has a verb of its own now."""
  values = study_flags.settings({**_OF_STUDIES, **_OF_TEXT}) | {
    "checkpoints": [] if _CHECKPOINT.value is None else split_paths(_CHECKPOINT.value, ","),
    **{name: _OF_SUITES[name].value for name in _SHARED},
    "batch_size": _BATCH.value,
    "seed": _SEED.value,
  }
  of_frontier = {name: values.pop(name) for name in ("samplers", "steps", "temperatures")}
  samples, num = values.pop("samples"), values.pop("num")
  match mode:
    case "samples":
      return grade(GradeConfig(samples=samples, **values), app.note)
    case "frontier":
      return frontier(FrontierConfig(num=num, **of_frontier, **values), app.note)
  sampler, steps = of_frontier["samplers"][0], of_frontier["steps"][-1]
  config = InfillingConfig(num=num, sampler=sampler, steps=steps, **values)
  return infilling(config, app.note)


def run() -> None:
  app.run(main, USAGE, hidden=(*_OF_STUDIES, "frontier", "infilling"))


if __name__ == "__main__":
  run()
