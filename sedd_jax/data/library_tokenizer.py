"""Tokenizers of the `tokenizers` library: any tokenizer.json, taken for its text-to-ids map alone.

What a file says beside that map is switched off: truncation, padding, dropout and tokens that a
template adds. Each is harmful here: text would be cut, padding counted as text, ids random, and
each piece of a long document would get a start of its own.
"""

import functools
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sedd_jax.data.compression import OPENERS, open_any
from sedd_jax.data.scope import PART, scope_of, steps_of, types_of
from sedd_jax.data.unknown import Unknown, may_lack
from sedd_jax.data.utf8 import pieces_of_bytes
from sedd_jax.files.pointers import check_no_pointer

DEFINITION, CONFIG = "tokenizer.json", "tokenizer_config.json"
GPT2_EOS = "<|endoftext|>"
MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")
# Names of end-of-text tokens, the more specific first.
_EOS_NAMES = (
  "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eos|>", "[SEP]",
)  # fmt: skip
# Decoders whose text of a token does not depend on the tokens after it.
_DECODERS = (
  "BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece",
)  # fmt: skip
# Post-processors that add no tokens.
_HARMLESS = ("ByteLevel",)


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
    from tokenizers import Tokenizer as Library

    self._source = source
    plain, switched_off = _plain(_parsed(definition, source))
    for what in switched_off:
      warnings.warn(f"{source}: {what}: switched off", TokenizerWarning, stacklevel=2)
    try:
      self._library = Library.from_str(json.dumps(plain))
    except Exception as error:  # The library raises nothing narrower.
      raise ValueError(f"{source} is no tokenizer that the library reads: {error}") from error
    # As the library writes it: the same for all ways to write one definition.
    self._plain: dict[str, Any] = json.loads(self._library.to_str())
    self._names = {i: name for name, i in self._library.get_vocab(True).items()}
    if not self._names:
      raise ValueError(f"{source}: the vocabulary is empty")
    self.vocab_size = max(self._names) + 1
    self.eos_id = self._find_eos(eos)
    cuts = _without_unused(self._plain["pre_tokenizer"])
    self.scope = scope_of({**self._plain, "pre_tokenizer": cuts}, self._library)
    ids = {name: i for i, name in self._names.items()}
    self._unknown = Unknown(self._plain, ids) if may_lack(self._plain) else None
    vocabulary = self._plain["model"]["vocab"]
    self._as_written = {
      token["id"] for token in self._plain["added_tokens"] if token["content"] not in vocabulary
    }
    self._known: dict[int, str | bytes] = {}

  @classmethod
  def from_file(cls, file: Path, eos: str | None = None) -> "LibraryTokenizer":
    """Reads a tokenizer.json, and its end-of-text token from a tokenizer_config.json beside it.

    Raises:
      ValueError: as of the class; the message names the file.
    """
    named = eos or eos_of(read_beside(file.parent, CONFIG))
    check_no_pointer(file)
    with open_any(file, text=True) as opened:
      return cls(opened.read(), eos=named, source=str(file))

  def encode(self, text: str) -> np.ndarray:
    """int32[T]."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Each text by itself, int32[T].

    Raises:
      UnknownCharacters: the vocabulary lacks some, and has no token for unknown text.
    """
    if self._unknown is not None:
      self._unknown.check(list(texts), self._source)
    try:
      encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
    except TypeError as error:
      raise ValueError(f"text that is not Unicode has no tokens: {error}") from error
    return [np.array(e.ids, np.int32) for e in encodings]

  def encode_within(self, parts: Sequence[tuple[str, str, str]]) -> list[np.ndarray]:
    """The tokens of parts of longer texts, int32[T] each: those that begin in the part.

    Args:
      parts: (text before, the part, text after).
    """
    texts = ["".join(part) for part in parts]
    if self._unknown is not None:
      self._unknown.check(texts, self._source)
    encodings = self._library.encode_batch(texts, add_special_tokens=False)
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

  def decode(self, ids: Iterable[int]) -> str:
    """Text of any ids in [0, V).

    Raises:
      ValueError: an id is none of these.
    """
    return "".join(self.pieces(ids))

  def pieces(self, ids: Iterable[int]) -> list[str]:
    """The text that each token adds. The first token has no space that only parts it from the token
    before it."""
    ids = self.checked(ids)
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
    (token,) = self.checked([token])
    return self._names.get(token, "")

  def checked(self, ids: Iterable[int]) -> list[int]:
    """The ids as Python's integers.

    Raises:
      ValueError: one is not in [0, V).
    """
    return checked_ids(ids, self.vocab_size)

  def to_json(self) -> dict[str, Any]:
    """The values from which `tokenizers.from_json` builds it again."""
    if self._is_gpt2:
      return {"kind": "bpe", "definition": json.dumps(self._plain)}
    return {"kind": "library", "definition": json.dumps(self._plain), "eos": self._eos_name}

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
      name: [_without_unused(step) for step in steps_of(self._plain[name])]
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

  def _find_eos(self, named: str | None) -> int | None:
    vocabulary = {name: i for i, name in self._names.items()}
    if named:
      if named not in vocabulary:
        raise ValueError(
          f"{self._source}: the vocabulary has no {named!r}, which data.tokenizer_eos or a "
          "tokenizer_config.json names as the end-of-text token"
        )
      return vocabulary[named]
    special = {token["content"] for token in self._plain["added_tokens"] if token["special"]}
    return next((vocabulary[name] for name in _EOS_NAMES if name in special), None)

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


