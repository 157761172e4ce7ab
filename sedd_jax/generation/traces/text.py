"""A trace as plain text: one block per frame, for a pager such as `less`."""

from textwrap import wrap

import numpy as np

from sedd_jax.generation.traces.cells import MASK as MASK_CELL
from sedd_jax.generation.traces.cells import Cells
from sedd_jax.generation.traces.frame import Frame, frames_of
from sedd_jax.generation.traces.grid import EMPTY, NEWLINE, Grid, fit, grid_of, trimmed
from sedd_jax.generation.traces.trace import Trace

MOST_FRAMES = 128
WIDTH = 80
MASK, NEW, GIVEN = "\u2591", "^", "="


def text_of(trace: Trace, cells: Cells) -> str:
  """All samples as text, one after the other.

  Frames without a change are left out; more than MOST_FRAMES are thinned evenly.
  """
  num_frames, num_samples, length = trace.tokens.shape
  facts = {
    **trace.settings,
    "samples": num_samples,
    "tokens": length,
    "calls of the network": trace.calls[-1],
    "seconds": f"{trace.seconds:.3g}",
  }
  marks = [f"{NEW} new", f"{GIVEN} given", f"{NEWLINE} newline"]
  notes = ["Steps that change nothing are left out."]
  if trace.has_masks:
    marks.insert(0, f"{MASK} mask")
    notes.append("Masks are as wide as what will stand there.")
  if "" in cells.texts[MASK_CELL + 1 :]:
    marks.append(f"{EMPTY} part of a character")
  if num_frames > MOST_FRAMES:
    notes.append(f"At most {MOST_FRAMES} steps are shown.")
  lines = [
    *wrap(", ".join(f"{name} {value}" for name, value in facts.items()), WIDTH),
    "   ".join(marks),
    *wrap(" ".join(notes), WIDTH),
  ]
  for sample in range(num_samples):
    frames = frames_of(trace, sample, MOST_FRAMES)
    grid = grid_of([cells.texts[i] for i in cells.index[-1, sample]], WIDTH)
    for frame in frames:
      lines += ["", f"--- sample {sample}, {frame.caption}"]
      texts = [cells.texts[i] for i in cells.index[frame.number, sample]]
      lines += _rows(grid, texts, frame, trace.given[sample])
  return "\n".join(lines) + "\n"


def _rows(grid: Grid, texts: list[str], frame: Frame, given: np.ndarray) -> list[str]:
  """The text, with marks of new and given tokens under rows that have them."""
  text = [[" "] * (grid.width + 1) for _ in range(grid.rows)]
  marks = [[" "] * (grid.width + 1) for _ in range(grid.rows)]
  for i, slots in enumerate(grid.slots):
    if frame.mask[i]:
      for row, column in grid.bars[i]:
        text[row][column] = MASK
      continue
    shown = fit(texts[i], len(slots))
    # Given tokens never change, so only the first block marks them.
    mark = NEW if frame.new[i] else GIVEN if given[i] and frame.number == 0 else " "
    for (row, column), character in zip(slots, shown, strict=True):
      text[row][column] = character
    for row, column in trimmed(slots, texts[i]):
      marks[row][column] = mark
  lines = []
  for row, under in zip(text, marks, strict=True):
    lines.append("".join(row).rstrip(" "))
    lines += ["".join(under).rstrip()] if any(mark != " " for mark in under) else []
  return lines
