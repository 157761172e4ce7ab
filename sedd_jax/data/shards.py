"""Shards: a stream of tokens in array_record files.

A shard is a file of records of `RECORD` tokens, the last one shorter; beside it lie the places at
which documents begin. Every record has its own hash, kept by the format and checked as it is read.
"""

import dataclasses
import errno
import functools
import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from sedd_jax.data.faults import Faults
from sedd_jax.data.streams import Encoded
from sedd_jax.files.manifest import sha256_of
from sedd_jax.files.paths import command

# Tokens in a record: a row of 1024 lies in one or two of them.
RECORD = 2048
# Errors that grain raises for a damaged file.
_UNREADABLE = (RuntimeError, IndexError, ValueError)
_OTHER_FILES = 256
TOKENS, DOCUMENTS = ".array_record", ".documents.npy"


def write_shard(path: Path, encoded: Encoded) -> dict[str, Any]:
  """The manifest's entry of a shard, which is written.

  Args:
    path: of its files, without their suffixes.
    encoded: its tokens.
  """
  tokens, documents = (path.with_name(path.name + suffix) for suffix in (TOKENS, DOCUMENTS))
  # One record per chunk, so that only the wanted record is read.
  writer = ArrayRecordWriter(str(tokens), "group_size:1")
  for first in range(0, len(encoded), RECORD):
    writer.write(encoded.tokens[first : first + RECORD].tobytes())
  writer.close()
  with documents.open("wb") as file:
    np.save(file, encoded.starts)
  return {
    "name": path.name,
    "tokens": len(encoded),
    "documents": len(encoded.starts),
    "characters": encoded.characters,
    "files": {
      file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
      for file in (tokens, documents)
    },
  }


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
  """The stream of several shards, readable from any position.

  Attributes:
    folder: where they lie.
    shards: their entries in the manifest, in order.
    dtype: of the tokens.
    faults: told of records that cannot be read.

  Raises:
    ValueError: a file is missing or has another size; all such files are named.
  """

  folder: Path
  shards: Sequence[Mapping[str, Any]]
  dtype: np.dtype
  faults: Faults

  def __post_init__(self):
    if wrong := [fault for shard in self.shards for fault in wrong_sizes(self.folder, shard)]:
      raise ValueError("\n".join(wrong))

  def __len__(self) -> int:
    return int(self._stops[-1]) if self.shards else 0

  @property
  def starts(self) -> np.ndarray:
    begins = self._stops - [shard["tokens"] for shard in self.shards]
    parts = [
      np.load(self.folder / (shard["name"] + DOCUMENTS)) + begin
      for shard, begin in zip(self.shards, begins, strict=True)
    ]
    return np.concatenate([np.zeros(0, np.int64), *parts])

  def windows(self, first: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    # For each window, the records that it overlaps and the position of its tokens in them.
    found = np.zeros((len(first), length), np.int32)
    readable = np.zeros(found.shape, bool)
    touched = [self._touched(int(start), length) for start in first]
    records = self._read(sorted({record for parts in touched for record, *_ in parts}))
    for row, known, parts in zip(found, readable, touched, strict=True):
      for record, skip, place, count in parts:
        tokens = records[record]
        if tokens is not None:
          row[place : place + count] = tokens[skip : skip + count]
          known[place : place + count] = True
    return found, readable

  def _touched(self, start: int, length: int) -> list[tuple[int, int, int, int]]:
    """(record, tokens to skip, position in the window, tokens to take) for each record in it."""
    parts, place = [], 0
    length = min(length, len(self) - start)
    while place < length:
      position = start + place
      shard = int(np.searchsorted(self._stops, position, side="right"))
      size = self.shards[shard]["tokens"]
      inside = position - (int(self._stops[shard]) - size)
      record, skip = divmod(inside, RECORD)
      count = min(RECORD - skip, size - inside, length - place)
      parts.append((int(self._first_records[shard]) + record, skip, place, count))
      place += count
    return parts

  def _read(self, records: list[int]) -> dict[int, np.ndarray | None]:
    try:
      found = self._source.__getitems__(records)
    except _UNREADABLE:  # One of them; now which?
      found = [self._read_one(record) for record in records]
    return {
      record: None if data is None else np.frombuffer(data, self.dtype)
      for record, data in zip(records, found, strict=True)
    }

  def _read_one(self, record: int) -> bytes | None:
    try:
      return self._source[record]
    except _UNREADABLE as error:
      if os.strerror(errno.EMFILE) in str(error):
        raise OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)} (ulimit -n)") from error
      shard = int(np.searchsorted(self._first_records, record, side="right")) - 1
      file = self.folder / (self.shards[shard]["name"] + TOKENS)
      number = record - int(self._first_records[shard])
      self.faults.report(
        str(file),
        f"record {number} cannot be read ({str(error).split(';')[0][:120]}). "
        f"{command('sedd', 'prepare', f'--check={self.folder}')} reads all of it",
      )
      return None

  @functools.cached_property
  def _stops(self) -> np.ndarray:
    return np.cumsum([shard["tokens"] for shard in self.shards], dtype=np.int64)

  @functools.cached_property
  def _first_records(self) -> np.ndarray:
    counts = [_records(shard) for shard in self.shards]
    return np.cumsum([0, *counts[:-1]], dtype=np.int64)

  @functools.cached_property
  def _source(self) -> Any:
    _allow_files(len(self.shards))
    # Told how many records there are, grain opens a file when it is first read.
    names = [f"{shard['name']}{TOKENS}[0:{_records(shard)}]" for shard in self.shards]
    return grain.sources.ArrayRecordDataSource([str(self.folder / name) for name in names])


def _records(shard: Mapping[str, Any]) -> int:
  return -(-shard["tokens"] // RECORD)


def _allow_files(count: int) -> None:
  """Raises the limit of open files: grain keeps every file open that it has read from.

  Raises:
    OSError: the system allows fewer.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = count + _OTHER_FILES
  if soft != resource.RLIM_INFINITY and soft < wanted:
    if hard != resource.RLIM_INFINITY and hard < wanted:
      raise OSError(
        f"{count} shards need {wanted} open files, and the system allows {hard} (ulimit -Hn): "
        "prepare the text with a larger --shard_characters"
      )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def wrong_sizes(folder: Path, shard: Mapping[str, Any]) -> list[str]:
  """One line per file that is missing or has another size than in the manifest."""
  wrong = []
  for name, known in shard["files"].items():
    file = folder / name
    if not file.is_file():
      wrong.append(f"{file} is missing")
    elif file.stat().st_size != known["bytes"]:
      wrong.append(f"{file} has {file.stat().st_size:,} bytes, and {known['bytes']:,} were written")
  return wrong


def wrong_files(folder: Path, shard: Mapping[str, Any]) -> list[str]:
  """One line per file that is missing or differs from the manifest; reads every byte."""
  return wrong_sizes(folder, shard) or [
    f"{folder / name} is not what was written: its hash differs"
    for name, known in shard["files"].items()
    if sha256_of(folder / name) != known["sha256"]
  ]
