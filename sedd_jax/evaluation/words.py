"""Whether the words of a text are words: the share that occurs in another text."""

import re
from collections.abc import Iterable

_WORD = re.compile(r"[^\W\d_]+")


def words_of(text: str) -> list[str]:
  """The words of a text, runs of letters. The first and the last are left out where the text begins
  or ends with a letter: they may be parts of words."""
  found = list(_WORD.finditer(text))
  inside = [match for match in found if match.start() > 0 and match.end() < len(text)]
  return [match.group() for match in inside]


def known_share(texts: Iterable[str], vocabulary: frozenset[str]) -> float | None:
  """The share of words in the texts that are in a vocabulary; None if they have no words."""
  words = [word for text in texts for word in words_of(text)]
  return sum(word in vocabulary for word in words) / len(words) if words else None
