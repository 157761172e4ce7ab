"""The training and held-out data of a run: rows of tokens from a corpus."""

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sedd_jax.data import wordpiece
from sedd_jax.data.batches import Batches
from sedd_jax.data.bpe import bpe_size
from sedd_jax.data.config import DataConfig
from sedd_jax.data.corpus import Corpus, Identity, check_same, load_corpus, parse_source
from sedd_jax.data.faults import Faults
from sedd_jax.data.patterns import is_prepared, note_twice
from sedd_jax.data.prepared import SIDES, Prepared, open_prepared
from sedd_jax.data.rows import Joined, Rows, make_rows
from sedd_jax.data.sources import Documents
from sedd_jax.data.streams import Encoded, Stream, encode, heads, separated, token_dtype
from sedd_jax.data.tokenizers import (
  GPT2_FINGERPRINT,
  GPT2_VOCAB_SIZE,
  Alphabet,
  Tokenizer,
  UnknownCharacters,
  eos_name,
  fingerprint,
  from_name,
  is_fixed,
  is_here,
  same_tokenizer,
)
from sedd_jax.files.paths import command

# Tokens used to estimate entropies: enough for the bigrams of a corpus of any size.
_COUNTED = 20_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
  """A corpus as tokens.

  Attributes:
    identity: name, size and hash of the corpus.
    tokenizer: of all tokens here.
    train_rows: N rows to train on, for each part that is weighted; else one.
    weights: of the parts.
    heldout_rows: M rows.
    train_head: int32[T], the first tokens of the training text.
    heldout_head: int32[U], the first tokens of the held-out text.
    chars_per_token: characters per token of the held-out text.
    tokens_per_row: tokens of documents in a row to train on, on average.
    faults: the unreadable input so far.
  """

  identity: Mapping[str, Any]
  tokenizer: Tokenizer
  train_rows: Sequence[Rows]
  weights: tuple[float, ...]
  heldout_rows: Joined
  train_head: np.ndarray
  heldout_head: np.ndarray
  chars_per_token: float
  tokens_per_row: float
  faults: Faults

  def batches(self, batch_size: int, seed: int) -> Batches:
    """The batches of a run."""
    return Batches(self.train_rows, batch_size, seed, self.weights)


def vocab_size_of(config: DataConfig) -> int:
  """V of a config, from its tokenizer's name where that says it, else from the corpus.

  Raises:
    ValueError: the tokenizer depends on a corpus that the config does not name.
  """
  name = config.tokenizer
  if name == "gpt2" or (name.startswith("gpt2:") and not is_here(name)):
    return GPT2_VOCAB_SIZE
  if name == "bert" or (name.startswith("bert:") and not is_here(name)):
    return wordpiece.VOCAB_SIZE
  if (size := bpe_size(name)) is not None:
    return size
  if config.files and not is_fixed(name) and not is_here(name):
    for part in filter(is_prepared, config.parts):  # Each has its tokenizer.
      return open_prepared(part).tokenizer().vocab_size
  if name != "chars":
    return from_name(name, (), config.tokenizer_eos).vocab_size
  if not config.files:
    raise ValueError(
      f"data.tokenizer={config.tokenizer!r} depends on the corpus, and data.files is empty: name "
      "the files, or give --vocab_size (text8 has 27)"
    )
  return load_dataset(config).tokenizer.vocab_size


def load_dataset(
  config: DataConfig,
  *,
  expected: Mapping[str, Any] | None = None,
  tokenizer: Tokenizer | None = None,
) -> Dataset:
  """The dataset of a config: prepared folders are opened, text is read and tokenized.

  Args:
    expected: the identity that a run stored; another corpus is refused.
    tokenizer: the one that a run stored; else the config names it.

  Raises:
    ValueError: the corpus is another one, or cannot be used; the message says why.
    FileNotFoundError: no such files.
  """
  faults = Faults(config.on_fault)
  opened = _parts(config, faults)
  note_twice(config.files, config.heldout_files, faults, known=expected is not None)
  tokenizer, parts = _tokenized(opened, tokenizer or _tokenizer(opened, config))
  identity = _joined([part.identity for part in parts])
  if expected is not None:
    check_same(expected, identity)
  train, heldout = (
    [part.read(side, tokenizer) for part in parts if side in part.sides] for side in SIDES
  )
  if not sum(text.characters for text in heldout):
    raise ValueError("the held-out text has no characters: see data.split and data.heldout_files")
  train_rows, heldout_rows = (
    [_rows(text, config, tokenizer, name) for text in texts]
    for texts, name in ((train, "training"), (heldout, "held-out"))
  )
  return Dataset(
    identity=identity,
    tokenizer=tokenizer,
    train_rows=train_rows if config.weights else [Joined(train_rows, _chars_per_token(train))],
    weights=config.weights,
    heldout_rows=Joined(heldout_rows, _chars_per_token(heldout)),
    train_head=heads([text.stream for text in train], _COUNTED),
    heldout_head=heads([text.stream for text in heldout], _COUNTED),
    chars_per_token=sum(t.characters for t in heldout) / sum(len(t.stream) for t in heldout),
    tokens_per_row=_tokens_per_row(train_rows, config.weights),
    faults=faults,
  )


