"""The study modes of `sedd evaluate`: files of samples, frontiers, infilling."""

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sedd_jax
from sedd_jax.data.rows import spread
from sedd_jax.data.tokenizers import same_tokenizer
from sedd_jax.evaluation.folder import close_folder, open_folder
from sedd_jax.evaluation.likelihood import weights_hash
from sedd_jax.generation.causal import CausalModel
from sedd_jax.generation.model import LanguageModel
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.reports.result import Result
from sedd_jax.reports.tables import plain, result_table
from sedd_jax.studies import frontier as frontiers
from sedd_jax.studies import infilling as fillings
from sedd_jax.studies.jury import Jury, heldout_rows, make_jury
from sedd_jax.studies.samples import grade_files
from sedd_jax.training import lock
from sedd_jax.training.rundir import versions

# Of a grade, what a terminal shows.
_SHOWN = (
  "prompt", "label", "sampler", "steps", "temperature", "calls", "perplexity", "perplexity_stderr",
  "nats_above_baseline", "nats_from_gap", "accuracy", "token_entropy", "distinct_2", "repetition",
  "mauve", "verdict",
)  # fmt: skip
# And what tells its rows apart.
_WHICH = ("prompt", "label", "sampler", "steps", "temperature")
Number = TypeVar("Number", int, float)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """What is asked: the flags of the same names, None where they were not given."""

  checkpoints: Sequence[str]
  tokenizer: str | None
  samples: Sequence[str]
  judge: str | None
  judge_tokenizer: str | None
  reference: str
  length: int | None
  baseline: str | None
  samplers: Sequence[str]
  steps: Sequence[int]
  temperatures: Sequence[float]
  num: int
  batch_size: int
  seed: int
  out: str | None


def samples(request: Request) -> dict[str, Any]:
  """Grades of files."""
  files = [Path(name).expanduser() for name in request.samples]
  if missing := [str(file) for file in files if not file.is_file()]:
    raise FileNotFoundError(f"--samples: there is no file {', '.join(missing)}")
  jury = _jury(request)
  settings = {"mode": "samples", "samples": {name: _sha256(Path(name)) for name in request.samples}}
  with _folder(request, settings, jury) as (folder, done):
    if done is not None:
      return done
    return _close(folder, grade_files(files, jury, request.length))


def frontier(request: Request) -> dict[str, Any]:
  """Grades of many ways to sample."""
  _needed(request, "frontier", "out")
  jury, models = _jury(request), _models(request)
  *labels, baseline = models
  ways = frontiers.ways_of(labels, baseline, request.samplers, request.steps, request.temperatures)
  for way in ways:  # Before anything is sampled.
    models[way.label].check(way.settings)
  wanted = frontiers.Frontier(
    models=models,
    ways=ways,
    num=request.num,
    length=min(model.length for model in models.values()),
    seed=request.seed,
    batch=request.batch_size,
  )
  settings = {"mode": "frontier", "ways": [way.name for way in ways], "num": request.num}
  with _folder(request, settings, jury, models) as (folder, done):
    if done is not None:
      return done
    assert folder is not None
    return _close(folder, frontiers.measure(wanted, jury, folder, _say, request.length))


def infilling(request: Request) -> dict[str, Any]:
  """Grades of gaps that were filled in."""
  _needed(request, "infilling", "out")
  jury, models = _jury(request), _models(request)
  *labels, baseline = models
  settings = SamplerSettings(sampler=request.samplers[0])
  if not settings.make_sampler().sets_times:
    settings = dataclasses.replace(settings, steps=request.steps[-1])
  ways = dict.fromkeys(labels, settings) | {baseline: SamplerSettings()}
  rows = heldout_rows(models[labels[0]], request.checkpoints[0])
  rows = rows[spread(len(rows), request.num), : min(model.length for model in models.values())]
  asked = {
    "mode": "infilling",
    "num": request.num,
    "ways": {label: models[label].said(ways[label]) for label in models},
  }
  with _folder(request, asked, jury, models) as (folder, done):
    if done is not None:
      return done
    found = fillings.measure(
      {label: (models[label], ways[label]) for label in models},
      rows,
      jury,
      seed=request.seed,
      batch=request.batch_size,
      say=_say,
      judged_length=request.length,
    )
    return _close(folder, found)


