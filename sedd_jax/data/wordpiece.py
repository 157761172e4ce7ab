"""BERT's uncased WordPiece, for comparison with what was published on One Billion Words."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sedd_jax.data.hub import read_from_hub

UNKNOWN = "[UNK]"
SEPARATOR = "[SEP]"
VOCAB_SIZE = 30_522
_INSIDE = "##"


class LibraryTokenizer:
  """A tokenizer of the `tokenizers` library, which uses all cores for several texts."""

  _library: Any

  @property
  def vocab_size(self) -> int:
    return self._library.get_vocab_size()

  def encode(self, text: str) -> np.ndarray:
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(e.ids, np.int32) for e in self._library.encode_batch_fast(list(texts))]

  def name_of(self, token: int) -> str:
    """How the vocabulary writes a token.

    Raises:
      ValueError: there is no such token.
    """
    if 0 <= token < self.vocab_size and (name := self._library.id_to_token(token)) is not None:
      return name
    raise ValueError(f"token {token} is not one of the {self.vocab_size} of this tokenizer")


class WordPiece(LibraryTokenizer):
  """The tokens of bert-base-uncased, cut by the `tokenizers` library. EOS is [SEP].

  Text does not come back: letters lose their case and accents, white space and what stands around
  punctuation become one space, unknown characters [UNK]. A token that starts a word adds a space
  and the token, so text starts with a space; what `decode` gives is encoded to the same tokens
  again, as far as a tokenizer would have made them. [MASK] is an ordinary token that no text gives:
  the absorbing process has its own mask.

  Args:
    vocabulary: the tokens in the order of their ids.

  Raises:
    ValueError: [UNK] or [SEP] are missing, or a token is listed twice.
  """

  def __init__(self, vocabulary: Iterable[str]):
    from tokenizers import Tokenizer as Library
    from tokenizers import models, normalizers, pre_tokenizers

    self._tokens = list(vocabulary)
    ids = {token: i for i, token in enumerate(self._tokens)}
    if missing := [token for token in (UNKNOWN, SEPARATOR) if token not in ids]:
      raise ValueError(f"WordPiece: the vocabulary has no {' and no '.join(missing)}")
    if len(ids) != len(self._tokens):
      raise ValueError("WordPiece: a token is listed twice")
    self._library = Library(models.WordPiece(vocab=ids, unk_token=UNKNOWN))
    self._library.normalizer = normalizers.BertNormalizer(lowercase=True)
    self._library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    self.eos_id: int = ids[SEPARATOR]

  @classmethod
  def from_hub(cls, name: str = "bert-base-uncased") -> "WordPiece":
    """Downloads vocab.txt from the Hugging Face hub, or takes it from the local cache.

    Raises:
      ConnectionError: there is no network and the file is not in the cache.
    """
    return cls.from_text(read_from_hub(name, "vocab.txt", "bert"))

  @classmethod
  def from_text(cls, text: str) -> "WordPiece":
    """From a vocab.txt, one token a line."""
    return cls(text.removesuffix("\n").split("\n"))

  def decode(self, ids: Iterable[int]) -> str:
    return "".join(self.pieces(ids))

  def pieces(self, ids: Iterable[int]) -> list[str]:
    return [self._piece(int(i)) for i in ids]

  def to_json(self) -> dict[str, Any]:
    return {"kind": "wordpiece", "vocabulary": self._tokens}

  def _piece(self, token: int) -> str:
    name = self.name_of(token)
    return name.removeprefix(_INSIDE) if name.startswith(_INSIDE) else f" {name}"
