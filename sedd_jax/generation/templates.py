"""Templates: text with blanks to fill in, such as `Hi, my name is [[40]] and I'm late.`"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sedd_jax.data.compression import read_text
from sedd_jax.files.paths import local_path

# A blank of a number of tokens, or of all remaining tokens, or what is meant as one. Before it two
# backslashes mean one backslash, and an odd one makes the blank plain text.
_BLANK = re.compile(r"(\\*)\[\[([-+.,\d\s*]*)\]\]")
Encode = Callable[[str], np.ndarray]
# Given tokens, a number of tokens to fill in, or None for all remaining tokens.
Part = np.ndarray | int | None


class Template(NamedTuple):
  """The given tokens of a text.

  Attributes:
    text: the template as written.
    tokens: int32[L]; 0 where not given.
    given: bool[L].
  """

  text: str
  tokens: np.ndarray
  given: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
  """The user's templates: one template, a file with one per line, or a prefix and a suffix.

  Attributes:
    template: text with blanks, or None.
    file: path of a file of templates, or None.
    prefix: text at the start.
    suffix: text at the end.
    length: tokens of a sequence; None for the model's length.

  Raises:
    ValueError: more than one kind is given.
  """

  template: str | None = None
  file: str | Path | None = None
  prefix: str = ""
  suffix: str = ""
  length: int | None = None

  def __post_init__(self):
    given = (self.template is not None, self.file is not None, bool(self.prefix or self.suffix))
    if sum(given) > 1:
      raise ValueError("give --template, --templates, or --prefix and --suffix: only one of them")

  def templates(self, encode: Encode, longest: int, behind: Encode | None = None) -> list[Template]:
    """The templates in a model's tokens; arguments as in `parse_template`.

    Raises:
      ValueError: the file has no template, or a template cannot be used.
      OSError: the file cannot be read.
    """
    others: Any = {"length": self.length, "longest": longest, "behind": behind}
    if self.template is not None:
      with _naming("--template"):
        return [parse_template(self.template, encode, **others)]
    if self.file is None:
      flags = [f"--{name}" for name in ("prefix", "suffix") if getattr(self, name)]
      with _naming(" and ".join(flags or ["--length"])):
        return [between(self.prefix, self.suffix, encode, **others)]
    file = local_path(self.file, "--templates")
    templates = []
    for number, line in enumerate(read_text(file, "--templates").split("\n"), 1):
      if line.strip():
        with _naming(f"{file}, line {number}"):
          templates.append(parse_template(line, encode, **others))
    if not templates:
      raise ValueError(f"--templates={self.file} has no line with a template")
    return templates


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
  """Errors of the values within say where the user wrote them."""
  try:
    yield
  except UnicodeEncodeError as error:  # A terminal of another encoding gives such characters.
    raise ValueError(f"{where}: the text is not Unicode ({error.reason})") from error
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error


def parse_template(
  text: str, encode: Encode, *, length: int | None, longest: int, behind: Encode | None = None
) -> Template:
  """The parsed template. Texts between blanks are encoded separately.

  Args:
    text: `[[n]]` stands for n tokens to fill in, `[[*]]` (at most once) for all remaining tokens; a
      backslash before a blank makes it text.
    encode: maps text to token ids int32[T].
    behind: the same for text that stands behind other text; `encode` by default.
    length: tokens of the sequence. Without `[[*]]` the remaining tokens are filled in at the end.
      None: the length of the template, or with `[[*]]` the longest.
    longest: the maximum length of the model.

  Raises:
    ValueError: the template has no blank or two `[[*]]`, or does not fit.
  """
  return _laid_out(
    text, f"template {_shown(text)}", list(_parts(text, encode, behind or encode)), length, longest
  )


def between(
  prefix: str,
  suffix: str,
  encode: Encode,
  *,
  length: int | None,
  longest: int,
  behind: Encode | None = None,
) -> Template:
  """A template with text at the start and the end; arguments as in `parse_template`."""
  behind = behind or encode
  parts = [encode(prefix) if prefix else 0, None, behind(suffix) if suffix else 0]
  name = f"prefix {prefix!r} with suffix {suffix!r}" if prefix or suffix else "the sample"
  return _laid_out(f"{prefix}[[*]]{suffix}", name, parts, length, longest)


def blank(length: int) -> Template:
  """A template of this many tokens, none of them given."""
  return Template("[[*]]", np.zeros(length, np.int32), np.zeros(length, bool))


def _laid_out(
  text: str, name: str, parts: list[Part], length: int | None, longest: int
) -> Template:
  if length is not None and length < 1:
    raise ValueError(f"length={length} must be at least 1")
  open_ends = sum(part is None for part in parts)
  if open_ends > 1:
    raise ValueError(f"{name} has {open_ends} blanks [[*]], but at most one is possible")
  fixed = sum(part if isinstance(part, int) else len(part) for part in parts if part is not None)
  total = length if length is not None else longest if open_ends else fixed
  if fixed > total:
    raise ValueError(f"{name} takes {fixed} tokens and does not fit length={total}")
  if total > longest:
    raise ValueError(f"{name}: {total} tokens exceed the {longest} of this model")
  if not open_ends:
    parts = [*parts, None]
  tokens, given = np.zeros(total, np.int32), np.zeros(total, bool)
  at = 0
  for part in parts:
    size = total - fixed if part is None else part if isinstance(part, int) else len(part)
    if isinstance(part, np.ndarray):
      tokens[at : at + size], given[at : at + size] = part, True
    at += size
  if given.all():
    raise ValueError(f"{name} leaves nothing to fill in: add a blank such as [[40]] or [[*]]")
  return Template(text, tokens, given)


def _parts(text: str, encode: Encode, behind: Encode) -> Iterator[Part]:
  plain, at = "", 0
  for match in _BLANK.finditer(text):
    plain += text[at : match.start()] + match[1][: len(match[1]) // 2]
    at = match.end()
    blank = match[0][len(match[1]) :]
    if len(match[1]) % 2:
      plain += blank
      continue
    if plain:
      yield encode(plain)
    plain, encode = "", behind
    if match[2] != "*" and not re.fullmatch("[0-9]+", match[2]):
      raise ValueError(
        f"template {_shown(text)}: {blank} must hold a number of tokens, such as [[40]], or be "
        "[[*]]; a backslash before it makes it text"
      )
    if match[2] != "*" and int(match[2]) < 1:
      raise ValueError(
        f"template {_shown(text)}: {blank} is empty; a blank takes at least one token"
      )
    yield None if match[2] == "*" else int(match[2])
  if plain + text[at:]:
    yield encode(plain + text[at:])


def _shown(text: str) -> str:
  """The text in quotes, its end cut off where it is long."""
  return repr(text if len(text) <= 200 else f"{text[:200]}\u2026")
