"""Tokenizers: text to token ids and back. Characters, UTF-8 bytes, GPT-2's BPE, BERT's pieces."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sedd_jax.data.compression import OPENERS, open_any
from sedd_jax.data.hub import read_from_hub
from sedd_jax.data.wordpiece import LibraryTokenizer, WordPiece
from sedd_jax.files.manifest import hash_of

GPT2_VOCAB_SIZE = 50_257
EOS = "<|endoftext|>"
TOKENIZERS = "'chars', 'bytes', 'bytes:eos', 'gpt2', 'gpt2:FOLDER', 'bert' or 'bert:FOLDER'"
# Unknown characters that an error message lists.
_MOST_NAMED = 20


class Tokenizer(Protocol):
  """What other packages ask of a tokenizer.

  Attributes:
    vocab_size: V; ids lie in [0, V).
    eos_id: put after every document, or None where documents are joined by blank lines.
  """

  @property
  def vocab_size(self) -> int: ...

  @property
  def eos_id(self) -> int | None: ...

  def encode(self, text: str) -> np.ndarray:
    """int32[T]."""
    ...

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Each text by itself, on all cores where the tokenizer can."""
    ...

  def decode(self, ids: Iterable[int]) -> str:
    """Text of any ids in [0, V)."""
    ...

  def pieces(self, ids: Iterable[int]) -> list[str]:
    """The text that each token adds: one string a token; joined they are `decode(ids)`.

    A character whose bytes lie in several tokens belongs to the last of them; those before it may
    be left with "". A token whose own piece, `pieces([id])`, has no U+FFFD has that piece in any
    company.
    """
    ...

  def to_json(self) -> dict[str, Any]:
    """The values from which `from_json` builds it again."""
    ...


class UnknownCharacters(ValueError):
  """Text has characters that a tokenizer does not have; the message names them."""


class Chars:
  """One token per character of a fixed set.

  Raises (encode):
    UnknownCharacters: a character is not in the set.
  """

  eos_id = None

  def __init__(self, characters: str):
    self.characters = characters
    if len(set(characters)) != len(characters):
      raise ValueError("Chars: a character is listed twice")
    points = _code_points(characters)
    self._ids = np.full(int(points.max(initial=0)) + 1, -1, np.int32)
    self._ids[points] = np.arange(len(points))

  @classmethod
  def of(cls, texts: Iterable[str]) -> "Chars":
    """The set of all characters in some texts, in code point order."""
    found: set[str] = set()
    for text in texts:
      found |= set(text)
    return cls("".join(sorted(found)))

  @property
  def vocab_size(self) -> int:
    return len(self.characters)

  def encode(self, text: str) -> np.ndarray:
    points = _code_points(text)
    known = points < len(self._ids)
    ids = np.where(known, self._ids[np.where(known, points, 0)], -1)
    if np.any(ids < 0):
      unknown = sorted(set(text) - set(self.characters))
      named = ", ".join(map(repr, unknown[:_MOST_NAMED]))
      named += f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
      what = f"character {named} is" if len(unknown) == 1 else f"characters {named} are"
      raise UnknownCharacters(
        f"{what} not one of the {self.vocab_size} that this model knows: {self.characters!r}"
      )
    return ids

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self.encode(text) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    return "".join(self.pieces(ids))

  def pieces(self, ids: Iterable[int]) -> list[str]:
    return [self.characters[i] for i in ids]

  def to_json(self) -> dict[str, Any]:
    return {"kind": "chars", "characters": self.characters}


class Alphabet:
  """`Chars` while its characters are being found: a new character gets the next id.

  Attributes:
    vocab_size: characters so far.
  """

  eos_id = None

  def __init__(self):
    self.vocab_size = 0
    self._ids = np.full(sys.maxunicode + 1, -1, np.int32)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self._encode(text) for text in texts]

  def _encode(self, text: str) -> np.ndarray:
    points = _code_points(text)
    new = np.unique(points[self._ids[points] < 0])
    self._ids[new] = self.vocab_size + np.arange(len(new))
    self.vocab_size += len(new)
    return self._ids[points]

  def finish(self) -> tuple[Chars, np.ndarray]:
    """The tokenizer of all characters so far, and int[V]: its id for each id here."""
    points = np.flatnonzero(self._ids >= 0)
    return Chars("".join(map(chr, points))), np.argsort(self._ids[points])


