"""What a user sees of a run: on a narrow terminal and on a pipe."""

import io
import re

import pytest
from rich.console import Console

import sedd_jax.cli.app  # noqa: F401  (its flag is in every help)
from sedd_jax.cli.text import help_text, row, wrap
from sedd_jax.training import console as module
from sedd_jax.training.console import RunConsole

LONG = "step 5000 held-out bound 1.234 ± 0.005 bits/char (bigram 3.655), on a terminal of a phone"
SAMPLE = "a sample of text that is longer than the terminal is wide  with  its  own  spaces"


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def screen(monkeypatch):
  """Makes a console of some width; gives what it wrote, without the codes that move the cursor."""
  files = []

  def make(width):
    files.append(Terminal() if width else io.StringIO())
    monkeypatch.setattr(
      module,
      "Console",
      lambda **settings: Console(
        **settings, file=files[-1], width=width, force_terminal=bool(width), legacy_windows=False
      ),
    )
    return RunConsole(0, 1_300_000)

  def lines():
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", files[-1].getvalue()))

  make.lines = lines
  return make


@pytest.mark.parametrize("width", [45, 100])
def test_a_terminal_shows_all_of_it_wrapped_between_words(screen, width):
  with screen(width) as console:
    console.say(LONG)
    console.update(1_234_567, 1.2345, 1_234_567.0)
  lines = [line.rstrip() for line in screen.lines()]
  assert all(len(line) <= width for line in lines)
  assert " ".join(LONG.split()) in " ".join(" ".join(lines).split())
  live = next(line for line in reversed(lines) if "1234567/1300000" in line)
  assert "1.234 bits/char" in live or "1.235 bits/char" in live
  assert ("tok/s" in live) == (width == 100)
  assert "…" not in live


def test_samples_stay_as_they_are(screen):
  with screen(45) as console:
    console.show(SAMPLE)
  assert SAMPLE in screen.lines()


def test_a_pipe_gets_whole_lines(screen):
  with screen(None) as console:
    console.say(LONG)
    console.show(SAMPLE)
    console.update(1_300_000, 1.2345, 1000.0)
  first, sample, last, *rest = screen.lines()
  assert (first, sample) == (LONG, SAMPLE)
  assert last.startswith("step 1300000/1300000  1.234 bits/char  1,000 tok/s") or "1.235" in last
  assert rest == [""]


def test_errors_and_tables_are_wrapped_for_terminals_alone(monkeypatch):
  monkeypatch.setenv("COLUMNS", "45")
  text = f"error: {LONG}\n  sedd train --config=an/example/that/must/stay/one/line.py --workdir=x"
  assert wrap(text, io.StringIO()) == text
  shown = wrap(text, Terminal())
  *error, example = shown.split("\n")
  assert example == text.split("\n")[1]
  assert len(error) > 1
  assert all(len(line) <= 45 for line in error)
  assert row("bound", LONG, io.StringIO()) == f"  {'bound':<14}{LONG}"
  table = row("bound", LONG, Terminal()).split("\n")
  assert all(len(line) <= 45 for line in table)
  assert all(line.startswith(" " * 16) for line in table[1:])


def test_help_is_no_wider_than_the_terminal(monkeypatch):
  usage = "Does what it does, in a sentence that is longer than a phone is wide.\n\n  an example"
  monkeypatch.setenv("COLUMNS", "45")
  lines = help_text(usage).split("\n")
  assert all(len(line) <= 45 for line in lines), lines
  assert "  an example" in lines
  assert "--[no]debug" in "\n".join(lines)
