"""Many samples: in batches, each with its number, into a file that a killed run goes on with."""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.generation.generator import Generation, OnProgress
from sedd_jax.generation.model import LanguageModel
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.generation.templates import Template
from sedd_jax.training.lock import take

_PART = ".part"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
  """Which samples are wanted.

  Sample n is made from template (n - first) // num, and its random words depend on (seed, n) alone.

  Attributes:
    templates: what is given.
    num: samples of each template.
    first: number of the first sample.
    seed: of everything random.
    settings: how to sample.
    best_of: candidates for each sample, the best by the bound is kept.
  """

  templates: Sequence[Template]
  num: int
  first: int = 0
  seed: int = 0
  settings: SamplerSettings = SamplerSettings()
  best_of: int = 1

  def __post_init__(self):
    for name, least in (("num", 1), ("first", 0), ("best_of", 1)):
      if getattr(self, name) < least:
        raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

  @property
  def numbers(self) -> range:
    return range(self.first, self.first + self.num * len(self.templates))

  def template(self, number: int) -> Template:
    return self.templates[(number - self.first) // self.num]


def generate(
  model: LanguageModel,
  order: Order,
  *,
  batch: int,
  skip: int = 0,
  record: bool = False,
  on_progress: OnProgress | None = None,
) -> Iterator[tuple[Sequence[int], Generation]]:
  """Batches of samples with their numbers, in order.

  A batch holds samples of one length. It is filled up with samples that are thrown away, so that
  one program is compiled for each length.

  Args:
    model: samples from it.
    order: what is wanted.
    batch: samples at a time.
    skip: so many samples are there already.
    record: whether to keep the tokens after every step.
    on_progress: see `Model.generate`.

  Raises:
    ValueError: batch < 1, or the settings don't fit the model.
  """
  if batch < 1:
    raise ValueError(f"batch={batch} must be at least 1")
  batch = min(batch, len(order.numbers))
  left = order.numbers[skip:]
  while left:
    batches = itertools.groupby(left[:batch], lambda n: len(order.template(n).tokens))
    wanted = list(next(batches)[1])
    numbers = [*wanted, *[wanted[-1]] * (batch - len(wanted))]
    made = model.generate(
      np.array([order.template(n).tokens for n in numbers]),
      np.array([order.template(n).given for n in numbers]),
      settings=order.settings,
      seed=order.seed,
      numbers=numbers,
      best_of=order.best_of,
      record=record,
      on_progress=on_progress,
    )
    yield wanted, made.first(len(wanted))
    left = left[len(wanted) :]


def records(
  model: LanguageModel, order: Order, numbers: Sequence[int], made: Generation
) -> list[dict[str, Any]]:
  """A JSON object for each sample: index, text, tokens, template, seed, steps, calls, settings.

  calls are those of the batch that the sample was made in. text is null without a tokenizer.
  """
  known = model.tokenizer is not None
  return [
    {
      "index": number,
      "text": model.text(row, given) if known else None,
      "tokens": row.tolist(),
      "template": order.template(number).text,
      "seed": order.seed,
      "steps": made.steps,
      "calls": made.calls,
      "settings": _settings(model, order),
    }
    for number, row, given in zip(numbers, made.tokens, made.given, strict=True)
  ]


def to_line(record: Mapping[str, Any]) -> str:
  """One line of JSON, whatever its reader takes for the end of a line."""
  text = json.dumps(record, ensure_ascii=False)
  for character in "\x85\u2028\u2029":
    text = text.replace(character, f"\\u{ord(character):04x}")
  return text


def check_path(path: Path) -> None:
  """Whether a `SampleFile` can be made there.

  Raises:
    ValueError: it does not end in .jsonl.
    FileExistsError: the file is there, whole.
    FileNotFoundError: its folder is not there.
  """
  if path.suffix != ".jsonl":
    raise ValueError(f"--out={path} must end in .jsonl")
  if path.exists():
    raise FileExistsError(f"{path} exists already: samples are never overwritten")
  if not path.absolute().parent.is_dir():
    raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}")


class SampleFile:
  """A JSON Lines file that grows batch by batch, beside its name as `NAME.part`.

  It gets its name when it is whole. Opened again after a kill it goes on after its last whole line.

  Args:
    path: the file.
    model: samples come from it.
    order: what is wanted.

  Attributes:
    there: samples that are in the file already.

  Raises:
    FileExistsError: the file is there, whole.
    BlockingIOError: another process writes it.
    ValueError: what is there of it was made otherwise, or is no such file.
  """

  def __init__(self, path: Path, model: LanguageModel, order: Order):
    check_path(path)
    self._path, self._model, self._order = path, model, order
    self._part = path.with_name(path.name + _PART)
    self._file = self._part.open("a+b")
    try:
      take(self._file)
      self.there = self._whole_lines()
    except BlockingIOError:
      self._file.close()
      raise BlockingIOError(f"another process writes {self._part}") from None
    except ValueError:
      self._file.close()
      raise

  def write(self, numbers: Sequence[int], made: Generation) -> None:
    """Adds samples; on disk when it returns."""
    lines = records(self._model, self._order, numbers, made)
    self._file.write("".join(to_line(line) + "\n" for line in lines).encode())
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Gives the whole file its name.

    Raises:
      FileExistsError: a file of that name has appeared meanwhile; the samples stay in `NAME.part`.
    """
    os.link(self._part, self._path)  # Unlike a rename, never takes another file's place.
    self._part.unlink()
    self._file.close()

  def _whole_lines(self) -> int:
    """Checks the lines that are there, and cuts off one that a kill left incomplete."""
    numbers = iter(self._order.numbers)
    end = count = 0
    self._file.seek(0)
    for line in self._file:
      if not line.endswith(b"\n"):
        break
      self._check(line, next(numbers, None))
      end += len(line)
      count += 1
    self._file.truncate(end)
    self._file.seek(end)
    return count

  def _check(self, line: bytes, number: int | None) -> None:
    try:
      found = json.loads(line)
      index, seed, template = found["index"], found["seed"], found["template"]
      same = found["settings"] == _settings(self._model, self._order)
      tokens = np.array(found["tokens"], np.int32)
    except (ValueError, KeyError, TypeError):
      raise ValueError(f"{self._part} is no file of samples: {line[:80]!r}") from None
    same &= number is not None and (index, seed) == (number, self._order.seed)
    if number is not None:
      wanted = self._order.template(number)
      same &= template == wanted.text and tokens.shape == wanted.tokens.shape
      same = same and bool((tokens == wanted.tokens)[wanted.given].all())
    if not same:
      raise ValueError(
        f"{self._part} holds sample {index} of seed {seed} with {len(tokens)} tokens and "
        f"{found['settings']} for {template!r}, not sample {number} of what is asked now: use "
        "another --out, or remove it"
      )


def _settings(model: LanguageModel, order: Order) -> Mapping[str, Any]:
  said = model.said(order.settings)
  source = {k: v for k, v in model.info.items() if k in ("source", "step")}
  return said | {"best_of": order.best_of, "num": order.num} | source
