"""A trace as an animated GIF, for slides and messages."""

import dataclasses
import io
from pathlib import Path
from textwrap import wrap

import numpy as np

from sedd_jax.generation.traces.cells import Cells
from sedd_jax.generation.traces.frame import Frame, frames_of
from sedd_jax.generation.traces.grid import EMPTY, NEWLINE, Grid, fit, grid_of, trimmed
from sedd_jax.generation.traces.trace import Trace

MOST_FRAMES = 96
MOST_ROWS = 72
_SECONDS = 9.0  # Total duration, within the limits per frame below.
_SHORTEST, _LONGEST, _START, _END = 0.06, 0.4, 0.8, 4.0

# The colours of the page's light side.
_PAPER, _INK, _QUIET = (252, 251, 248), (31, 35, 40), (102, 95, 84)
_GIVEN, _NEW, _MASK = (11, 87, 164), (255, 222, 130), (141, 133, 119)
_SHADES = 6  # Between an ink and its background, for smooth edges.

_SIZE, _LINE, _MARGIN = 15, 22, 22


def gif_of(trace: Trace, cells: Cells) -> bytes:
  """The first sample as a GIF.

  It shows at most MOST_FRAMES frames, evenly chosen, and the first MOST_ROWS rows. A note under the
  picture says so.
  """
  from PIL import Image

  frames = frames_of(trace, 0, MOST_FRAMES)
  texts = [[cells.texts[i] for i in cells.index[frame.number, 0]] for frame in frames]
  total = sum(len(text) for text in texts[-1])
  # Wide enough for the caption, and about 3 to 2 for long texts.
  grid = grid_of(texts[-1], int(np.clip((3.6 * total) ** 0.5, 64, 112)))
  sheet = _Sheet(trace, grid, thinned=len(frames) == MOST_FRAMES)
  # The last frame shows the text without marks.
  frames.append(dataclasses.replace(frames[-1], new=np.zeros_like(frames[-1].new)))
  texts.append(texts[-1])
  pictures = [sheet.draw(frame, text) for frame, text in zip(frames, texts, strict=True)]
  palette = Image.new("P", (1, 1))
  palette.putpalette(_palette())
  pictures = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
  each = min(max(_SECONDS / len(frames), _SHORTEST), _LONGEST)
  file = io.BytesIO()
  pictures[0].save(
    file,
    format="GIF",
    save_all=True,
    append_images=pictures[1:],
    duration=[round(1000 * s) for s in (_START, *[each] * (len(frames) - 2), _END)],
    loop=0,
  )
  return file.getvalue()


