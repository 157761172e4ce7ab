"""How much of a document decides the tokens of a part of it.

Documents are cut in front of a space or newline that follows something else (`sources.py`). Whether
the tokens of the parts are those of the whole depends on the tokenizer.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sedd_jax.data.library_call import library_call

PART = "part"  # The part alone.
AROUND = "around"  # The part and some text around it.
DOCUMENT = "document"  # All of the document.

# GPT-2's pre-tokenizer, which cuts words where documents are cut.
GPT2_PRE_TOKENIZER = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
# Texts that a tokenizer of words takes apart: letters, digits, marks, lines.
_PROBES = ("fox dog ", "12 34 ", "- * ", "x\ny\n")
_REPEATS, _LONGEST_WORD = 32, 16
# Pre-tokenizers that cut words at borders that two or three characters decide.
_LOCAL = ("ByteLevel", "Digits", "Metaspace", "Punctuation")
_CROSSING = re.compile(r"\S[ \n]")


def scope_of(definition: Mapping[str, Any], library: Any, source: str) -> str:
  """`PART`, `AROUND` or `DOCUMENT`.

  Args:
    definition: a tokenizer's, as the library writes it, its pre-tokenizer without settings of
      offsets.
    library: the same as an object of the library.
    source: where it is from, for messages.
  """
  normalizer, pre_tokenizer = definition["normalizer"], definition["pre_tokenizer"]
  added = definition["added_tokens"]
  if any(re.search(r"\S\s", token["content"]) for token in added):
    return DOCUMENT  # Which of "x x x" is the added token "x x" depends on all "x" before.
  spaced = any(t["lstrip"] or t["rstrip"] or re.search(r"\s", t["content"]) for t in added)
  is_gpt2 = not steps_of(normalizer) and steps_of(pre_tokenizer) == [GPT2_PRE_TOKENIZER]
  if is_gpt2 and not spaced:
    return PART
  with library_call(f"{source}: the library fails to cut a text into words"):
    cuts_words = _cuts_words(library)
  if cuts_words:
    return AROUND
  # One word from end to end. The merges of BPE on both sides of a cut are apart if no token crosses
  # a cut. (Unigram's best path is the same too, but for ties, which its sums of scores break.)
  model = definition["model"]
  apart = model["type"] == "BPE" and not _crosses(model["vocab"])
  local = set(types_of(pre_tokenizer)) <= set(_LOCAL) and _keeps_spaces(normalizer)
  return AROUND if apart and local else DOCUMENT


def types_of(part: Mapping[str, Any] | None) -> list[str]:
  """The types of a normalizer, pre-tokenizer, post-processor or decoder, or of its parts."""
  return [one["type"] for one in steps_of(part)]


def steps_of(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
  """The steps of a normalizer, pre-tokenizer, post-processor or decoder, sequences taken apart."""
  if not part:
    return []
  if part["type"] != "Sequence":
    return [part]
  names = ("normalizers", "pretokenizers", "processors", "decoders")
  inner = next((part[name] for name in names if name in part), ())
  return [step for one in inner for step in steps_of(one)]


def _cuts_words(library: Any) -> bool:
  """Whether text falls into short words, wherever it starts."""
  if library.pre_tokenizer is None:
    return False
  for unit in _PROBES:
    ends = []
    for shift in range(3):
      text = "x" * shift + " " + unit * _REPEATS
      if library.normalizer is not None:
        text = library.normalizer.normalize_str(text)
      words = [word for word, _ in library.pre_tokenizer.pre_tokenize_str(text)]
      if not words or max(map(len, words)) > _LONGEST_WORD:
        return False
      ends.append(words[-_REPEATS // 2 :])
    if any(end != ends[0] for end in ends):
      return False  # Such as words of five characters each, from the first one on.
  return True


def _crosses(vocabulary: Iterable[str]) -> bool:
  """Whether a token may lie on both sides of a cut."""
  spaces = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n"})
  return any(_CROSSING.search(name.translate(spaces)) for name in vocabulary)


def _keeps_spaces(normalizer: Mapping[str, Any] | None) -> bool:
  """Whether a normalizer does nothing but write spaces in another way, and one before the text."""
  return all(
    step["type"] == "Prepend"
    or (step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == "▁")
    for step in steps_of(normalizer)
  )
