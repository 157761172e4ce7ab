"""The suite mode of `sedd evaluate`: test sets by a protocol, in a table or as JSON."""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import sedd_jax
from sedd_jax.data import Tokenizer
from sedd_jax.data.tokenizers import fingerprint
from sedd_jax.evaluation.bounds import Draws
from sedd_jax.evaluation.folder import close_folder, open_folder
from sedd_jax.evaluation.likelihood import (
  Scorer,
  Task,
  estimate_rows,
  make_scorer,
  read_tasks,
  summary,
  weights_hash,
)
from sedd_jax.evaluation.suites import SUITES, Protocol
from sedd_jax.generation.model import LanguageModel, Model
from sedd_jax.training import lock
from sedd_jax.training.rundir import versions

_TELL_SECONDS = 10.0
# Of a set's result, what `sedd report` shows.
_OF_A_ROW = (
  "set", "split", "figure", "perplexity", "perplexity_stderr", "bits_per_char",
  "bits_per_char_stderr", "nats_per_token", "nats_per_token_stderr", "tokens", "chunks", "seconds",
  "status",
)  # fmt: skip
_FIGURES = {
  "published": "the mean over times in [1e-3, 1], as the literature reports",
  "strict": "a true upper bound (docs/math.md, section 6)",
}
_NO_ENDS = "all of the bound, since this estimator has no ends to leave out"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """What is asked: the flags of the same names, None where they were not given."""

  checkpoint: str
  suite: str
  protocol: str | None
  data: Sequence[str]
  sets: Sequence[str]
  tokenizer: str | None
  estimator: str | None
  time_sampling: Any
  num_times: int | None
  passes: int
  batch_size: int
  seed: int
  out: str | None


def evaluate(request: Request) -> dict[str, Any]:
  """The report of a suite.

  Raises:
    ValueError: a flag, a text or the folder cannot be used; the message says which and why.
  """
  protocol = protocol_of(request.suite, request.protocol)
  sources = _sources(request.data, protocol)
  names = _names(request.sets, sources, protocol)
  model = sedd_jax.load(request.checkpoint, tokenizer=request.tokenizer)
  draws = Draws(
    estimator=request.estimator or (protocol.estimator if isinstance(model, Model) else "exact"),
    num_times=protocol.num_times if request.num_times is None else request.num_times,
    time_sampling=request.time_sampling,
  )
  if request.passes < 1:
    raise ValueError(f"--passes={request.passes} must be at least 1")
  sources = {name: sources.get(name, protocol.set_of(name).source) for name in names}
  tokenizer = _tokenizer(model, request.checkpoint)
  scorer = make_scorer(
    model.network,
    model.noise if isinstance(model, Model) else None,
    model.params,
    draws,
    batch_size=request.batch_size,
    devices=jax.local_devices(),
  )
  scores_first = isinstance(model, Model) or model.network.scores_first
  settings = {
    "suite": request.suite,
    "protocol": protocol.name,
    "sets": names,
    **dataclasses.asdict(draws),
    "passes": request.passes,
    "seed": request.seed,
    "length": model.length,
    "dtype": str(model.dtype),
    "tokenizer": fingerprint(tokenizer),
    "weights": weights_hash(model.params),
  }
  with contextlib.ExitStack() as stack:
    folder = None
    if request.out is not None:
      folder = Path(request.out)
      stack.enter_context(lock.FolderLock(folder, _say, "--out"))
      done = open_folder(folder, settings, allowed=lock.FILE)
      # Text from another place may be another one: then the rows say whether it is.
      if done and all(one["source"] == sources.get(one["set"]) for one in done["results"]):
        return done
    tasks = read_tasks(protocol, names, sources, tokenizer, model.length, scores_first)
    results = _results(scorer, protocol, tasks, request, folder)
    report = {
      "kind": "likelihood",
      **settings,
      "settings": {**settings, "checkpoint": request.checkpoint},
      "rows": [{name: one[name] for name in _OF_A_ROW} for one in results],
      "checkpoint": request.checkpoint,
      "step": model.info.get("step"),
      "scores_first": scores_first,
      "versions": versions(),
      "results": results,
      "not_evaluated": [one.name for one in protocol.sets if one.name not in names],
    }
    if folder is not None:
      close_folder(folder, report)
  return report


def protocol_of(suite: str, name: str | None) -> Protocol:
  """The protocol that --suite and --protocol name.

  Raises:
    ValueError: there is none; the message lists them.
  """
  if suite not in SUITES:
    raise ValueError(f"--suite={suite!r} must be one of {', '.join(SUITES)}")
  protocols = SUITES[suite]
  if name is None or name not in protocols:
    given = "is missing" if name is None else f"{name!r} is not known"
    raise ValueError(f"--protocol {given}: --suite={suite} has {', '.join(protocols)}")
  return protocols[name]