class _Sheet:
  """The layout that all frames share."""

  def __init__(self, trace: Trace, grid: Grid, *, thinned: bool):
    from PIL import ImageFont

    self._trace, self._grid = trace, grid
    self._font = ImageFont.truetype(_font_file("DejaVuSansMono.ttf"), _SIZE)
    self._bold = ImageFont.truetype(_font_file("DejaVuSansMono-Bold.ttf"), _SIZE)
    self._slanted = ImageFont.truetype(_font_file("DejaVuSansMono-Oblique.ttf"), _SIZE)
    self._step = round(self._font.getlength("m"))
    self._rows = min(grid.rows, MOST_ROWS)
    self._notes = wrap(self._note(thinned), grid.width, max_lines=2, placeholder="\u2026")
    self._width = (grid.width + 1) * self._step + 2 * _MARGIN
    self._height = (self._rows + 2 + len(self._notes)) * _LINE + 2 * _MARGIN

  def draw(self, frame: Frame, texts: list[str]):
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (self._width, self._height), _PAPER)
    draw = ImageDraw.Draw(picture)
    for i, slots in enumerate(self._grid.slots):
      if frame.mask[i]:
        self._bar(draw, self._grid.bars[i])
      else:
        self._token(draw, slots, texts[i], i, frame)
    self._foot(draw, frame)
    return picture

  def _at(self, row: int, column: int) -> tuple[int, int]:
    return _MARGIN + column * self._step, _MARGIN + row * _LINE

  def _spans(self, slots: list[tuple[int, int]]):
    """(x, y, right edge) of a token in each row that shows it."""
    for row in sorted({row for row, _ in slots if row < self._rows}):
      columns = [column for r, column in slots if r == row]
      x, y = self._at(row, min(columns))
      yield x, y, x + len(columns) * self._step

  def _bar(self, draw, slots: list[tuple[int, int]]) -> None:
    for x, y, right in self._spans(slots):
      draw.rectangle((x + 1, y + 6, right - 2, y + _LINE - 9), fill=_MASK)

  def _token(self, draw, slots, text: str, i: int, frame: Frame) -> None:
    new, given, draft = frame.new[i], self._trace.given[0, i], frame.draft[i]
    font = self._bold if new else self._slanted if draft else self._font
    ink = _GIVEN if given else _QUIET if draft and not new else _INK
    for x, y, right in self._spans(trimmed(slots, text)) if new else ():
      draw.rectangle((x, y, right - 1, y + _LINE - 3), fill=_NEW)
    for x, y, right in self._spans(slots) if given else ():
      draw.line((x, y + _LINE - 4, right - 1, y + _LINE - 4), fill=_GIVEN)
    for place, word in _words(slots, fit(text, len(slots))):
      if place[0] < self._rows:
        quiet = word in (NEWLINE, EMPTY) and not new
        draw.text(self._at(*place), word, font=font, fill=_QUIET if quiet else ink)

  def _foot(self, draw, frame: Frame) -> None:
    rows = self._rows
    done = frame.number / max(len(self._trace.tokens) - 1, 1)
    left, top = self._at(rows, 0)
    edge = self._width - _MARGIN
    draw.rectangle((left, top + _LINE - 10, edge, top + _LINE - 9), fill=_MASK)
    draw.rectangle(
      (left, top + _LINE - 12, left + done * (edge - left), top + _LINE - 7), fill=_GIVEN
    )
    draw.text(self._at(rows + 1, 0), frame.caption, font=self._font, fill=_INK)
    for i, line in enumerate(self._notes):
      draw.text(self._at(rows + 2 + i, 0), line, font=self._font, fill=_QUIET)

  def _note(self, thinned: bool) -> str:
    trace = self._trace
    notes = [f"{name} {value}" for name, value in trace.settings.items()]
    notes.append(f"seconds {trace.seconds:.3g}")
    if thinned:
      notes.append(f"{MOST_FRAMES} of {len(trace.tokens)} frames")
    if trace.tokens.shape[1] > 1:
      notes.append(f"sample 0 of {trace.tokens.shape[1]}")
    if self._rows < self._grid.rows:
      notes.append(f"first {self._rows} of {self._grid.rows} lines")
    return ", ".join(notes)


def _words(slots: list[tuple[int, int]], characters: list[str]):
  """(place, text) pairs to draw in one call: runs of ASCII characters in a row.

  Other characters are drawn one by one, since fonts do not align them to columns.
  """
  place, word = (0, 0), ""
  for (row, column), character in zip(slots, characters, strict=True):
    follows = character.isascii() and word.isascii() and (row, column - len(word)) == place
    if word and character.strip() and follows:
      word += character
      continue
    if word:
      yield place, word
    place, word = (row, column), character.strip()
  if word:
    yield place, word


def _font_file(name: str) -> str:
  """Path of a font that matplotlib includes."""
  import matplotlib

  return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)


def _palette() -> list[int]:
  """All colours of the frames, so that they share one palette."""
  pairs = [(_INK, _PAPER), (_QUIET, _PAPER), (_GIVEN, _PAPER), (_INK, _NEW), (_GIVEN, _NEW)]
  shares = np.linspace(0, 1, _SHADES)[:, None]
  shades = [np.array(ink) * (1 - shares) + np.array(paper) * shares for ink, paper in pairs]
  return np.concatenate([*shades, [_MASK]]).round().astype(int).ravel().tolist()
