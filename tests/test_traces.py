"""Traces: the record, the page in a real browser, the GIF and the text."""

import dataclasses
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.browser import PROGRAMS, Page, find_chromium
from support.paths import REPOSITORY

from sedd_jax.data import Bytes, Chars
from sedd_jax.generation.traces import Trace, check_trace_path, gif, text, write_trace
from sedd_jax.generation.traces.cells import MASK, cells_of, visible
from sedd_jax.generation.traces.frame import frames_of
from sedd_jax.generation.traces.grid import NEWLINE, columns, fit, grid_of
from sedd_jax.generation.traces.page import page_data, page_of

# Characters of one to four bytes, wide ones, controls, and all that could end a script early.
NASTY = "a</script><!-- <script>é\n\n東🙂 \x1b\t{{data}}]]>&amp;\u202eb"
PLAIN = "It is a truth universally acknowledged,\nthat a single man.\n"


def revealed(texts, *, steps=12, given=3, seed=0, remask=False, uniform=False):
  """A trace over bytes in which each token is decided at some step, and some change again."""
  rng = np.random.default_rng(seed)
  final = np.stack([Bytes().encode(one) for one in texts])
  is_given = np.zeros(final.shape, bool)
  is_given[:, :given] = True
  noise = rng.integers(0, 256, (steps + 1, *final.shape)) if uniform else 256
  when = rng.integers(1, steps + 1, final.shape)
  number = np.arange(steps + 1)[:, None, None]
  tokens = np.where(number >= when, final, noise)
  if remask:  # Decided wrongly, then a mask again.
    hit = (number == when - 3) & (rng.random(final.shape) < 0.4)
    tokens = np.where(hit, ord("x"), tokens)
  tokens = np.where(is_given, final, tokens)
  return Trace(
    tokens=tokens,
    given=is_given,
    times=np.repeat(np.linspace(1.0, 0.0, steps + 1)[:, None], len(texts), axis=1),
    calls=2 * np.arange(steps + 1),
    seconds=1.5,
    mask_id=None if uniform else 256,
    settings={"sampler": "tweedie", "steps": steps, "seed": seed, "checkpoint": "</title>{{data}}"},
  )


TRACES = {
  "absorbing": revealed([NASTY, NASTY[::-1]]),
  "remasked": revealed([NASTY], remask=True, seed=1),
  "uniform": revealed([NASTY, NASTY[::-1]], uniform=True, given=0, seed=2),
}


def expected(trace, k, b):
  """(text, kinds) of each token of a frame, straight from the definitions."""
  row, before, final = trace.tokens[k, b], trace.tokens[max(k - 1, 0), b], trace.tokens[-1, b]
  texts, run = [], []
  for token in [*row.tolist(), trace.mask_id]:
    if token != trace.mask_id:
      run.append(token)
      continue
    texts += [*map(visible, Bytes().pieces(run)), ""]
    run = []
  masked = row == trace.mask_id if trace.mask_id is not None else np.zeros(len(row), bool)
  kinds = []
  for i, one in enumerate(texts[: len(row)]):
    new = row[i] != before[i] and not masked[i]
    flags = {
      "token": True,
      "mask": masked[i],
      "empty": not masked[i] and one == "",
      "given": trace.given[b, i],
      "new": new,
      "draft": not masked[i] and row[i] != final[i],
    }
    kinds.append({name for name, flag in flags.items() if flag})
  return texts[: len(row)], kinds


