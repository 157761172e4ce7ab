"""Traces: the record and the file."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.paths import REPOSITORY
from support.traces import TRACES, expected

from sedd_jax.data import Bytes, Chars
from sedd_jax.generation.traces import Trace, check_trace_path, write_trace
from sedd_jax.generation.traces.cells import MASK, cells_of, visible

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
  found = [path for pattern in listed for path in package.glob(pattern) if path.is_file()]
  assert others == {path.relative_to(package).as_posix() for path in found}


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
