"""Chunks: documents as rows of tokens to score, by the rules of a protocol.

N: rows, L: tokens in a row, D: documents.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from sedd_jax.data import Tokenizer
from sedd_jax.data.sources import SEPARATOR

# Documents that are tokenized together.
_BATCH = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunking:
  """How documents become rows. Every document is followed by an end-of-text token.

  (A tokenizer without one puts a blank line in front of every document but the first, and nothing
  at the edges of rows.)

  Attributes:
    shards: contiguous parts of the documents, as even as can be, that are cut by themselves.
    group: documents of a shard that are joined and cut by themselves; 0 for all.
    edges: `none`, or `eos`: an end-of-text token at either end of every row.
    remainder: what is left of a group behind its last whole row: `drop` it; or `complete` it on the
      left with the tokens before it, which are given: clean, not scored, written ~token.
  """

  shards: int
  group: int
  edges: Literal["none", "eos"]
  remainder: Literal["drop", "complete"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunks:
  """A set of rows.

  Attributes:
    rows: int32[N, L]; a given token as ~token.
    documents: D.
    found: tokens of all documents, what follows them included.
    scored: tokens that count.
    characters: of the text that the scored tokens decode to, without end-of-text tokens.
  """

  rows: np.ndarray
  documents: int
  found: int
  scored: int
  characters: int

  @property
  def sha256(self) -> str:
    """Of the rows as int32, little-endian, in C order."""
    return hashlib.sha256(np.ascontiguousarray(self.rows, "<i4").tobytes()).hexdigest()


def make_chunks(
  documents: Iterable[str], tokenizer: Tokenizer, chunking: Chunking, length: int
) -> Chunks:
  """Tokenizes documents and cuts them into rows.

  Args:
    documents: plain text.
    tokenizer: the model's.
    chunking: the rules.
    length: L.

  Raises:
    ValueError: the documents are too short for a single row; the message says how many tokens there
      are and what is needed. Or the tokenizer does not know a character.
  """
  tokens = list(_tokenized(documents, tokenizer))
  eos = tokenizer.eos_id
  around = np.zeros(0, np.int32)
  if chunking.edges == "eos" and eos is not None:
    around = np.array([eos], np.int32)
  inner, rows = length - 2 * len(around), []
  if inner < 1:
    raise ValueError(f"chunks of {length} tokens have no room between two end-of-text tokens")
  for group in _groups(tokens, chunking):
    joined = np.concatenate(group)
    whole = len(joined) // inner
    rows.append(joined[: whole * inner].reshape(whole, inner))
    if chunking.remainder == "complete" and whole and (left := len(joined) - whole * inner):
      last = joined[-inner:].copy()
      last[: inner - left] = ~last[: inner - left]
      rows.append(last[None])
  found = sum(map(len, tokens))
  table = np.concatenate([np.zeros((0, inner), np.int32), *rows])
  if not len(table):
    raise ValueError(_too_short(tokens, found, chunking, inner))
  table = np.stack([np.concatenate([around, row, around]) for row in table])
  scored, characters = _counted(table, tokenizer)
  return Chunks(
    rows=table, documents=len(tokens), found=found, scored=scored, characters=characters
  )


def without_first(chunks: Chunks, tokenizer: Tokenizer) -> Chunks:
  """The same rows, of which the first token is not scored: GPT-2 has no law of it."""
  scored, characters = _counted(chunks.rows[:, 1:], tokenizer)
  return dataclasses.replace(chunks, scored=scored, characters=characters)


def _counted(rows: np.ndarray, tokenizer: Tokenizer) -> tuple[int, int]:
  """Tokens that count, and characters of the text that they decode to."""
  scored = [row[row >= 0] for row in rows]
  texts = (tokenizer.decode(row[row != tokenizer.eos_id]) for row in scored)
  return sum(map(len, scored)), sum(map(len, texts))


def _tokenized(documents: Iterable[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
  """int32[T] of each document, with what stands between documents."""
  after = np.array([] if tokenizer.eos_id is None else [tokenizer.eos_id], np.int32)
  before = SEPARATOR if tokenizer.eos_id is None else ""
  texts = (before * (i > 0) + text for i, text in enumerate(documents))
  while batch := list(itertools.islice(texts, _BATCH)):
    for tokens in tokenizer.encode_batch(batch):
      yield np.append(tokens, after).astype(np.int32)


def _groups(tokens: Sequence[np.ndarray], chunking: Chunking) -> Iterator[Sequence[np.ndarray]]:
  """The documents that are cut together."""
  shards = max(1, min(chunking.shards, len(tokens)))
  size, more = divmod(len(tokens), shards)
  start = 0
  for shard in range(shards):
    stop = start + size + (shard < more)
    for first in range(start, stop, chunking.group or max(stop - start, 1)):
      yield tokens[first : min(first + (chunking.group or stop), stop)]
    start = stop


def _too_short(tokens: Sequence[np.ndarray], found: int, chunking: Chunking, inner: int) -> str:
  if not found:
    return "there is no text in it"
  largest = max(sum(map(len, group)) for group in _groups(tokens, chunking))
  message = f"{found:,} tokens in {len(tokens):,} documents make no chunk: {inner:,} are needed"
  if largest < found:
    message += (
      f" in each group of documents that is cut by itself, and the largest has {largest:,} "
      f"({chunking.shards} shards, {chunking.group} documents at a time)"
    )
  return message
