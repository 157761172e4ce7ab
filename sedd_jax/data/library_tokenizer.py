"""Tokenizers of the `tokenizers` library: any tokenizer.json, taken for its text-to-ids map alone.

What a file says beside that map is switched off: truncation, padding, dropout and tokens that a
template adds. Each is harmful here: text would be cut, padding counted as text, ids random, and
each piece of a long document would get a start of its own.
"""

import functools
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data.definitions import read_definition, without_unused
from sedd_jax.data.library_call import library_call
from sedd_jax.data.scope import PART, scope_of, steps_of, types_of
from sedd_jax.data.tokenizer_files import DEFINITION, eos_beside, read_file
from sedd_jax.data.unknown import Unknown, UnknownCharacters, may_lack
from sedd_jax.data.utf8 import pieces_of_bytes

GPT2_EOS = "<|endoftext|>"
# Names of end-of-text tokens, the more specific first.
_EOS_NAMES = (
  "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eos|>", "[SEP]",
)  # fmt: skip
# Texts that hardly grow together with one behind them.
_BEFORE = (".", ",", "\n", "a")


class TokenizerWarning(UserWarning):
  """Something that a tokenizer's file asks for is not done."""


class LibraryTokenizer:
  """A tokenizer of any model type of the library, which uses all cores for several texts.

  Attributes:
    vocab_size: V, the largest id plus 1. Ids that no token has stand for no text.
    eos_id: the end-of-text token, or None.
    scope: how much of a document decides the tokens of a part of it.
  """

  def __init__(self, definition: str, *, eos: str | None = None, source: str = DEFINITION):
    """Args:
      definition: the library's JSON.
      eos: the end-of-text token; None to find it among the special tokens of the file.
      source: where the definition is from, for messages.

    Raises:
      ValueError: it is no tokenizer, of a type that cannot be used, or lacks the token `eos`.
    """
    self._source = source
    # As the library writes it: the same for all ways to write one definition.
    self._library, self._plain, undone = read_definition(definition, source)
    for what in undone:
      warnings.warn(f"{source}: {what}", TokenizerWarning, stacklevel=2)
    self._ids: dict[str, int] = self._library.get_vocab(True)
    self._names = self._named_by_id()
    self.vocab_size = max(self._names) + 1
    self.eos_id = self._find_eos(eos)
    cuts = without_unused(self._plain["pre_tokenizer"])
    self.scope = scope_of({**self._plain, "pre_tokenizer": cuts}, self._library, source)
    lacks = may_lack(self._plain)
    self._unknown = Unknown(self._plain, self._ids, source) if lacks else None
    if not self._is_bytes:
      self._text(list(self._names))  # Some decoders fail at some tokens.
    vocabulary = self._plain["model"]["vocab"]
    self._as_written = {
      token["id"] for token in self._plain["added_tokens"] if token["content"] not in vocabulary
    }
    self._known: dict[int, str | bytes] = {}

  @classmethod
  def from_file(
    cls, file: Path, eos: str | None = None, field: str = "data.tokenizer"
  ) -> "LibraryTokenizer":
    """Reads a tokenizer.json, and its end-of-text token from a tokenizer_config.json beside it.

    Args:
      file: plain or compressed.
      eos: the end-of-text token; None or "" to find it.
      field: what the user set, for messages.

    Raises:
      ValueError: as of the class; the message names the file.
    """
    return cls(read_file(file, field), eos=eos or eos_beside(file.parent), source=str(file))

  def encode(self, text: str) -> np.ndarray:
    """int32[T]."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Each text by itself, int32[T].

    Raises:
      UnknownCharacters: the vocabulary lacks some, and has no token for unknown text.
      ValueError: a text is not Unicode, or the library fails at it.
    """
    encodings = self._encoded(list(texts), self._library.encode_batch_fast)
    return [np.array(e.ids, np.int32) for e in encodings]

  def encode_within(self, parts: Sequence[tuple[str, str, str]]) -> list[np.ndarray]:
    """The tokens of parts of longer texts, int32[T] each: those that begin in the part.

    Args:
      parts: (text before, the part, text after).

    Raises:
      UnknownCharacters, ValueError: as of `encode_batch`.
    """
    encodings = self._encoded(["".join(part) for part in parts], self._library.encode_batch)
    found = []
    for (before, text, after), encoding in zip(parts, encodings, strict=True):
      starts = np.array([first for first, _ in encoding.offsets], np.int64)
      # What a tokenizer puts before a text belongs to its first part, and what it puts behind to
      # the last.
      low = len(before) if before else -1
      high = len(before) + len(text) if after else np.inf
      ids = np.array(encoding.ids, np.int32)
      found.append(ids[(starts >= low) & (starts < high)])
    return found

  def encode_behind(self, text: str) -> np.ndarray:
    """The tokens of a text that stands behind other text, int32[T]: without what is put before the
    start of a text, such as a space.

    Raises:
      UnknownCharacters, ValueError: as of `encode_batch`.
    """
    plain = self.encode(text)
    if self.scope == PART:
      return plain
    for before in _BEFORE:
      try:
        alone, both = self.encode_batch([before, before + text])
      except UnknownCharacters:
        continue
      if len(alone) and np.array_equal(both[: len(alone)], alone):  # They have not grown together.
        return both[len(alone) :]
    return plain

  def decode(self, ids: Iterable[int]) -> str:
    """Text of any ids in [0, V).

    Raises:
      ValueError: an id is none of these.
    """
    return "".join(self.pieces(ids))

  def pieces(self, ids: Iterable[int]) -> list[str]:
    """The text that each token adds.

    The first token has no space that only parts it from the token before it. The last one keeps
    the space that ends a word (as GPT-1 has it), which the library's own `decode` leaves out: the
    text of a token does not depend on those after it.
    """
    ids = checked_ids(ids, self.vocab_size)
    pieces = [self._piece(i) for i in ids]
    if ids and self._parts_by_spaces and isinstance(pieces[0], str):
      pieces[0] = self._text([ids[0]])
    if all(isinstance(piece, str) for piece in pieces):
      return pieces  # pyright: ignore[reportReturnType]
    return pieces_of_bytes([x.encode() if isinstance(x, str) else x for x in pieces])

  def name_of(self, token: int) -> str:
    """How the vocabulary writes a token; "" for an id that no token has.

    Raises:
      ValueError: the id is not in [0, V).
    """
    (token,) = checked_ids([token], self.vocab_size)
    return self._names.get(token, "")

  def to_json(self) -> dict[str, Any]:
    """The values from which `tokenizers.from_json` builds it again."""
    definition = json.dumps(self._plain, ensure_ascii=False, separators=(",", ":"))
    if self._is_gpt2:
      return {"kind": "bpe", "definition": definition}
    return {"kind": "library", "definition": definition, "eos": self._eos_name}

  def meaning(self) -> dict[str, Any]:
    """Equal for tokenizers that give the same ids and texts, however they were written down."""
    model = dict(self._plain["model"])
    if "merges" in model:
      # The library has written a merge as "a b" and as ["a", "b"].
      merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
      model["merges"] = merges
      if self._is_gpt2:
        return {"kind": "bpe", "vocab": model["vocab"], "merges": merges}
    parts = {
      name: [without_unused(step) for step in steps_of(self._plain[name])]
      for name in ("normalizer", "pre_tokenizer", "decoder")
    }
    parts["decoder"] = [
      {"type": "ByteLevel"} if step["type"] == "ByteLevel" else step for step in parts["decoder"]
    ]
    added = sorted(self._plain["added_tokens"], key=lambda token: token["id"])
    whole = {"kind": "library", "model": model, "added_tokens": added, "eos": self.eos_id}
    return whole | parts

  @functools.cached_property
  def _is_gpt2(self) -> bool:
    """Whether a vocabulary and merges say all: GPT-2's byte-level BPE, with its end of text."""
    model, added = self._plain["model"], self._plain["added_tokens"]
    odd = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback",
           "ignore_merges")  # fmt: skip
    flags = ("single_word", "lstrip", "rstrip")
    return (
      self.scope == PART
      and self._is_bytes
      and model["type"] == "BPE"
      and not any(model.get(name) for name in odd)
      and [token["content"] for token in added] == [self._eos_name] == [GPT2_EOS]
      and not any(added[0][name] for name in flags)
    )

  @property
  def _eos_name(self) -> str | None:
    return None if self.eos_id is None else self._names[self.eos_id]

  def _encoded(self, texts: list[str], encode: Callable[..., Any]) -> Any:
    """The library's encodings of texts, by one of its functions."""
    try:
      for text in texts:
        text.encode()
    except (UnicodeError, AttributeError) as error:
      raise ValueError(f"text that is not Unicode has no tokens: {error}") from error
    if self._unknown is not None:
      self._unknown.check(texts)
    with library_call(f"{self._source}: the library fails at the tokens of a text"):
      return encode(texts, add_special_tokens=False)

  def _named_by_id(self) -> dict[int, str]:
    """The name of each id.

    Raises:
      ValueError: the vocabulary is empty, or two tokens have one id.
    """
    if not self._ids:
      raise ValueError(f"{self._source}: the vocabulary is empty")
    names: dict[int, str] = {}
    for name, i in self._ids.items():
      if (other := names.setdefault(i, name)) != name:
        one, other = sorted((name, other))
        raise ValueError(f"{self._source}: tokens {one!r} and {other!r} both have the id {i}")
    return names

  def _find_eos(self, named: str | None) -> int | None:
    if named:
      if not isinstance(named, str) or named not in self._ids:
        raise ValueError(
          f"{self._source}: the vocabulary has no {named!r}, which data.tokenizer_eos or a "
          "tokenizer_config.json names as the end-of-text token"
        )
      return self._ids[named]
    special = {token["content"] for token in self._plain["added_tokens"] if token["special"]}
    return next((self._ids[name] for name in _EOS_NAMES if name in special), None)

  @functools.cached_property
  def _is_bytes(self) -> bool:
    return "ByteLevel" in types_of(self._plain["decoder"])

  @property
  def _parts_by_spaces(self) -> bool:
    """Whether a token may have a space that parts it from the token before it."""
    return not self._is_bytes and "BPEDecoder" not in types_of(self._plain["decoder"])

  @functools.cached_property
  def _anchor(self) -> int:
    """A token before which any other may stand: its text is no empty one and no bytes."""
    for i in sorted(self._names, reverse=True):
      if (text := self._text([i])) and "\ufffd" not in text and not _byte_of(self._names[i]):
        return i
    raise ValueError(f"{self._source}: no token has a text")

  def _text(self, ids: list[int]) -> str:
    with library_call(f"{self._source}: its decoder fails"):
      return self._library.decode(ids, skip_special_tokens=False)

  def _piece(self, token: int) -> str | bytes:
    """The text of a token behind another one; bytes where it may be part of a character."""
    if token not in self._known:
      self._known[token] = self._found_piece(token)
    return self._known[token]

  def _found_piece(self, token: int) -> str | bytes:
    name = self._names.get(token)
    if name is None:
      return ""
    decoders = types_of(self._plain["decoder"])
    if self._is_bytes:
      # A token that text gives only as it is written stands for what is written.
      return name.encode() if token in self._as_written else _bytes_of(name)
    if "ByteFallback" in decoders and (byte := _byte_of(name)):
      return byte
    if "BPEDecoder" in decoders:
      (step,) = (x for x in steps_of(self._plain["decoder"]) if x["type"] == "BPEDecoder")
      suffix = step["suffix"]
      return name.replace(suffix, " ")
    before, both = self._text([self._anchor]), self._text([self._anchor, token])
    if not both.startswith(before):
      raise ValueError(f"{self._source}: its decoder changes the text of tokens before {name!r}")
    return both[len(before) :]


def checked_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
  """The ids as Python's integers.

  Raises:
    ValueError: one is not in [0, vocab_size).
  """
  found = [int(i) for i in ids]
  for i in found:
    if not 0 <= i < vocab_size:
      raise ValueError(
        f"token {i} is not one of the {vocab_size} of this tokenizer: ids lie in [0, {vocab_size})"
      )
  return found


def _byte_alphabet() -> dict[str, int]:
  """The characters by which byte-level BPE writes bytes: those that print stand for themselves,
  the others, in order, for the characters from U+0100 on."""
  printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = (byte for byte in range(256) if byte not in printed)
  return {chr(b): b for b in printed} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _bytes_of(name: str) -> bytes:
  try:
    return bytes(_BYTE_OF[character] for character in name)
  except KeyError:
    return name.encode()  # A special token outside the alphabet stands for itself.


def _byte_of(name: str) -> bytes | None:
  """The byte that a token of byte fallback stands for, such as <0x0A>."""
  if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
    try:
      return bytes([int(name[3:5], 16)])
    except ValueError:
      return None
  return None
