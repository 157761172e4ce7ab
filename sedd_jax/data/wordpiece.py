"""BERT's uncased WordPiece, for comparison with what was published on One Billion Words."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sedd_jax.data.hub import read_from_hub
from sedd_jax.data.library_call import library_call
from sedd_jax.data.library_tokenizer import LibraryTokenizer
from sedd_jax.data.tokenizer_files import CONFIG, DEFINITION, find_beside, read_file, setting

UNKNOWN = "[UNK]"
SEPARATOR = "[SEP]"
VOCAB_SIZE = 30_522
VOCABULARY = "vocab.txt"
_INSIDE = "##"


class WordPiece(LibraryTokenizer):
  """The tokens of bert-base-uncased, cut by the `tokenizers` library. EOS is [SEP].

  Text does not come back: letters lose their case and accents, white space and what stands around
  punctuation become one space, unknown characters [UNK]. A token that starts a word adds a space
  and the token, so text starts with a space; what `decode` gives is encoded to the same tokens
  again, as far as a tokenizer would have made them. [MASK] is an ordinary token that no text gives:
  the absorbing process has its own mask.

  Args:
    vocabulary: the tokens in the order of their ids.
    source: where they are from, for messages.

  Raises:
    ValueError: [UNK] or [SEP] are missing, or a token is listed twice.
  """

  def __init__(self, vocabulary: Iterable[str], source: str = "WordPiece"):
    from tokenizers import Tokenizer as Library
    from tokenizers import models, normalizers, pre_tokenizers

    self._tokens = list(vocabulary)
    ids = {token: i for i, token in enumerate(self._tokens)}
    if missing := [token for token in (UNKNOWN, SEPARATOR) if token not in ids]:
      raise ValueError(f"{source}: the vocabulary has no {' and no '.join(missing)}")
    if len(ids) != len(self._tokens):
      raise ValueError(f"{source}: a token is listed twice")
    with library_call(f"{source} is no vocabulary that the library reads"):
      library = Library(models.WordPiece(vocab=ids, unk_token=UNKNOWN))
      library.normalizer = normalizers.BertNormalizer(lowercase=True)
      library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
      definition = library.to_str()
    super().__init__(definition, eos=SEPARATOR, source=source)

  @classmethod
  def from_hub(cls, name: str = "bert-base-uncased") -> "WordPiece":
    """Downloads vocab.txt from the Hugging Face hub, or takes it from the local cache.

    Raises:
      ConnectionError: there is no network and the file is not in the cache.
    """
    text = read_from_hub(name, VOCABULARY, "bert")
    return cls.from_text(text, f"{VOCABULARY} of {name!r}")

  @classmethod
  def from_text(cls, text: str, source: str = "WordPiece") -> "WordPiece":
    """From a vocab.txt, one token a line."""
    return cls(text.removesuffix("\n").split("\n"), source)

  @classmethod
  def from_folder(cls, folder: Path) -> "WordPiece | None":
    """From a folder's vocab.txt; None if it has none.

    Raises:
      ValueError: the vocabulary is of another kind of text.
    """
    if (file := find_beside(folder, VOCABULARY)) is None:
      return None
    config = find_beside(folder, CONFIG)
    if config and setting(read_file(config), "do_lower_case", str(config)) is False:
      raise ValueError(
        f"{folder}: its {CONFIG} says do_lower_case=false, and a {VOCABULARY} alone is read as "
        f"that of an uncased BERT. Name a {DEFINITION} instead"
      )
    return cls.from_text(read_file(file), str(file))

  def pieces(self, ids: Iterable[int]) -> list[str]:
    names = map(self.name_of, ids)
    return [x.removeprefix(_INSIDE) if x.startswith(_INSIDE) else f" {x}" for x in names]

  def to_json(self) -> dict[str, Any]:
    return {"kind": "wordpiece", "vocabulary": self._tokens}

  def meaning(self) -> dict[str, Any]:
    return self.to_json()
