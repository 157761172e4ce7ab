"""The page of `sedd demo` in a real browser: typing, watching, stopping, links, two tabs."""

import pytest
from support.contrast import check_texts
from support.demo import LENGTH, Gated, running, tiny_model, until

from sedd_jax.generation.templates import parse_template

TEMPLATE = "ab[[4]]c[[*]]"
BLANKS = LENGTH - 3
TEXT = "[...document.querySelectorAll('#text .token .word')].map((s) => s.textContent).join('')"
MASKS = "document.querySelectorAll('#text .mask').length"
IDLE = "!drawing && result !== null"


pytestmark = pytest.mark.usefixtures("quick_module")


@pytest.fixture(scope="module")
def demo(chromium):
  with running(tiny_model()) as found:
    yield found


@pytest.fixture
def gated(chromium):
  """A demo whose model takes a step when the test lets it."""
  model = Gated.like(tiny_model())
  with running(model) as found:
    found.model = model
    yield found
    chromium.call("Page.navigate", url="about:blank")


def fill(page, **values):
  for name, value in values.items():
    page.run(f"$('{name}').value = {value!r}; $('{name}').dispatchEvent(new Event('change'))")


def infilled(seed, **settings):
  model = tiny_model()
  template = parse_template(TEMPLATE, model.encode, length=LENGTH, longest=LENGTH)
  return model.infill(template.tokens[None], template.given[None], seed=seed, **settings)[0]


def test_typing_and_watching(chromium, gated):
  chromium.visit(gated.url)
  assert chromium.run("[$('stage').hidden, $('stop').disabled, $('copy-text').disabled]") == [
    True, True, True,
  ]  # fmt: skip
  fill(chromium, steps=6, seed=5)
  chromium.run("$('template').select()")
  chromium.type(TEMPLATE)
  chromium.press("Enter")
  masks = []
  for step in range(8):
    gated.model.let_go(1)
    chromium.wait(f"trace && last === {step} && at === {step}")
    masks.append(chromium.run(MASKS))
    if step < 7:
      assert chromium.run("$('last').textContent") == "7"
      assert chromium.run("$('stop').disabled") is False
  assert masks[0] == BLANKS
  assert masks[-1] == 0
  assert masks == sorted(masks, reverse=True)
  assert len(set(masks)) > 3  # Tokens came one step after the other.
  chromium.wait(IDLE)
  want = tiny_model().decode([infilled(5, steps=6)])[0]
  assert chromium.run("result.text") == want
  assert chromium.run("cells.map((cell) => trace.texts[cell]).join('')") == want
  assert "seed 5" in chromium.run("$('status').textContent")
  # Back through the steps, by the slider and by keys that the text box does not take.
  for step in (0, 3, 7):
    chromium.run(f"$('frame').value = {step}; $('frame').dispatchEvent(new Event('input'))")
    assert chromium.run(MASKS) == masks[step]
  chromium.run("$('template').focus()")
  chromium.press("Home")
  assert chromium.run("at") == 7
  chromium.run("$('frame').focus()")
  chromium.press("Home")
  assert chromium.run("at") == 0
  chromium.run("$('play').click()")
  chromium.wait("!playing && at === 7")
  assert not chromium.errors
  assert set(chromium.requests) == {gated.url, f"{gated.url}v1/infill"}


def test_stopping_frees_the_device_and_keeps_what_was_drawn(chromium, gated):
  chromium.visit(gated.url)
  fill(chromium, template=TEMPLATE, steps=50, seed=5)
  chromium.run("$('draw').click()")
  gated.model.let_go(31)
  chromium.wait("trace && last === 30")
  left = chromium.run(MASKS)
  chromium.run("$('stop').click()")
  assert chromium.run("$('status').textContent") == "stopped"
  until(lambda: gated.device._current.withdrawn.is_set())
  gated.model.let_go(1)
  until(lambda: gated.device._current is None)
  assert len(gated.model.info["begun"]) == 32
  assert chromium.run("[at, last, planned]") == [30, 30, 30]
  assert 0 < left < BLANKS
  # What it copies then is a template again.
  chromium.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
  chromium.run("$('copy-text').click()")
  assert chromium.run("copied").startswith("ab")
  assert "[[" in chromium.run("copied")
  chromium.run("show(0); $('copy-text').click()")
  assert chromium.run("copied") == f"ab[[4]]c[[{LENGTH - 7}]]"
  # And on from there.
  gated.model.let_go()
  fill(chromium, steps=6)
  chromium.run("$('draw').click()")
  chromium.wait(IDLE)
  assert chromium.run("result.tokens") == infilled(5, steps=6).tolist()
  assert not chromium.errors


