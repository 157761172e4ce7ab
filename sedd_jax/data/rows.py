"""Rows: a stream of tokens cut into rows of one length, read as `Batch`es.

N: rows, L: tokens in a row.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from sedd_jax.batch import Batch, gathered
from sedd_jax.data.config import DataConfig
from sedd_jax.data.streams import Stream


class Rows(Protocol):
  """Rows that can be read in any order, by a slice or an array of row numbers."""

  def __len__(self) -> int: ...

  @property
  def shape(self) -> tuple[int, ...]:
    """(N, L)."""
    ...

  def __getitem__(self, index: Any, /) -> Batch: ...


class Blocks:
  """A stream cut every L tokens; the remainder is dropped.

  Raises:
    ValueError: the stream is shorter than one row.
  """

  def __init__(self, stream: Stream, length: int, name: str):
    """Args:
    stream: the tokens.
    length: L.
    name: of the stream, for messages.
    """
    if len(stream) < length:
      raise ValueError(
        f"data.length={length} is longer than the whole {name} text ({len(stream)} tokens)"
      )
    self._stream, self._length = stream, length

  def __len__(self) -> int:
    return len(self._stream) // self._length

  @property
  def shape(self) -> tuple[int, int]:
    return len(self), self._length

  def tokens(self, index: Any = slice(None)) -> int:
    """The number of tokens of documents in some rows."""
    return len(_numbers(index, len(self))) * self._length

  def __getitem__(self, index: Any) -> Batch:
    return Batch(*self._stream.windows(_numbers(index, len(self)) * self._length, self._length))


class Padded:
  """Whole documents, each in a row of its own, filled up with end-of-text tokens.

  A document longer than a row goes on in the next one.
  """

  def __init__(self, stream: Stream, length: int, name: str, eos_id: int, fill_counts: bool):
    """Args:
    stream: the tokens.
    length: L.
    name: of the stream, for messages.
    eos_id: the end-of-text token.
    fill_counts: whether tokens that fill up a row count.

    Raises:
      ValueError: the stream has no documents.
    """
    if not len(stream.starts):
      raise ValueError(f"the {name} text has no documents")
    self._stream, self._length = stream, length
    self._eos_id, self._fill_counts = eos_id, fill_counts
    self._first, self._stop = self._cut(stream.starts, np.append(stream.starts[1:], len(stream)))

  def _cut(self, first: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Documents int64[D] to rows int64[N]: their first tokens and where they end."""
    count = -(-(stop - first) // self._length)
    place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    row_first = np.repeat(first, count) + place * self._length
    return row_first, np.minimum(row_first + self._length, np.repeat(stop, count))

  def tokens(self, index: Any = slice(None)) -> int:
    """The number of tokens of documents in some rows; the EOS of each document counts."""
    return int(np.sum((self._stop - self._first)[index]))

  def __len__(self) -> int:
    return len(self._first)

  @property
  def shape(self) -> tuple[int, int]:
    return len(self), self._length

  def __getitem__(self, index: Any) -> Batch:
    numbers = _numbers(index, len(self))
    first, stop = self._first[numbers], self._stop[numbers]
    tokens, readable = self._stream.windows(first, self._length)
    inside = np.arange(self._length) < (stop - first)[:, None]
    return Batch(
      np.where(inside, tokens, self._eos_id), np.where(inside, readable, self._fill_counts)
    )


class Packed(Padded):
  """Rows that hold as many whole documents as fit, then filled up like `Padded`.

  Documents keep their order.
  """

  def _cut(self, first: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, stop = super()._cut(first, stop)
    packed, i = [], 0
    while i < len(first):
      packed.append(i)
      i = int(np.searchsorted(stop, first[i] + self._length, side="right"))
    return first[packed], np.append(stop[np.array(packed[1:], np.int64) - 1], stop[-1])


class PackedApart(Packed):
  """Packed rows whose documents do not see each other; the fill of a row is one more document.

  Documents are numbered from 0 in each row. One that is longer than a row is 0 of each of its rows.
  """

  def __getitem__(self, index: Any) -> Batch:
    numbers = _numbers(index, len(self))
    first, stop = self._first[numbers, None], self._stop[numbers, None]
    place = first + np.arange(self._length)
    document = np.searchsorted(self._starts, np.minimum(place, stop - 1), side="right")
    document += place >= stop  # What fills up the row follows its last document.
    segments = (document - document[:, :1]).astype(np.int32)
    return super().__getitem__(index)._replace(segments=segments)

  @functools.cached_property
  def _starts(self) -> np.ndarray:
    return self._stream.starts  # Read from files by some streams, so once.


class Joined:
  """The rows of several parts, one part after the other."""

  def __init__(self, parts: Sequence[Any], chars_per_token: Sequence[float]):
    """Args:
    parts: the rows.
    chars_per_token: of each part.
    """
    self._parts, self._chars_per_token = parts, chars_per_token
    self._stops = np.cumsum([len(part) for part in parts])

  def __len__(self) -> int:
    return int(self._stops[-1])

  @property
  def shape(self) -> tuple[int, int]:
    return len(self), self._parts[0].shape[1]

  def __getitem__(self, index: Any) -> Batch:
    numbers = _numbers(index, len(self))
    parts = self._of_parts(numbers)
    return gathered(len(numbers), ((mine, self._parts[i][theirs]) for i, mine, theirs in parts))

  def tokens(self, index: Any = slice(None)) -> int:
    """The number of tokens of documents in some rows."""
    found = self._of_parts(_numbers(index, len(self)))
    return sum(self._parts[i].tokens(theirs) for i, _, theirs in found)

  def characters(self, index: Any = slice(None)) -> float:
    """The characters of the documents in some rows, estimated by the mean of each part."""
    found = self._of_parts(_numbers(index, len(self)))
    return sum(self._chars_per_token[i] * self._parts[i].tokens(theirs) for i, _, theirs in found)

  def _of_parts(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(part, bool mask of the numbers in it, row numbers within it) for each part with rows."""
    of_part = np.searchsorted(self._stops, numbers, side="right")
    for i in np.unique(of_part):
      mine = of_part == i
      yield i, mine, numbers[mine] - (self._stops[i] - len(self._parts[i]))


def spread(count: int, most: int) -> np.ndarray:
  """At most `most` row numbers, evenly spread: the first rows may be all of one kind."""
  return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def make_rows(stream: Stream, config: DataConfig, eos_id: int | None, name: str) -> Any:
  """The rows of a stream, packed as a config says.

  Args:
    stream: the tokens.
    config: says how long rows are, and how documents are put into them.
    eos_id: of the tokenizer.
    name: of the stream, for messages.

  Raises:
    ValueError: the stream is too short, or documents shall be told apart and have no end.
  """
  if config.packing == "stream":
    return Blocks(stream, config.length, name)
  if eos_id is None:
    raise ValueError(
      f"data.packing={config.packing!r} needs a tokenizer with an end-of-text token: "
      "data.tokenizer='gpt2' or 'bytes:eos'"
    )
  kinds = {"pad": Padded, "pack": PackedApart if config.visibility == "document" else Packed}
  return kinds[config.packing](stream, config.length, name, eos_id, config.fill == "counted")


def _numbers(index: Any, count: int) -> np.ndarray:
  """Row numbers, int64[n], of a slice or an array of them."""
  if isinstance(index, slice):
    return np.arange(*index.indices(count), dtype=np.int64)
  return np.asarray(index, np.int64)