def show(report: Mapping[str, Any], *, as_json: bool) -> None:
  """Prints a report."""
  if as_json:
    print(json.dumps(report))
    return
  rows = [{name: row[name] for name in _SHOWN if name in row} for row in report["rows"]]
  found = Result(
    name="", path=Path(), kind=report["kind"], model="", rows=rows, settings={}, points=[]
  )
  table = result_table(found)
  print(plain(table))
  if table.note:
    print(f"all: {table.note}")
  for row in report["rows"]:
    if row.get("reasons"):
      which = [str(row[name]) for name in _WHICH if row.get(name) is not None]
      print(f"{' '.join(which)}: {row['reasons']}")
  for line in report.get("headline", ()):
    print(line)


def numbers(flag: str, words: Sequence[str], kind: Callable[[str], Number]) -> list[Number]:
  """The numbers of a flag.

  Raises:
    ValueError: there are none, or one is none, or not positive.
  """
  try:
    found = [kind(word) for word in words]
  except ValueError:
    found = []
  if not found or min(found) <= 0:
    raise ValueError(f"--{flag}={','.join(words)} must be positive numbers with commas between")
  return found


def _needed(request: Request, mode: str, *more: str) -> None:
  missing = [
    f"--{name}"
    for name, value in (
      ("checkpoint", request.checkpoints),
      ("baseline", request.baseline),
      *((name, getattr(request, name)) for name in more),
    )
    if not value
  ]
  if missing:
    raise ValueError(f"--{mode} needs {' and '.join(missing)}")


def _jury(request: Request) -> Jury:
  if request.judge is None:
    raise ValueError(
      "--judge is missing: an autoregressive run (objective 'autoregressive'), or GPT-2 by folder "
      "or hub id, for example --judge=openai-community/gpt2-large"
    )
  return make_jury(
    request.judge,
    request.reference,
    tokenizer=request.judge_tokenizer,
    batch_size=request.batch_size,
  )


def _models(request: Request) -> dict[str, LanguageModel]:
  """Models by label, the baseline last; they share one tokenizer."""
  assert request.baseline is not None
  models: dict[str, LanguageModel] = {}
  for path in [*request.checkpoints, request.baseline]:
    model = sedd_jax.load(path, tokenizer=request.tokenizer)
    experiment = model.info.get("experiment")
    label = (experiment.label if experiment else "") or Path(path).name
    if label in models:
      label = path
    if label in models:
      raise ValueError(f"{path} is named twice")
    models[label] = model
  *others, last = models.items()
  for label, model in others:
    if isinstance(model, CausalModel):
      raise ValueError(f"--checkpoint: {label} is autoregressive: give it as --baseline")
  if not isinstance(last[1], CausalModel):
    raise ValueError(f"--baseline={request.baseline} must be autoregressive")
  tokenizers = [model.tokenizer for model in models.values()]
  for label, tokenizer in zip(models, tokenizers, strict=True):
    if tokenizer is None or tokenizers[0] is None:
      raise ValueError(f"{label} came without a tokenizer: --tokenizer=gpt2:FOLDER")
    if not same_tokenizer(tokenizer, tokenizers[0]):
      raise ValueError(f"{label} has another tokenizer than {next(iter(models))}")
  return models


@contextlib.contextmanager
def _folder(
  request: Request,
  settings: Mapping[str, Any],
  jury: Jury,
  models: Mapping[str, LanguageModel] | None = None,
) -> Iterator[tuple[Path | None, dict[str, Any] | None]]:
  """The folder, if one is asked for, and the report in it, if it is whole.

  What it holds is of these weights: a run that was trained on is another model.
  """
  if request.out is None:
    yield None, None
    return
  folder = Path(request.out).expanduser()
  asked = {
    name: getattr(request, name)
    for name in ("checkpoints", "judge", "reference", "length", "baseline", "seed")
  }
  asked["judge_weights"] = weights_hash(jury.model.params)
  asked["weights"] = {name: weights_hash(model.params) for name, model in (models or {}).items()}
  with lock.FolderLock(folder, _say, "--out"):
    yield folder, open_folder(folder, {**settings, **asked}, allowed=lock.FILE)


def _close(folder: Path | None, report: dict[str, Any]) -> dict[str, Any]:
  report = {**report, "versions": versions()}
  if folder is not None:
    close_folder(folder, report)
  return report


def _sha256(file: Path) -> str:
  return hashlib.sha256(file.expanduser().read_bytes()).hexdigest()


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
