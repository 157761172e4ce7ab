"""Paths as users have them: below ~, with spaces, with signs of a pattern, moved, being written."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import shlex
import shutil
import stat
import threading

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.command import sedd
from support.experiments import TINY

import sedd_jax
from sedd_jax.data import DataConfig, load_dataset
from sedd_jax.data.patterns import files_of, parts_of
from sedd_jax.data.prepare import prepare
from sedd_jax.files.paths import command, split_paths
from sedd_jax.files.whole import sweep, whole, write_text
from sedd_jax.interop.info import describe
from sedd_jax.interop.load import load
from sedd_jax.reports.prepared import prepared_text
from sedd_jax.training.loop import train

ODD = "a b [x], c; d*é"
# Runs on a text file of its own; more text than the held-out share needs for a row.
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 60


def experiment(home):
  data = DataConfig(files=str(home / ODD / "my text.txt"), length=32, split=(0.8, 1.0))
  return dataclasses.replace(TINY, data=data)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A home with a run on a text, all below names that need care."""
  home = tmp_path_factory.mktemp("home")
  (home / ODD).mkdir()
  (home / ODD / "my text.txt").write_text(TEXT)
  with contextlib.redirect_stdout(io.StringIO()) as out:
    assert train(experiment(home), home / ODD / "run") == 0
  (home / "printed.txt").write_text(out.getvalue())
  return home


@pytest.fixture(autouse=True)
def at_home(monkeypatch, home, tmp_path):
  """~ is that home, and the current folder is empty before and after."""
  monkeypatch.setenv("HOME", str(home))
  monkeypatch.chdir(tmp_path)
  platforms = jax.config.jax_platforms
  yield
  jax.config.update("jax_platforms", platforms)
  assert not (tmp_path / "~").exists()
  assert not (tmp_path / "gs:").exists()


RUN = f"~/{ODD}/run"


def said(*arguments):
  done = sedd(*arguments)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.slow
def test_every_verb_finds_and_writes_below_home(home):
  there = home / ODD
  assert "step" in said("info", RUN)
  (there / "templates.txt").write_text("The [[4]]\n")
  said("sample", f"--checkpoint={RUN}", f"--templates=~/{ODD}/templates.txt", "--steps=2",
       f"--out=~/{ODD}/samples.jsonl")  # fmt: skip
  assert (there / "samples.jsonl").is_file()
  said("sample", f"--checkpoint={RUN}", "--steps=2", "--length=8", f"--trace=~/{ODD}/t.html")
  assert (there / "t.html").is_file()
  assert "wrote" in said("report", RUN, f"--out=~/{ODD}/report.md")
  said("export", f"--checkpoint={RUN}", f"--out=~/{ODD}/export")
  said("convert", f"--from=~/{ODD}/export", f"--to=~/{ODD}/original", "--layout=original")
  assert (there / "original" / "config.json").is_file()
  assert "bound" in said("evaluate", f"--checkpoint={RUN}", "--num_times=2")
  said("prepare", f"--files=~/{ODD}/my text.txt", "--tokenizer=bytes", "--workers=1",
       f"--out=~/{ODD}/prepared")  # fmt: skip
  said("prepare", f"--check=~/{ODD}/prepared")
  shards = DataConfig(files=f"~/{ODD}/prepared", tokenizer="bytes", length=16)
  text = DataConfig(files=f"~/{ODD}/my text.txt", tokenizer="bytes", length=16)
  one, two = (load_dataset(config).train_rows[0][:].tokens for config in (shards, text))
  assert (one == two).all()
  assert sedd_jax.load(RUN).length == 32


def test_a_folder_whose_name_is_a_tilde_can_be_named(home, tmp_path):
  (tmp_path / "~").mkdir()
  try:
    (tmp_path / "~" / "x.txt").write_text(TEXT)
    assert [p.read_text() for p in files_of("./~/x.txt")] == [TEXT]
    done = sedd("info", "./~/x.txt")
    assert "~/x.txt is no folder" in done.stderr
  finally:
    (tmp_path / "~" / "x.txt").unlink()
    (tmp_path / "~").rmdir()