def table(report: Mapping[str, Any]) -> str:
  """The report as text."""
  rows = [
    ("set", "perplexity", "bits/char", "nats/token", "tokens", "chunks", "seconds", "they are")
  ]
  rows += [
    (
      found["set"],
      f"{found['perplexity']:.3f} ± {found['perplexity_stderr']:.3f}",
      f"{found['bits_per_char']:.4f} ± {found['bits_per_char_stderr']:.4f}",
      f"{found['nats_per_token']:.4f} ± {found['nats_per_token_stderr']:.4f}",
      f"{found['tokens']:,}",
      f"{found['chunks']:,}",
      f"{found['seconds']:.1f}",
      found["status"],
    )
    for found in report["results"]
  ]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]
  step = "" if report["step"] is None else f", step {report['step']}"
  passes = "" if report["passes"] == 1 else f" x {report['passes']} passes"
  figure = report["results"][0]["figure"]
  of_times = figure == "strict" or report["estimator"] == "times"
  said = _FIGURES[figure] if of_times else _NO_ENDS
  more = []
  if report["not_evaluated"]:
    more.append(f"not evaluated: {', '.join(report['not_evaluated'])}")
  if other := [one["set"] for one in report["results"] if "DIFFER" in one["status"]]:
    more.append(
      f"WARNING: the tokens of {', '.join(other)} are not those that this protocol makes of the "
      "published text: the text is another one, and the numbers are not comparable"
    )
  how = [
    f"chunks of {report['length']} tokens; {report['estimator']} ({report['time_sampling']}), "
    f"{report['num_times']} draws{passes} each; seed {report['seed']}",
    f"{figure}: {said}; ± one standard error of the Monte Carlo estimate",
  ]
  if report["estimator"] == "exact":
    how = [f"chunks of {report['length']} tokens; exact likelihood of an autoregressive model"]
    if not report.get("scores_first", True):
      how.append("the first token of every chunk is not scored: this model has no law of it")
  return "\n".join([
    f"{report['suite']}, protocol {report['protocol']}: {report['checkpoint']}{step}",
    *how,
    "",
    *lines,
    *more,
  ])  # fmt: skip


def _results(
  scorer: Scorer, protocol: Protocol, tasks: Sequence[Task], request: Request, folder: Path | None
) -> list[dict[str, Any]]:
  results = []
  for task in tasks:
    found = estimate_rows(
      scorer,
      task,
      seed=request.seed,
      passes=request.passes,
      folder=folder,
      on_progress=_Progress(),
    )
    results.append(summary(scorer, protocol, task, found))
  return results


class _Progress:
  """A line about a set every now and then."""

  def __init__(self):
    self._began = self._told = time.monotonic()

  def __call__(self, name: str, done: int, rows: int) -> None:
    now = time.monotonic()
    if now - self._told >= _TELL_SECONDS and done < rows:
      self._told = now
      _say(f"{name}: {done:,} of {rows:,} chunks after {now - self._began:.0f} s")


def _sources(data: Sequence[str], protocol: Protocol) -> dict[str, str]:
  sources = {}
  for entry in data:
    name, equals, source = entry.partition("=")
    if not equals or not source:
      raise ValueError(
        f"--data={entry!r} must be SET=SOURCE, for example --data=lambada=lambada_test.jsonl"
      )
    if name in sources:
      raise ValueError(f"--data names {name} twice: {sources[name]!r} and {source!r}")
    sources[protocol.set_of(name).name] = source
  return sources


def _names(sets: Sequence[str], sources: Mapping[str, str], protocol: Protocol) -> list[str]:
  """The sets to evaluate: those named, else those whose text is, else all; in their usual order."""
  wanted = [protocol.set_of(name).name for name in sets]
  if wanted and (more := [name for name in sources if name not in wanted]):
    raise ValueError(f"--data names {', '.join(more)}, which --sets={','.join(sets)} leaves out")
  wanted = wanted or list(sources) or [one.name for one in protocol.sets]
  return [one.name for one in protocol.sets if one.name in wanted]


def _tokenizer(model: LanguageModel, checkpoint: str) -> Tokenizer:
  if model.tokenizer is None:
    raise ValueError(
      f"{checkpoint} came without a tokenizer: name one with --tokenizer=gpt2 or gpt2:FOLDER"
    )
  known, made = model.vocab_size, model.tokenizer.vocab_size
  if made > known:
    raise ValueError(
      f"{checkpoint} knows {known:,} tokens and the tokenizer makes {made:,}: --tokenizer must "
      "name the one that it was trained with"
    )
  return model.tokenizer


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def show(report: Mapping[str, Any], *, as_json: bool) -> None:
  """Prints a report."""
  print(json.dumps(report) if as_json else table(report))
