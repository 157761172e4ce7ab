"""Sources: where documents come from. All of them are read piece by piece.

A piece is a document, or a part of a long one, so that no more than a piece is ever held. Pieces
are cut in front of white space that follows something else. GPT-2's pre-tokenizer cuts there too,
so the pieces give the tokens of the whole. (A million characters without white space are cut where
they end.)
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from sedd_jax.data.compression import OPENERS, UNREADABLE, not_utf8, open_any, utf8_fault
from sedd_jax.data.faults import Faults, InputFault
from sedd_jax.data.patterns import HUB, TFDS, files_of
from sedd_jax.files.paths import local_name

# Stands between documents where the tokenizer has no end-of-text token.
SEPARATOR = "\n\n"
# Characters of a long document that are read at a time, and the most that are held if there is no
# white space to cut at.
PIECE, LONGEST = 2**16, 2**20

_CUTS = (re.compile(r"(?<=\S)\n"), re.compile(r"(?<=\S)[ \n]"))


@dataclasses.dataclass(frozen=True)
class Piece:
  """A part of a document.

  Attributes:
    text: its characters.
    begins: whether the document begins with it.
    ends: whether the document ends with it.
    before: some of the document's text before it, for tokenizers that need it.
    after: some of its text after it.
  """

  text: str
  begins: bool = True
  ends: bool = True
  before: str = ""
  after: str = ""


class Source(Protocol):
  """Documents in a fixed order.

  Attributes:
    name: what to call it in messages.
  """

  @property
  def name(self) -> str: ...

  def pieces(self, faults: Faults) -> Iterator[Piece]:
    """All documents from the first on.

    Args:
      faults: told of what cannot be read.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Documents:
  """Documents in memory."""

  name: str
  texts: tuple[str, ...]

  def pieces(self, faults: Faults) -> Iterator[Piece]:
    for text in self.texts:
      yield from cut_document(text)


@dataclasses.dataclass(frozen=True)
class Files:
  """Local text files.

  A .txt file, or one without a suffix, is one document; a line of a .jsonl file is one.

  Attributes:
    name: comma-separated globs.
    text_field: of a .jsonl line.

  Raises (pieces, size):
    FileNotFoundError: a glob matches nothing.
    ValueError: a file is of another kind.
  """

  name: str
  text_field: str = "text"
  # Characters of the text files that were read to their ends; 0 of those that could not be.
  _sizes: dict[Path, int] = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )

  def paths(self) -> list[Path]:
    """The files, sorted within each glob."""
    found = files_of(self.name)
    for path in found:
      if _kind(path) not in (".txt", ".jsonl", ""):
        raise ValueError(
          f"{path}: config.data reads .txt and .jsonl files, plain or compressed "
          f"({', '.join(OPENERS)}), not {_kind(path)!r}"
        )
    return found

  def pieces(self, faults: Faults) -> Iterator[Piece]:
    for path in self.paths():
      # With `skip`, no part of a document is used before all of it is known to be good.
      if _is_lines(path) or faults.policy == "fail" or self._size(path, faults):
        yield from self._pieces(path, faults)

  def size(self, faults: Faults) -> int:
    """The characters of all documents."""
    return sum(self._size(path, faults) for path in self.paths())

  def _pieces(self, path: Path, faults: Faults) -> Iterator[Piece]:
    empty, before = True, faults.count
    try:
      for piece in self._lines(path, faults) if _is_lines(path) else _text(path):
        empty = False
        yield piece
    except InputFault:
      raise
    except UNREADABLE as error:
      faults.report(str(path), _said(path, error))
    else:
      if empty and faults.count == before:
        faults.report(str(path), "the file has no text")

  def _size(self, path: Path, faults: Faults) -> int:
    """The characters of a file; 0 of a text file that cannot be read to its end."""
    if _is_lines(path):
      return sum(len(piece.text) for piece in self._pieces(path, faults))
    if path not in self._sizes:
      size, fault = 0, "the file has no text"
      try:
        size = sum(len(piece.text) for piece in _text(path))
      except UNREADABLE as error:
        fault = _said(path, error)
      if not size:
        faults.report(str(path), fault)
      self._sizes[path] = size
    return self._sizes[path]

  def _lines(self, path: Path, faults: Faults) -> Iterator[Piece]:
    with open_any(path) as file:
      for number, line in enumerate(file, 1):
        if not line.strip():
          continue
        try:
          text = _field(json.loads(line.decode("utf-8-sig")), self.text_field)
        except RecursionError:
          faults.report(str(path), f"line {number} is nested too deeply")
        except UnicodeDecodeError as error:
          faults.report(str(path), not_utf8(number, error))
        except json.JSONDecodeError as error:
          faults.report(
            str(path), f"line {number} is not JSON: {error.msg} at column {error.colno}"
          )
        except ValueError as error:
          faults.report(str(path), f"line {number} {error}")
        else:
          yield from cut_document(text)


