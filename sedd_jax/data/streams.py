"""Documents as one stream of tokens.

T: tokens of a stream, D: its documents, L: tokens in a window.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from sedd_jax.data.library_tokenizer import LibraryTokenizer
from sedd_jax.data.scope import AROUND, DOCUMENT
from sedd_jax.data.sources import LONGEST, SEPARATOR, Piece
from sedd_jax.data.tokenizers import Alphabet, Tokenizer

# Characters that are tokenized together: enough to use all cores, and little memory.
_GROUP = 2**22
# Characters on each side of a piece that its tokens may depend on: far more than a long word. Where
# words are longer still, more are taken, up to a limit.
_CONTEXT, _LONGEST_CONTEXT = 2**11, 2 * LONGEST
_BETWEEN_WORDS = re.compile(r"\S\s+(?=\S)")


class Stream(Protocol):
  """A stream of tokens that can be read from any position."""

  def __len__(self) -> int:
    """T."""
    ...

  @property
  def starts(self) -> np.ndarray:
    """int64[D], ascending: where each document begins."""
    ...

  def windows(self, first: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """L tokens from each of the positions first int64[n]: int32[n, L], and bool[n, L], whether each
    could be read. Tokens that could not, or lie beyond the end, are 0."""
    ...


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A stream in memory.

  Attributes:
    tokens: int[T], of the smallest type that holds the vocabulary.
    starts: int64[D].
    characters: of the text, with what stands between documents and without EOS.
  """

  tokens: np.ndarray
  starts: np.ndarray
  characters: int

  def __len__(self) -> int:
    return len(self.tokens)

  def windows(self, first: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    index = first[:, None] + np.arange(length)
    inside = index < len(self.tokens)
    tokens = self.tokens[np.where(inside, index, 0)].astype(np.int32)
    return np.where(inside, tokens, 0), inside


def encode(pieces: Iterable[Piece], tokenizer: Tokenizer | Alphabet) -> Encoded:
  """The tokens of pieces; EOS follows every document if the tokenizer has one."""
  parts, starts, position, characters = [], [], 0, 0
  for group in groups(pieces, _GROUP):
    encoded = _encoded(group, tokenizer)
    dtype = token_dtype(tokenizer.vocab_size)  # An `Alphabet` grows.
    for piece, tokens in zip(group, encoded, strict=True):
      if piece.begins:
        starts.append(position)
      if piece.ends and tokenizer.eos_id is not None:
        tokens = np.append(tokens, tokenizer.eos_id)
      parts.append(tokens.astype(dtype))
      position += len(tokens)
      characters += len(piece.text)
  tokens = np.concatenate([np.zeros(0, token_dtype(tokenizer.vocab_size)), *parts])
  return Encoded(tokens, np.array(starts, np.int64), characters)


def _encoded(group: Sequence[Piece], tokenizer: Tokenizer | Alphabet) -> list[np.ndarray]:
  """int32[T] of each piece."""
  if isinstance(tokenizer, LibraryTokenizer) and tokenizer.scope == AROUND:
    return tokenizer.encode_within([(piece.before, piece.text, piece.after) for piece in group])
  return tokenizer.encode_batch([piece.text for piece in group])


def separated(pieces: Iterable[Piece], tokenizer: Tokenizer | Alphabet) -> Iterator[Piece]:
  """The pieces with a blank line before every document but the first, unless there is an EOS, and
  with the text around them if the tokenizer needs it."""
  pieces = _with_blank_lines(pieces, tokenizer)
  if tokenizer.scope == DOCUMENT:
    return _whole(pieces)
  return _in_context(pieces) if tokenizer.scope == AROUND else pieces


def _whole(pieces: Iterable[Piece]) -> Iterator[Piece]:
  """Whole documents."""
  texts: list[str] = []
  for piece in pieces:
    texts.append(piece.text)
    if piece.ends:
      yield Piece("".join(texts))
      texts = []


def _in_context(pieces: Iterable[Piece]) -> Iterator[Piece]:
  """The pieces with some of the document's text before and after them."""
  before, held = "", None
  for piece in pieces:
    if held is not None:
      after = "" if piece.begins else piece.text[: _reach(piece.text, 1)]
      yield dataclasses.replace(held, before=before, after=after)
      text = before + held.text
      before = "" if piece.begins else text[-_reach(text, -1) :]
    held = piece
  if held is not None:
    yield dataclasses.replace(held, before=before)


def _reach(text: str, step: int) -> int:
  """How many characters of a text from one end on (step 1 or -1) have several words."""
  size = _CONTEXT
  while size < min(len(text), _LONGEST_CONTEXT):
    end = text[:size] if step > 0 else text[-size:]
    if len(_BETWEEN_WORDS.findall(end)) > 1:
      break
    size *= 2
  return size


def _with_blank_lines(pieces: Iterable[Piece], tokenizer: Tokenizer | Alphabet) -> Iterator[Piece]:
  first = True
  for piece in pieces:
    if piece.begins and not first and tokenizer.eos_id is None:
      piece = dataclasses.replace(piece, text=SEPARATOR + piece.text)
    first = False
    yield piece


def groups(pieces: Iterable[Piece], characters: int) -> Iterator[list[Piece]]:
  """Lists of pieces, each of at least `characters` characters except the last."""
  group, size = [], 0
  for piece in pieces:
    group.append(piece)
    size += len(piece.text)
    if size >= characters:
      yield group
      group, size = [], 0
  if group:
    yield group


def token_dtype(vocab_size: int) -> np.dtype:
  """The smallest unsigned type that holds ids in [0, vocab_size)."""
  return np.dtype(np.min_scalar_type(vocab_size - 1))


def heads(streams: Sequence[Stream], most: int) -> np.ndarray:
  """int32[<= most]: the first tokens of several streams, the same number of each."""
  parts = []
  for stream in streams:
    count = min(len(stream), most // len(streams))
    tokens, readable = stream.windows(np.zeros(1, np.int64), count)
    parts.append(tokens[readable])
  return np.concatenate(parts)