# ---- The record --------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("tokens", np.zeros((3, 4), int), r"Trace\.tokens must be int32\[K, B, L\]"),
    ("tokens", np.zeros((3, 1, 4)), r"Trace\.tokens must be int32\[K, B, L\], and not float64"),
    ("tokens", np.zeros((0, 1, 4), int), r"Trace\.tokens is empty"),
    ("tokens", np.full((3, 1, 4), -1), r"Trace\.tokens must not be negative"),
    ("tokens", np.full((3, 1, 4), 9), r"Trace\.tokens: the last frame still has masks"),
    ("tokens", np.arange(12).reshape(3, 1, 4) % 5, r"Trace\.given: a token that was given changes"),
    ("given", np.zeros((1, 3), bool), r"Trace\.given must be bool\[B, L\]"),
    ("given", np.zeros((1, 4), int), r"Trace\.given must be bool\[B, L\]"),
    ("times", np.zeros(3), r"Trace\.times must be float64\[K, B\]"),
    ("times", np.full((3, 1), 1.5), r"Trace\.times must lie in \[0, 1\]"),
    ("times", np.full((3, 1), np.nan), r"Trace\.times must lie in \[0, 1\]"),
    ("calls", np.zeros(2, int), r"Trace\.calls must be int64\[K\]"),
    ("calls", np.array([0, 2, 1]), r"Trace\.calls must not be negative nor fall"),
    ("seconds", float("nan"), r"Trace\.seconds=nan"),
  ],
)
def test_a_bad_field_is_named(field, value, message):
  good = {
    "tokens": np.ones((3, 1, 4), int),
    "given": np.array([[True, False, False, False]]),
    "times": np.array([[1.0], [0.5], [0.0]]),
    "calls": np.arange(3),
    "seconds": 1.0,
    "mask_id": 9,
  }
  assert Trace(**good).tokens.dtype == np.int32
  with pytest.raises(ValueError, match=message):
    Trace(**{**good, field: value})


@pytest.mark.parametrize("name", TRACES)
def test_cells_are_the_pieces_of_each_frame(name):
  trace = TRACES[name]
  cells = cells_of(trace, Bytes())
  for k, b in np.ndindex(cells.index.shape[:2]):
    assert [cells.texts[i] for i in cells.index[k, b]] == expected(trace, k, b)[0]
    ids = [cells.ids[i] if i != MASK else 256 for i in cells.index[k, b]]
    assert ids == trace.tokens[k, b].tolist()


def test_half_a_character_is_replaced_until_the_other_half_comes():
  tokens = np.array([[[256, 256]], [[0xC3, 256]], [[0xC3, 0xA9]]])
  trace = Trace(
    tokens=tokens,
    given=np.zeros((1, 2), bool),
    times=np.array([[1.0], [0.5], [0.0]]),
    calls=np.arange(3),
    seconds=0.0,
    mask_id=256,
  )
  cells = cells_of(trace, Bytes())
  shown = [[cells.texts[i] for i in row] for row in cells.index[:, 0]]
  assert shown == [["", ""], ["\ufffd", ""], ["", "é"]]


def test_invisible_characters_get_a_picture():
  assert visible("a\x00\x1b\x7f\x85\u202e\n\té") == "a\u2400\u241b\u2421\ufffd\ufffd\n\té"


def test_tokens_that_the_tokenizer_does_not_know_are_refused():
  with pytest.raises(ValueError, match=r"token 240, which is neither the mask \(256\) nor"):
    cells_of(TRACES["absorbing"], Chars("ab"))


def test_without_a_tokenizer_ids_are_shown():
  trace = TRACES["absorbing"]
  cells = cells_of(trace, None)
  shown = "".join(cells.texts[i] for i in cells.index[-1, 0])
  assert shown.split() == [str(i) for i in trace.tokens[-1, 0]]


# ---- The file ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".html", ".gif", ".txt"])
def test_write_makes_one_file_and_never_replaces_it(tmp_path, suffix):
  path = tmp_path / f"x{suffix}"
  write_trace(TRACES["absorbing"], path, Bytes())
  before = path.read_bytes()
  assert len(before) > 500
  with pytest.raises(FileExistsError, match="exists already"):
    write_trace(TRACES["uniform"], path, Bytes())
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


def test_write_refuses_before_it_writes(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r"x\.png: a trace is one of \.html, \.gif, \.txt"):
    check_trace_path(tmp_path / "x.png")
  with pytest.raises(FileNotFoundError, match=r"folder .*none does not exist"):
    write_trace(TRACES["uniform"], tmp_path / "none" / "x.txt", Bytes())
  with pytest.raises(ValueError, match="nor one of the tokenizer's 2"):
    write_trace(TRACES["uniform"], tmp_path / "x.txt", Chars("ab"))
  # A full disk, or a file that came meanwhile: no half file stays, and nothing is replaced.
  write = Path.write_bytes

  def full(path, data):
    write(path, data[:10])
    raise OSError("no space left on device")

  monkeypatch.setattr(Path, "write_bytes", full)
  with pytest.raises(OSError, match="no space left"):
    write_trace(TRACES["uniform"], tmp_path / "x.txt", Bytes())
  assert not list(tmp_path.iterdir())

  def late(path, data):
    write(path, data)
    (tmp_path / "x.txt").touch()

  monkeypatch.setattr(Path, "write_bytes", late)
  with pytest.raises(FileExistsError):
    write_trace(TRACES["uniform"], tmp_path / "x.txt", Bytes())
  assert (tmp_path / "x.txt").read_bytes() == b""
  assert len(list(tmp_path.iterdir())) == 1