def test_exported_files_have_the_modes_of_written_ones(home, tmp_path):
  old = os.umask(0o027)
  try:
    sedd_jax.export(load(RUN), tmp_path / "export")
    (tmp_path / "plain").write_text("")
  finally:
    os.umask(old)
  wanted = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
  modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "export").iterdir()}
  assert modes == dict.fromkeys(modes, wanted)
  (tmp_path / "plain").chmod(0o604)
  write_text(tmp_path / "plain", "new")
  assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o604


def test_a_run_directory_has_one_mode(home):
  modes = {stat.S_IMODE(f.stat().st_mode) for f in (home / ODD / "run").rglob("*") if f.is_file()}
  assert len(modes) == 1


def test_commands_can_be_pasted(home, tmp_path):
  printed = (home / "printed.txt").read_text()
  (line,) = [line for line in printed.splitlines() if "sedd sample" in line]
  words = shlex.split(line.removeprefix("Next: "))
  assert words[:3] == ["sedd", "sample", f"--checkpoint={home / ODD / 'run'}"]
  data = experiment(home).data
  manifest = prepare(dataclasses.replace(data, tokenizer="bytes"), tmp_path / "p q")
  line = prepared_text(tmp_path / "p q", manifest, 1.0).splitlines()[-1]
  assert shlex.split(line)[-1] == f"--config.data.files={tmp_path}/p q"
  with pytest.raises(FileExistsError, match=r"sedd prepare '--check=.*p q' reads"):
    prepare(dataclasses.replace(data, tokenizer="bytes"), tmp_path / "p q")


@given(st.lists(st.text(st.characters(exclude_characters="\0"))))
def test_commands_are_read_back_by_a_shell(words):
  assert shlex.split(command(*words)) == words


NAMES = st.text("ab[]*?,; .-!", min_size=1, max_size=8).filter(
  lambda name: name.strip() == name and name.strip(".") and name not in ("-",)
)


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=3, unique=True), st.sampled_from(",;"))
def test_files_that_exist_are_found_whatever_their_names(tmp_path_factory, names, separator):
  folder = tmp_path_factory.mktemp("names")
  for name in names:
    (folder / f"{name}.txt").write_text(name)
  paths = [f"{folder}/{name}.txt" for name in names]
  for path in paths:
    assert [str(found) for found in files_of(path)] == [path]
    assert parts_of(path) == [path]
  joined = f"{separator} ".join(paths)
  assert split_paths(joined, separator) == paths


def test_a_text_of_an_odd_name_is_trained_on_and_held_out(tmp_path):
  for name in ("a;b,[c].txt", "d;e.txt"):
    (tmp_path / name).write_text(TEXT)
  config = DataConfig(files="a;b,[c].txt", heldout_files="d;e.txt", length=16, tokenizer="bytes")
  assert load_dataset(config).identity["characters"] == 2 * len(TEXT)
  config = DataConfig(
    files="a;b,[c].txt; d;e.txt", weights=(1.0, 2.0), length=16, tokenizer="bytes"
  )
  assert config.parts == ["a;b,[c].txt", "d;e.txt"]
  assert len(load_dataset(config).train_rows) == 2
  (tmp_path / "many").mkdir()
  names = [f"many/{i:03d}-{'x' * 60}.txt" for i in range(100)]
  for name in names:
    (tmp_path / name).write_text("ab")
  config = DataConfig(files=",".join(names), length=8, tokenizer="bytes")
  assert load_dataset(config).identity["characters"] == 200, "a list may be longer than a name"


def test_what_a_comma_cannot_join_is_said(tmp_path):
  (tmp_path / "a.txt").write_text(TEXT)
  prepare(DataConfig(files="a.txt", tokenizer="bytes"), tmp_path / "prepared")
  for files in ("prepared,a.txt", "a.txt,prepared", "embedded,a.txt", "a.txt, tfds:lm1b@train",
                "tfds:lm1b,a.txt", "hf:some/set,a.txt"):  # fmt: skip
    with pytest.raises(ValueError, match="';'"):
      load_dataset(DataConfig(files=files, tokenizer="bytes", length=8))
  both = DataConfig(files="a.txt;prepared", tokenizer="bytes", length=8)
  assert load_dataset(both).identity["characters"] == 2 * len(TEXT)


