"""Self-consuming loops: each generation is trained on what the one before has written.

The experiment of "Self-Consuming Generative Models Go MAD" (arXiv:2307.01850) with text. Three
regimes, its section 2: fully synthetic, synthetic augmentation with fixed real text, and fresh real
text in each generation. Sampling bias is the temperature. Every generation starts from random
weights of its own (or those of `init_from`), trains as long, and is judged on the same real
held-out text.

A loop is a directory:

  settings.json   what it is
  text/           the real text that was used, as it was cut
  gen_000/, ...   runs like any other, each with its samples.txt for the next
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
from sedd_jax.generation.causal import CausalModel
from sedd_jax.generation.samples import Order, SampleFile, generate
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.generation.templates import Template
from sedd_jax.interop.load import load
from sedd_jax.training import lock, rundir
from sedd_jax.training.experiment import Experiment, GenerationsConfig
from sedd_jax.training.loop import train
from sedd_jax.training.operations import Operations

_TEXT = "text"
_SAMPLES = "samples.jsonl"
_WRITTEN = "samples.txt"
_BATCH = 64
_SPECIAL = ",;*?["
# Of an experiment, what may change on the way.
_FREE = ("generations", "mesh", "report", "checkpoint", "label")
_FIGURES = ("heldout_bits_per_char_strict", "heldout_bits_per_char_paper")


def run_generations(
  experiment: Experiment, workdir: Path, operations: Operations, say: Callable[[str], None]
) -> int:
  """Runs a loop, or goes on with it where it stopped; more generations may be asked for then.

  Args:
    experiment: that of each generation; its `generations` say how many there are, and of what.
    workdir: the loop's directory; made if it is not there.
    operations: how to watch the runs.
    say: told what is going on.

  Returns:
    0 when the last generation is judged; 128 + the signal's number when one ended it after a save.

  Raises:
    ValueError: the text is too short, the tokenizer is not `chars`, the directory holds another
      loop, or there are several processes.
    FileExistsError: the directory holds something else.
  """
  if jax.process_count() > 1:
    raise ValueError("generations run in one process; its devices share the batch")
  loop, workdir = experiment.generations, workdir.absolute()
  if odd := [c for c in _SPECIAL if c in str(workdir)]:
    raise ValueError(
      f"--workdir={workdir} holds {' '.join(odd)}, which mean something in data.files: choose "
      "another name"
    )
  with lock.FolderLock(workdir, say):
    open_folder(workdir, _identity(experiment), allowed=lock.FILE)
    real = load_dataset(experiment.data)
    _check_text(loop, real)
    rows = []
    for number in range(loop.count + 1):
      folder = workdir / f"gen_{number:03d}"
      say(f"--- generation {number} of {loop.count}, {loop.regime}")
      own = _experiment_of(experiment, workdir, number, real)
      if code := train(own, folder, operations, load, real.tokenizer):
        return code
      rows.append(_judged(own, loop, folder, number))
      say(_line(rows[-1]))
      close_folder(workdir, _report(experiment, rows))
  return 0


def _experiment_of(experiment: Experiment, workdir: Path, number: int, real: Dataset) -> Experiment:
  """That of one generation; writes the text it needs."""
  loop = experiment.generations
  text = workdir / _TEXT
  text.mkdir(exist_ok=True)
  heldout = _written(text / "heldout.txt", real.heldout_rows[:].tokens, real.tokenizer)
  parts = []
  if number == 0 or loop.regime == "augmented":
    parts.append(_real(text, 0, loop, real))
  elif loop.regime == "fresh":
    parts.append(_real(text, number, loop, real))
  first = 0 if loop.regime == "augmented" else max(0, number - 1)
  parts += [workdir / f"gen_{i:03d}" / _WRITTEN for i in range(first, number)]
  data = dataclasses.replace(
    experiment.data,
    files=";".join(map(str, parts)),
    heldout_files=str(heldout),
    weights=(),
    detokenizer="none",  # Done, where the text was read first.
  )
  return dataclasses.replace(
    experiment,
    label=f"{experiment.label or workdir.name}, generation {number}",
    seed=_seed_of(experiment.seed, number),
    data=data,
    generations=GenerationsConfig(),
  )


def _seed_of(seed: int, number: int) -> int:
  """The seed of a generation. With one for all, they would start from the same weights and draw
  the same random words, so that samples of later ones repeat those before."""
  if not number:
    return seed
  return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] % 2**31)


def _real(text: Path, number: int, loop: GenerationsConfig, real: Dataset) -> Path:
  """The file of the real text that a generation sees."""
  first = number * loop.rows
  numbers = np.arange(first, first + loop.rows)
  return _written(text / f"real_{number:03d}.txt", _train_rows(real, numbers), real.tokenizer)


def _train_rows(real: Dataset, numbers: np.ndarray) -> np.ndarray:
  return np.concatenate([part[:].tokens for part in real.train_rows])[numbers]


def _written(file: Path, rows: np.ndarray, tokenizer: Tokenizer) -> Path:
  """A file with the text of some rows, one behind the other: cut again it gives the same rows."""
  if not file.exists():
    rundir.write_text(file, "".join(tokenizer.decode(row) for row in rows))
  return file


def _judged(
  experiment: Experiment, loop: GenerationsConfig, folder: Path, number: int
) -> dict[str, Any]:
  """Samples of a generation, into its folder, and what is to be said of it."""
  model = load(folder)
  settings = SamplerSettings(temperature=loop.temperature)
  if not isinstance(model, CausalModel):
    settings = dataclasses.replace(settings, steps=loop.steps)
  nothing = np.zeros(experiment.data.length, np.int32)
  order = Order(
    templates=[Template("[[*]]", nothing, nothing.astype(bool))],
    num=loop.rows,
    seed=experiment.seed,
    settings=settings,
  )
  path = folder / _SAMPLES
  if not path.exists():
    file = SampleFile(path, model, order)
    for numbers, made in generate(model, order, batch=_BATCH, skip=file.there):
      file.write(numbers, made)
    file.close()
  with path.open(encoding="utf-8") as lines:
    tokens = np.array([json.loads(line)["tokens"] for line in lines], np.int32)
  assert model.tokenizer is not None
  _written(folder / _WRITTEN, tokens, model.tokenizer)
  evaluation = rundir.read_json(folder, rundir.EVALUATION)
  bounds = {
    name.removeprefix("heldout_") + ending: evaluation[name + ending]
    for name in _FIGURES
    for ending in ("", "_stderr")
  }
  return {"generation": number, **bounds, **flat(quality(tokens))}


def _check_text(loop: GenerationsConfig, real: Dataset) -> None:
  tokenizer = real.tokenizer
  if not isinstance(tokenizer, Chars) or "\r" in tokenizer.characters:
    raise ValueError(
      "generations need data.tokenizer='chars', and text whose lines do not end in \\r\\n: what is "
      "sampled is written as text and must be cut into the same tokens again, and bytes, for "
      "example, need not be UTF-8"
    )
  wanted = loop.rows * (loop.count + 1 if loop.regime == "fresh" else 1)
  there = sum(map(len, real.train_rows))
  if there < wanted:
    raise ValueError(
      f"generations.rows={loop.rows} of regime {loop.regime!r} take {wanted:,} rows of real text, "
      f"and there are {there:,}: fewer rows or generations, or more text"
    )


def _identity(experiment: Experiment) -> Mapping[str, Any]:
  """What a loop is: of all fields those that its numbers depend on, but how many generations."""
  fields = {k: v for k, v in dataclasses.asdict(experiment).items() if k not in _FREE}
  loop = dataclasses.asdict(experiment.generations)
  del loop["count"]
  return {**fields, "generations": loop}


def _report(experiment: Experiment, rows: list[dict[str, Any]]) -> Mapping[str, Any]:
  loop = dataclasses.asdict(experiment.generations)
  label = experiment.label
  return {
    "kind": "generations",
    "settings": {"label": label, "objective": experiment.objective, **loop},
    "rows": [{"label": label, **row} if label else row for row in rows],
    "versions": rundir.versions(),
  }


def _line(row: Mapping[str, Any]) -> str:
  return (
    f"generation {row['generation']}: bound {row['bits_per_char_strict']:.4f} bits/char on real "
    f"text; samples: entropy {row['token_entropy']:.3f} nats, distinct-2 {row['distinct_2']:.4f}, "
    f"repetition {row['repetition']:.4f}"
  )
