"""Files that are written whole or not at all, and files of lines that grow."""

import pytest

from sedd_jax.files.lines import GrowingFile
from sedd_jax.files.manifest import FILE, faults, write_manifest
from sedd_jax.files.whole import whole, write_json, write_text


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
  file = tmp_path / "a.txt"
  write_text(file, "old")
  with pytest.raises(RuntimeError), whole(file) as partial:  # noqa: PT012
    partial.write_text("half of the n")
    raise RuntimeError
  assert (file.read_text(), names(tmp_path)) == ("old", ["a.txt"])
  write_json(file, {"é": 1})
  assert (file.read_text(), names(tmp_path)) == ('{\n  "é": 1\n}\n', ["a.txt"])


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
  with pytest.raises(RuntimeError), whole(tmp_path / "out") as partial:  # noqa: PT012
    (partial / "deep").mkdir(parents=True)
    raise RuntimeError
  assert not names(tmp_path)
  (tmp_path / "out").mkdir()
  with whole(tmp_path / "out") as partial:
    (partial / "deep").mkdir(parents=True)
    (partial / "deep" / "a").write_text("a")
  assert (names(tmp_path), names(tmp_path / "out" / "deep")) == (["out"], ["a"])


def test_a_line_cut_short_is_written_again(tmp_path):
  (tmp_path / "a.jsonl.part").write_text("one\ntw")
  growing = GrowingFile(tmp_path / "a.jsonl")
  assert list(growing.lines()) == [b"one\n"]
  growing.append("two", "three")
  (tmp_path / "a.jsonl").write_text("precious")
  with pytest.raises(FileExistsError):
    growing.finish_new()
  growing.finish()
  assert names(tmp_path) == ["a.jsonl"]
  assert (tmp_path / "a.jsonl").read_text() == "one\ntwo\nthree\n"
  assert GrowingFile(tmp_path / "a.jsonl").whole


def test_a_manifest_names_what_changed(tmp_path):
  (tmp_path / "deep").mkdir()
  for name in ("deep/a", "b", "c"):
    (tmp_path / name).write_text("abc")
  assert faults(tmp_path) == [f"{FILE} is missing"]
  write_manifest(tmp_path)
  assert not faults(tmp_path)
  (tmp_path / "deep" / "a").write_text("abd")
  (tmp_path / "b").write_text("ab")
  (tmp_path / "c").unlink()
  assert faults(tmp_path) == [
    "b has 2 bytes, not 3", "c is missing", "deep/a holds other bytes than were saved (SHA-256)"
  ]  # fmt: skip
