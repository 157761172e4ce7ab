"""Tokenizers: text to token ids and back. Characters, UTF-8 bytes, and those of a library."""

import difflib
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sedd_jax.data.bpe import bpe_size, train_bpe
from sedd_jax.data.definitions import check_ids
from sedd_jax.data.hub import read_from_hub
from sedd_jax.data.library_call import library_call
from sedd_jax.data.library_tokenizer import (
  GPT2_EOS,
  LibraryTokenizer,
  TokenizerWarning,
  checked_ids,
)
from sedd_jax.data.scope import PART
from sedd_jax.data.tokenizer_files import (
  CONFIG,
  DEFINITION,
  eos_beside,
  eos_of,
  find_beside,
  read_file,
)
from sedd_jax.data.unknown import UnknownCharacters, named
from sedd_jax.data.utf8 import pieces_of_bytes
from sedd_jax.data.wordpiece import SEPARATOR, VOCABULARY, WordPiece
from sedd_jax.files.manifest import hash_of
from sedd_jax.files.paths import local_path

GPT2_VOCAB_SIZE = 50_257
# `fingerprint` of GPT-2's.
GPT2_FINGERPRINT = "3f3fefc05434af47da3acd71972e688964b6dd6fd5850e9745c27a5711420934"
EOS = GPT2_EOS
TOKENIZERS = (
  "'chars', 'bytes', 'bytes:eos', 'bpe:N', 'gpt2', 'gpt2:FOLDER', 'bert', 'bert:FOLDER', a "
  "tokenizer.json, a folder with one, or a hub id"
)
# Tokenizers that lose something lose some of this. It has no decomposed accents: to compose them
# is no loss that a reader sees.
_SAMPLE = 'The Café,  "A"\n\n\tend 1.5 ½ 東!'
_FIXED = ("chars", "bytes", "bytes:eos", "gpt2", "bert")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Tokenizer(Protocol):
  """What other packages ask of a tokenizer.

  Attributes:
    vocab_size: V; ids lie in [0, V).
    eos_id: put after every document, or None where documents are joined by blank lines.
    scope: how much of a document decides the tokens of a part of it (`scope.py`).
  """

  @property
  def vocab_size(self) -> int: ...

  @property
  def eos_id(self) -> int | None: ...

  @property
  def scope(self) -> str: ...

  def encode(self, text: str) -> np.ndarray:
    """int32[T]."""
    ...

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Each text by itself, on all cores where the tokenizer can."""
    ...

  def decode(self, ids: Iterable[int]) -> str:
    """Text of any ids in [0, V).

    Raises:
      ValueError: an id is none of these.
    """
    ...

  def pieces(self, ids: Iterable[int]) -> list[str]:
    """The text that each token adds: one string a token; joined they are `decode(ids)`.

    A character whose bytes lie in several tokens belongs to the last of them; those before it may
    be left with "". A token whose own piece has no U+FFFD has that piece behind any other token; at
    the start some tokenizers leave out the space that parts it from the token before.
    """
    ...

  def to_json(self) -> dict[str, Any]:
    """The values from which `from_json` builds it again."""
    ...


class Chars:
  """One token per character of a fixed set.

  Raises (encode):
    UnknownCharacters: a character is not in the set.
  """

  eos_id = None
  scope = PART

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
      which = named(unknown)
      what = f"character {which} is" if len(unknown) == 1 else f"characters {which} are"
      raise UnknownCharacters(
        f"{what} not one of the {self.vocab_size} that this model knows: {self.characters!r}"
      )
    return ids

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self.encode(text) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    return "".join(self.pieces(ids))

  def pieces(self, ids: Iterable[int]) -> list[str]:
    return [self.characters[i] for i in checked_ids(ids, self.vocab_size)]

  def to_json(self) -> dict[str, Any]:
    return {"kind": "chars", "characters": self.characters}


class Alphabet:
  """`Chars` while its characters are being found: a new character gets the next id.

  Attributes:
    vocab_size: characters so far.
  """

  eos_id = None
  scope = PART

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

  scope = PART

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
    ids = checked_ids(ids, self.vocab_size)
    return pieces_of_bytes([EOS.encode() if i == 256 else bytes((i,)) for i in ids])

  def to_json(self) -> dict[str, Any]:
    return {"kind": "bytes"} if self.eos_id is None else {"kind": "bytes", "eos": True}


class BPE(LibraryTokenizer):
  """GPT-2's byte-level BPE. EOS is <|endoftext|>."""

  def __init__(self, definition: str, source: str = "BPE"):
    """Args:
    definition: the `tokenizers` library's JSON.
    source: where it is from, for messages.
    """
    super().__init__(definition, eos=EOS, source=source)

  @classmethod
  def from_folder(cls, folder: Path) -> "BPE":
    """Reads tokenizer.json, or a vocabulary and merges under OpenAI's or Hugging Face's names,
    each plain or compressed (.gz, .xz, .bz2).

    Raises:
      FileNotFoundError: the folder has none of them.
    """
    if found := _definition_in(folder):
      return cls(*found)
    raise FileNotFoundError(
      f"{folder} has no tokenizer.json, nor vocab.json + merges.txt, nor encoder.json + vocab.bpe"
    )

  @classmethod
  def from_hub(cls, name: str = "gpt2") -> "BPE":
    """Downloads tokenizer.json from the Hugging Face hub, or takes it from the local cache.

    Raises:
      ConnectionError: there is no network and the file is not in the cache.
    """
    return cls(read_from_hub(name, DEFINITION, "gpt2"), f"{DEFINITION} of {name!r}")