@dataclasses.dataclass(frozen=True)
class Lines:
  """Local text files, of any suffix, every line of which is a document, its end included.

  Attributes:
    name: comma-separated globs.

  Raises (pieces):
    FileNotFoundError: a glob matches nothing.
  """

  name: str

  def pieces(self, faults: Faults) -> Iterator[Piece]:
    for path in files_of(self.name):
      try:
        with open_any(path, text=True) as file:
          for line in file:
            yield Piece(line)
      except UNREADABLE as error:
        faults.report(str(path), _said(path, error))


@dataclasses.dataclass(frozen=True)
class Tfds:
  """A dataset of tensorflow-datasets, without TensorFlow.

  Attributes:
    name: `tfds:NAME@SPLIT`; the split is `train` if it is not named.
    text_field: of its records.

  Raises (pieces):
    ImportError: the dataset has to be prepared first, and that needs TensorFlow.
    FileNotFoundError: it cannot be found or prepared; the message says why.
    ValueError: it has no such field.
  """

  name: str
  text_field: str = "text"

  def pieces(self, faults: Faults) -> Iterator[Piece]:
    records = self._records()
    for number in range(len(records)):
      try:
        text = _field(records[number], self.text_field)
      except (RuntimeError, ValueError) as error:
        faults.report(f"{self.name}: record {number}", error)
      else:
        yield from cut_document(text)

  def _records(self) -> Sequence[Any]:
    import tensorflow_datasets as tfds

    dataset, _, split = self.name.removeprefix(TFDS).partition("@")
    try:
      records: Any = tfds.data_source(dataset, split=split or "train")
    except ImportError as error:
      extra = dataset.partition("/")[0]  # Without the name of a configuration.
      raise ImportError(
        f"{self.name} has to be prepared once, and its builder needs a package that is not here "
        f"({error}). On any machine: pip install tensorflow 'tensorflow-datasets[{extra}]', then "
        f"tfds build {dataset} --file_format=array_record, and copy the folder "
        "~/tensorflow_datasets here (or name it in TFDS_DATA_DIR). Reading it needs no TensorFlow"
      ) from error
    except Exception as error:  # It raises all kinds: no network, unknown names, other formats.
      raise FileNotFoundError(
        f"{self.name} cannot be read: {type(error).__name__}: {_first_line(error)}. It must have "
        "been prepared as array_record (tfds build NAME --file_format=array_record) in "
        "~/tensorflow_datasets or TFDS_DATA_DIR"
      ) from error
    return records


@dataclasses.dataclass(frozen=True)
class Hub:
  """A dataset of the Hugging Face hub, or a folder in its layout, streamed.

  Attributes:
    name: `hf:NAME[:CONFIG][@SPLIT]`; the split is `train` if it is not named.
    text_field: of its records.

  Raises (pieces):
    ImportError: the `datasets` package is missing.
    FileNotFoundError: the dataset cannot be read; the message says why.
    ValueError: it has no such field.
  """

  name: str
  text_field: str = "text"

  def pieces(self, faults: Faults) -> Iterator[Piece]:
    for number, record in enumerate(self._records()):
      try:
        text = _field(record, self.text_field)
      except ValueError as error:
        faults.report(f"{self.name}: record {number}", error)
      else:
        yield from cut_document(text)

  def _records(self) -> Iterator[Any]:
    try:
      import datasets  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError as error:
      raise ImportError(
        f"{self.name} needs the package `datasets`: pip install 'sedd-jax[hf]'"
      ) from error
    where, _, split = self.name.removeprefix(HUB).partition("@")
    dataset, _, config = local_name(where, "data.files").partition(":")
    try:
      yield from datasets.load_dataset(
        dataset, config or None, split=split or "train", streaming=True
      )
    except Exception as error:  # Anything from a missing network to a broken parquet file.
      raise FileNotFoundError(
        f"{self.name} cannot be read: {type(error).__name__}: {_first_line(error)}"
      ) from error


