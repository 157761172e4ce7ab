"""The page of a trace: as a file, and in a real browser."""

import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest
from support.contrast import check_texts, contrast
from support.paths import REPOSITORY
from support.traces import PLAIN, TRACES, expected, revealed

from sedd_jax.data import Bytes
from sedd_jax.generation.traces import Trace, write_trace
from sedd_jax.generation.traces.cells import cells_of
from sedd_jax.generation.traces.page import page_data, page_of

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


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(chromium, files, dark):
  # Calm, since a colour that fades is none to measure.
  chromium.open(files / "uniform.html", "#frame=6", dark=dark, calm=True)
  paper, desk = (
    chromium.run(f"getComputedStyle(document.querySelector('{one}')).backgroundColor")
    for one in ("#text", "body")
  )
  assert (contrast(paper, "rgb(0, 0, 0)") < 2) == dark
  check_texts(chromium)
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
