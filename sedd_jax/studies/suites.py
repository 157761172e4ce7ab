"""Perplexities of a model on the test sets of a suite, by a protocol."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from sedd_jax.data import Tokenizer
from sedd_jax.data.patterns import source_faults
from sedd_jax.data.tokenizers import fingerprint
from sedd_jax.diffusion import TimeSampling
from sedd_jax.evaluation.bounds import Draws
from sedd_jax.evaluation.folder import close_folder, open_folder
from sedd_jax.evaluation.likelihood import (
  Scorer,
  estimate_rows,
  make_scorer,
  read_tasks,
  summary,
  weights_hash,
)
from sedd_jax.evaluation.suites import SUITES, Protocol
from sedd_jax.files.lock import FolderLock
from sedd_jax.files.paths import local_path, path_fault
from sedd_jax.generation.causal import CausalModel
from sedd_jax.generation.model import LanguageModel, Model
from sedd_jax.interop.load import load
from sedd_jax.ranges import outside, seed_outside
from sedd_jax.studies.study import Say
from sedd_jax.training.rundir import versions

_PROGRESS_SECONDS = 10.0
# Fields of a set's result that `sedd report` shows.
_ROW_FIELDS = (
  "set", "split", "figure", "perplexity", "perplexity_stderr", "bits_per_char",
  "bits_per_char_stderr", "nats_per_token", "nats_per_token_stderr", "tokens", "chunks", "seconds",
  "status",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteConfig:
  """Settings of `evaluate_suite`: the flags of the same names. Those that are None come from the
  protocol.

  Raises:
    ValueError: a setting is unknown or out of range; a line for each.
  """

  checkpoint: str
  suite: str
  protocol: str | None = None
  data: Sequence[str] = ()
  sets: Sequence[str] = ()
  tokenizer: str | None = None
  tokenizer_eos: str = ""
  estimator: str | None = None
  time_sampling: TimeSampling = "low_discrepancy"
  num_times: int | None = None
  passes: int = 1
  batch_size: int = 32
  seed: int = 0
  out: str | Path | None = None

  def __post_init__(self):
    faults = [*outside("--passes", self.passes, 1), *seed_outside(self.seed, "--seed")]
    for flag, path in (("--checkpoint", self.checkpoint), ("--out", self.out)):
      if path is not None and (fault := path_fault(os.fspath(path), flag)):
        faults.append(fault)
    try:
      for name, source in self.sources().items():
        faults += source_faults(source, f"--data={name}")
    except ValueError as error:
      faults.append(str(error))
    if faults:
      raise ValueError("\n".join(faults))

  def find_protocol(self) -> Protocol:
    """The protocol that --suite and --protocol name.

    Raises:
      ValueError: it is unknown; the message lists the known ones.
    """
    if self.suite not in SUITES:
      raise ValueError(f"--suite={self.suite!r} must be one of {', '.join(SUITES)}")
    protocols = SUITES[self.suite]
    if self.protocol is None or self.protocol not in protocols:
      fault = "is missing" if self.protocol is None else f"{self.protocol!r} is not known"
      raise ValueError(f"--protocol {fault}: --suite={self.suite} has {', '.join(protocols)}")
    return protocols[self.protocol]

  def sources(self) -> dict[str, str]:
    """The source of each set, in the protocol's order: the sets of --sets, else those of --data,
    else all.

    Raises:
      ValueError: a set is unknown, given twice, or left out by --sets.
    """
    protocol = self.find_protocol()
    given: dict[str, str] = {}
    for entry in self.data:
      name, equals, source = entry.partition("=")
      if not equals or not source:
        raise ValueError(
          f"--data={entry!r} must be SET=SOURCE, for example --data=lambada=lambada_test.jsonl"
        )
      if name in given:
        raise ValueError(f"--data names {name} twice: {given[name]!r} and {source!r}")
      given[protocol.set_of(name).name] = source
    wanted = [protocol.set_of(name).name for name in self.sets]
    if wanted and (more := [name for name in given if name not in wanted]):
      raise ValueError(
        f"--data names {', '.join(more)}, which --sets={','.join(self.sets)} leaves out"
      )
    wanted = wanted or list(given) or [one.name for one in protocol.sets]
    return {
      one.name: given.get(one.name, one.source) for one in protocol.sets if one.name in wanted
    }

  def draws(self, model: LanguageModel) -> Draws:
    """What the bound of a model is estimated from."""
    protocol = self.find_protocol()
    return Draws(
      estimator=self.estimator or (protocol.estimator if isinstance(model, Model) else "exact"),
      num_times=protocol.num_times if self.num_times is None else self.num_times,
      time_sampling=self.time_sampling,
    )


def evaluate_suite(config: SuiteConfig, say: Say) -> dict[str, Any]:
  """The report of a model on a suite, for JSON.

  Args:
    config: names the model and the suite.
    say: receives progress messages.

  Raises:
    ValueError: a setting, a text or the folder cannot be used; the message says which and why.
  """
  model = load(config.checkpoint, tokenizer=config.tokenizer, tokenizer_eos=config.tokenizer_eos)
  settings = _settings(config, model)
  scorer = make_scorer(
    model.network,
    model.noise if isinstance(model, Model) else None,
    model.params,
    config.draws(model),
    batch_size=config.batch_size,
    devices=jax.local_devices(),
  )
  with contextlib.ExitStack() as stack:
    folder = None
    if config.out is not None:
      folder = local_path(config.out, "--out")
      stack.enter_context(FolderLock(folder, say, "--out"))
      done = open_folder(folder, settings)
      # A text from another source may differ: then it is read and compared with the rows.
      if done and all(one["source"] == config.sources().get(one["set"]) for one in done["results"]):
        return done
    report = _report(config, settings, model, _results(config, scorer, model, folder, say))
    if folder is not None:
      close_folder(folder, report)
  return report


def _settings(config: SuiteConfig, model: LanguageModel) -> dict[str, Any]:
  """What the numbers depend on."""
  return {
    "suite": config.suite,
    "protocol": config.find_protocol().name,
    "sets": list(config.sources()),
    **dataclasses.asdict(config.draws(model)),
    "passes": config.passes,
    "seed": config.seed,
    "length": model.length,
    "dtype": str(model.dtype),
    "tokenizer": fingerprint(_tokenizer(model, config.checkpoint)),
    "weights": weights_hash(model.params),
  }


def _results(
  config: SuiteConfig, scorer: Scorer, model: LanguageModel, folder: Path | None, say: Say
) -> list[dict[str, Any]]:
  """The result of each set."""
  protocol, sources = config.find_protocol(), config.sources()
  tokenizer = _tokenizer(model, config.checkpoint)
  tasks = read_tasks(
    protocol, list(sources), sources, tokenizer, model.length, _scores_first(model)
  )
  results = []
  for task in tasks:
    estimates = estimate_rows(
      scorer,
      task,
      seed=config.seed,
      passes=config.passes,
      folder=folder,
      on_progress=_Progress(say),
    )
    results.append(summary(scorer, protocol, task, estimates))
  return results


def _report(
  config: SuiteConfig,
  settings: Mapping[str, Any],
  model: LanguageModel,
  results: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
  return {
    "kind": "likelihood",
    **settings,
    "settings": {**settings, "checkpoint": config.checkpoint},
    "rows": [{name: one[name] for name in _ROW_FIELDS} for one in results],
    "checkpoint": config.checkpoint,
    "step": model.info.get("step"),
    "scores_first": _scores_first(model),
    "versions": versions(),
    "results": results,
    "not_evaluated": [
      one.name for one in config.find_protocol().sets if one.name not in settings["sets"]
    ],
  }


def _scores_first(model: LanguageModel) -> bool:
  """Whether the model has a law of the first token of a chunk."""
  return not isinstance(model, CausalModel) or model.network.scores_first


def _tokenizer(model: LanguageModel, checkpoint: str) -> Tokenizer:
  if model.tokenizer is None:
    raise ValueError(
      f"{checkpoint} came without a tokenizer: name one with --tokenizer=gpt2 or gpt2:FOLDER"
    )
  return model.tokenizer


class _Progress:
  """Reports the progress of a set, at most every ten seconds."""

  def __init__(self, say: Say):
    self._say = say
    self._began = self._last = time.monotonic()

  def __call__(self, name: str, done: int, rows: int) -> None:
    now = time.monotonic()
    if now - self._last >= _PROGRESS_SECONDS and done < rows:
      self._last = now
      self._say(f"{name}: {done:,} of {rows:,} chunks after {now - self._began:.0f} s")