def eos_name(tokenizer: Tokenizer) -> str | None:
  """How a tokenizer's vocabulary writes its end-of-text token, or None if it has none."""
  if tokenizer.eos_id is None:
    return None
  if isinstance(tokenizer, LibraryTokenizer):
    return tokenizer.name_of(tokenizer.eos_id)
  return tokenizer.decode([tokenizer.eos_id])


def same_tokenizer(one: Tokenizer, other: Tokenizer) -> bool:
  """Whether two tokenizers give the same tokens, however they were written down."""
  return _meaning(one) == _meaning(other)


def fingerprint(tokenizer: Tokenizer) -> str:
  """A SHA-256, equal for tokenizers that give the same tokens, however they were written down."""
  return hash_of(_meaning(tokenizer))


def _meaning(tokenizer: Tokenizer) -> dict[str, Any]:
  return tokenizer.meaning() if isinstance(tokenizer, LibraryTokenizer) else tokenizer.to_json()


def from_json(spec: Mapping[str, Any], source: str = "") -> Tokenizer:
  """Builds a tokenizer from its `to_json`.

  Args:
    spec: the values.
    source: the file that holds them, for messages.

  Raises:
    ValueError: that is none.
  """
  stored = f"{source}: the stored tokenizer" if source else "the stored tokenizer"
  if not isinstance(spec, Mapping):
    raise ValueError(f"{stored} is damaged: it must hold named fields, not {spec!r:.40}")
  if (kind := spec.get("kind")) is None:
    raise ValueError(f"{stored} is damaged: field 'kind' is missing")
  if not isinstance(kind, str) or kind not in _STORED:
    raise ValueError(
      f"{stored} is damaged: tokenizer kind {kind!r:.40} must be 'chars', 'bytes', 'bpe', "
      "'wordpiece' or 'library'"
    )
  for name, is_right in _STORED[kind].items():
    if name not in spec and kind != "bytes":
      raise ValueError(f"{stored} is damaged: field {name!r} is missing")
    if not is_right(spec.get(name)):
      raise ValueError(f"{stored} is damaged: {name}={spec[name]!r:.40} cannot be that")
  match kind:
    case "chars":
      return Chars(spec["characters"])
    case "bytes":
      return Bytes(eos=bool(spec.get("eos")))
    case "bpe":
      return BPE(spec["definition"], stored)
    case "wordpiece":
      return WordPiece(spec["vocabulary"], stored)
  return LibraryTokenizer(spec["definition"], eos=spec.get("eos"), source=stored)


