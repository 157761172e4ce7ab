"""Text as users have it: byte-order marks, other line ends and encodings, pipes, long windows."""

import dataclasses
import gzip
import json
import os
import socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sedd_jax.data import DataConfig, load_dataset
from sedd_jax.data.compression import OPENERS, open_any, read_text, utf8_fault
from sedd_jax.data.corpus import load_corpus
from sedd_jax.data.faults import Faults
from sedd_jax.data.prepare import prepare
from sedd_jax.generation.templates import Prompts
from sedd_jax.reports.prepared import prepared_text
from sedd_jax.studies.grades import GradeConfig, read_samples

BOM = b"\xef\xbb\xbf"
TEXT = "The quick brown fox.\n\nIt jumps over “dogs”.\n"


def documents(files, **options):
  corpus, faults = load_corpus(str(files), str(files), **options), Faults()
  found = []
  for piece in corpus.pieces("train", faults):
    if piece.begins:
      found.append("")
    found[-1] += piece.text
  return found


@pytest.mark.parametrize("suffix", ["", *OPENERS])
@pytest.mark.parametrize("start", [b"", BOM], ids=["plain", "mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_marks_and_line_ends_are_no_characters_of_any_file(tmp_path, suffix, start, end):
  opener = OPENERS.get(suffix, open)
  content = start + TEXT.encode().replace(b"\n", end)
  with opener(tmp_path / f"a.txt{suffix}", "wb") as file:
    file.write(content)
  assert documents(tmp_path / f"a.txt{suffix}") == [TEXT]
  assert read_text(tmp_path / f"a.txt{suffix}", "--x") == TEXT
  lines = (json.dumps({"text": text}).encode() for text in ("one", "two"))
  with opener(tmp_path / f"b.jsonl{suffix}", "wb") as file:
    file.write(start + end.join([*lines, b""]))
  assert documents(tmp_path / f"b.jsonl{suffix}") == ["one", "two"]


@pytest.mark.parametrize("start", [b"", BOM])
def test_marks_are_no_characters_of_templates_and_samples(tmp_path, start):
  (tmp_path / "t.txt").write_bytes(start + b"a [[2]]\r\n\r\nb [[3]]\r\n")
  prompts = Prompts(file=str(tmp_path / "t.txt"))
  found = prompts.templates(lambda text: np.array([ord(c) for c in text], np.int32), 8)
  assert [one.text for one in found] == ["a [[2]]", "b [[3]]"]
  (tmp_path / "s.txt").write_bytes(start + b"one\r\ntwo\r\n")
  assert [one["text"] for one in read_samples(tmp_path / "s.txt")] == ["one", "two"]
  (tmp_path / "s.jsonl").write_bytes(start + b'{"text": "one"}\r\n\r\n{"text": "two"}\r\n')
  assert [(one["text"], one["line"]) for one in read_samples(tmp_path / "s.jsonl")] == [
    ("one", 1), ("two", 3),
  ]  # fmt: skip


def test_the_shared_cases_are_the_text_without_a_mark(shared_path):
  bom, crlf = (documents(shared_path(f"cases/{name}.txt")) for name in ("bom", "crlf"))
  assert bom == crlf
  assert not bom[0].startswith("\ufeff")
  assert "\r" not in bom[0]
  blank = documents(shared_path("cases/blank.jsonl"))
  assert len(blank) == 2
  assert sum(map(len, blank)) == 10_806
  assert len(documents(shared_path("cases/mixlen.jsonl"))) == 4


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("before", [0, 1, 70_000, 3_000_000])
def test_bytes_that_are_not_utf8_are_named_by_file_and_line(tmp_path, suffix, before):
  path = tmp_path / f"a.txt{suffix}"
  good = ("ü" * 9 + "\n") * (before // 20) + "x"
  with OPENERS.get(suffix, open)(path, "wb") as file:
    file.write(good.encode() + b"\xe9t\xe9\nmore\n")
  line = good.count("\n") + 1
  with pytest.raises(ValueError, match=rf"a\.txt{suffix}: line {line} is not UTF-8: byte 0xe9"):
    documents(path)
  config = DataConfig(files=str(path), tokenizer="bytes", length=8, on_fault="skip")
  with pytest.raises(ValueError, match=rf"line {line} is not UTF-8|no characters"):
    load_dataset(config)
  with pytest.raises(ValueError, match=f"line {line} is not UTF-8"):
    read_text(path, "--templates")


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_the_line_is_that_of_the_first_wrong_byte(tmp_path_factory, content):
  path = tmp_path_factory.mktemp("bytes") / "a.txt"
  path.write_bytes(content)
  try:
    content.decode()
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b"\n") + 1
    assert utf8_fault(path).startswith(f"line {line} is not UTF-8: byte 0x")
  else:
    assert utf8_fault(path) is None


def test_lines_that_are_not_utf8_are_named(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "\xe9"}\n')
  with pytest.raises(ValueError, match=r"a\.jsonl: line 2 is not UTF-8: byte 0xe9"):
    documents(tmp_path / "a.jsonl")
  for name in ("a.jsonl", "a.txt"):
    (tmp_path / name).write_bytes(b'{"text": "fine"}\n\n\xff')
    with pytest.raises(ValueError, match=rf"{name}, line 3 is not UTF-8"):
      read_samples(tmp_path / name)


def zstd_frame(text, window_log):
  """A frame that says its window is so long; its one block is raw."""
  header = bytes([0x28, 0xB5, 0x2F, 0xFD, 0x00, (window_log - 10) << 3])
  block = (len(text) << 3 | 1).to_bytes(3, "little")
  return header + block + text


@pytest.mark.parametrize("window_log", [20, 27, 28, 31])
def test_zstd_frames_with_long_windows_are_read(tmp_path, window_log):
  frames = [zstd_frame(json.dumps({"text": t}).encode() + b"\n", window_log) for t in ("a", "b")]
  (tmp_path / "RC.jsonl.zst").write_bytes(b"".join(frames))
  assert documents(tmp_path / "RC.jsonl.zst") == ["a", "b"]


def kinds(folder):
  """Paths that are no files, by what they are."""
  os.mkfifo(folder / "pipe.txt")
  (folder / "folder.txt").mkdir()
  sock = socket.socket(socket.AF_UNIX)
  sock.bind(str(folder / "s.txt"))
  sock.close()
  return {
    "a pipe": folder / "pipe.txt", "a folder": folder / "folder.txt", "a socket": folder / "s.txt",
    "a device": "/dev/zero",
  }  # fmt: skip


def test_what_is_no_file_is_refused_and_nothing_waits(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for kind, path in kinds(tmp_path).items():
    with pytest.raises(ValueError, match=kind):
      documents(path)
    with pytest.raises(ValueError, match=kind):
      load_dataset(DataConfig(heldout_files=str(path), tokenizer="bytes"))
    with pytest.raises(ValueError, match=f"--samples: .*{kind}"):
      GradeConfig(samples=[str(path)], judge="x")
    if kind != "a pipe":
      with pytest.raises(ValueError, match=f"--templates: .*{kind}"):
        Prompts(file=str(path)).templates(list, 8)


def test_a_pipe_of_the_shell_is_refused_as_text_and_read_as_templates(tmp_path):
  def writing(content):
    there, here = os.pipe()
    os.write(here, content)  # Less than a pipe holds.
    os.close(here)
    return there

  for text in (b"x" * 100, b""):
    there = writing(text)
    with pytest.raises(ValueError, match="a pipe, and text is read more than once"):
      load_dataset(DataConfig(files=f"/dev/fd/{there}", tokenizer="bytes", length=8))
    os.close(there)
  there = writing(b"a [[2]]\n")
  encode = lambda text: np.array([ord(c) for c in text], np.int32)  # noqa: E731
  found = Prompts(file=f"/dev/fd/{there}").templates(encode, 8)
  os.close(there)
  assert [one.text for one in found] == ["a [[2]]"]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"text": null}', r"no text in the field 'text' .*: there is null"),
    ('{"text": 3}', r"no text in the field 'text' .*: there is a number"),
    ('{"text": ["x"]}', r"no text in the field 'text' .*: there is a list"),
    ('{"body": "x"}', r"no text in the field 'text' .*; it has body"),
    ("{}", r"no text in the field 'text' .*: it is empty"),
    ('"x"', r"it is a string, not an object"),
    ("null", r"it is null, not an object"),
    ("{", r"is not JSON"),
    ('{"text": "\\ud800"}', r"not Unicode"),
  ],
)
def test_lines_without_text_say_what_is_there(tmp_path, line, message):
  (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n\n{line}\n')
  with pytest.raises(ValueError, match=rf"a\.jsonl: line 3 .*{message}"):
    documents(tmp_path / "a.jsonl")
  with pytest.raises(ValueError, match=r"a\.jsonl, line 3"):
    read_samples(tmp_path / "a.jsonl")


@pytest.mark.parametrize("tokenizer", ["bytes", "bytes:eos"])
def test_empty_documents_are_left_out_and_noted_whatever_is_held_out(tmp_path, tokenizer):
  texts = {"a": ["one", "", "two", ""], "b": ["one", "two"], "c": ["held"], "d": ["", "held", ""]}
  for name, lines in texts.items():
    (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{t * 9}"}}\n' for t in lines))
  for heldout in ("", "c"):
    rows, notes = [], []
    for name, held in (("a", "d"), ("b", "c")):
      config = DataConfig(
        files=f"{tmp_path}/{name}.jsonl",
        heldout_files=f"{tmp_path}/{held}.jsonl" if heldout else "",
        split=(0.6, 1.0),
        tokenizer=tokenizer,
        length=4,
      )
      dataset = load_dataset(config)
      rows.append((dataset.train_rows[0][:].tokens, dataset.heldout_rows[:].tokens))
      notes.append(dataset.faults.notes)
    assert all((one == two).all() for one, two in zip(*rows, strict=True))
    assert not notes[1]
    assert "empty documents, which are left out" in notes[0][0]


def test_no_heldout_tokens_are_said(tmp_path):
  (tmp_path / "a.txt").write_text("abc")
  config = DataConfig(files=f"{tmp_path}/a.txt", split=(0.9, 1.0), tokenizer="bytes", length=1)
  with pytest.raises(ValueError, match=r"held-out text has no characters: see data\.split"):
    load_dataset(config)
  manifest = prepare(config, tmp_path / "out")
  assert manifest["heldout"]["tokens"] == 0
  assert "0 held-out tokens" in prepared_text(tmp_path / "out", manifest, 1.0)
  with pytest.raises(ValueError, match="held-out text has no characters"):
    load_dataset(dataclasses.replace(config, files=str(tmp_path / "out")))


def test_a_file_that_is_named_twice_is_noted_and_on_both_sides_refused(tmp_path):
  text = tmp_path / "a.txt"
  text.write_text("some words " * 20)
  (tmp_path / "link.txt").symlink_to(text)
  os.link(text, tmp_path / "hard.txt")
  (tmp_path / "held.txt").write_text("other words " * 20)
  common = {"tokenizer": "bytes", "length": 8}
  for again in (f"{text},{text}", f"{text};{tmp_path}/link.txt", f"{tmp_path}/[ah]*d.txt,{text}"):
    dataset = load_dataset(DataConfig(files=again, **common))
    assert "named twice" in "".join(dataset.faults.notes), again
  for heldout in ("a.txt", "link.txt", "hard.txt", "*.txt"):
    config = DataConfig(files=str(text), heldout_files=f"{tmp_path}/{heldout}", **common)
    with pytest.raises(ValueError, match=r"data\.heldout_files: .*among data\.files too"):
      load_dataset(config)
    with pytest.raises(ValueError, match=r"data\.heldout_files: .*among data\.files too"):
      prepare(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
  with pytest.raises(ValueError, match="embedded is among"):
    load_dataset(DataConfig(files="embedded", heldout_files="embedded", **common))
  both = DataConfig(files=str(text), heldout_files=str(text), **common)
  alone = load_dataset(DataConfig(files=str(text), heldout_files=f"{tmp_path}/held.txt", **common))
  assert not alone.faults.notes
  with pytest.raises(ValueError, match="this run was trained on the corpus"):
    load_dataset(both, expected=alone.identity)  # A run that exists is compared by its hash.


def test_a_prepared_folder_has_a_side_for_each(tmp_path):
  (tmp_path / "a.txt").write_text("some words " * 40)
  prepare(DataConfig(files=f"{tmp_path}/a.txt", tokenizer="bytes"), tmp_path / "out")
  shards = str(tmp_path / "out")
  dataset = load_dataset(
    DataConfig(files=shards, heldout_files=shards, tokenizer="bytes", length=8)
  )
  assert not dataset.faults.notes


def test_faults_of_templates_and_prompts_name_line_or_flag(tmp_path):
  def encode(text):
    if "ß" in text:
      raise ValueError("the character 'ß' is unknown")
    return np.array([ord(c) for c in text], np.int32)

  (tmp_path / "t.txt").write_text("a [[2]]\n\nß [[2]]\n")
  where = r"t\.txt, line 3: .*'ß'"
  for prompts, message in (
    (Prompts(file=tmp_path / "t.txt"), where),
    (Prompts(template="ß [[2]]"), "^--template: .*'ß'"),
    (Prompts(prefix="ß"), "^--prefix: .*'ß'"),
    (Prompts(suffix="ß", prefix="a"), "^--prefix and --suffix: "),
    (Prompts(length=9), "^--length: "),
    (Prompts(prefix="\udcff"), "^--prefix: .*not Unicode"),
  ):
    with pytest.raises(ValueError, match=message):
      prompts.templates(lambda text: text.encode() and encode(text), 8)
  (tmp_path / "t.txt").write_text("a [[2]]\nb [[0]]\n")
  with pytest.raises(ValueError, match=r"t\.txt, line 2: .*\[\[0\]\] is empty"):
    Prompts(file=tmp_path / "t.txt").templates(encode, 8)


def test_samples_given_twice_are_refused(tmp_path):
  (tmp_path / "s.txt").write_text("one\n")
  (tmp_path / "l.txt").symlink_to(tmp_path / "s.txt")
  for names in (["s.txt", "s.txt"], ["s.txt", "l.txt"]):
    with pytest.raises(ValueError, match=r"--samples names .*twice"):
      GradeConfig(samples=[str(tmp_path / name) for name in names], judge="x")


def test_a_compressed_file_cut_short_is_still_named(tmp_path):
  (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
  with pytest.raises(ValueError, match=r"c\.txt\.gz"):
    documents(tmp_path / "c.txt.gz")
  assert open_any(tmp_path / "c.txt.gz")
