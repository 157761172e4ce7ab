"""Self-consuming loops: each generation is trained on samples of the one before.

The experiment of "Self-Consuming Generative Models Go MAD" (arXiv:2307.01850) with text. Three
regimes, its section 2: fully synthetic, synthetic augmentation with fixed real text, and fresh real
text in each generation. Sampling bias is the temperature. Every generation starts from its own
random weights (or those of `init_from`), trains for as many steps, and is evaluated on the same
real held-out text.

A loop is a directory:

  settings.json   the settings of the loop
  text/           the real text that was used, as it was cut
  gen_000/, ...   ordinary runs, each with its samples.txt for the next
  evaluation.json a row for each generation
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sedd_jax.data import Dataset, Tokenizer, load_dataset
from sedd_jax.data.tokenizers import Chars
from sedd_jax.evaluation.folder import close_folder, open_folder
from sedd_jax.evaluation.quality import flat, quality
from sedd_jax.files.lock import FolderLock
from sedd_jax.files.paths import local_path
from sedd_jax.files.whole import write_text
from sedd_jax.generation.causal import CausalModel
from sedd_jax.generation.samples import SampleRequest, write_samples
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.generation.templates import blank
from sedd_jax.interop.load import load
from sedd_jax.studies.loop import GenerationsConfig, Loop
from sedd_jax.training import rundir
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.loop import train
from sedd_jax.training.operations import Operations

_TEXT = "text"
_SAMPLES = "samples.jsonl"
_SAMPLED_TEXT = "samples.txt"
_BATCH = 64
_SPECIAL = ",;*?["
# Fields that may change when a loop is resumed.
_FREE = ("mesh", "report", "checkpoint", "label")
_FIGURES = ("heldout_bits_per_char_strict", "heldout_bits_per_char_paper")


def run_loop(loop: Loop, workdir: Path, operations: Operations, say: Callable[[str], None]) -> int:
  """Runs a loop or resumes it. `generations.count` may be larger when it resumes.

  Args:
    loop: the experiment and its generations.
    workdir: directory of the loop; made if it is missing.
    operations: how the runs are watched.
    say: receives progress messages.

  Returns:
    0 when the last generation is evaluated; 128 + the signal's number when a signal ended it after
    a save.

  Raises:
    ValueError: the text is too short, the tokenizer is not `chars`, the directory holds another
      loop, or there are several processes.
    FileExistsError: the directory holds something else.
  """
  if jax.process_count() > 1:
    raise ValueError("generations run in one process; its devices share the batch")
  generations, workdir = loop.generations, local_path(workdir, "workdir").absolute()
  if special := [c for c in _SPECIAL if c in str(workdir)]:
    raise ValueError(
      f"--workdir={workdir} holds {' '.join(special)}, which mean something in data.files: choose "
      "another name"
    )
  with FolderLock(workdir, say):
    open_folder(workdir, _identity(loop), lambda stored: _identity(Loop.from_config(stored)))
    real = load_dataset(loop.data)
    _check_text(generations, real)
    rows = []
    for number in range(generations.count + 1):
      folder = workdir / f"gen_{number:03d}"
      say(f"--- generation {number} of {generations.count}, {generations.regime}")
      experiment = _generation(loop, workdir, number, real)
      if code := train(experiment, folder, operations, load, real.tokenizer):
        return code
      rows.append(_evaluated(experiment, generations, folder, number))
      say(_line(rows[-1]))
      close_folder(workdir, _report(loop, rows))
  return 0


def _generation(loop: Loop, workdir: Path, number: int, real: Dataset) -> Experiment:
  """The experiment of one generation; writes the text it needs."""
  generations = loop.generations
  text = workdir / _TEXT
  text.mkdir(exist_ok=True)
  heldout = _write_text(text / "heldout.txt", real.heldout_rows[:].tokens, real.tokenizer)
  files = []
  if number == 0 or generations.regime == "augmented":
    files.append(_real_text(text, 0, generations, real))
  elif generations.regime == "fresh":
    files.append(_real_text(text, number, generations, real))
  first = 0 if generations.regime == "augmented" else max(0, number - 1)
  files += [workdir / f"gen_{i:03d}" / _SAMPLED_TEXT for i in range(first, number)]
  data = dataclasses.replace(
    loop.data,
    files=";".join(map(str, files)),
    heldout_files=str(heldout),
    weights=(),
    detokenizer="none",  # Applied when the real text was read.
  )
  return dataclasses.replace(
    loop.experiment,
    label=f"{loop.label or workdir.name}, generation {number}",
    seed=_seed(loop.seed, number),
    data=data,
  )


def _seed(seed: int, number: int) -> int:
  """The seed of a generation. With one seed for all, every generation would start from the same
  weights and draw the same noise, so its samples would repeat earlier ones."""
  if not number:
    return seed
  return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] % 2**31)


def _real_text(text: Path, number: int, generations: GenerationsConfig, real: Dataset) -> Path:
  """The file of the real text that a generation is trained on."""
  rows = np.concatenate([part[:].tokens for part in real.train_rows])
  first = number * generations.rows
  numbers = np.arange(first, first + generations.rows)
  return _write_text(text / f"real_{number:03d}.txt", rows[numbers], real.tokenizer)


def _write_text(file: Path, rows: np.ndarray, tokenizer: Tokenizer) -> Path:
  """The file with the concatenated text of rows: cut again, it gives the same rows."""
  if not file.exists():
    write_text(file, "".join(tokenizer.decode(row) for row in rows))
  return file


def _evaluated(
  experiment: Experiment, generations: GenerationsConfig, folder: Path, number: int
) -> dict[str, Any]:
  """The row of a generation: bounds, and statistics of its samples, which it also writes."""
  model = load(folder)
  settings = SamplerSettings(temperature=generations.temperature)
  if not isinstance(model, CausalModel):
    settings = dataclasses.replace(settings, steps=generations.steps)
  request = SampleRequest(
    templates=[blank(experiment.data.length)],
    num=generations.rows,
    seed=experiment.seed,
    settings=settings,
  )
  path = folder / _SAMPLES
  if not path.exists():
    write_samples(model, request, path, batch=_BATCH)
  with path.open(encoding="utf-8") as lines:
    tokens = np.array([json.loads(line)["tokens"] for line in lines], np.int32)
  assert model.tokenizer is not None
  _write_text(folder / _SAMPLED_TEXT, tokens, model.tokenizer)
  evaluation = rundir.read_json(folder, rundir.EVALUATION)
  bounds = {
    name.removeprefix("heldout_") + ending: evaluation[name + ending]
    for name in _FIGURES
    for ending in ("", "_stderr")
  }
  return {"generation": number, **bounds, **flat(quality(tokens))}


def _check_text(generations: GenerationsConfig, real: Dataset) -> None:
  """Raises ValueError where the text cannot be written and read back, or is too short."""
  tokenizer = real.tokenizer
  if not isinstance(tokenizer, Chars) or "\r" in tokenizer.characters:
    raise ValueError(
      "generations need data.tokenizer='chars', and text whose lines do not end in \\r\\n: samples "
      "are written as text and must give the same tokens when they are read again. Bytes, for "
      "example, need not be UTF-8"
    )
  needed = generations.rows * (generations.count + 1 if generations.regime == "fresh" else 1)
  available = sum(map(len, real.train_rows))
  if available < needed:
    raise ValueError(
      f"generations.rows={generations.rows} of regime {generations.regime!r} take {needed:,} rows "
      f"of real text, and there are {available:,}: use fewer rows or generations, or more text"
    )


def _identity(loop: Loop) -> Mapping[str, Any]:
  """The fields that the numbers depend on, without the number of generations."""
  fields = {k: v for k, v in dataclasses.asdict(loop.experiment).items() if k not in _FREE}
  generations = dataclasses.asdict(loop.generations)
  del generations["count"]
  return {**fields, "generations": generations}


def _report(loop: Loop, rows: list[dict[str, Any]]) -> Mapping[str, Any]:
  label, generations = loop.label, dataclasses.asdict(loop.generations)
  return {
    "kind": "generations",
    "settings": {"label": label, "objective": loop.objective, **generations},
    "rows": [{"label": label, **row} if label else row for row in rows],
    "versions": rundir.versions(),
  }


def _line(row: Mapping[str, Any]) -> str:
  return (
    f"generation {row['generation']}: bound {row['bits_per_char_strict']:.4f} bits/char on real "
    f"text; samples: entropy {row['token_entropy']:.3f} nats, distinct-2 {row['distinct_2']:.4f}, "
    f"repetition {row['repetition']:.4f}"
  )
