"""Traces as text and as a GIF: their frames, and the grid of characters."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len
from support.paths import REPOSITORY
from support.traces import PLAIN, TRACES, revealed

from sedd_jax.data import Bytes
from sedd_jax.generation.traces import Trace, gif, text
from sedd_jax.generation.traces.cells import cells_of
from sedd_jax.generation.traces.frame import frames_of
from sedd_jax.generation.traces.grid import NEWLINE, fit, grid_of
from sedd_jax.generation.traces.page import page_of


def test_frames_are_those_that_change_and_the_last():
  tokens = np.array([[3, 3], [3, 3], [1, 3], [1, 3], [1, 2], [1, 2]])[:, None]
  trace = Trace(
    tokens=tokens,
    given=np.zeros((1, 2), bool),
    times=np.linspace(1, 0, 6)[:, None],
    calls=np.arange(6),
    seconds=0.0,
    mask_id=3,
  )
  frames = frames_of(trace, 0, 99)
  assert [frame.number for frame in frames] == [0, 2, 4, 5]
  assert [frame.new.tolist() for frame in frames] == [[0, 0], [1, 0], [0, 1], [0, 0]]
  assert frames[1].caption == "step 2 of 5, t 0.600, masks left 1, new 1, calls 2"
  # Of too many frames, some; what is new in one is all since the one before.
  few = frames_of(trace, 0, 2)
  assert [frame.number for frame in few] == [0, 5]
  assert few[1].new.tolist() == [1, 1]


def test_a_token_that_becomes_a_mask_again_is_not_new():
  trace = Trace(
    tokens=np.array([3, 1, 3, 2])[:, None, None],
    given=np.zeros((1, 1), bool),
    times=np.linspace(1, 0, 4)[:, None],
    calls=np.arange(4),
    seconds=0.0,
    mask_id=3,
  )
  frames = frames_of(trace, 0, 99)
  assert [bool(frame.new[0]) for frame in frames] == [False, True, False, True]
  assert [bool(frame.draft[0]) for frame in frames] == [False, True, False, False]


def test_grid_wraps_between_words_and_after_newlines():
  texts = ["ab", " cd", " ef", "\n", "", "東", "x" * 12]
  grid = grid_of(texts, 8)
  rows = [[" "] * 9 for _ in range(grid.rows)]
  for one, slots in zip(texts, grid.slots, strict=True):
    for (row, column), character in zip(slots, fit(one, len(slots)), strict=True):
      rows[row][column] = character
  assert ["".join(row).rstrip() for row in rows] == ["ab cd ef⏎", "·東xxxxx", "xxxxxxx"]
  assert grid_of(["ab", " cde", " fgh"], 8).slots[2] == [(0, 6), (1, 0), (1, 1), (1, 2)]
  # A mask leaves the space beside a word free, but is never nothing.
  assert [len(bar) for bar in grid.bars] == [2, 2, 2, 1, 1, 2, 12]
  assert [len(bar) for bar in grid_of([" ", "a ", "  ", " a b "], 8).bars] == [1, 1, 2, 3]
  assert len({slot for slots in grid.slots for slot in slots}) == sum(map(len, grid.slots))


def test_fit_cuts_and_fills():
  assert fit("abc", 2) == ["a", "b"]
  assert fit("a", 3) == ["a", " ", " "]
  assert fit("e\u0301x", 2) == ["e\u0301", "x"]
  assert fit("\u0301", 2) == ["\u25cc\u0301", " "]
  assert fit("東", 2) == ["東", ""]
  assert fit("a東", 2) == ["a", " "]
  assert fit("a", 0) == []
  assert [cell_len(one) for one in "a東\u0301"] == [1, 2, 0]


def test_text_has_a_block_for_each_change():
  trace = revealed([PLAIN, PLAIN[::-1]], steps=24)
  written = text.text_of(trace, cells_of(trace, Bytes()))
  head, *blocks = written.split("--- sample ")
  assert "sampler tweedie, steps 24, seed 0" in head
  assert "part of a character" not in head
  bytewise = text.text_of(TRACES["absorbing"], cells_of(TRACES["absorbing"], Bytes()))
  assert "part of a character" in bytewise
  assert len(blocks) == sum(len(frames_of(trace, b, 999)) for b in range(2))
  first, *_, last = (block for block in blocks if block.startswith("0, "))
  assert first.startswith(
    f"0, step 0 of 24, t 1.000, masks left {len(PLAIN) - 3}, new 0, calls 0\n"
  )
  assert first.count(text.MASK) == len(PLAIN) - 3
  assert first.count(text.GIVEN) == 3
  assert "".join(re.findall(r"^[^\^\n]+$", last.split("\n", 1)[1], re.M)) == PLAIN.replace(
    "\n", NEWLINE
  )
  for block in blocks:
    caption, body = block.split("\n", 1)
    assert body.count(text.NEW) == int(re.search(r"new (\d+)", caption)[1])
    assert body.count(text.MASK) == int(re.search(r"masks left (\d+)", caption)[1])
    assert max(map(len, body.splitlines())) <= text.WIDTH + 1


def test_text_of_a_long_run_is_thinned():
  trace = revealed([PLAIN * 8], steps=400)
  assert len(frames_of(trace, 0, 999)) > text.MOST_FRAMES
  head, *blocks = text.text_of(trace, cells_of(trace, Bytes())).split("--- sample ")
  assert len(blocks) == text.MOST_FRAMES
  assert "At most 128 steps are shown" in head
  assert "At most" not in text.text_of(TRACES["uniform"], cells_of(TRACES["uniform"], Bytes()))
  assert "step 0 of 400" in blocks[0]
  assert "step 400 of 400" in blocks[-1]


def opened(trace, tokenizer):
  film = Image.open(io.BytesIO(gif.gif_of(trace, cells_of(trace, tokenizer))))
  pictures, seconds = [], []
  for k in range(film.n_frames):
    film.seek(k)
    seconds.append(film.info["duration"] / 1000)
    pictures.append(np.asarray(film.convert("RGB")))
  return film, pictures, seconds


def colour_of(name):
  """A colour of the page's light side."""
  page = (REPOSITORY / "sedd_jax" / "generation" / "traces" / "player.css").read_text()
  return tuple(bytes.fromhex(re.search(rf"--{name}: #(\w+);", page)[1]))


