"""Text laid out in columns of equal width."""

import dataclasses
from collections.abc import Iterator

from rich.cells import cell_len

NEWLINE = "\u23ce"
EMPTY = "\u00b7"  # A token whose character is shown at a later token.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """The place of each token. All frames use the final sample's layout, so that nothing moves.

  Attributes:
    slots: for each token the (row, column) pairs that it fills.
    bars: for each token the slots that show its mask, without leading or trailing space.
    rows: number of rows.
    width: number of columns; one more may hold the space that ends a row.
  """

  slots: list[list[tuple[int, int]]]
  bars: list[list[tuple[int, int]]]
  rows: int
  width: int


def grid_of(texts: list[str], width: int) -> Grid:
  """The layout of the final sample, wrapped between words and after newlines.

  Args:
    texts: the text of each token.
    width: columns of a row.
  """
  slots: list[list[tuple[int, int]]] = [[] for _ in texts]
  row = column = 0
  for word in _words(texts):
    needed = sum(cell_len(character) for _, character in word if character not in f" {NEWLINE}")
    if column and column + needed > width:
      row, column = row + 1, 0
    for token, character in word:
      size = cell_len(character)
      # A space or newline may hang over the edge, as in print.
      if column + size > width + (character in f" {NEWLINE}"):
        row, column = row + 1, 0
      slots[token] += [(row, column + i) for i in range(size)]
      column += size
      if character == NEWLINE:
        row, column = row + 1, 0
  bars = [trimmed(places, text) for places, text in zip(slots, texts, strict=True)]
  return Grid(slots=slots, bars=bars, rows=row + (column > 0), width=width)


def trimmed(slots: list[tuple[int, int]], text: str) -> list[tuple[int, int]]:
  """The slots of a token without leading or trailing space; all slots if it is only spaces."""
  if not text.strip(" "):
    return slots
  return slots[text[0] == " " : len(slots) - (text[-1] == " ")]


def fit(text: str, size: int) -> list[str]:
  """A token's text in this many columns, cut or padded with spaces; one string per column.

  A wide character is followed by an empty string; a combining one joins the column before it.
  """
  cells: list[str] = []
  for character in printable(text):
    match cell_len(character):
      case 0 if cells:
        cells[-1] += character
      case 1:
        cells.append(character)
      case 2:
        cells += [character, ""]
  cells = (cells + [" "] * size)[:size]
  # No half of a wide character.
  return cells if not cells or cell_len(cells[-1][:1] or " ") < 2 else [*cells[:-1], " "]


def printable(text: str) -> str:
  """The text with newlines, tabs, lone accents and empty text replaced by visible characters."""
  text = text.replace("\n", NEWLINE).replace("\t", "    ") or EMPTY
  return text if cell_len(text[0]) else f"\u25cc{text}"


def _words(texts: list[str]) -> Iterator[list[tuple[int, str]]]:
  """(token, character) pairs in groups that stay on one row; each ends after a space or newline."""
  word: list[tuple[int, str]] = []
  for token, text in enumerate(texts):
    for character in printable(text):
      word.append((token, character))
      if character in f" {NEWLINE}":
        yield word
        word = []
  yield word