def test_the_template_is_part_of_the_package():
  listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
  listed = listed["tool"]["setuptools"]["package-data"]["sedd_jax"]
  package = REPOSITORY / "sedd_jax"
  others = {
    path.relative_to(package).as_posix()
    for path in package.rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
  }
  assert others == set(listed)


def test_a_wheel_holds_the_template(tmp_path):
  pytest.importorskip("setuptools", "77", reason="setuptools is not here: no wheel can be built")
  # A copy, so that no build folder appears in the checkout.
  source = tmp_path / "source"
  shutil.copytree(REPOSITORY / "sedd_jax", source / "sedd_jax")
  for name in ("pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(REPOSITORY / name, source)
  code = "from setuptools import build_meta; build_meta.build_wheel('.')"
  subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
  (wheel,) = source.glob("*.whl")
  assert "sedd_jax/generation/traces/page.html" in zipfile.ZipFile(wheel).namelist()


# ---- The page as a file ------------------------------------------------------------------------


class Elements(html.parser.HTMLParser):
  """Scripts and title of a page, as a browser would cut them."""

  def __init__(self, page):
    super().__init__()
    self.scripts, self.title, self.links = [], "", []
    self._in = None
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self._in = tag
    if tag == "script":
      self.scripts.append("")
    self.links += [value for name, value in attrs if name in ("src", "href")]

  def handle_endtag(self, tag):
    self._in = None

  def handle_data(self, data):
    if self._in == "script":
      self.scripts[-1] += data
    if self._in == "title":
      self.title += data


@pytest.mark.parametrize("name", TRACES)
def test_changes_decode_to_the_frames(name):
  trace = TRACES[name]
  cells = cells_of(trace, Bytes())
  data = json.loads(json.dumps(page_data(trace, cells)))
  for b, sample in enumerate(data["samples"]):
    now = np.array(sample["start"])
    assert np.array_equal(now, cells.index[0, b])
    for k, flat in enumerate(sample["steps"], start=1):
      pairs = np.array(flat, int).reshape(-1, 2)
      where = np.cumsum(pairs[:, 0])
      assert np.all(now[where] != pairs[:, 1])  # Only changes are stored.
      now[where] = pairs[:, 1]
      assert np.array_equal(now, cells.index[k, b])
    assert sample["given"] == np.flatnonzero(trace.given[b]).tolist()
    np.testing.assert_allclose(sample["times"], trace.times[:, b], atol=1e-4)
  assert data["calls"] == trace.calls.tolist()


def test_no_text_breaks_out_of_the_page():
  trace = TRACES["absorbing"]
  cells = cells_of(trace, Bytes())
  # Such pieces as a BPE may have.
  cells = dataclasses.replace(
    cells, texts=[*cells.texts, "</script>", "<!--<script>", "\u2028"], ids=[*cells.ids, 1, 2, 3]
  )
  page = page_of(trace, cells)
  found = Elements(page)
  assert len(found.scripts) == 2
  assert json.loads(found.scripts[0])["texts"] == cells.texts
  assert "</title>" in found.title
  assert "{{data}}" in found.title
  assert found.links == []
  assert not re.search(r"https?://|@import|url\(", page)


def test_a_long_run_stays_small():
  # 1,024 tokens over 1,024 steps, four samples of the words of a real text.
  words = re.findall(r"\s*\S+", (REPOSITORY / "CONTRIBUTING.md").read_text() * 4)[:1024]
  known = sorted(set(words))
  rng = np.random.default_rng(0)
  final = np.tile([known.index(word) for word in words], (4, 1))
  when = rng.integers(1, 1025, final.shape)
  tokens = np.where(np.arange(1025)[:, None, None] >= when, final, len(known))
  trace = Trace(
    tokens=tokens,
    given=np.zeros(final.shape, bool),
    times=np.repeat(np.linspace(1.0, 0.0, 1025)[:, None], 4, axis=1),
    calls=np.arange(1025),
    seconds=60.0,
    mask_id=len(known),
  )

  class Words(Bytes):
    def __init__(self):
      super().__init__()
      self.vocab_size = len(known)

    def pieces(self, ids):
      return [known[i] for i in ids]

  page = page_of(trace, cells_of(trace, Words()))
  assert len(page.encode()) < 160_000


# ---- The page in a browser ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
  program = find_chromium()
  if program is None:
    pytest.skip(f"no browser is installed: none of {', '.join(PROGRAMS)}")
  page = Page(program, tmp_path_factory.mktemp("profile"))
  yield page
  page.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("traces")
  traces = {**TRACES, "plain": revealed([PLAIN, PLAIN[::-1]], steps=24)}
  for name, trace in traces.items():
    write_trace(trace, folder / f"{name}.html", Bytes())
  return folder


TOKENS = "[...document.querySelectorAll('#text .token')]"
STATE = "[number, at]"


@pytest.mark.parametrize("name", TRACES)
def test_the_page_shows_every_frame(chromium, files, name):
  trace = TRACES[name]
  chromium.open(files / f"{name}.html")
  last = len(trace.tokens) - 1
  order = [*range(last + 1), *range(last, -1, -1), last, 0, 5, last, 2]
  for b in range(trace.tokens.shape[1]):
    chromium.run(f"choose({b})")
    for k in order:
      shown = chromium.run(f"show({k}); {TOKENS}.map((s) => [s.textContent, s.className])")
      texts, kinds = expected(trace, k, b)
      assert [one for one, _ in shown] == texts
      assert [set(classes.split()) for _, classes in shown] == kinds
      stats = chromium.run("['step', 'time', 'left', 'fresh', 'calls'].map((i) => $(i).innerText)")
      kind = "draft" if trace.mask_id is None else "mask"
      left, new = (sum(one in kind_set for kind_set in kinds) for one in (kind, "new"))
      assert stats == [*map(str, (k, f"{trace.times[k, b]:.3f}", left, new, trace.calls[k]))]
  assert not chromium.errors
  assert chromium.run("document.title") == "Trace of </title>{{data}}"


def test_the_page_needs_and_gets_no_network(chromium, files):
  path = files / "plain.html"
  chromium.open(path)
  chromium.run("$('speed').value = 4; play(true)")
  chromium.wait("!playing")
  assert chromium.requests == [path.as_uri()]
  assert not chromium.errors
  # Nor could anything that found its way in fetch or run.
  chromium.run("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x'}))")
  chromium.run("fetch('http://127.0.0.1:9/y').catch(() => { window.refused = true; })")
  chromium.run(
    "document.body.append(Object.assign(document.createElement('script'), "
    "{textContent: 'window.ran = true'}))"
  )
  chromium.wait("window.refused")
  assert chromium.run("window.ran") is None
  refused = [one for one in chromium.errors if "Content Security Policy" in one]
  print(refused)
  for what in ("/x", "/y", "inline script"):
    assert any(what in one for one in refused)


def test_keys_step_jump_play_and_choose(chromium, files):
  chromium.open(files / "plain.html")
  presses = [
    (["ArrowRight"] * 3, [0, 3]),
    (["ArrowLeft"], [0, 2]),
    (["]"], [1, 2]),
    (["]"], [1, 2]),
    (["End"], [1, 24]),
    (["ArrowRight"], [1, 24]),
    (["["], [0, 24]),
    (["Home"], [0, 0]),
    (["ArrowLeft"], [0, 0]),
  ]
  for keys, state in presses:
    for key in keys:
      chromium.press(key)
    assert chromium.run(STATE) == state, keys
  # The same from the slider, where the browser has keys of its own.
  chromium.run("$('frame').focus()")
  for keys, state in presses:
    for key in keys:
      chromium.press(key)
    assert chromium.run(STATE) == state, keys
  assert chromium.run("$('frame').value") == "0"
  # A button has space for itself, and Tab reaches all that can be used, with a ring around it.
  chromium.run("$('on').focus()")
  chromium.press(" ")
  assert chromium.run(STATE) == [0, 1]
  chromium.run("document.activeElement.blur(); document.body.tabIndex = -1; document.body.focus()")
  reached = []
  for _ in range(7):
    chromium.press("Tab")
    reached.append(chromium.run("document.activeElement.id"))
    assert chromium.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
  assert reached == ["frame", "play", "back", "on", "speed", "sample", "next"]


def test_space_plays_and_pauses(chromium, files):
  chromium.open(files / "plain.html", "#frame=1")
  chromium.press(" ")
  assert chromium.run("$('play').innerText") == "Pause"
  chromium.wait("at >= 3")
  chromium.press(" ")
  at = chromium.run("at")
  assert 3 <= at < 24
  assert chromium.run("$('play').innerText") == "Play"
  chromium.run("new Promise((done) => setTimeout(done, 500))")
  assert chromium.run("at") == at
  # To the end, where it stops by itself; from there it begins anew.
  chromium.run("$('speed').value = 4")
  chromium.press(" ")
  chromium.wait("!playing")
  assert chromium.run("at") == 24
  chromium.press(" ")
  assert chromium.run("at") < 4
  chromium.run("play(false)")


@pytest.mark.parametrize("calm", [False, True])
def test_those_who_asked_for_rest_see_few_changes(chromium, files, calm):
  chromium.open(files / "plain.html", calm=calm)
  chromium.run("$('speed').value = 4; var counted = [];")
  # What is marked as new, each time that another frame is shown.
  chromium.run(
    "var showOnce = show; show = (k, since) => {"
    " showOnce(k, since); if (playing) counted.push([k, fresh.size]); }; play(true)"
  )
  chromium.wait("!playing")
  counted = chromium.run("counted")
  assert counted[-1][0] == 24
  # 24 steps at 12 a second.
  assert len(counted) <= 5 if calm else len(counted) >= 10
  # No step's tokens are passed over in silence.
  assert sum(new for _, new in counted) == len(PLAIN) - 3
  faded = chromium.run("getComputedStyle(document.querySelector('.word')).transitionDuration")
  assert faded == ("0s" if calm else "0.7s")


def test_the_address_says_where(chromium, files):
  for fragment, state in {
    "#sample=1&frame=12": [1, 12],
    "#frame=7": [0, 7],
    "#sample=99&frame=99": [1, 24],
    "#sample=-1&frame=x": [0, 0],
  }.items():
    chromium.open(files / "plain.html", fragment)
    assert chromium.run(STATE) == state
  chromium.run("location.hash = '#sample=1&frame=3'")
  chromium.wait("number === 1 && at === 3")
  chromium.press("ArrowRight")
  chromium.wait("location.hash === '#sample=1&frame=4'")
  assert not chromium.errors


@pytest.mark.parametrize("width", [390, 1100])
def test_nothing_moves_while_masks_become_text(chromium, files, width):
  chromium.open(files / "plain.html", width=width)
  where = f"{TOKENS}.map((s) => [s.offsetLeft, s.offsetTop, s.getBoundingClientRect().width])"
  places = [chromium.run(f"show({k}); {where}") for k in range(25)]
  assert np.ptp(np.array(places), axis=0).max() <= 1.0
  assert min(size for _, _, size in places[0]) > 4  # Every mask can be seen.
  assert chromium.run("document.documentElement.scrollWidth") <= width


def contrast(one, other):
  """WCAG 2's contrast of two CSS colours."""

  def luminance(colour):
    share = np.array([float(n) for n in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]

  low, high = sorted((luminance(one), luminance(other)))
  return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(chromium, files, dark):
  # Calm, since a colour that fades is none to measure.
  chromium.open(files / "uniform.html", "#frame=6", dark=dark, calm=True)
  paper, desk = (
    chromium.run(f"getComputedStyle(document.querySelector('{one}')).backgroundColor")
    for one in ("#text", "body")
  )
  assert (contrast(paper, "rgb(0, 0, 0)") < 2) == dark
  seen = chromium.run(
    "[...document.querySelectorAll('body *')].filter((e) => e.innerText?.trim() && !e.disabled"
    " && !e.closest('.heard')).map((e) => { const s = getComputedStyle(e); let g = e;"
    " while (getComputedStyle(g).backgroundColor === 'rgba(0, 0, 0, 0)') g = g.parentElement;"
    " return [e.className || e.id || e.tagName, s.color, getComputedStyle(g).backgroundColor] })"
  )
  assert len({tuple(one) for one in seen}) > 10
  for name, ink, ground in seen:
    assert contrast(ink, ground) >= 4.5, (name, ink, ground)
  for kind in ("given", "new", "draft"):
    ink = chromium.run(f"getComputedStyle(document.querySelector('.legend .{kind}')).color")
    if kind != "new":
      assert min(contrast(ink, paper), contrast(ink, desk)) >= 4.5
  mask = chromium.run(
    "getComputedStyle(document.querySelector('.mask'), '::before').backgroundImage"
  )
  mask = re.search(r"rgb\([^)]*\)", mask)[0]
  assert min(contrast(mask, paper), contrast(mask, desk)) >= 3


def test_colour_is_never_the_only_sign(chromium, files):
  chromium.open(files / "uniform.html", calm=True)
  style = "getComputedStyle(document.querySelector('.legend .{}')).{}"
  assert chromium.run(style.format("given", "textDecorationLine")) == "underline"
  assert int(chromium.run(style.format("new", "fontWeight"))) >= 700
  assert chromium.run(style.format("draft", "fontStyle")) == "italic"


def test_the_legend_names_what_occurs(chromium, files):
  shown = (
    "[...document.querySelectorAll('.legend li')].filter((e) => e.offsetWidth).map((e) => e.id)"
  )
  chromium.open(files / "uniform.html")
  assert chromium.run(shown) == ["", "legend-draft", "legend-empty"]
  chromium.open(files / "plain.html")
  assert chromium.run(shown) == ["legend-given", "", "legend-mask"]


def test_what_a_screen_reader_hears(chromium, files):
  chromium.open(files / "plain.html", "#frame=2")
  nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
  heard = [(n["role"]["value"], n.get("name", {}).get("value")) for n in nodes if not n["ignored"]]
  for wanted in [
    ("slider", "Step"),
    ("button", "Play"),
    ("button", "Step back"),
    ("button", "Step on"),
    ("combobox", "Speed"),
    ("button", "Previous sample"),
    ("combobox", "Sample"),
    ("button", "Next sample"),
    ("region", "Text"),
    ("region", "Player"),
  ]:
    assert wanted in heard
  left = chromium.run("$('left').innerText")
  assert chromium.run("$('frame').ariaValueText") == f"step 2 of 24, {left} masks left"
  chromium.wait(f"$('heard').textContent === 'Sample 0, step 2 of 24, {left} masks left'")
  # Masks are not read out as the text that will stand there.
  read = [name for role, name in heard if role in ("StaticText", "InlineTextBox")]
  assert "universally" not in "".join(map(str, read))


# ---- Frames, grid, text and GIF ----------------------------------------------------------------


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
  assert [columns(one) for one in "a東\u0301"] == [1, 2, 0]


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


def test_gif_has_the_colours_of_the_page():
  page = (REPOSITORY / "sedd_jax" / "generation" / "traces" / "page.html").read_text()
  for name in ("paper", "ink", "quiet", "given", "new", "mask"):
    colour = re.search(rf"--{name}: #(\w+);", page)[1]
    assert tuple(bytes.fromhex(colour)) == getattr(gif, f"_{name.upper()}")


def has(picture, colour):
  return int(np.all(picture == colour, axis=-1).sum())


def test_gif_goes_from_masks_to_text():
  trace = revealed([PLAIN], steps=24)
  film, pictures, seconds = opened(trace, Bytes())
  assert len(pictures) == len(frames_of(trace, 0, 999)) + 1
  assert film.info["loop"] == 0
  # As many blocks as masks; the progress bar and a few soft edges have their colour too.
  blocks = [has(picture, gif._MASK) for picture in pictures]
  masks = [int(frame.mask.sum()) for frame in frames_of(trace, 0, 999)]
  assert masks[-1] == 0
  assert np.corrcoef(blocks[:-1], masks)[0, 1] > 0.999
  assert has(pictures[0], gif._NEW) == 0
  assert all(has(picture, gif._NEW) for picture in pictures[1:-1])
  assert has(pictures[-1], gif._NEW) == 0
  assert seconds[-1] == max(seconds) >= 3
  assert len(np.unique(np.concatenate([p.reshape(-1, 3) for p in pictures]), axis=0)) <= 32


def test_gif_of_a_long_run_is_thinned_and_of_a_long_text_cut():
  long = PLAIN.replace(" ", "\n") * 12
  film, pictures, _ = opened(revealed([long], steps=400), Bytes())
  assert len(pictures) == gif.MOST_FRAMES + 1
  assert long.count("\n") > gif.MOST_ROWS
  assert film.size[1] <= (gif.MOST_ROWS + 4) * gif._LINE + 2 * gif._MARGIN


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
