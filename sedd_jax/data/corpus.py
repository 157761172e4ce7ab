"""Corpora: documents for training and documents held out.

`embedded` needs no download: it is the language reference that every CPython carries. Python
versions carry different texts, so a corpus has an identity (name and hash) that a run stores.
"""

import dataclasses
import hashlib
import importlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sedd_jax.data.detokenizers import DETOKENIZERS
from sedd_jax.data.faults import Faults
from sedd_jax.data.patterns import EMBEDDED, HUB, TFDS
from sedd_jax.data.sources import (
  SEPARATOR,
  Cut,
  Documents,
  Files,
  Hub,
  Piece,
  Reading,
  Source,
  Tfds,
)

# Paragraphs longer than this that occurred before are dropped: topics repeat each other.
_REPEATED_PARAGRAPH = 80
_HELDOUT_TOPICS = 0.1


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents in a fixed order, cut in two; they are read anew whenever they are asked for.

  Attributes:
    name: what to call it in messages.
    train: documents to train on.
    heldout: documents to evaluate on.
    detokenizer: applied to all of them.
  """

  name: str
  train: Source
  heldout: Source
  detokenizer: str = "none"

  def pieces(self, side: str, faults: Faults | None = None) -> Iterator[Piece]:
    """The documents of a side, `train` or `heldout`, as they are trained on.

    Args:
      faults: told of what cannot be read; by default the first fault is an error.
    """
    source: Source = getattr(self, side)
    faults = faults or Faults()
    return self._prepared(source.pieces(faults), faults)

  def sides(self, faults: Faults | None = None) -> Iterator[Iterator[Piece]]:
    """The documents of `train`, then those of `heldout`, each to be read to its end in this order.

    A source that both are cut from is read once.
    """
    train, heldout, faults = self.train, self.heldout, faults or Faults()
    if isinstance(train, Cut) and isinstance(heldout, Cut) and train.source is heldout.source:
      reading = Reading(train.source.pieces(faults))
      sides = (reading.cut(cut.first, cut.last) for cut in (train, heldout))
    else:
      sides = (source.pieces(faults) for source in (train, heldout))
    return (self._prepared(side, faults) for side in sides)

  def _prepared(self, pieces: Iterator[Piece], faults: Faults) -> Iterator[Piece]:
    """The pieces detokenized, without documents that are empty."""
    pieces = self._not_empty(pieces, faults)
    if self.detokenizer == "none":
      return pieces
    detokenize = DETOKENIZERS[self.detokenizer]
    # Rules look at lines, one of them at all of a document.
    whole = _regrouped(pieces, by_line=self.detokenizer != "lambada")
    return (dataclasses.replace(piece, text=detokenize(piece.text)) for piece in whole)

  def _not_empty(self, pieces: Iterator[Piece], faults: Faults) -> Iterator[Piece]:
    number = 0
    for piece in pieces:
      number += piece.begins
      if piece.text or not (piece.begins and piece.ends):
        yield piece
      else:
        faults.note("empty documents, which are left out", f"{self.name}, document {number}")

  def texts(self, faults: Faults | None = None) -> Iterator[str]:
    """The text of all pieces of both sides, and what stands between documents if there are some."""
    for pieces in self.sides(faults):
      documents = 0
      for piece in pieces:
        documents += piece.begins
        if documents == 2 and piece.begins:
          yield SEPARATOR
        yield piece.text


def _regrouped(pieces: Iterator[Piece], *, by_line: bool) -> Iterator[Piece]:
  """The same documents in pieces of whole lines, or each in one."""
  held, begins = "", True
  for piece in pieces:
    held, begins = held + piece.text, begins or piece.begins
    cut = held.rfind("\n") if by_line else -1
    if piece.ends:
      yield Piece(held, begins, True)
      held, begins = "", True
    elif cut > 0:
      yield Piece(held[:cut], begins, False)
      held, begins = held[cut:], False


class Identity:
  """Name, size and hash of a corpus: equal if and only if name and texts are equal.

  The hash is made of the pieces that pass through `watch`: first `train`, then `heldout`.
  """

  def __init__(self, name: str):
    self._name = name
    self._whole, self._document = hashlib.sha256(), hashlib.sha256()
    self._characters = 0

  def watch(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces of one side, counted and hashed."""
    for piece in pieces:
      self._characters += len(piece.text)
      self._document.update(piece.text.encode("utf-8", "surrogatepass"))
      if piece.ends:
        self._whole.update(self._document.digest())
        self._document = hashlib.sha256()
      yield piece
    self._whole.update(b"|")

  def to_json(self) -> dict[str, Any]:
    """The identity as a run stores it."""
    return {
      "name": self._name,
      "characters": self._characters,
      "sha256": self._whole.hexdigest(),
    }


