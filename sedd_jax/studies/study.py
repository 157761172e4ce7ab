"""What the studies of samples share: their settings, the models they compare, their folder."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sedd_jax.data.patterns import source_faults
from sedd_jax.data.tokenizers import same_tokenizer
from sedd_jax.evaluation.folder import close_folder, open_folder
from sedd_jax.evaluation.likelihood import weights_hash
from sedd_jax.files.lock import FolderLock
from sedd_jax.files.paths import local_path, path_fault
from sedd_jax.generation.causal import CausalModel
from sedd_jax.generation.model import LanguageModel
from sedd_jax.interop.load import load
from sedd_jax.ranges import outside, seed_outside
from sedd_jax.studies.runtext import MovedText
from sedd_jax.studies.setup import EvaluationSetup
from sedd_jax.training.rundir import versions

Say = Callable[[str], None]
# Settings that identify a study, beside those of its kind and the weights.
_IDENTITY = ("checkpoints", "judge", "reference", "length", "baseline", "seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
  """Settings of every study; flags have the same names.

  Attributes:
    checkpoints: diffusion models.
    baseline: an autoregressive model.
    tokenizer, tokenizer_eos: of models that come without one, and its end-of-text token.
    judge: a run of an autoregressive model, a folder of GPT-2's or its hub id.
    judge_tokenizer, judge_tokenizer_eos: of a judge that comes without one.
    reference: real text: a run, files, or "" for the held-out text of the judge's own run.
    files, heldout_files: where the text of the runs is now, if it has moved (`MovedText`).
    length: tokens of the judge that all samples are cut to; None for the shortest sample's.
    batch_size: sequences per call of a network.
    seed: of everything random.
    out: folder of the result, or None.

  Raises:
    ValueError: settings are missing or out of range; a line for each.
  """

  checkpoints: Sequence[str] = ()
  baseline: str | None = None
  tokenizer: str | None = None
  tokenizer_eos: str = ""
  judge: str | None = None
  judge_tokenizer: str | None = None
  judge_tokenizer_eos: str = ""
  reference: str = ""
  files: str = ""
  heldout_files: str = ""
  length: int | None = None
  batch_size: int = 32
  seed: int = 0
  out: str | Path | None = None

  def __post_init__(self):
    if faults := self.faults():
      raise ValueError("\n".join(faults))

  def faults(self) -> list[str]:
    """A line for each setting that is missing or out of range."""
    faults = [
      *outside("--batch_size", self.batch_size, 1),
      *outside("--num", getattr(self, "num", 1), 1),
      *seed_outside(self.seed, "--seed"),
      *source_faults(self.reference, "--reference"),
      *self.moved.faults(),
    ]
    named = {
      "--checkpoint": self.checkpoints,
      "--baseline": [self.baseline],
      "--judge": [self.judge],
      "--out": [self.out],
    }
    faults += [
      fault
      for flag, paths in named.items()
      for path in paths
      if path is not None and (fault := path_fault(os.fspath(path), flag))
    ]
    if self.judge is None:
      faults.append(
        "--judge is missing: an autoregressive run (objective 'autoregressive'), or GPT-2 by "
        "folder or hub id, for example --judge=openai-community/gpt2-large"
      )
    return faults

  @property
  def moved(self) -> MovedText:
    return MovedText(files=self.files, heldout_files=self.heldout_files)

  def setup(self) -> EvaluationSetup:
    """The judge and the real text."""
    assert self.judge is not None
    return EvaluationSetup.load(
      self.judge,
      self.reference,
      tokenizer=self.judge_tokenizer,
      tokenizer_eos=self.judge_tokenizer_eos,
      batch_size=self.batch_size,
      moved=self.moved,
    )

  def models(self) -> dict[str, LanguageModel]:
    """The models by label, the baseline last. All have the same tokenizer.

    Raises:
      ValueError: a model is of the wrong kind, has another tokenizer, or is named twice.
    """
    assert self.baseline is not None
    models: dict[str, LanguageModel] = {}
    for path in [*self.checkpoints, self.baseline]:
      model = load(path, tokenizer=self.tokenizer, tokenizer_eos=self.tokenizer_eos)
      experiment = model.info.get("experiment")
      label = (experiment.label if experiment else "") or Path(path).name
      if label in models:
        label = path
      if label in models:
        raise ValueError(f"{path} is named twice")
      models[label] = model
    *diffusion, baseline = models
    for label in diffusion:
      if isinstance(models[label], CausalModel):
        raise ValueError(f"--checkpoint: {label} is autoregressive: give it as --baseline")
    if not isinstance(models[baseline], CausalModel):
      raise ValueError(f"--baseline={self.baseline} must be autoregressive")
    first, *_ = models
    shared = models[first].tokenizer
    for label, model in models.items():
      if model.tokenizer is None or shared is None:
        raise ValueError(f"{label} came without a tokenizer: --tokenizer=gpt2:FOLDER")
      if not same_tokenizer(model.tokenizer, shared):
        raise ValueError(f"{label} has another tokenizer than {first}")
    return models


def in_folder(
  config: StudyConfig,
  settings: Mapping[str, Any],
  setup: EvaluationSetup,
  models: Mapping[str, LanguageModel],
  make: Callable[[Path], Mapping[str, Any]],
  say: Say,
) -> dict[str, Any]:
  """The report of a study, kept in its locked folder if it has one; made only once.

  The folder belongs to these weights: a run that was trained further is another model.

  Args:
    config: names the folder.
    settings: what the numbers depend on, beside the settings of every study.
    setup: has the judge.
    models: the models by label.
    make: makes the report; its argument is the folder.
    say: receives messages.

  Raises:
    ValueError: the folder holds a study with other settings.
  """
  if config.out is None:
    return {**make(Path()), "versions": versions()}
  folder = local_path(config.out, "--out")
  identity = {name: getattr(config, name) for name in _IDENTITY}
  identity["judge_weights"] = weights_hash(setup.model.params)
  identity["weights"] = {name: weights_hash(model.params) for name, model in models.items()}
  with FolderLock(folder, say, "--out"):
    report = open_folder(folder, {**settings, **identity})
    if report is None:
      report = {**make(folder), "versions": versions()}
      close_folder(folder, report)
  return report