def read_stored(file: Path) -> Tokenizer:
  """The tokenizer of a file that holds its `to_json`.

  Raises:
    ValueError: it is damaged; the message names it.
  """
  try:
    spec = json.loads(file.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{file} is damaged: {error}") from error
  return from_json(spec, str(file))


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
  return isinstance(value, str | None)


# The kinds of `to_json`, and what each field must be.
_STORED: dict[str, dict[str, Callable[[Any], bool]]] = {
  "chars": {"characters": lambda value: _is_text(value) and len(set(value)) == len(value)},
  "bytes": {"eos": lambda value: isinstance(value, bool | None)},
  "bpe": {"definition": _is_text},
  "wordpiece": {"vocabulary": lambda value: isinstance(value, list) and all(map(_is_text, value))},
  "library": {"definition": _is_text, "eos": _is_text_or_none},
}


def from_name(
  name: str, texts: Iterable[str], eos: str = "", *, field: str = "data.tokenizer"
) -> Tokenizer:
  """Builds the tokenizer that a config names.

  Args:
    name: `chars` (the characters of texts), `bpe:N` (a byte-level BPE of N tokens, trained on
      texts), `bytes`, `bytes:eos`; `gpt2` or `bert` (from the hub);
      a tokenizer.json, a folder with one or with the files of GPT-2's or BERT's vocabulary, or a
      hub id. `gpt2:` and `bert:` may stand before a folder.
    texts: the corpus; read for `chars` and `bpe:N` only.
    eos: the end-of-text token of a tokenizer.json; "" to find it there.
    field: what the user set, for messages; that of eos is called field_eos.

  Raises:
    ValueError: the name is none of these, or the file is no tokenizer that can be used.
    FileNotFoundError: a folder has no tokenizer.
    ConnectionError: a hub id was given and cannot be fetched.
  """
  if (size := bpe_size(name)) is not None:
    return BPE(train_bpe(size, texts))
  kind, colon, folder = name.partition(":")
  if eos and (kind in ("chars", "bytes") or name in ("gpt2", "bert")):
    raise ValueError(f"{field}_eos={eos!r}: {name!r} has its own; leave it out")
  match kind, colon, folder:
    case "chars", "", _:
      return Chars.of(texts)
    case "bytes", "", _:
      return Bytes()
    case "bytes", _, "eos":
      return Bytes(eos=True)
    case "gpt2", "", _:
      return BPE.from_hub("gpt2")
    case "bert", "", _:
      return WordPiece.from_hub()
  found = _named(name, eos, field)
  if found.eos_id is None:
    warnings.warn(
      f"{name}: no end-of-text token is found; blank lines stand between documents. "
      f"{field}_eos names one",
      TokenizerWarning,
      stacklevel=2,
    )
  if not _comes_back(found):
    warnings.warn(
      f"{name}: text does not come back whole from its tokens (such as case, accents, spaces or "
      "unknown characters); bits per character are per character of the text as it was",
      TokenizerWarning,
      stacklevel=2,
    )
  return found


def _comes_back(tokenizer: Tokenizer) -> bool:
  """Whether a text of many kinds of characters is what its tokens are decoded to."""
  try:
    return tokenizer.decode(tokenizer.encode(_SAMPLE)).strip(" ") == _SAMPLE
  except UnknownCharacters:  # These are refused, not lost.
    return True


def is_fixed(name: str) -> bool:
  """Whether a name means no file or hub id, but one tokenizer everywhere or one for each text."""
  return name in _FIXED or name.startswith("bpe:")


def is_here(name: str) -> bool:
  """Whether a name means a file or folder that is there."""
  path = name.partition(":")[2] if name.startswith(_KINDS) else name
  return not is_fixed(name) and local_path(path, "data.tokenizer").exists()


def _named(name: str, eos: str, field: str) -> LibraryTokenizer:
  """The tokenizer of a file, a folder or a hub id.

  Raises:
    ValueError, FileNotFoundError, ConnectionError: as of `from_name`.
  """
  kind, path_name = name[:4], name[5:]
  if not (name.startswith(_KINDS) and path_name.strip()):
    kind, path_name = "", name
  if path_name.strip() and (path := local_path(path_name, field)).exists():
    if path.is_dir():
      return from_folder(path, eos, kind, field)
    return LibraryTokenizer.from_file(path, eos, field)
  is_path = kind or Path(name).suffix in (".json", ".txt") or Path(name).parent.is_dir()
  if _HUB_ID.fullmatch(name) and not is_path:
    try:
      definition = read_from_hub(name, DEFINITION, "")
    except ConnectionError as error:
      raise ConnectionError(
        f"{field}={name!r}: no such file or folder is here, and as a hub id it fails: "
        f"{error}. It must be {TOKENIZERS}"
      ) from error
    return LibraryTokenizer(definition, eos=eos or _hub_eos(name), source=name)
  if kind:
    raise FileNotFoundError(
      f"{field}={name!r}: {path_name} does not exist. It must be {TOKENIZERS}"
    )
  near = difflib.get_close_matches(name, _FIXED, n=1)
  hint = f"; did you mean {near[0]!r}?" if near else ""
  raise ValueError(f"{field}={name!r} must be {TOKENIZERS}{hint}")


def from_folder(
  folder: Path, eos: str = "", kind: str = "", field: str = "data.tokenizer"
) -> LibraryTokenizer:
  """The tokenizer of a folder: of a tokenizer.json, or of a vocabulary.

  Args:
    eos, field: as of `from_name`.
    kind: `gpt2` or `bert`, whose files are looked for; "" for both.

  Raises:
    FileNotFoundError: it has none.
  """
  named = eos or eos_beside(folder)
  # bert:FOLDER has always meant the vocabulary, if there is one.
  if kind != "bert" and (found := _definition_in(folder)):
    definition, source = found
    return LibraryTokenizer(definition, eos=named, source=source)
  if kind != "gpt2" and (vocabulary := WordPiece.from_folder(folder)):
    if eos not in ("", SEPARATOR):
      raise ValueError(
        f"{field}_eos={eos!r}: that of {folder / VOCABULARY} is {SEPARATOR!r}; leave it out"
      )
    return vocabulary
  if kind == "bert" and (file := find_beside(folder, DEFINITION)):
    return LibraryTokenizer(read_file(file, field), eos=named, source=str(file))
  wanted = [_WANTED[kind]] if kind else list(_WANTED.values())
  raise FileNotFoundError(f"{folder} has no {' nor '.join(wanted)}")


_KINDS = ("gpt2:", "bert:")
_WANTED = {
  "gpt2": "tokenizer.json, nor vocab.json + merges.txt, nor encoder.json + vocab.bpe",
  "bert": "vocab.txt or tokenizer.json",
}


def _definition_in(folder: Path) -> tuple[str, str] | None:
  """The library's JSON of a folder's tokenizer.json or vocabulary and merges, and where it is from;
  None if the folder has neither."""
  if file := find_beside(folder, DEFINITION):
    return read_file(file), str(file)
  vocab = find_beside(folder, "vocab.json", "encoder.json")
  merges = find_beside(folder, "merges.txt", "vocab.bpe")
  if vocab is None or merges is None:
    return None
  content, pairs = read_file(vocab), read_file(merges)
  with library_call(f"{folder}: its vocabulary and merges cannot be read"):
    ids = json.loads(content)
    if not isinstance(ids, dict):
      raise ValueError(f"{vocab.name} must hold the id of each token, not {ids!r:.40}")
    check_ids(ids, vocab.name)
    return _gpt2_definition(ids, pairs), str(folder)


def _hub_eos(name: str) -> str | None:
  try:
    config = read_from_hub(name, CONFIG, "")
  except ConnectionError:
    return None
  return eos_of(config, f"{CONFIG} of {name!r}")


def _code_points(text: str) -> np.ndarray:
  return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


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