@dataclasses.dataclass(frozen=True)
class Cut:
  """The characters [first, last) of a source. A document across an end is divided; documents that
  have no character in the range are left out."""

  source: Source
  first: int
  last: int

  @property
  def name(self) -> str:
    return self.source.name

  def pieces(self, faults: Faults) -> Iterator[Piece]:
    return Reading(self.source.pieces(faults)).cut(self.first, self.last)


class Reading:
  """One reading of a source, for cuts that follow each other.

  Args:
    pieces: of the source, from the first on.
  """

  def __init__(self, pieces: Iterator[Piece]):
    self._pieces, self._position = pieces, 0
    self._held: list[Piece] = []  # The last piece of a cut: the next one may begin in it.

  def cut(self, first: int, last: int) -> Iterator[Piece]:
    """The characters [first, last), as `Cut` gives them; cuts are read to their ends, in order."""
    inside = False
    for piece in itertools.chain(self._held, self._pieces):
      stop = self._position + len(piece.text)
      text = piece.text[max(0, first - self._position) : max(0, last - self._position)]
      ends = piece.ends or stop >= last
      is_empty = piece.begins and not piece.text and first <= self._position < last
      if text or is_empty or (inside and ends):
        yield Piece(text, not inside, ends)
        inside = not ends
      if stop >= last:
        self._held = [piece]
        return
      self._position = stop


def cut_document(text: str) -> Iterator[Piece]:
  """A document in pieces of about `PIECE` characters; joined they are the text."""
  begins = True
  while len(text) > 2 * PIECE:
    cut = _last_cut(text[: 2 * PIECE]) or _last_cut(text[:LONGEST]) or LONGEST
    if cut >= len(text):
      break
    yield Piece(text[:cut], begins, False)
    text, begins = text[cut:], False
  yield Piece(text, begins, True)


def _text(path: Path) -> Iterator[Piece]:
  held, begins = "", True
  with open_any(path, text=True) as file:
    while read := file.read(PIECE):
      held += read
      cut = _last_cut(held) if len(held) > PIECE else None
      if cut or len(held) >= LONGEST:
        cut = cut or len(held)
        yield Piece(held[:cut], begins, False)
        held, begins = held[cut:], False
  if held or not begins:
    yield Piece(held, begins, True)


def _last_cut(text: str) -> int | None:
  """The last position where a text can be cut: at the end of a line, else of a word."""
  for cut in _CUTS:
    # The end first: it nearly always has a cut, and a search from the start is slow.
    for start in (max(0, len(text) - PIECE // 4), 0):
      if found := [match.start() for match in cut.finditer(text, start)]:
        return found[-1]
  return None


def _kind(path: Path) -> str:
  return Path(path.stem).suffix if path.suffix in OPENERS else path.suffix


def _is_lines(path: Path) -> bool:
  return _kind(path) == ".jsonl"


def _said(path: Path, error: Exception) -> object:
  """What is wrong with a file, with the line of bytes that are not UTF-8."""
  return (isinstance(error, UnicodeDecodeError) and utf8_fault(path)) or error


def _field(record: Any, name: str) -> str:
  value = record.get(name) if isinstance(record, dict) else None
  if isinstance(value, bytes):
    return value.decode()
  if not isinstance(value, str):
    what = f"has no text in the field {name!r} (config.data.text_field)"
    if not isinstance(record, dict):
      raise ValueError(f"{what}: it is {_name(record)}, not an object")
    if name in record:
      raise ValueError(f"{what}: there is {_name(value)}")
    raise ValueError(what + (f"; it has {', '.join(record)}" if record else ": it is empty"))
  try:
    value.encode()
  except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair.
    raise ValueError(f"has text that is not Unicode: {error.reason}") from error
  return value


def _name(value: Any) -> str:
  """What a value of JSON is called."""
  names = {type(None): "null", bool: "true or false", int: "a number", float: "a number",
           str: "a string", list: "a list", dict: "an object"}  # fmt: skip
  return names.get(type(value), type(value).__name__)


def _first_line(error: Exception) -> str:
  return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
