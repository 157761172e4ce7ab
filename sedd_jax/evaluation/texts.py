"""Test sets read: a source as documents of plain text."""

import re
from collections.abc import Iterator

from sedd_jax.data.corpus import parse_source
from sedd_jax.data.detokenizers import PUBLISHED
from sedd_jax.data.faults import Faults
from sedd_jax.data.sources import Lines, Source
from sedd_jax.evaluation.suites import Record, TestSet

_DATASET = re.compile(r"(tfds|hf):|embedded$")
_JSON_LINES = re.compile(r"\.jsonl(\.\w+)?$")
# The first-level heading of an article of WikiText, ` = Title = `; deeper ones have more signs. It
# follows a blank line, and parts of formulas do not.
_HEADING = re.compile(r" = [^=].*[^=] = \n?")


def documents(test_set: TestSet, source: str = "") -> Iterator[str]:
  """The documents of a set, detokenized.

  Args:
    test_set: what to read.
    source: where it is, in the notation of `data.files`, if not in its usual place.

  Raises:
    FileNotFoundError, ImportError, OSError, ValueError: it cannot be read; the message says why.
  """
  detokenize = PUBLISHED[test_set.detokenizer]
  article, before = [], ""
  for record in _records(test_set, source or test_set.source):
    if test_set.documents == "records":
      yield detokenize(record)
      continue
    if _HEADING.fullmatch(record) and not before and any(article):
      yield "".join(article)
      article = []
    article.append(detokenize(record))
    before = record
  if any(article):
    yield "".join(article)


def _records(test_set: TestSet, spec: str) -> Iterator[str]:
  held = ""
  for piece in _source(test_set, spec).pieces(Faults()):
    held += piece.text
    if piece.ends:
      yield _trimmed(held, test_set.record)
      held = ""


def _source(test_set: TestSet, spec: str) -> Source:
  local = not _DATASET.match(spec) and not any(map(_JSON_LINES.search, spec.split(",")))
  if local and test_set.record != "text":
    return Lines(spec)
  return parse_source(spec, test_set.text_field)


def _trimmed(text: str, record: Record) -> str:
  match record:
    case "text":
      return text
    case "line":
      return text if text.strip() else ""
    case "stripped":
      return text.strip()