def test_two_tabs_are_drawn_one_after_the_other(chromium, gated):
  tabs = [chromium.tab, chromium.new_tab()]
  for seed, tab in enumerate(tabs):
    chromium.use(tab)
    chromium.visit(gated.url)
    fill(chromium, template=TEMPLATE, steps=6, seed=seed)
    chromium.run("$('draw').click()")
    until(lambda seed=seed: gated.device._current is not None and gated.device.waiting == seed)
  chromium.wait("$('status').textContent === 'waiting: one request is before this'")
  gated.model.let_go()
  for seed, tab in enumerate(tabs):
    chromium.use(tab)
    chromium.wait(IDLE)
    assert chromium.run("result.tokens") == infilled(seed, steps=6).tolist()
  chromium.call("Page.close")
  chromium.use(tabs[0])


def test_a_closed_tab_frees_the_device(chromium, gated):
  first, second = chromium.tab, chromium.new_tab()
  chromium.visit(gated.url)
  fill(chromium, template=TEMPLATE, steps=50)
  chromium.run("$('draw').click()")
  until(lambda: gated.model.info["begun"])
  chromium.use(second)
  chromium.call("Page.close")
  chromium.use(first)
  until(lambda: gated.device._current.withdrawn.is_set())
  gated.model.let_go(1)
  until(lambda: gated.device._current is None)


def test_a_link_reproduces_the_text(chromium, demo):
  chromium.visit(demo.url)
  fill(chromium, template=TEMPLATE, steps=9, seed=77, length=LENGTH)
  chromium.run("$('draw').click()")
  chromium.wait(IDLE)
  chromium.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
  chromium.run("$('copy-link').click()")
  link, tokens = chromium.run("copied"), chromium.run("result.tokens")
  assert link == chromium.run("location.href")
  assert tokens == infilled(77, steps=9).tolist()
  chromium.visit(link)
  chromium.wait(IDLE)
  assert chromium.run("result.tokens") == tokens
  assert chromium.run("$('template').value") == TEMPLATE
  # As the address of the same page too.
  chromium.run("location.hash = location.hash.replace('seed=77', 'seed=78')")
  chromium.wait(f"{IDLE} && result.seed === 78")
  assert chromium.run("result.tokens") != tokens
  # Another seed is another text, at a click.
  chromium.run("$('again').click()")
  chromium.wait(f"{IDLE} && result.seed !== 78")
  assert f"seed={chromium.run('result.seed')}" in chromium.run("location.href")


def test_settings_and_errors(chromium, demo):
  chromium.visit(demo.url)
  names = chromium.run("[...$('sampler').options].map((option) => option.value)")
  assert "tweedie" in names
  fill(chromium, sampler="first_hitting")
  assert chromium.run("[$('steps').disabled, 'steps' in settings()]") == [True, False]
  fill(chromium, sampler="tweedie", template="xyz[[4]]")
  chromium.run("$('draw').click()")
  chromium.wait("$('fault').textContent.startsWith('template: ')")
  assert chromium.run("$('status').textContent") == ""
  chromium.run("$('template').value = 'ab'; $('template').setSelectionRange(1, 1)")
  chromium.run("$('insert').click()")
  assert chromium.run("$('template').value") == "a[[8]]b"
  # What the fields themselves refuse is not sent.
  chromium.requests.clear()
  fill(chromium, steps=0)
  chromium.run("$('draw').click()")
  assert chromium.run("document.querySelector('input:invalid').id") == "steps"
  assert not chromium.requests


def test_a_server_that_has_gone_is_told(chromium, gated):
  chromium.visit(gated.url)
  fill(chromium, template=TEMPLATE, steps=6)
  chromium.run("$('draw').click()")
  until(lambda: gated.model.info["begun"])
  gated.device.close()
  chromium.wait("$('fault').textContent === 'the server is stopping'")
  assert chromium.run("$('stop').disabled")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1440])
def test_it_fits_and_can_be_read(chromium, demo, width, dark):
  chromium.visit(demo.url, width=width, dark=dark, calm=True)
  fill(chromium, template=TEMPLATE, steps=9, seed=1)
  chromium.run("$('draw').click()")
  chromium.wait(IDLE)
  chromium.run("$('fault').textContent = 'an error'; show(4)")
  assert chromium.run("document.documentElement.scrollWidth") <= width
  check_texts(chromium)
  nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
  heard = {(n["role"]["value"], n.get("name", {}).get("value")) for n in nodes if not n["ignored"]}
  for wanted in [
    ("button", "Fill in"),
    ("button", "Stop"),
    ("button", "Copy link"),
    ("combobox", "Sampler"),
    ("spinbutton", "Steps"),
    ("spinbutton", "Temperature"),
    ("spinbutton", "Seed"),
    ("slider", "Step"),
    ("region", "Text"),
  ]:
    assert wanted in heard
  assert any(role == "textbox" and name.startswith("Text with blanks") for role, name in heard)
