"""Tokenizers: text to token ids and back. Characters, UTF-8 bytes, and GPT-2's BPE."""

import bz2
import gzip
import json
import lzma
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


GPT2_VOCAB_SIZE = 50_257


class Tokenizer(Protocol):
  """What the rest of the house asks of a tokenizer.

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

  def decode(self, ids: Iterable[int]) -> str:
    """Text of any ids in [0, V)."""
    ...

  def to_json(self) -> dict[str, Any]:
    """All that `from_json` needs to build it again."""
    ...


class Chars:
  """One token per character of a fixed set.

  Raises (encode):
    ValueError: a character is not in the set; the message names it.
  """

  eos_id = None

  def __init__(self, characters: str):
    self.characters = characters
    self._ids = {c: i for i, c in enumerate(characters)}
    if len(self._ids) != len(characters):
      raise ValueError("Chars: a character is listed twice")

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
    try:
      return np.array([self._ids[c] for c in text], np.int32)
    except KeyError as error:
      raise ValueError(
        f"character {error.args[0]!r} is not one of the {self.vocab_size} that this model knows: "
        f"{self.characters!r}"
      ) from None

  def decode(self, ids: Iterable[int]) -> str:
    return "".join(self.characters[i] for i in ids)

  def to_json(self) -> dict[str, Any]:
    return {"kind": "chars", "characters": self.characters}


class Bytes:
  """One token per byte of UTF-8; V = 256."""

  vocab_size = 256
  eos_id = None

  def encode(self, text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    return bytes(int(i) for i in ids).decode(errors="replace")

  def to_json(self) -> dict[str, Any]:
    return {"kind": "bytes"}


class BPE:
  """GPT-2's byte-level BPE, run by the `tokenizers` library. EOS is <|endoftext|>."""

  _EOS = "<|endoftext|>"

  def __init__(self, definition: str):
    """Args:
    definition: the `tokenizers` library's JSON.
    """
    from tokenizers import Tokenizer as Library

    self._library = Library.from_str(definition)
    eos_id = self._library.token_to_id(self._EOS)
    if eos_id is None:
      raise ValueError(f"BPE: the vocabulary has no {self._EOS}")
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
    from huggingface_hub import hf_hub_download

    try:
      return cls(Path(hf_hub_download(name, "tokenizer.json")).read_text(encoding="utf-8"))
    except Exception as error:
      raise ConnectionError(
        f"cannot get the tokenizer {name!r} from the hub ({error}). Without a network, give a "
        "folder that holds it: --config.data.tokenizer=gpt2:/path/to/folder"
      ) from error

  @property
  def vocab_size(self) -> int:
    return self._library.get_vocab_size()

  def encode(self, text: str) -> np.ndarray:
    return np.array(self._library.encode(text).ids, np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    return self._library.decode([int(i) for i in ids], skip_special_tokens=False)

  def to_json(self) -> dict[str, Any]:
    return {"kind": "bpe", "definition": self._library.to_str()}


def from_json(spec: Mapping[str, Any]) -> Tokenizer:
  """Builds a tokenizer from its `to_json`."""
  match spec["kind"]:
    case "chars":
      return Chars(spec["characters"])
    case "bytes":
      return Bytes()
    case "bpe":
      return BPE(spec["definition"])
    case other:
      raise ValueError(f"tokenizer kind {other!r} must be 'chars', 'bytes' or 'bpe'")


def from_name(name: str, texts: Iterable[str]) -> Tokenizer:
  """Builds the tokenizer that a config names.

  Args:
    name: `chars` (the characters of texts), `bytes`, `gpt2` (from the hub), or `gpt2:FOLDER`.
    texts: the corpus.

  Raises:
    ValueError: the name is none of these.
  """
  kind, _, folder = name.partition(":")
  match kind:
    case "chars":
      return Chars.of(texts)
    case "bytes":
      return Bytes()
    case "gpt2":
      return BPE.from_folder(Path(folder)) if folder else BPE.from_hub("gpt2")
    case _:
      raise ValueError(f"data.tokenizer={name!r} must be 'chars', 'bytes', 'gpt2' or 'gpt2:FOLDER'")


def _read(folder: Path, *names: str) -> str | None:
  for name in names:
    if (folder / name).is_file():
      return (folder / name).read_text(encoding="utf-8")
    for suffix, opener in OPENERS.items():
      if (folder / (name + suffix)).is_file():
        with opener(folder / (name + suffix), "rt", encoding="utf-8") as file:
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
  library.add_special_tokens([BPE._EOS])
  return library.to_str()