class Bytes:
  """One token per byte of UTF-8; V = 256, or 257 with an end-of-text token.

  Args:
    eos: whether there is an end-of-text token. It decodes to <|endoftext|>.
  """

  def __init__(self, *, eos: bool = False):
    self.vocab_size = 257 if eos else 256
    self.eos_id = 256 if eos else None

  def encode(self, text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self.encode(text) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    return "".join(self.pieces(ids))

  def pieces(self, ids: Iterable[int]) -> list[str]:
    return _pieces_of_bytes([EOS.encode() if i == 256 else bytes((int(i),)) for i in ids])

  def to_json(self) -> dict[str, Any]:
    return {"kind": "bytes"} if self.eos_id is None else {"kind": "bytes", "eos": True}


class BPE(LibraryTokenizer):
  """GPT-2's byte-level BPE, run by the `tokenizers` library. EOS is <|endoftext|>."""

  def __init__(self, definition: str):
    """Args:
    definition: the `tokenizers` library's JSON.
    """
    from tokenizers import Tokenizer as Library

    self._library = Library.from_str(definition)
    eos_id = self._library.token_to_id(EOS)
    if eos_id is None:
      raise ValueError(f"BPE: the vocabulary has no {EOS}")
    self.eos_id: int = eos_id

  @classmethod
  def from_folder(cls, folder: Path) -> "BPE":
    """Reads tokenizer.json, or a vocabulary and merges under OpenAI's or Hugging Face's names,
    each plain or compressed (.gz, .xz, .bz2).

    Raises:
      FileNotFoundError: the folder has none of them.
    """
    if whole := _read(folder, "tokenizer.json"):
      return cls(whole)
    vocab = _read(folder, "vocab.json", "encoder.json")
    merges = _read(folder, "merges.txt", "vocab.bpe")
    if vocab is None or merges is None:
      raise FileNotFoundError(
        f"{folder} has no tokenizer.json, nor vocab.json + merges.txt, nor encoder.json + vocab.bpe"
      )
    return cls(_gpt2_definition(json.loads(vocab), merges))

  @classmethod
  def from_hub(cls, name: str = "gpt2") -> "BPE":
    """Downloads tokenizer.json from the Hugging Face hub, or takes it from the local cache.

    Raises:
      ConnectionError: there is no network and the file is not in the cache.
    """
    return cls(read_from_hub(name, "tokenizer.json", "gpt2"))

  def decode(self, ids: Iterable[int]) -> str:
    return self._library.decode([int(i) for i in ids], skip_special_tokens=False)

  def pieces(self, ids: Iterable[int]) -> list[str]:
    return _pieces_of_bytes([self._bytes_of(int(i)) for i in ids])

  def to_json(self) -> dict[str, Any]:
    return {"kind": "bpe", "definition": self._library.to_str()}

  def _bytes_of(self, token: int) -> bytes:
    name = self.name_of(token)
    try:
      return bytes(_BYTE_OF[character] for character in name)
    except KeyError:
      return name.encode()  # A special token outside the alphabet stands for itself.


def same_tokenizer(one: Tokenizer, other: Tokenizer) -> bool:
  """Whether two tokenizers give the same tokens, however they were written down."""
  return _meaning(one) == _meaning(other)


def fingerprint(tokenizer: Tokenizer) -> str:
  """A SHA-256, equal for tokenizers that give the same tokens, however they were written down."""
  return hash_of(_meaning(tokenizer))


def _meaning(tokenizer: Tokenizer) -> dict[str, Any]:
  spec = tokenizer.to_json()
  if spec["kind"] != "bpe":
    return spec
  model = json.loads(spec["definition"])["model"]
  # The library has written a merge as "a b" and as ["a", "b"].
  merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
  return {"kind": "bpe", "vocab": model["vocab"], "merges": merges}


def from_json(spec: Mapping[str, Any]) -> Tokenizer:
  """Builds a tokenizer from its `to_json`."""
  match spec["kind"]:
    case "chars":
      return Chars(spec["characters"])
    case "bytes":
      return Bytes(eos=spec.get("eos", False))
    case "bpe":
      return BPE(spec["definition"])
    case "wordpiece":
      return WordPiece(spec["vocabulary"])
    case other:
      raise ValueError(f"tokenizer kind {other!r} must be 'chars', 'bytes', 'bpe' or 'wordpiece'")


def from_name(name: str, texts: Iterable[str]) -> Tokenizer:
  """Builds the tokenizer that a config names.

  Args:
    name: `chars` (the characters of texts), `bytes`, `bytes:eos`, `gpt2` or `bert` (from the hub),
      or `gpt2:FOLDER`, `bert:FOLDER`.
    texts: the corpus; read for `chars` only.

  Raises:
    ValueError: the name is none of these.
  """
  match name.partition(":"):
    case "chars", "", _:
      return Chars.of(texts)
    case "bytes", "", _:
      return Bytes()
    case "bytes", _, "eos":
      return Bytes(eos=True)
    case "gpt2", "", _:
      return BPE.from_hub("gpt2")
    case "gpt2", _, folder if folder:
      return BPE.from_folder(Path(folder))
    case "bert", "", _:
      return WordPiece.from_hub()
    case "bert", _, folder if folder:
      return _wordpiece_from_folder(Path(folder))
  raise ValueError(f"data.tokenizer={name!r} must be {TOKENIZERS}")


def _wordpiece_from_folder(folder: Path) -> WordPiece:
  """Reads vocab.txt, plain or compressed.

  Raises:
    FileNotFoundError: the folder has none.
  """
  if (text := _read(folder, "vocab.txt")) is None:
    raise FileNotFoundError(f"{folder} has no vocab.txt")
  return WordPiece.from_text(text)


def _code_points(text: str) -> np.ndarray:
  return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _byte_alphabet() -> dict[str, int]:
  """The characters by which byte-level BPE writes bytes: those that print stand for themselves,
  the others, in order, for the characters from U+0100 on."""
  printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = (byte for byte in range(256) if byte not in printed)
  return {chr(b): b for b in printed} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _pieces_of_bytes(tokens: list[bytes]) -> list[str]:
  """Gives each character of the UTF-8 text, or U+FFFD for bytes that are none, to the token that
  holds its last byte."""
  text = b"".join(tokens)
  owner = [i for i, token in enumerate(tokens) for _ in token]
  pieces = [""] * len(tokens)
  start = 0
  while start < len(text):
    try:
      good, end, bad = text[start:].decode(), len(text), ""
    except UnicodeDecodeError as error:
      good, end, bad = text[start : start + error.start].decode(), start + error.end, "\ufffd"
    for character in good:
      start += len(character.encode())
      pieces[owner[start - 1]] += character
    pieces[owner[end - 1]] += bad
    start = end
  return pieces


def _read(folder: Path, *names: str) -> str | None:
  for name in names:
    if (folder / name).is_file():
      return (folder / name).read_text(encoding="utf-8")
    for suffix in OPENERS:
      if (folder / (name + suffix)).is_file():
        with open_any(folder / (name + suffix), text=True) as file:
          return file.read()
  return None


def _gpt2_definition(vocab: Mapping[str, int], merges: str) -> str:
  from tokenizers import Tokenizer as Library
  from tokenizers import decoders, models, pre_tokenizers

  lines = (line for line in merges.splitlines() if line and not line.startswith("#version"))
  pairs = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
  library = Library(models.BPE(vocab=dict(vocab), merges=pairs))
  library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  library.decoder = decoders.ByteLevel()
  library.add_special_tokens([EOS])
  return library.to_str()
