"""Prepared shards: the same tokens as the text, whole or refused."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.command import sedd
from support.experiments import TINY
from support.paths import REPOSITORY

from sedd_jax.data import Bytes, DataConfig, load_dataset
from sedd_jax.data.faults import Faults, describe
from sedd_jax.data.prepare import prepare
from sedd_jax.data.prepared import check, open_prepared
from sedd_jax.data.shards import RECORD, Shards
from sedd_jax.training.loop import train
from sedd_jax.training.metrics import read_metrics


def write_texts(folder, count=40, seed=0):
  """Documents of a line each, some of them longer than a record."""
  rng, lines = np.random.default_rng(seed), []
  for _ in range(count):
    size = int(rng.choice([3, 40, 900, 5000]))
    lines.append("".join(rng.choice([*"abcdefgh \né"], size)))
  path = folder / "texts.jsonl"
  path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
  return path


@pytest.fixture
def config(tmp_path):
  return DataConfig(
    files=str(write_texts(tmp_path)), tokenizer="bytes:eos", length=64, split=(0.8, 1.0)
  )


def of_folder(config, folder):
  return dataclasses.replace(config, files=str(folder))


def flip(path, place):
  data = bytearray(path.read_bytes())
  data[place] ^= 4
  path.write_bytes(data)


def assert_same(got, want):
  """Two batches."""
  for one, other in zip(got, want, strict=True):
    np.testing.assert_array_equal(one, other)


def the_tokens(folder, side="train"):
  return open_prepared(str(folder)).stream(side, Faults())


# The same as the text.


@pytest.mark.parametrize(
  ("tokenizer", "packing"),
  [
    ("bytes:eos", "stream"),
    ("bytes:eos", "pad"),
    ("bytes:eos", "pack"),
    ("bytes", "stream"),
    ("chars", "stream"),
  ],
)
def test_prepared_text_is_the_same_dataset(config, tmp_path, tokenizer, packing):
  config = dataclasses.replace(config, tokenizer=tokenizer, packing=packing)
  prepare(config, tmp_path / "out", shard=5000)
  text, shards = load_dataset(config), load_dataset(of_folder(config, tmp_path / "out"))
  manifest = open_prepared(str(tmp_path / "out")).manifest
  assert len(manifest["train"]["shards"]) > 4
  assert shards.identity == text.identity
  assert shards.tokenizer.to_json() == text.tokenizer.to_json()
  assert shards.chars_per_token == text.chars_per_token
  assert shards.tokens_per_row == text.tokens_per_row
  assert shards.heldout_rows.characters() == text.heldout_rows.characters()
  np.testing.assert_array_equal(shards.train_head, text.train_head)
  assert_same(shards.train_rows[0][:], text.train_rows[0][:])
  assert_same(shards.heldout_rows[:], text.heldout_rows[:])
  for step in (0, 5):
    assert_same(shards.batches(16, 7)[step], text.batches(16, 7)[step])


def test_windows_may_lie_across_records_and_shards(config, tmp_path):
  prepare(config, tmp_path / "out", shard=5000)
  stream = the_tokens(tmp_path / "out")
  (whole,), (known,) = stream.windows(np.zeros(1, np.int64), len(stream))
  assert len(whole) > 4 * RECORD
  assert known.all()
  first = np.random.default_rng(0).integers(0, len(stream), 50)
  for start, row, readable in zip(first, *stream.windows(first, 3000), strict=True):
    part = whole[start : start + 3000]
    np.testing.assert_array_equal(row[: len(part)], part)
    assert np.all(row[len(part) :] == 0)
    np.testing.assert_array_equal(readable, np.arange(3000) < len(part))


def test_shards_are_the_same_for_any_number_of_workers(config, tmp_path):
  one = prepare(config, tmp_path / "one", workers=1, shard=8000)
  two = prepare(config, tmp_path / "two", workers=2, shard=8000)
  assert one == two


def test_a_corpus_with_one_vocabulary_trains_a_mixture_with_text(config, tmp_path):
  prepare(config, tmp_path / "out")
  (tmp_path / "more.txt").write_text("more of it " * 100)
  files = f"{tmp_path / 'out'}; {tmp_path / 'more.txt'}"
  mixed = load_dataset(dataclasses.replace(config, files=files, weights=(0.5, 0.5)))
  batch = mixed.batches(32, 0)[0]
  texts = [Bytes(eos=True).decode(row) for row in batch.tokens]
  assert sum("more of it more" in text for text in texts) == 16
  shards, text = str(tmp_path / "out"), f"{tmp_path}/*.txt"
  held = dataclasses.replace(config, files=shards, heldout_files=text)
  assert "more of it" in Bytes(eos=True).decode(load_dataset(held).heldout_rows[:].tokens[0])
  swapped = dataclasses.replace(held, files=text, heldout_files=shards)
  np.testing.assert_array_equal(
    load_dataset(swapped).heldout_head, load_dataset(of_folder(config, shards)).heldout_head
  )


def test_another_tokenizer_than_the_prepared_one_is_refused(config, tmp_path):
  prepare(config, tmp_path / "out")
  wrong = dataclasses.replace(of_folder(config, tmp_path / "out"), tokenizer="chars")
  with pytest.raises(ValueError, match=r"data\.tokenizer='chars'.*prepared with 'bytes:eos'"):
    load_dataset(wrong)
  with pytest.raises(ValueError, match="prepared with another tokenizer than this run has"):
    load_dataset(of_folder(config, tmp_path / "out"), tokenizer=Bytes())
  wrong = dataclasses.replace(of_folder(config, tmp_path / "out"), detokenizer="ptb")
  with pytest.raises(ValueError, match=r"data\.detokenizer='ptb', but .*prepared with 'none'"):
    load_dataset(wrong)


def test_heldout_text_that_is_prepared_too_is_found_there(config, tmp_path):
  (tmp_path / "held.txt").write_text("held out " * 40)
  config = dataclasses.replace(config, heldout_files=f"{tmp_path}/held.txt")
  prepare(config, tmp_path / "out")
  text, shards = load_dataset(config), load_dataset(of_folder(config, tmp_path / "out"))
  assert shards.identity == text.identity
  assert_same(shards.heldout_rows[:], text.heldout_rows[:])


@pytest.mark.slow
def test_a_run_on_shards_of_padded_documents(tmp_path):
  lines = [json.dumps({"text": "abc" * (i % 5)}) for i in range(400)]
  (tmp_path / "a.jsonl").write_text("\n".join(lines))
  data = DataConfig(files=f"{tmp_path}/a.jsonl", tokenizer="bytes:eos", length=16, on_fault="skip")
  prepare(data, tmp_path / "out")
  flip(tmp_path / "out/train-00000.array_record", 100)
  data = dataclasses.replace(data, files=str(tmp_path / "out"), packing="pad")
  experiment = dataclasses.replace(TINY, data=data)
  assert train(experiment, tmp_path / "run") == 0
  lines = [line for line in read_metrics(tmp_path / "run") if "grad_norm" in line]
  assert lines[-1]["input_faults"] == 1
  assert all(np.isfinite(line["train_bits_per_char"]) for line in lines)
  assert all(0.0 <= line["input_wait_share"] <= 1.0 for line in lines)
  samples = next((tmp_path / "run/samples").glob("final_*")).read_text()
  assert "<|endoftext|>" not in samples, "a sample goes on behind its end"


# Whole, or refused.


def test_a_folder_that_is_not_whole_is_not_read(config, tmp_path):
  prepare(config, tmp_path / "out", shard=5000)
  (tmp_path / "out" / "manifest.json").unlink()
  with pytest.raises(ValueError, match=r"not prepared to its end .*goes on with it"):
    load_dataset(of_folder(config, tmp_path / "out"))
  before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.array_record")}
  prepare(config, tmp_path / "out", shard=5000)
  assert before == {path: path.stat().st_mtime_ns for path in before}, "whole shards were made anew"
  assert check(str(tmp_path / "out")) == []


def test_other_settings_or_text_do_not_go_on_in_a_folder(config, tmp_path):
  prepare(config, tmp_path / "out", shard=5000)
  with pytest.raises(FileExistsError, match="prepared already"):
    prepare(config, tmp_path / "out", shard=5000)
  (tmp_path / "out" / "manifest.json").unlink()
  with pytest.raises(ValueError, match=r"tokenizer: 'bytes:eos' -> 'bytes'"):
    prepare(dataclasses.replace(config, tokenizer="bytes"), tmp_path / "out", shard=5000)
  write_texts(tmp_path, seed=1)
  with pytest.raises(ValueError, match="train-00000: the text is not the one"):
    prepare(config, tmp_path / "out", shard=5000)
  (tmp_path / "else").mkdir()
  (tmp_path / "else" / "thesis.tex").write_text("precious")
  with pytest.raises(FileExistsError, match="holds nothing of ours"):
    prepare(config, tmp_path / "else")
  assert [path.name for path in (tmp_path / "else").iterdir()] == ["thesis.tex"]
  (tmp_path / "else" / "thesis.tex").rename(tmp_path / "else" / "lock")
  with pytest.raises(FileExistsError, match="holds nothing of ours"):
    prepare(config, tmp_path / "else")


def test_killed_preparation_goes_on_and_is_never_taken_for_whole(tmp_path, fault):
  path = write_texts(tmp_path, count=3000)
  arguments = [
    sys.executable, "-m", "sedd_jax.cli.prepare", f"--files={path}", "--workers=2",
    "--tokenizer=bytes:eos", f"--out={tmp_path / 'out'}", "--shard_characters=20000",
  ]  # fmt: skip
  for shards in (1, 30):
    process = subprocess.Popen(arguments, cwd=REPOSITORY)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("train-*.json"))) < shards:
      assert process.poll() is None
      assert time.monotonic() < deadline
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(ValueError, match="not prepared to its end"):
      open_prepared(str(tmp_path / "out"))
  done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert not list((tmp_path / "out").glob("*.partial*"))
  config = DataConfig(files=str(path), tokenizer="bytes:eos")
  straight = prepare(config, tmp_path / "straight", shard=20000)
  assert open_prepared(str(tmp_path / "out")).manifest == straight
  assert check(str(tmp_path / "out")) == []
  fault(
    "`kill -9` of `sedd prepare`", injected=2, result="resumes; result equals a run without a kill"
  )


# Faults.


def test_check_names_every_file_that_is_not_what_was_written(config, tmp_path, fault):
  folder = tmp_path / "out"
  prepare(config, folder, shard=5000)
  flip(folder / "train-00000.array_record", 1000)
  (folder / "train-00001.documents.npy").unlink()
  with (folder / "train-00002.array_record").open("ab") as file:
    file.write(b"x")
  flip(folder / "tokenizer.json", 10)
  (folder / "train-00099.array_record").write_bytes(b"")
  found = check(str(folder))
  for name in ("train-00000.array", "train-00001.doc", "train-00002", "tokenizer", "train-00099"):
    assert sum(name in line for line in found) == 1
  assert len(found) == 5
  for name in ("train-00099.array_record", "manifest.json", "tokenizer.json"):
    (folder / name).unlink()
  prepare(config, folder, shard=5000)
  assert check(str(folder)) == [], "what is damaged is made again"
  fault("damaged files of a prepared corpus", injected=5, result="`--check` names each")


def test_a_changed_manifest_is_refused(config, tmp_path):
  folder = tmp_path / "out"
  prepare(config, folder)
  file = folder / "manifest.json"
  text = file.read_text()
  for changed in (text.replace('"characters": ', '"characters": 1', 1), text[:-40], "[]", "{}"):
    file.write_text(changed)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .*makes it again"):
      open_prepared(str(folder))
  with pytest.raises(FileNotFoundError, match="no folder that sedd prepare made"):
    check(str(tmp_path))


def test_check_says_what_is_wrong_and_exits_with_2(config, tmp_path):
  folder = tmp_path / "out"
  prepare(config, folder)
  done = sedd("prepare", f"--check={folder}")
  assert done.returncode == 0, done.stderr
  assert "is whole" in done.stdout
  flip(folder / "heldout-00000.array_record", 500)
  done = sedd("prepare", f"--check={folder}")
  assert done.returncode == 2
  assert "heldout-00000.array_record is not what was written" in done.stdout


def test_a_shard_of_another_size_is_named_before_training(config, tmp_path, fault):
  folder = tmp_path / "out"
  prepare(config, folder, shard=5000)
  for name in ("train-00001", "train-00003"):
    file = folder / f"{name}.array_record"
    file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(ValueError, match=r"train-00001\.array(.|\n)*train-00003\.array"):
    load_dataset(of_folder(config, folder))
  fault("shards cut short", injected=2, result="both named before training")


def test_a_flipped_bit_in_a_shard_is_named_or_does_not_count(config, tmp_path, fault):
  folder = tmp_path / "out"
  prepare(config, folder, shard=30000)
  good = load_dataset(of_folder(config, folder)).train_rows[0][:]
  flip(folder / "train-00000.array_record", 9000)
  with pytest.raises(ValueError, match=r"train-00000\.array_record: record \d cannot be read"):
    read_all(the_tokens(folder))
  skipping = dataclasses.replace(of_folder(config, folder), on_fault="skip")
  dataset = load_dataset(skipping)
  rows = dataset.train_rows[0][:]
  bad = ~rows.loss_mask
  assert 0 < bad.sum() <= RECORD
  assert good.loss_mask.all()
  np.testing.assert_array_equal(rows.tokens[~bad], good.tokens[~bad])
  assert not rows.tokens[bad].any()
  assert dataset.faults.count >= 1
  assert "train-00000.array_record" in dataset.faults.first[0]
  result = "shard and record named; with `on_fault=skip` only its tokens do not count"
  fault("one flipped bit in a shard", injected=1, result=result)


def read_all(stream):
  return stream.windows(np.arange(0, len(stream), 64), 64)


def test_damage_to_the_end_of_a_shard_costs_that_shard_alone(config, tmp_path, fault):
  """Where the index of its records lies: the file cannot be opened."""
  folder = tmp_path / "out"
  prepare(config, folder, shard=30000)
  good, there = read_all(the_tokens(folder))
  shard = folder / "train-00001.array_record"
  shard.write_bytes(shard.read_bytes()[: -(2**16)] + bytes(2**16))
  with pytest.raises(ValueError, match=r"train-00001\.array_record: record 0 cannot be read"):
    read_all(the_tokens(folder))
  faults = Faults("skip")
  found, readable = read_all(open_prepared(str(folder)).stream("train", faults))
  np.testing.assert_array_equal(found[readable], good[readable])
  assert not found[~readable].any()
  lost = open_prepared(str(folder)).manifest["train"]["shards"][1]["tokens"]
  assert np.sum(~readable & there) == lost
  fault(
    "the index of a shard overwritten",
    injected=1,
    result="the shard is named; other shards are read",
  )


def test_more_shards_than_files_may_be_open(config, tmp_path):
  folder = tmp_path / "out"
  write_texts(tmp_path, count=200)
  prepare(config, folder, shard=500)
  shards = len(open_prepared(str(folder)).manifest["train"]["shards"])
  assert shards > 30
  code = f"""
