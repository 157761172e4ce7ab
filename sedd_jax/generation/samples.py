"""Many samples: in batches, each with its number, into a file that a killed run resumes."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.files.lines import GrowingFile
from sedd_jax.files.lock import take
from sedd_jax.generation.generator import Generation, OnProgress
from sedd_jax.generation.model import LanguageModel
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.generation.templates import Template

# Numbers of samples, and the samples.
Batches = Iterator[tuple[Sequence[int], Generation]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRequest:
  """Which samples to make.

  Sample n is made from template (n - first) // num, and its noise depends on (seed, n) only.

  Attributes:
    templates: the given text.
    num: samples of each template.
    first: number of the first sample.
    seed: of everything random.
    settings: how to sample.
    best_of: candidates for each sample; the one with the best bound is kept.
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
  request: SampleRequest,
  *,
  batch: int,
  skip: int = 0,
  record: bool = False,
  on_progress: OnProgress | None = None,
) -> Batches:
  """Batches of samples with their numbers, in request.

  A batch holds samples of one length. It is filled up with samples that are thrown away, so that
  one program is compiled for each length.

  Args:
    model: generates the samples.
    request: the samples.
    batch: samples at a time.
    skip: number of samples that exist already.
    record: whether to keep the tokens after every step.
    on_progress: see `LanguageModel.generate`.

  Raises:
    ValueError: batch < 1, or the settings don't fit the model.
  """
  if batch < 1:
    raise ValueError(f"batch={batch} must be at least 1")
  batch = min(batch, len(request.numbers))
  left = request.numbers[skip:]
  while left:
    batches = itertools.groupby(left[:batch], lambda n: len(request.template(n).tokens))
    wanted = list(next(batches)[1])
    numbers = [*wanted, *[wanted[-1]] * (batch - len(wanted))]
    made = model.generate(
      np.array([request.template(n).tokens for n in numbers]),
      np.array([request.template(n).given for n in numbers]),
      settings=request.settings,
      seed=request.seed,
      numbers=numbers,
      best_of=request.best_of,
      record=record,
      on_progress=on_progress,
    )
    yield wanted, made.first(len(wanted))
    left = left[len(wanted) :]


def write_samples(
  model: LanguageModel,
  request: SampleRequest,
  path: Path,
  *,
  batch: int,
  generate: Callable[..., Batches] = generate,
) -> None:
  """Writes a `SampleFile`, or completes the one that a kill left.

  Args:
    model: generates the samples.
    request: the samples.
    path: the file.
    batch: samples at a time.
    generate: the function above, or one with its arguments.
  """
  file = SampleFile(path, model, request)
  for numbers, made in generate(model, request, batch=batch, skip=file.there):
    file.write(numbers, made)
  file.close()


def records(
  model: LanguageModel, request: SampleRequest, numbers: Sequence[int], made: Generation
) -> list[dict[str, Any]]:
  """A JSON object for each sample: index, text, tokens, template, seed, steps, calls, settings.

  calls counts the calls of the sample's batch. text is null without a tokenizer.
  """
  known = model.tokenizer is not None
  return [
    {
      "index": number,
      "text": model.text(row, given) if known else None,
      "tokens": row.tolist(),
      "template": request.template(number).text,
      "seed": request.seed,
      "steps": made.steps,
      "calls": made.calls,
      "settings": _settings(model, request),
    }
    for number, row, given in zip(numbers, made.tokens, made.given, strict=True)
  ]


def to_text(record: Mapping[str, Any]) -> str:
  """A sample as it is read: a heading, and its text, or its tokens without a tokenizer."""
  text = record["text"]
  if text is None:
    text = " ".join(map(str, record["tokens"]))
  return f"--- sample {record['index']} (seed {record['seed']}, {record['steps']} steps)\n{text}"


def to_line(record: Mapping[str, Any]) -> str:
  """One line of JSON, also for readers that break lines at Unicode separators."""
  text = json.dumps(record, ensure_ascii=False)
  for character in "\x85\u2028\u2029":
    text = text.replace(character, f"\\u{ord(character):04x}")
  return text


def check_path(path: Path) -> None:
  """Checks that a `SampleFile` can be made.

  Raises:
    ValueError: the name does not end in .jsonl.
    FileExistsError: the file exists.
    FileNotFoundError: its folder is missing.
  """
  if path.suffix != ".jsonl":
    raise ValueError(f"--out={path} must end in .jsonl")
  if path.exists():
    raise FileExistsError(f"{path} exists already: samples are never overwritten")
  if not path.absolute().parent.is_dir():
    raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}")


class SampleFile:
  """A JSON Lines file that grows batch by batch as `NAME.part`.

  It gets its name when it is complete. Opened again after a kill, it continues after its last whole
  line.

  Args:
    path: the file.
    model: generates the samples.
    request: the samples.

  Attributes:
    there: number of samples in the file already.

  Raises:
    FileExistsError: the complete file exists.
    BlockingIOError: another process writes it.
    ValueError: the partial file holds other samples, or is no such file.
  """

  def __init__(self, path: Path, model: LanguageModel, request: SampleRequest):
    check_path(path)
    self._model, self._request = model, request
    self._lines = GrowingFile(path)
    try:
      take(self._lines.file)
      self.there = self._checked_lines()
    except BlockingIOError:
      self._lines.file.close()
      raise BlockingIOError(f"another process writes {self._lines.path}") from None
    except ValueError:
      self._lines.file.close()
      raise

  def write(self, numbers: Sequence[int], made: Generation) -> None:
    """Adds samples; they are on disk when it returns."""
    self._lines.append(*map(to_line, records(self._model, self._request, numbers, made)))

  def close(self) -> None:
    """Gives the complete file its name.

    Raises:
      FileExistsError: a file of that name has appeared; the samples stay in `NAME.part`.
    """
    self._lines.finish_new()
    self._lines.file.close()

  def _checked_lines(self) -> int:
    """The number of lines that are there; each is checked."""
    numbers = iter(self._request.numbers)
    count = 0
    for line in self._lines.lines():
      self._check(line, next(numbers, None))
      count += 1
    return count

  def _check(self, line: bytes, number: int | None) -> None:
    try:
      found = json.loads(line)
      index, seed, template = found["index"], found["seed"], found["template"]
      same = found["settings"] == _settings(self._model, self._request)
      tokens = np.array(found["tokens"], np.int32)
    except (ValueError, KeyError, TypeError):
      raise ValueError(f"{self._lines.path} is no file of samples: {line[:80]!r}") from None
    same &= number is not None and (index, seed) == (number, self._request.seed)
    if number is not None:
      wanted = self._request.template(number)
      same &= template == wanted.text and tokens.shape == wanted.tokens.shape
      same = same and bool((tokens == wanted.tokens)[wanted.given].all())
    if not same:
      raise ValueError(
        f"{self._lines.path} holds sample {index} of seed {seed} with {len(tokens)} tokens and "
        f"{found['settings']} for {template!r}, not sample {number} of this request: use another "
        "--out, or remove it"
      )


def _settings(model: LanguageModel, request: SampleRequest) -> Mapping[str, Any]:
  settings = model.relevant_settings(request.settings)
  source = {k: v for k, v in model.info.items() if k in ("source", "step")}
  return settings | {"best_of": request.best_of, "num": request.num} | source
