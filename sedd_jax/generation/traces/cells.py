"""The text in each position of each frame. Dimensions: K frames, B samples, L tokens."""

import dataclasses
import unicodedata
from collections.abc import Iterable

import numpy as np

from sedd_jax.data import Tokenizer
from sedd_jax.generation.traces.trace import Trace

MASK = 0  # The entry of masks in every table of cells.

# Characters that change the text direction or break lines.
_LAYOUT = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x2028, 0x2029}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
  """The token and text shown in each position.

  A token can look different in two frames: part of a character is U+FFFD while the rest is masked.

  Attributes:
    index: int32[K, B, L], into ids and texts; MASK for masks.
    ids: token ids.
    texts: the displayed text; "" if the character is shown at a later token.
  """

  index: np.ndarray
  ids: list[int]
  texts: list[str]


def cells_of(trace: Trace, tokenizer: Tokenizer | None) -> Cells:
  """The text of every token.

  Args:
    trace: the trace.
    tokenizer: None shows token ids.

  Raises:
    ValueError: a token is neither the mask nor known to the tokenizer.
  """
  masks = trace.masks(trace.tokens)
  last = np.max(trace.tokens, where=~masks, initial=-1)
  if tokenizer is not None and last >= tokenizer.vocab_size:
    raise ValueError(
      f"Trace.tokens has token {last}, which is neither the mask ({trace.mask_id}) nor one of "
      f"the tokenizer's {tokenizer.vocab_size}"
    )
  return cells_where(trace.tokens, masks, tokenizer)


def cells_where(tokens: np.ndarray, masks: np.ndarray, tokenizer: Tokenizer | None) -> Cells:
  """The text of every token, int[K, B, L], that is no mask, bool[K, B, L]."""
  tokens = np.where(masks, -1, tokens)
  known = np.unique(tokens[~masks])
  pieces = tokenizer.pieces if tokenizer is not None else _numbers
  entries: dict[tuple[int, str], int] = {(-1, ""): MASK}

  def entry(token: int, text: str) -> int:
    return entries.setdefault((token, visible(text)), len(entries))

  # Masks, which are -1 here, find the last entry.
  index_of = np.full(np.max(known, initial=-1) + 2, MASK, np.int32)
  is_part = np.zeros(len(index_of), bool)
  for token in known.tolist():
    _, text = pieces([token, token])  # Behind a token: the first may lack its space.
    is_part[token] = "\ufffd" in text
    if not is_part[token]:
      index_of[token] = entry(token, text)
  index = index_of[tokens]

  # Adjacent parts of characters are decoded together; other tokens separately, above.
  decoded: dict[tuple[int, ...], list[int]] = {}
  for k, b in np.argwhere(is_part[tokens].any(axis=-1)):
    row = tokens[k, b]
    edges = np.flatnonzero(np.diff(is_part[row], prepend=False, append=False))
    for start, stop in edges.reshape(-1, 2):
      run = tuple(row[start:stop].tolist())
      if run not in decoded:
        decoded[run] = [entry(*pair) for pair in zip(run, pieces(run), strict=True)]
      index[k, b, start:stop] = decoded[run]
  return Cells(index=index, ids=[i for i, _ in entries], texts=[text for _, text in entries])


def visible(text: str) -> str:
  """The text with invisible and layout-changing characters replaced by visible ones.

  Newlines and tabs stay; other control characters become their pictures (from U+2400).
  """
  return "".join(map(_visible, text))


def _numbers(ids: Iterable[int]) -> list[str]:
  return [f"{i} " for i in ids]


def _visible(character: str) -> str:
  code = ord(character)
  if character in "\n\t" or (code not in _LAYOUT and unicodedata.category(character) != "Cc"):
    return character
  if code < 0x20:
    return chr(0x2400 + code)
  return "\u2421" if code == 0x7F else "\ufffd"