@dataclasses.dataclass(frozen=True)
class _Side:
  """One side of a part: its tokens and their number of characters."""

  stream: Stream
  characters: int


@dataclasses.dataclass(frozen=True)
class _Text:
  """A part of the corpus that is text."""

  corpus: Corpus
  sides: Sequence[str]
  faults: Faults

  def training_texts(self) -> Iterator[str]:
    """The text to train on, read anew."""
    if SIDES[0] in self.sides:
      yield from (piece.text for piece in self.corpus.pieces(SIDES[0], self.faults))

  def encode(self, tokenizer: Tokenizer | Alphabet) -> "_Tokens":
    """Reads all of it, once."""
    identity, streams, unknown = Identity(self.corpus.name), {}, None
    for side, pieces in zip(SIDES, self.corpus.sides(self.faults), strict=True):
      watched = identity.watch(pieces)
      try:
        streams[side] = encode(separated(watched, tokenizer), tokenizer)
      except UnknownCharacters as error:
        unknown = unknown or error
        collections.deque(watched, maxlen=0)  # The identity tells first if it is another corpus.
    return _Tokens(identity.to_json(), self.sides, streams, unknown)


@dataclasses.dataclass(frozen=True)
class _Tokens:
  """A part that was text, as tokens in memory.

  Attributes:
    streams: of each side, in full only if there were no unknown characters.
    unknown: the first error of the tokenizer.
  """

  identity: Mapping[str, Any]
  sides: Sequence[str]
  streams: Mapping[str, Encoded]
  unknown: UnknownCharacters | None

  def read(self, side: str, tokenizer: Tokenizer) -> _Side:
    del tokenizer  # It made them.
    if self.unknown is not None:
      raise self.unknown
    return _Side(self.streams[side], self.streams[side].characters)

  def renumbered(self, ids: np.ndarray) -> "_Tokens":
    """The same with the token ids[i] for each token i."""
    streams = {
      side: dataclasses.replace(stream, tokens=ids[stream.tokens])
      for side, stream in self.streams.items()
    }
    return dataclasses.replace(self, streams=streams)


@dataclasses.dataclass(frozen=True)
class _Shards:
  """A part of the corpus that is prepared."""

  prepared: Prepared
  sides: Sequence[str]
  faults: Faults

  @property
  def identity(self) -> Mapping[str, Any]:
    return self.prepared.identity

  def check_tokenizer(self, config: DataConfig) -> None:
    """Checks that the config names the tokenizer that the text was prepared with.

    A file or folder of a tokenizer may have moved; if it is there, it is compared.

    Raises:
      ValueError: it names another.
    """
    made, named = self.prepared.manifest["settings"]["tokenizer"], config.tokenizer
    own = self.prepared.tokenizer()
    if (eos := config.tokenizer_eos) and eos != eos_name(own):
      raise ValueError(
        f"data.tokenizer_eos={eos!r}, but {self.prepared.folder} has another tokenizer, whose "
        f"end-of-text token is {eos_name(own)!r}: leave it out, or prepare the text again"
      )
    if made == named and not is_here(named):
      return
    if made.startswith(f"{named}:"):  # A folder there, and here the one of the hub.
      same = _is_published(named, own)
    else:
      same = (made == named or not is_fixed(named)) and same_tokenizer(
        from_name(named, (), eos), own
      )
    if same:
      return
    folder = self.prepared.folder
    if made == named:
      raise ValueError(
        f"data.tokenizer={named!r} is not what it was when {folder} was prepared, which has "
        "another tokenizer: prepare the text again, or name the tokenizer that it was"
      )
    raise ValueError(
      f"data.tokenizer={named!r}, but {folder} has another tokenizer: it was prepared with "
      f"{made!r}. Set {command(f'--config.data.tokenizer={made}')}, or prepare the text again"
    )

  def read(self, side: str, tokenizer: Tokenizer) -> _Side:
    if not same_tokenizer(self.prepared.tokenizer(), tokenizer):
      raise ValueError(
        f"{self.prepared.folder} was prepared with another tokenizer than this run has "
        f"({self.prepared.manifest['settings']['tokenizer']!r}): prepare the text again with that "
        "of the run"
      )
    # Held-out records are never skipped: a bound on part of the text is no bound on the text.
    stream = self.prepared.stream(side, self.faults if side == "train" else Faults())
    return _Side(stream, self.prepared.manifest[side]["characters"])


