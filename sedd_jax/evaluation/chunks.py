"""Chunks: documents as rows of tokens to score, by the rules of a protocol.

N: rows, L: tokens in a row, D: documents.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from sedd_jax.batch import Batch
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
      left with the tokens before it, which are given: clean, and not scored.
  """

  shards: int
  group: int
  edges: Literal["none", "eos"]
  remainder: Literal["drop", "complete"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunks:
  """A set of rows.

  Attributes:
    rows: N rows of L tokens.
    documents: D.
    found: tokens of all documents, what follows them included.
    scored: tokens that count.
    characters: of the text that the scored tokens decode to, without end-of-text tokens.
  """

  rows: Batch
  documents: int
  found: int
  scored: int
  characters: int

  @property
  def sha256(self) -> str:
    """Of the rows as int32, little-endian, in C order; a token that is not scored enters as -1 less
    the token."""
    tokens = np.where(self.rows.loss_mask, self.rows.tokens, -1 - self.rows.tokens)
    return hashlib.sha256(np.ascontiguousarray(tokens, "<i4").tobytes()).hexdigest()


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
  inner = length - 2 * len(around)
  rows, scored = [], []
  if inner < 1:
    raise ValueError(f"chunks of {length} tokens have no room between two end-of-text tokens")
  for group in _groups(tokens, chunking):
    joined = np.concatenate(group)
    whole = len(joined) // inner
    rows.append(joined[: whole * inner].reshape(whole, inner))
    scored.append(np.ones((whole, inner), bool))
    if chunking.remainder == "complete" and whole and (left := len(joined) - whole * inner):
      rows.append(joined[None, -inner:])
      scored.append(np.arange(inner)[None] >= inner - left)
  found = sum(map(len, tokens))
  if not any(map(len, rows)):
    raise ValueError(_too_short(tokens, found, chunking, inner))
  edge = len(around)
  table = np.concatenate(rows)
  ends = np.tile(around, (len(table), 1))
  batch = Batch(
    np.concatenate([ends, table, ends], axis=1),
    np.pad(np.concatenate(scored), ((0, 0), (edge, edge)), constant_values=True),
  )
  counts = _counted(batch, tokenizer)
  return Chunks(rows=batch, documents=len(tokens), found=found, **counts)


def without_first(chunks: Chunks, tokenizer: Tokenizer) -> Chunks:
  """The same rows, of which the first token is not scored: GPT-2 has no law of it."""
  return dataclasses.replace(chunks, **_counted(chunks.rows.map(lambda x: x[:, 1:]), tokenizer))


def _counted(rows: Batch, tokenizer: Tokenizer) -> dict[str, int]:
  """`scored`, tokens that count, and `characters` of the text that they decode to."""
  scored = [row[mask] for row, mask in zip(rows.tokens, rows.loss_mask, strict=True)]
  texts = (tokenizer.decode(row[row != tokenizer.eos_id]) for row in scored)
  return {"scored": sum(map(len, scored)), "characters": sum(map(len, texts))}


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