def has(picture, colour):
  return int(np.all(picture == colour, axis=-1).sum())


def test_gif_has_the_colours_of_the_page():
  _, pictures, _ = opened(revealed([PLAIN], steps=24), Bytes())
  for name in ("paper", "ink", "quiet", "given", "new", "mask"):
    assert any(has(picture, colour_of(name)) for picture in pictures), name


def test_gif_goes_from_masks_to_text():
  trace = revealed([PLAIN], steps=24)
  film, pictures, seconds = opened(trace, Bytes())
  assert len(pictures) == len(frames_of(trace, 0, 999)) + 1
  assert film.info["loop"] == 0
  mask, new = colour_of("mask"), colour_of("new")
  # As many blocks as masks; the progress bar and a few soft edges have their colour too.
  blocks = [has(picture, mask) for picture in pictures]
  masks = [int(frame.mask.sum()) for frame in frames_of(trace, 0, 999)]
  assert masks[-1] == 0
  assert np.corrcoef(blocks[:-1], masks)[0, 1] > 0.999
  assert has(pictures[0], new) == 0
  assert all(has(picture, new) for picture in pictures[1:-1])
  assert has(pictures[-1], new) == 0
  assert seconds[-1] == max(seconds) >= 3
  assert len(np.unique(np.concatenate([p.reshape(-1, 3) for p in pictures]), axis=0)) <= 32


def test_gif_of_a_long_run_is_thinned_and_of_a_long_text_cut():
  long = PLAIN.replace(" ", "\n") * 12
  film, pictures, _ = opened(revealed([long], steps=400), Bytes())
  assert len(pictures) == gif.MOST_FRAMES + 1
  assert long.count("\n") > gif.MOST_ROWS
  rows = gif.MOST_ROWS
  shorter, just = (opened(revealed(["\n" * (n - 1) + "x"]), Bytes())[0] for n in (rows - 1, rows))
  assert shorter.size[1] < just.size[1] == film.size[1]


@pytest.mark.parametrize("render", [gif.gif_of, text.text_of, page_of])
def test_one_frame_is_enough(render):
  trace = Trace(
    tokens=np.array([[[65]]]),
    given=np.array([[True]]),
    times=np.array([[0.0]]),
    calls=np.array([0]),
    seconds=0.0,
    mask_id=256,
  )
  assert render(trace, cells_of(trace, Bytes()))
