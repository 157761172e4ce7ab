"""Text that a vocabulary lacks, where it has no token for unknown text."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from sedd_jax.data.library_call import library_call
from sedd_jax.data.scope import types_of

# Characters or words that a message lists.
_MOST_NAMED = 20
_UNKNOWN = "\ue000unknown\ue000"


class UnknownCharacters(ValueError):
  """Text has characters that a tokenizer does not have; the message names them."""


def named(unknown: list[str]) -> str:
  """The first of some unknown characters or words, as a message lists them."""
  more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
  return ", ".join(map(repr, unknown[:_MOST_NAMED])) + more


class Unknown:
  """Finds text that a tokenizer of the library would leave out, or fail at.

  It is the same tokenizer with a token for unknown text.
  """

  def __init__(self, definition: Mapping[str, Any], ids: Mapping[str, int], source: str):
    """Args:
    definition: as the library writes it.
    ids: of all tokens, with those that are added.
    source: where it is from, for messages."""
    from tokenizers import Tokenizer as Library

    self._source = source
    with library_call(f"{source} fails with a token for unknown text"):
      self._library = Library.from_str(json.dumps({**definition, "model": _marked(definition)}))
      theirs = self._library.get_vocab(True)
    # Added tokens come after those of the model, which are more here.
    self._ids = np.full(max(theirs.values()) + 1, -1, np.int32)
    for name, i in theirs.items():
      self._ids[i] = ids.get(name, -1)

  def check(self, texts: list[str]) -> None:
    """Raises:
    UnknownCharacters: a text has some that the vocabulary lacks."""
    found = set()
    with library_call(f"{self._source}: the library fails at the tokens of a text"):
      encodings = self._library.encode_batch(texts, add_special_tokens=False)
    for text, encoding in zip(texts, encodings, strict=True):
      for i, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
        if self._ids[i] < 0:
          found.add(text[first:last])
    if found:
      raise UnknownCharacters(
        f"{self._source}: the vocabulary lacks {named(sorted(found))}, and has no token for "
        "unknown text"
      )


def may_lack(definition: Mapping[str, Any]) -> bool:
  """Whether a tokenizer has no token for unknown text and may need one."""
  model = definition["model"]
  vocabulary = model["vocab"]
  if model["type"] == "Unigram":
    return model["unk_id"] is None
  if model.get("unk_token") in vocabulary:
    return False
  if model["type"] != "BPE":
    return True
  return not (
    (model["byte_fallback"] and all(f"<0x{i:02X}>" in vocabulary for i in range(256)))
    or _has_all_bytes(definition)
  )


def _has_all_bytes(definition: Mapping[str, Any]) -> bool:
  from tokenizers import pre_tokenizers

  bytewise = "ByteLevel" in types_of(definition["pre_tokenizer"]) + types_of(
    definition["normalizer"]
  )
  return (
    bytewise and set(pre_tokenizers.ByteLevel.alphabet()) <= definition["model"]["vocab"].keys()
  )


def _marked(definition: Mapping[str, Any]) -> dict[str, Any]:
  """The model with a token for unknown text."""
  model = dict(definition["model"])
  if model["type"] == "Unigram":
    least = min((score for _, score in model["vocab"]), default=0.0)
    return model | {"vocab": [*model["vocab"], [_UNKNOWN, least]], "unk_id": len(model["vocab"])}
  last = max(model["vocab"].values(), default=-1)
  return model | {"vocab": model["vocab"] | {_UNKNOWN: last + 1}, "unk_token": _UNKNOWN}
