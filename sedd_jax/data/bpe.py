"""A byte-level BPE trained on a run's own text: `tokenizer=bpe:N`."""

import re
from collections.abc import Iterable, Iterator

from sedd_jax.data.library_call import library_call
from sedd_jax.data.library_tokenizer import GPT2_EOS

# 256 bytes, the end of text, and a merge.
LEAST = 258
# Characters that merges are counted in: more change them little, and take long.
_COUNTED = 200_000_000
_NAME = re.compile(r"bpe:(\d+)")


def bpe_size(name: str) -> int | None:
  """N of `bpe:N`, or None for another name.

  Raises:
    ValueError: N is too small for the bytes.
  """
  if not name.startswith("bpe:"):
    return None
  found = _NAME.fullmatch(name)
  if not found or int(found[1]) < LEAST:
    raise ValueError(
      f"data.tokenizer={name!r} must be bpe:N with a number of tokens from {LEAST} on, such as "
      "bpe:1024"
    )
  return int(found[1])


def train_bpe(size: int, texts: Iterable[str]) -> str:
  """The library's JSON of a byte-level BPE like GPT-2's, with <|endoftext|> as its first token.

  Args:
    size: V.
    texts: to train on; at most the first 200 million characters are read.

  Raises:
    ValueError: the text has too few different pairs for so many tokens.
  """
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

  library = Tokenizer(models.BPE())
  library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  library.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=[GPT2_EOS],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  with library_call(f"data.tokenizer=bpe:{size}: the library fails at this text", errors=()):
    library.train_from_iterator(_first(texts), trainer)
  if (made := library.get_vocab_size()) != size:
    raise ValueError(
      f"data.tokenizer=bpe:{size}: the training text gives only {made} tokens; choose a smaller "
      "number, or bytes"
    )
  return library.to_str()


def _first(texts: Iterable[str]) -> Iterator[str]:
  """The texts from the first on, up to the number of characters that are counted."""
  read = 0
  for text in texts:
    yield text
    read += len(text)
    if read >= _COUNTED:
      return