def _is_published(name: str, tokenizer: Tokenizer) -> bool:
  """Whether a tokenizer from a folder is that of the hub: `gpt2`, `bert` or another fixed one."""
  if name == "gpt2":
    return fingerprint(tokenizer) == GPT2_FINGERPRINT
  return name == "bert" and tokenizer.vocab_size == wordpiece.VOCAB_SIZE


def _parts(config: DataConfig, faults: Faults) -> list[_Text | _Shards]:
  """The parts of a corpus; separate held-out text is the last one."""
  heldout = config.heldout_files
  one = len(config.parts) == 1
  if one and not is_prepared(config.files) and not (heldout and is_prepared(heldout)):
    return [_Text(_corpus(config, config.files, heldout, faults), SIDES, faults)]
  if one and heldout and is_prepared(config.files):
    prepared = open_prepared(config.files)
    if prepared.manifest["settings"]["heldout_files"] == heldout:  # It holds that already.
      return [_Shards(prepared, SIDES, faults)]
  sides = SIDES[:1] if heldout else SIDES
  parts: list[_Text | _Shards] = []
  for name in config.parts:
    if is_prepared(name):
      parts.append(_Shards(open_prepared(name), sides, faults))
    elif heldout:
      parts.append(_Text(_whole(config, name, "train"), sides, faults))
    else:
      parts.append(_Text(_corpus(config, name, "", faults), sides, faults))
  if heldout and is_prepared(heldout):
    parts.append(_Shards(open_prepared(heldout), SIDES[1:], faults))
  elif heldout:
    parts.append(_Text(_whole(config, heldout, "heldout"), SIDES[1:], faults))
  return parts


def _corpus(config: DataConfig, files: str, heldout_files: str, faults: Faults) -> Corpus:
  return load_corpus(
    files,
    heldout_files,
    config.split,
    config.text_field,
    config.detokenizer,
    faults,
  )


def _whole(config: DataConfig, files: str, side: str) -> Corpus:
  """All of some text on one side."""
  sources = {side: parse_source(files, config.text_field), _OTHER[side]: Documents(files, ())}
  return Corpus(files, **sources, detokenizer=config.detokenizer)


_OTHER = {"train": "heldout", "heldout": "train"}


def _joined(identities: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
  """The identity of several parts together."""
  if len(identities) == 1:
    return identities[0]
  digests = "".join(identity["sha256"] for identity in identities)
  return {
    "name": "; ".join(identity["name"] for identity in identities),
    "characters": sum(identity["characters"] for identity in identities),
    "sha256": hashlib.sha256(digests.encode()).hexdigest(),
  }


def _tokenized(
  parts: Sequence[_Text | _Shards], tokenizer: Tokenizer | Alphabet
) -> tuple[Tokenizer, list["_Tokens | _Shards"]]:
  """The tokenizer, and the parts with all text as its tokens."""
  made = [part.encode(tokenizer) if isinstance(part, _Text) else part for part in parts]
  if not isinstance(tokenizer, Alphabet):
    return tokenizer, made
  chars, ids = tokenizer.finish()
  ids = ids.astype(token_dtype(chars.vocab_size))
  return chars, [part.renumbered(ids) if isinstance(part, _Tokens) else part for part in made]


def _tokenizer(parts: Sequence[_Text | _Shards], config: DataConfig) -> Tokenizer | Alphabet:
  """The tokenizer of the prepared parts, checked against the config; else a new one."""
  for part in parts:
    if isinstance(part, _Shards):
      part.check_tokenizer(config)
      undone = part.prepared.manifest["settings"]["detokenizer"]
      if undone != config.detokenizer:
        raise ValueError(
          f"data.detokenizer={config.detokenizer!r}, but {part.prepared.folder} was prepared with "
          f"{undone!r}: set --config.data.detokenizer={undone}, or prepare the text again"
        )
      return part.prepared.tokenizer()
  if config.tokenizer == "chars":
    return Alphabet()
  training = (part.training_texts() for part in parts if isinstance(part, _Text))
  texts = itertools.chain.from_iterable(training)
  return from_name(config.tokenizer, texts, config.tokenizer_eos)


def _rows(text: _Side, config: DataConfig, tokenizer: Tokenizer, name: str) -> Any:
  return make_rows(text.stream, config, tokenizer.eos_id, name)


def _tokens_per_row(rows: Sequence[Any], weights: Sequence[float] = ()) -> float:
  """Tokens of documents in a row, on average over rows or over weighted parts."""
  if not weights:
    return sum(part.tokens() for part in rows) / sum(len(part) for part in rows)
  shares = zip(weights, rows, strict=True)
  return sum(w * part.tokens() / len(part) for w, part in shares) / sum(weights)


def _chars_per_token(texts: Sequence[_Side]) -> list[float]:
  return [text.characters / max(len(text.stream), 1) for text in texts]