import resource, sys
import numpy as np
from sedd_jax.data.faults import Faults
from sedd_jax.data.prepared import open_prepared
stream = open_prepared({str(folder)!r}).stream("train", Faults())
resource.setrlimit(resource.RLIMIT_NOFILE, (30, int(sys.argv[1])))
stream.windows(np.arange(0, len(stream), 64), 64)
"""
  subprocess.run([sys.executable, "-c", code, "2000"], check=True, cwd=REPOSITORY)
  done = subprocess.run(
    [sys.executable, "-c", code, "100"], capture_output=True, text=True, cwd=REPOSITORY
  )
  assert f"{shards} shards need {shards + 256} open files, and the system allows 100" in done.stderr


def test_a_full_disk_stops_a_preparation_which_then_goes_on(config, tmp_path, fault):
  folder = tmp_path / "out"
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
  if (done := subprocess.run(mount, capture_output=True, text=True)).returncode:
    pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
  try:
    with pytest.raises(OSError, match=r"train-0000\d cannot be written: .*No space left|No space"):
      prepare(config, folder, shard=5000)
    with pytest.raises(ValueError, match="not prepared to its end"):
      open_prepared(str(folder))
    subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
    made = prepare(config, folder, shard=5000)
    assert made == prepare(config, tmp_path / "straight", shard=5000)
  finally:
    subprocess.run(["umount", str(folder)], check=True)
  fault("full disk in `sedd prepare`", injected=1, result="reported; continues once there is space")


def test_faulty_documents_are_named_or_left_out_and_counted(tmp_path, fault):
  (tmp_path / "a.txt").write_text("good text " * 30)
  (tmp_path / "b.txt").write_text("")
  (tmp_path / "c.txt").write_bytes(b"begins well " * 10 + b"\xff\xfe")
  (tmp_path / "d.jsonl").write_bytes(
    b'{"text": "fine"}\n{"text": "\xff"}\n{"text": "\\ud800"}\n{"b": 1}\n'
  )
  config = DataConfig(files=f"{tmp_path}/*", tokenizer="bytes:eos", length=8)
  with pytest.raises(ValueError, match=r"b\.txt: the file has no text.*on_fault=skip"):
    load_dataset(config)
  dataset = load_dataset(dataclasses.replace(config, on_fault="skip"))
  assert dataset.faults.count == 5, "the text is read several times, and its faults count once"
  summary = describe(dataset.faults.count, dataset.faults.first)
  for name in ("b.txt: the file has no text", "c.txt", "d.jsonl: line 2", "line 3", "line 4"):
    assert name in summary
  manifest = prepare(dataclasses.replace(config, on_fault="skip"), tmp_path / "out")
  assert manifest["train"]["characters"] + manifest["heldout"]["characters"] == 304
  assert manifest["left_out"] == {"count": 5, "first": dataset.faults.first}
  result = "file and line named; with `on_fault=skip` left out and counted"
  fault("an empty file, text that is not UTF-8 (2), half a surrogate, a missing field", injected=5,
        result=result)  # fmt: skip


def test_shards_of_no_text_are_empty():
  assert len(Shards(Path(), [], np.dtype("uint8"), Faults())) == 0


# Datasets of others.


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
  """A dataset of tensorflow-datasets, made here, as array_record."""
  import tensorflow_datasets as tfds
  from etils import epath

  folder = tmp_path_factory.mktemp("tfds")

  class SeddToy(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = epath.Path(folder)

    def _info(self):
      features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
      return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
      return {name: self._generate_examples(name) for name in ("train", "test")}

    def _generate_examples(self, name):
      for i in range(20):
        yield i, {"text": f"{name} document {i:02d}, Grüße"}

  SeddToy(data_dir=folder, file_format="array_record").download_and_prepare()
  return folder


def test_tfds_is_read_without_tensorflow(tfds_folder, monkeypatch):
  import tensorflow_datasets as tfds

  assert "tensorflow" not in sys.modules
  monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tfds_folder), raising=False)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
  config = DataConfig(
    files="tfds:sedd_toy@train", heldout_files="tfds:sedd_toy@test", tokenizer="bytes:eos", length=8
  )
  dataset = load_dataset(config)
  text = Bytes(eos=True).decode(dataset.train_head)
  assert text.count("train document") == 20
  assert "Grüße" in text
  assert "test document 07" in Bytes(eos=True).decode(dataset.heldout_head)
  with pytest.raises(ValueError, match=r"tfds:sedd_toy@train: .*'body'.*it has text"):
    load_dataset(dataclasses.replace(config, text_field="body"))


def test_tfds_builder_that_needs_tensorflow_says_where_to_run_it(monkeypatch):
  import tensorflow_datasets as tfds

  def data_source(*arguments, **options):
    raise ImportError("No module named 'tensorflow'")

  monkeypatch.setattr(tfds, "data_source", data_source)
  with pytest.raises(ImportError, match=r"tfds build lm1b --file_format=array_record"):
    load_dataset(DataConfig(files="tfds:lm1b", tokenizer="bytes"))


def test_unknown_tfds_dataset_says_what_would_do(monkeypatch, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"tfds:no_such_set@train .*array_record"):
    load_dataset(DataConfig(files="tfds:no_such_set@train", tokenizer="bytes"))


def test_hub_dataset_is_streamed(tmp_path):
  pytest.importorskip("datasets", reason="the extra `hf` is not installed")
  for split in ("train", "test"):
    lines = [json.dumps({"body": f"{split} {i}"}) for i in range(9)]
    (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
  config = DataConfig(
    files=f"hf:{tmp_path}", heldout_files=f"hf:{tmp_path}@test", text_field="body",
    tokenizer="bytes:eos", length=8,
  )  # fmt: skip
  assert Bytes(eos=True).decode(load_dataset(config).train_head).startswith("train 0<|endoftext|>")


def test_missing_hub_dataset_is_an_error_without_a_traceback_of_others(tmp_path, monkeypatch):
  pytest.importorskip("datasets", reason="the extra `hf` is not installed")
  with pytest.raises(FileNotFoundError, match=r"hf:.*nothing@train cannot be read"):
    load_dataset(DataConfig(files=f"hf:{tmp_path}/nothing@train", tokenizer="bytes"))
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(ImportError, match=r"sedd-jax\[hf\]"):
    load_dataset(DataConfig(files="hf:some", tokenizer="bytes"))