def load_corpus(
  files: str,
  heldout_files: str = "",
  split: Sequence[float] = (0.95, 1.0),
  text_field: str = "text",
  detokenizer: str = "none",
  faults: Faults | None = None,
) -> Corpus:
  """A corpus, found by name.

  Args:
    files: `embedded`; comma-separated globs of .txt and .jsonl files, plain or compressed (.gz,
      .xz, .bz2, .zst); `tfds:NAME@SPLIT`; or `hf:NAME[:CONFIG]@SPLIT`.
    heldout_files: the same, to hold out. If empty, the text of `files` is cut by `split`.
    split: (a, b): the first share a of the characters is for training, what lies between a and b
      is held out. To find them all of the text is read once.
    text_field: the field of a record that holds the text.
    detokenizer: a name in `DETOKENIZERS`.
    faults: told of what cannot be read; by default the first fault is an error.

  Raises:
    FileNotFoundError: a glob matches nothing, a dataset cannot be found, or the embedded corpus is
      missing.
    ValueError: a file or field cannot be used; the message names it.
  """
  if files == EMBEDDED and not heldout_files:
    return dataclasses.replace(embedded(), detokenizer=detokenizer)
  if not files:
    raise ValueError(
      "data.files is empty: give text files, for example --config.data.files='texts/*.txt', or "
      "'embedded'"
    )
  source = parse_source(files, text_field)
  if heldout_files:
    return Corpus(files, source, parse_source(heldout_files, text_field), detokenizer)
  size = _size(source, faults or Faults())
  low, high = round(split[0] * size), round(split[1] * size)
  return Corpus(files, Cut(source, 0, low), Cut(source, low, high), detokenizer)


def _size(source: Source, faults: Faults) -> int:
  """The number of characters of a source; reads all of it."""
  if isinstance(source, Files):
    return source.size(faults)
  return sum(len(piece.text) for piece in source.pieces(faults))


def parse_source(spec: str, text_field: str) -> Source:
  """The source that a part of `data.files` names, but for prepared folders.

  Raises:
    FileNotFoundError: there are no such files.
    ValueError: they are of another kind.
  """
  if spec == EMBEDDED:
    corpus = embedded()
    texts = [source.texts for source in (corpus.train, corpus.heldout)]  # pyright: ignore[reportAttributeAccessIssue]
    return Documents(corpus.name, (*texts[0], *texts[1]))
  if spec.startswith((TFDS, HUB)) and "," in spec and not os.path.lexists(spec.removeprefix(HUB)):
    raise ValueError(f"config.data: {spec!r}: ',' joins files; write ';' between it and other text")
  if spec.startswith(TFDS):
    return Tfds(spec, text_field)
  if spec.startswith(HUB):
    return Hub(spec, text_field)
  files = Files(spec, text_field)
  files.paths()  # Better now than after an hour.
  return files


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
  name = f"language reference of Python {version}"
  train, heldout = (Documents(name, tuple(side)) for side in sides)
  return Corpus(name, train, heldout)


def check_same(stored: Mapping[str, Any], found: Mapping[str, Any]) -> None:
  """Refuses a corpus other than the one that a run stored.

  Args:
    stored: its identity.
    found: the identity of what config.data gives now.

  Raises:
    ValueError: they differ; the message names both.
  """
  if all(stored[name] == found[name] for name in ("characters", "sha256")):
    return  # Files may have moved, or been prepared.

  def describe(identity: Mapping[str, Any]) -> str:
    return (
      f"{identity['name']!r} ({identity['characters']:,} characters, "
      f"sha256 {identity['sha256'][:12]})"
    )

  raise ValueError(
    f"this run was trained on the corpus {describe(stored)}, but config.data now gives "
    f"{describe(found)}. Use the Python or the files that the run was started with."
  )
