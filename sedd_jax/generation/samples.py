"""Numbered samples in batches, and a file of them that a killed run resumes."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sedd_jax.files.lines import GrowingFile
from sedd_jax.files.lock import take
from sedd_jax.files.paths import local_path
from sedd_jax.generation.generator import Generation, OnProgress
from sedd_jax.generation.model import NUMBERS, LanguageModel
from sedd_jax.generation.settings import SamplerSettings
from sedd_jax.generation.templates import Template
from sedd_jax.parallel.memory import check_batch
from sedd_jax.ranges import check, check_seed

# Sample numbers, and the samples.
Batches = Iterator[tuple[Sequence[int], Generation]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRequest:
  """Which samples to generate.

  Sample n uses template (n - first) // num; its randomness depends only on (seed, n).

  Attributes:
    templates: the given text.
    num: samples per template.
    first: number of the first sample.
    seed: seed of all randomness.
    settings: how to sample.
    best_of: candidates for each sample; the candidate with the best bound is kept.
  """

  templates: Sequence[Template]
  num: int
  first: int = 0
  seed: int = 0
  settings: SamplerSettings = SamplerSettings()
  best_of: int = 1

  def __post_init__(self):
    check_seed(self.seed)
    for name, least in (("num", 1), ("first", 0), ("best_of", 1)):
      check(name, getattr(self, name), least)
    if self.numbers.stop > NUMBERS:
      raise ValueError(
        f"samples {self.first} to {self.numbers.stop - 1}: numbers of samples end at {NUMBERS - 1}"
      )

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
  """Batches of samples with their numbers, in the order of the request.

  A batch holds samples of one length. It is padded with discarded samples, so that one program is
  compiled per length.

  Args:
    model: generates the samples.
    request: which samples to generate.
    batch: samples at a time.
    skip: number of samples that exist already.
    record: whether to keep the tokens after every step.
    on_progress: see `LanguageModel.generate`.

  Raises:
    ValueError: batch < 1, or the settings don't fit the model.
  """
  check("batch", batch, 1)
  batch = min(batch, len(request.numbers))
  longest = max(len(template.tokens) for template in request.templates)
  devices = model.devices or jax.local_devices()[:1]
  # One activation of each sample.
  check_batch(f"batch={batch}", -(-batch // len(devices)), 4 * longest * model.width, devices)
  left = request.numbers[skip:]
  while left:
    batches = itertools.groupby(left[:batch], lambda n: len(request.template(n).tokens))
    wanted = list(next(batches)[1])
    numbers = [*wanted, *[wanted[-1]] * (batch - len(wanted))]
    generation = model.generate(
      np.array([request.template(n).tokens for n in numbers]),
      np.array([request.template(n).given for n in numbers]),
      settings=request.settings,
      seed=request.seed,
      numbers=numbers,
      best_of=request.best_of,
      record=record,
      on_progress=on_progress,
    )
    yield wanted, generation.first(len(wanted))
    left = left[len(wanted) :]


def write_samples(
  model: LanguageModel,
  request: SampleRequest,
  path: Path,
  *,
  batch: int,
  generate: Callable[..., Batches] = generate,
) -> None:
  """Writes a `SampleFile`, or completes the file of a killed run.

  Args:
    model: generates the samples.
    request: which samples to generate.
    path: the file.
    batch: samples at a time.
    generate: the function above, or another with its arguments.
  """
  file = SampleFile(path, model, request)
  for numbers, generation in generate(model, request, batch=batch, skip=file.there):
    file.write(numbers, generation)
  file.close()


def records(
  model: LanguageModel, request: SampleRequest, numbers: Sequence[int], generation: Generation
) -> list[dict[str, Any]]:
  """A JSON object for each sample: index, text, tokens, template, seed, steps, calls, settings.

  calls counts the network calls of the sample's batch. text is null without a tokenizer.
  """
  has_tokenizer = model.tokenizer is not None
  return [
    {
      "index": number,
      "text": model.text(row, given) if has_tokenizer else None,
      "tokens": row.tolist(),
      "template": request.template(number).text,
      "seed": request.seed,
      "steps": generation.steps,
      "calls": generation.calls,
      "settings": _settings(model, request),
    }
    for number, row, given in zip(numbers, generation.tokens, generation.given, strict=True)
  ]


def to_text(record: Mapping[str, Any]) -> str:
  """A sample for readers: a heading and its text, or its tokens without a tokenizer."""
  text = record["text"]
  if text is None:
    text = " ".join(map(str, record["tokens"]))
  return f"--- sample {record['index']} (seed {record['seed']}, {record['steps']} steps)\n{text}"


def to_line(record: Mapping[str, Any]) -> str:
  """One line of JSON, with Unicode line separators escaped."""
  text = json.dumps(record, ensure_ascii=False)
  for character in "\x85\u2028\u2029":
    text = text.replace(character, f"\\u{ord(character):04x}")
  return text


def check_path(path: Path) -> Path:
  """The path, at which a `SampleFile` can be created.

  Raises:
    ValueError: the name does not end in .jsonl.
    FileExistsError: the file exists.
    FileNotFoundError: its folder is missing.
  """
  path = local_path(path, "--out")
  if path.suffix != ".jsonl":
    raise ValueError(f"--out={path} must end in .jsonl")
  if path.exists():
    raise FileExistsError(f"{path} exists already: samples are never overwritten")
  if not path.absolute().parent.is_dir():
    raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}")
  return path


class SampleFile:
  """A JSON Lines file that grows batch by batch as `NAME.part`.

  It is renamed when complete. Opened again after a kill, it continues after its last complete line.

  Args:
    path: the file.
    model: generates the samples.
    request: which samples to generate.

  Attributes:
    there: number of samples already in the file.

  Raises:
    FileExistsError: the complete file exists.
    BlockingIOError: another process is writing it.
    ValueError: the partial file holds samples of another request, or no samples.
  """

  def __init__(self, path: Path, model: LanguageModel, request: SampleRequest):
    path = check_path(path)
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

  def write(self, numbers: Sequence[int], generation: Generation) -> None:
    """Adds samples; they are on disk when it returns."""
    self._lines.append(*map(to_line, records(self._model, self._request, numbers, generation)))

  def close(self) -> None:
    """Renames the complete file.

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
      record = json.loads(line)
      index, seed, template = record["index"], record["seed"], record["template"]
      same = record["settings"] == _settings(self._model, self._request)
      tokens = np.array(record["tokens"], np.int32)
    except (ValueError, KeyError, TypeError):
      raise ValueError(f"{self._lines.path} is no file of samples: {line[:80]!r}") from None
    same &= number is not None and (index, seed) == (number, self._request.seed)
    if number is not None:
      expected = self._request.template(number)
      same &= template == expected.text and tokens.shape == expected.tokens.shape
      same = same and bool((tokens == expected.tokens)[expected.given].all())
    if not same:
      raise ValueError(
        f"{self._lines.path} holds sample {index} of seed {seed} with {len(tokens)} tokens and "
        f"{record['settings']} for {template!r}, not sample {number} of this request: use another "
        "--out, or remove it"
      )


def _settings(model: LanguageModel, request: SampleRequest) -> Mapping[str, Any]:
  settings = model.relevant_settings(request.settings)
  source = {k: v for k, v in model.info.items() if k in ("source", "step")}
  return settings | {"best_of": request.best_of, "num": request.num} | source
