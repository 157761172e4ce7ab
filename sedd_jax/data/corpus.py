"""Corpora: documents for training and documents held out.

`embedded` needs no download: it is the language reference that every CPython carries. Python
versions carry different texts, so a corpus has an identity (name and hash) that a run stores.
"""

import dataclasses
import glob
import hashlib
import importlib
import json
import lzma
import os
import platform
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sedd_jax.data.tokenizers import OPENERS

# Paragraphs longer than this that occurred before are dropped: topics repeat each other.
_REPEATED_PARAGRAPH = 80
_HELDOUT_TOPICS = 0.1


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents in a fixed order, cut in two.

  Attributes:
    name: what to call it in messages.
    train: documents to train on.
    heldout: documents to evaluate on.
  """

  name: str
  train: tuple[str, ...]
  heldout: tuple[str, ...]

  def identity(self) -> dict[str, Any]:
    """Name, size and hash: equal if and only if name and texts are equal."""
    digest = hashlib.sha256()
    for part in (self.train, self.heldout):
      for document in part:
        digest.update(hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest())
      digest.update(b"|")
    return {
      "name": self.name,
      "characters": sum(map(len, (*self.train, *self.heldout))),
      "sha256": digest.hexdigest(),
    }


def load_corpus(
  files: str,
  heldout_files: str = "",
  split: Sequence[float] = (0.95, 1.0),
  text_field: str = "text",
) -> Corpus:
  """Reads a corpus.

  Args:
    files: `embedded`, or comma-separated globs of .txt and .jsonl files, plain or compressed (.gz,
      .xz, .bz2). A .txt file is one document, a line of a .jsonl file is one.
    heldout_files: globs of files to hold out. If empty, the text of `files` is cut by `split`.
    split: (a, b): the first share a of the characters is for training, what lies between a and b
      is held out.
    text_field: the field of a .jsonl line that holds the text.

  Raises:
    FileNotFoundError: a glob matches nothing, or the embedded corpus is missing.
    ValueError: a file or field cannot be used; the message names it.
  """
  if files == "embedded":
    return embedded()
  if not files:
    raise ValueError(
      "data.files is empty: give text files, for example --config.data.files='texts/*.txt', or "
      "'embedded'"
    )
  train = tuple(_documents(files, text_field))
  if heldout_files:
    return Corpus(files, train, tuple(_documents(heldout_files, text_field)))
  if len(split) != 2 or not 0.0 < split[0] < split[1] <= 1.0:
    raise ValueError(f"data.split={tuple(split)} must be two shares, 0 < first < second <= 1")
  return Corpus(files, *_cut(train, *split))


def embedded() -> Corpus:
  """The language reference in `pydoc_data.topics`, repeated paragraphs dropped.

  Topics are held out by a hash of their name, so a topic stays on its side when others change.

  Raises:
    FileNotFoundError: this Python was installed without the module.
  """
  try:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
  except ImportError as error:
    raise FileNotFoundError(
      "the embedded corpus is missing: this Python was installed without pydoc_data.topics. "
      "Train on text files instead: --config.data.files='texts/*.txt'"
    ) from error
  seen: set[str] = set()
  sides: tuple[list[str], list[str]] = ([], [])
  for name in sorted(topics):
    kept = []
    for paragraph in topics[name].split("\n\n"):
      # Copies may differ in the white space around them: a topic ends with a newline.
      text = paragraph.strip()
      if len(text) > _REPEATED_PARAGRAPH and text in seen:
        continue
      seen.add(text)
      kept.append(paragraph)
    share = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
    sides[share < _HELDOUT_TOPICS].append("\n\n".join(kept))
  version = ".".join(platform.python_version_tuple()[:2])
  return Corpus(f"language reference of Python {version}", tuple(sides[0]), tuple(sides[1]))


def check_same(stored: Mapping[str, Any], found: Mapping[str, Any]) -> None:
  """Refuses a corpus other than the one that a run stored.

  Args:
    stored: its identity.
    found: the identity of what config.data gives now.

  Raises:
    ValueError: they differ; the message names both.
  """
  if stored == found:
    return

  def describe(identity: Mapping[str, Any]) -> str:
    return (
      f"{identity['name']!r} ({identity['characters']:,} characters, "
      f"sha256 {identity['sha256'][:12]})"
    )

  raise ValueError(
    f"this run was trained on the corpus {describe(stored)}, but config.data now gives "
    f"{describe(found)}. Use the Python or the files that the run was started with."
  )


def _documents(globs: str, text_field: str) -> Iterator[str]:
  for pattern in globs.split(","):
    paths = sorted(glob.glob(os.path.expanduser(pattern.strip()), recursive=True))
    if not paths:
      raise FileNotFoundError(f"config.data: no file matches {pattern.strip()!r} in {Path.cwd()}")
    for path in map(Path, paths):
      yield from _read(path, text_field)


def _read(path: Path, text_field: str) -> Iterator[str]:
  opener = OPENERS.get(path.suffix, open)
  kind = Path(path.stem).suffix if path.suffix in OPENERS else path.suffix
  if kind not in (".txt", ".jsonl", ""):
    raise ValueError(
      f"{path}: config.data reads .txt and .jsonl files, plain or .gz, .xz, .bz2, not {kind!r}"
    )
  try:
    with opener(path, "rt", encoding="utf-8") as file:
      if kind != ".jsonl":
        yield file.read()
        return
      for number, line in enumerate(file, 1):
        if line.strip():
          yield _text_of(line, number, text_field)
  except (ValueError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
    raise ValueError(f"{path}: {error}") from error


def _text_of(line: str, number: int, text_field: str) -> str:
  try:
    record = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f"line {number} is not JSON: {error.msg} at column {error.colno}") from error
  if not isinstance(record, dict) or not isinstance(record.get(text_field), str):
    raise ValueError(
      f"line {number} has no text in the field {text_field!r} (config.data.text_field)"
    )
  return record[text_field]


def _cut(
  documents: tuple[str, ...], first: float, last: float
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Cuts at shares of all characters; a document across a cut is divided."""
  size = sum(map(len, documents))
  low, high = round(first * size), round(last * size)
  train, heldout, start = [], [], 0
  for document in documents:
    head = max(0, min(len(document), low - start))
    tail = max(0, min(len(document), high - start))
    train.append(document[:head])
    heldout.append(document[head:tail])
    start += len(document)
  return tuple(d for d in train if d), tuple(d for d in heldout if d)