def read_beside(folder: Path, *names: str) -> str | None:
  """The first of some files that a folder has, plain or compressed (.gz, .xz, .bz2, .zst)."""
  for name in names:
    for suffix in ("", *OPENERS):
      if (file := folder / (name + suffix)).is_file():
        check_no_pointer(file)
        with open_any(file, text=True) as opened:
          return opened.read()
  return None


def eos_of(config: str | None) -> str | None:
  """The end-of-text token that a tokenizer_config.json names, if it names one."""
  token = setting(config, "eos_token")
  return token.get("content") if isinstance(token, Mapping) else token


def setting(config: str | None, name: str) -> Any:
  """A field of a tokenizer_config.json, or None."""
  try:
    return json.loads(config or "{}").get(name)
  except (ValueError, AttributeError):
    return None


def _parsed(definition: str, source: str) -> dict[str, Any]:
  try:
    parsed = json.loads(definition)
    kind = parsed["model"].get("type") or _guessed(parsed["model"])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{source} is no tokenizer.json: {error!r}") from error
  if kind not in MODELS:
    raise ValueError(f"{source}: a model of type {kind!r} is not read, only {', '.join(MODELS)}")
  if fault := _decoder_fault(parsed.get("decoder")):
    raise ValueError(
      f"{source}: with {fault} the text of a token depends on those after it; such a tokenizer is "
      "not read"
    )
  return parsed


def _decoder_fault(decoder: Mapping[str, Any] | None) -> str | None:
  """What in a decoder gives a token a text that depends on other tokens than the one before."""
  steps = steps_of(decoder)
  names = [step["type"] for step in steps]
  if other := [name for name in names if name not in _DECODERS]:
    return f"a decoder of type {other[0]}"
  for alone in ("ByteLevel", "BPEDecoder"):
    if alone in names and (other := [name for name in names if name not in (alone, "Fuse")]):
      return f"decoders of types {alone} and {other[0]} together"
  # From here on the library has one text, and no tokens.
  for step in steps[names.index("Fuse") :] if "Fuse" in names else ():
    is_start = step["type"] == "Strip" and step["start"] <= 1 and not step["stop"]
    if step["type"] != "Fuse" and not is_start:
      return f"a decoder of type {step['type']} behind one of type Fuse"
  return None


def _guessed(model: Mapping[str, Any]) -> str | None:
  """The type of a model that older files leave out."""
  if "merges" in model:
    return "BPE"
  return "Unigram" if isinstance(model.get("vocab"), list) else None


def _plain(definition: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """The definition without what is switched off, and a phrase for each such thing."""
  found = []
  truncation, padding = definition.get("truncation"), definition.get("padding")
  if truncation:
    found.append(f"truncation to {truncation.get('max_length')} tokens")
  if padding:
    found.append("padding")
  model = dict(definition["model"])
  if model.get("dropout"):
    found.append(f"dropout of {model['dropout']}")
    model["dropout"] = None
  post = definition.get("post_processor")
  if any(name not in _HARMLESS for name in types_of(post)):
    found.append("tokens added around each text")
  off: dict[str, Any] = {"truncation": None, "padding": None, "post_processor": None}
  if definition.get("decoder") is None and "ByteLevel" in types_of(definition.get("pre_tokenizer")):
    off["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                      "use_regex": True}  # fmt: skip
  return {**definition, **off, "model": model}, found


def _without_unused(part: Any) -> Any:
  """The same without settings of offsets, which change no id and no text."""
  if isinstance(part, dict):
    return {k: _without_unused(v) for k, v in part.items() if k != "trim_offsets"}
  return [_without_unused(one) for one in part] if isinstance(part, list) else part


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