def test_a_text_that_has_moved_is_named_by_a_flag(home, tmp_path):
  before = json.loads(said("evaluate", f"--checkpoint={RUN}", "--num_times=2", "--json"))
  text, moved = home / ODD / "my text.txt", home / "moved.txt"
  text.rename(moved)
  try:
    done = sedd("evaluate", f"--checkpoint={RUN}", "--num_times=2")
    assert done.returncode == 2
    assert "no file matches" in done.stderr
    assert "--files=" in done.stderr
    again = said(
      "evaluate", f"--checkpoint={RUN}", "--num_times=2", "--json", "--files=~/moved.txt"
    )
    again = json.loads(again)
    assert again.pop("corpus")["sha256"] == before.pop("corpus")["sha256"]
    assert again == before
    (home / "other.txt").write_text(TEXT[1:])
    done = sedd("evaluate", f"--checkpoint={RUN}", "--num_times=2", "--files=~/other.txt")
    assert done.returncode == 2
    assert "trained on the corpus" in done.stderr
    done = sedd("evaluate", "--checkpoint=x", "--suite=zero-shot", "--protocol=sedd", "--files=x")
    assert "--files: of a run's own text" in done.stderr
  finally:
    moved.rename(text)


def test_readers_do_not_mind_a_save_in_progress(home):
  """Folders that come and go below the checkpoints, as those of a save."""
  checkpoints, stop = home / ODD / "run" / "checkpoints", threading.Event()

  def save():
    number = 0
    while not stop.is_set():
      number += 1
      folder = checkpoints / f"{number}.partial" / "ema" / "d"
      folder.mkdir(parents=True)
      (folder / "x").write_bytes(b"x")
      (folder / "x").unlink()
      folder.rmdir()
      folder.parent.rmdir()
      folder.parent.parent.rmdir()

  thread = threading.Thread(target=save)
  thread.start()
  try:
    for _ in range(100):
      describe(home / ODD / "run")
    assert "fault" not in said("report", RUN)
    said("sample", f"--checkpoint={RUN}", "--steps=1", "--length=4")
  finally:
    stop.set()
    thread.join()


def test_a_checkpoint_that_a_run_removes_meanwhile_is_no_error(home, tmp_path, monkeypatch):
  module = importlib.import_module("sedd_jax.interop.load")
  run = tmp_path / "run"
  shutil.copytree(home / ODD / "run", run)
  newest = max(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
  read = module.load_meta

  def racing(path, step):
    if (run / "checkpoints" / str(newest)).is_dir():
      shutil.rmtree(run / "checkpoints" / str(newest))
    return read(path, step)

  monkeypatch.setattr(module, "load_meta", racing)
  assert load(run).info["step"] < newest


def test_leftovers_of_killed_writes_are_swept_and_nothing_else(home, tmp_path):
  target = tmp_path / "config.json"
  with pytest.raises(KeyboardInterrupt), whole(target) as partial:
    raise KeyboardInterrupt
  assert not partial.exists()
  partial.write_text("left")
  folder = tmp_path / "samples.0123abcd.partial"
  folder.mkdir()
  (tmp_path / "movie.mp4.partial").write_text("of another program")
  sweep(tmp_path, tmp_path / "missing")
  assert [path.name for path in tmp_path.iterdir()] == ["movie.mp4.partial"]
  run = tmp_path / "run"
  shutil.copytree(home / ODD / "run", run)
  (run / "config.json.0123abcd.partial").write_text("left")
  (run / "samples" / "final.txt.0123abcd.partial").write_text("left")
  assert train(experiment(home), run) == 0
  assert not list(run.rglob("*.partial"))
