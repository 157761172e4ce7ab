"""What a run trains on and is judged on: blocks of tokens from a corpus."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sedd_jax.data.batches import SEPARATOR, cut_blocks, encode_documents
from sedd_jax.data.corpus import check_same, load_corpus
from sedd_jax.data.tokenizers import GPT2_VOCAB_SIZE, Bytes, Tokenizer, from_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Where the text comes from and how it is cut.

  Attributes:
    files: `embedded`, or comma-separated globs (`corpus.load_corpus`).
    heldout_files: globs of held-out files; if empty, `files` is cut by `split`.
    split: shares of the text at which training ends and held-out text ends.
    text_field: of .jsonl lines.
    tokenizer: `chars`, `bytes`, `gpt2`, or `gpt2:FOLDER`.
    length: tokens in a block.

  Raises:
    ValueError: a field is out of range; the message names it.
  """

  files: str = "embedded"
  heldout_files: str = ""
  split: tuple[float, float] = (0.95, 1.0)
  text_field: str = "text"
  tokenizer: str = "chars"
  length: int = 1024

  def __post_init__(self):
    if self.length < 1:
      raise ValueError(f"data.length={self.length} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
  """A corpus as tokens.

  Attributes:
    identity: name, size and hash of the corpus.
    tokenizer: of all arrays here.
    train: int32[T], the training text as one stream.
    heldout: int32[U], the held-out text as one stream.
    train_blocks: int32[N, L], the same cut in blocks, the remainder dropped.
    heldout_blocks: int32[M, L].
    chars_per_token: characters per token of the held-out text.
  """

  identity: Mapping[str, Any]
  tokenizer: Tokenizer
  train: np.ndarray
  heldout: np.ndarray
  train_blocks: np.ndarray
  heldout_blocks: np.ndarray
  chars_per_token: float


def vocab_size_of(config: DataConfig) -> int:
  """V of a config, from its tokenizer's name where that says it, else from the corpus.

  Raises:
    ValueError: the tokenizer depends on a corpus that the config does not name.
  """
  if config.tokenizer == "bytes":
    return Bytes.vocab_size
  if config.tokenizer.startswith("gpt2"):
    return GPT2_VOCAB_SIZE
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
  """Reads and tokenizes a corpus.

  Args:
    expected: the identity that a run stored; another corpus is refused.
    tokenizer: the one that a run stored; else the config names it.

  Raises:
    ValueError: the corpus is another one, or cannot be used; the message says why.
    FileNotFoundError: no such files.
  """
  corpus = load_corpus(config.files, config.heldout_files, config.split, config.text_field)
  identity = corpus.identity()
  if expected is not None:
    check_same(expected, identity)
  if tokenizer is None:
    tokenizer = from_name(config.tokenizer, (*corpus.train, *corpus.heldout))
  heldout = encode_documents(corpus.heldout, tokenizer)
  train = encode_documents(corpus.train, tokenizer)
  return Dataset(
    identity=identity,
    tokenizer=tokenizer,
    train=train,
    heldout=heldout,
    train_blocks=cut_blocks(train, config.length, "training"),
    heldout_blocks=cut_blocks(heldout, config.length, "held-out"),
    chars_per_token=_characters(corpus.heldout, tokenizer) / len(heldout),
  )


def _characters(documents: Sequence[str], tokenizer: Tokenizer) -> int:
  """Characters of some documents as a stream. EOS is a token and no character."""
  between = 0 if tokenizer.eos_id is not None else len(SEPARATOR) * (len(documents) - 1)
  return sum(map(len, documents)) + between
