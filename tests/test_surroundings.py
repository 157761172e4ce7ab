"""What surrounds a run: standard streams, devices, memory, config files, folders of weights."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.command import sedd
from support.networks import random_params, small_network

import sedd_jax
from sedd_jax.data import Bytes, Chars
from sedd_jax.diffusion import Absorbing, LogLinear
from sedd_jax.interop.export import convert, export
from sedd_jax.interop.weights import read_weights
from sedd_jax.training.metrics import metrics_faults, read_metrics

CHARACTERS = "abcdef±"
POINTER = (
  "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22\nsize 1\n"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  network = small_network(Absorbing(len(CHARACTERS)))
  model = sedd_jax.Model(
    network=network,
    params=random_params(network),
    noise=LogLinear(),
    length=12,
    tokenizer=Chars(CHARACTERS),
    info={"source": "somewhere", "origin": "toy"},
  )
  folder = tmp_path_factory.mktemp("exports") / "toy"
  export(model, folder)
  return folder


@pytest.fixture
def folder(exported, tmp_path):
  return shutil.copytree(exported, tmp_path / "toy")


def outside(*arguments, stdout=subprocess.PIPE, **env):
  """A verb in a process of its own, where its streams and devices are real."""
  return subprocess.run(
    [sys.executable, "-m", "sedd_jax.cli.main", *map(str, arguments)],
    stdout=stdout,
    stderr=subprocess.PIPE,
    env={**os.environ, **env},
    text=True,
    encoding="utf-8",
    timeout=120,
    check=False,
  )


# Streams.


def test_an_encoding_that_lacks_a_character_shows_an_escape(exported):
  """Samples may have any character, and a run prints ± itself."""
  sample = ("sample", f"--checkpoint={exported}", "--num=2", "--steps=4", "--prefix=±")
  done = outside(*sample, PYTHONIOENCODING="ascii", JAX_PLATFORMS="cpu")
  assert (done.returncode, "\\xb1" in done.stdout) == (0, True), done
  lines = outside(*sample, "--json", PYTHONIOENCODING="latin-1:strict", JAX_PLATFORMS="cpu")
  texts = [json.loads(line)["text"] for line in lines.stdout.splitlines()]
  assert len(texts) == 2
  assert all(text.startswith("±") for text in texts)


@pytest.mark.parametrize("arguments", [["--help"], ["sample", "--num=100", "--batch=1"]])
def test_a_reader_that_leaves_is_no_error(exported, arguments):
  if arguments[0] == "sample":
    arguments = [*arguments, f"--checkpoint={exported}", "--steps=2"]
  read, write = os.pipe()
  os.close(read)
  try:
    done = outside(*arguments, stdout=write, JAX_PLATFORMS="cpu")
  finally:
    os.close(write)
  assert (done.returncode, "rror" in done.stderr) == (0, False), done
  # One batch is made, not a hundred.
  assert "100 calls" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_changes_no_exit_code(exported, closed):
  for arguments, code in (
    (["sample", "--checkpont=x"], 2),
    (["sample", f"--checkpoint={exported}", "--steps=2"], 0),
  ):
    done = subprocess.run(
      [
        "sh",
        "-c",
        f'exec "$@" {closed}',
        "",
        sys.executable,
        "-m",
        "sedd_jax.cli.main",
        *arguments,
      ],
      timeout=120,
      check=False,
    )
    assert done.returncode == code


# Devices and memory.


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_here_is_named(exported, platform):
  done = outside("sample", f"--checkpoint={exported}", JAX_PLATFORMS=platform)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith(f"error: JAX_PLATFORMS={platform}: "), line


BIG = "100000000"


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    (["train", "--config.train.batch_size=" + BIG], "train.batch_size=" + BIG),
    (["sample", "--num=" + BIG, "--batch=" + BIG], "batch=" + BIG),
  ],
)
def test_a_batch_beyond_memory_is_refused_before_anything_is_made(
  exported, tmp_path, arguments, named
):
  verb, *rest = arguments
  more = {
    "train": ["--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}"],
    "sample": [f"--checkpoint={exported}"],
  }
  done = sedd(verb, *more[verb], *rest)
  assert done.returncode == 2
  assert re.search(rf"error: {named}: [\d,]+ rows at a time need at least [\d,.]+ GiB", done.stderr)
  assert not (tmp_path / "run").exists()


def test_a_row_beyond_memory_is_told_from_many(tmp_path):
  done = sedd(
    "train", "--config=configs/quickstart.py", f"--workdir={tmp_path}/run",
    "--config.data.length=1000000000",
  )  # fmt: skip
  assert (done.returncode, "not one fits" in done.stderr) == (2, True), done.stderr


# Config files.


@pytest.mark.parametrize(
  ("text", "why"),
  [
    ("def get_config():\n  return {'train': {'steps': 5}}", "ConfigDict, not dict"),
    ("def get_config():\n  pass", "ConfigDict, not NoneType"),
    ("x = 1", "it must define get_config()"),
    ("get_config = 1", "it must define get_config()"),
    ("def get_config():\n  return undefined", "NameError, line 2"),
    ("def get_config(:", "SyntaxError"),
  ],
)
def test_a_config_file_that_is_none_is_named(tmp_path, text, why):
  file = tmp_path / "config.py"
  file.write_text(text)
  done = sedd("train", f"--config={file}", f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: --config={file}: ")
  assert why in done.stderr


# Metrics.


def test_damaged_lines_of_metrics_are_named_and_left_out(tmp_path):
  good = b'{"step": 1, "time": 2.5}'
  bad = [
    b"[1]",
    b'"x"',
    b"null",
    b'{"a": 1}',
    b"\xff\xfe",
    b'{"step": "x"}',
    b'{"step": 1, "a": []}',
  ]
  cut = b'{"step": 3, "trai'
  (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good, *bad, cut, good.replace(b"1", b"2")]))
  assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
  faults = metrics_faults(tmp_path)
  assert len(faults) == len(bad)
  for number, fault in enumerate(faults, start=2):
    assert f"metrics.jsonl, line {number} is " in fault


# Folders of weights.


def split(folder, names_of=lambda names: (names[::2], names[1::2])):
  """Cuts model.safetensors into files with an index, as the hub's libraries do."""
  tensors = load_file(folder / "model.safetensors")
  index = {}
  for number, names in enumerate(names_of(sorted(tensors)), start=1):
    file = f"model-{number:05d}-of-00002.safetensors"
    save_file({name: tensors[name] for name in names}, folder / file)
    index |= dict.fromkeys(names, file)
  (folder / "model.safetensors").unlink()
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
  return folder


def test_weights_in_several_files_are_those_of_one(folder, exported):
  split(folder)
  whole, parts = read_weights(exported), read_weights(folder)
  assert whole.keys() == parts.keys()
  for name, tensor in whole.items():
    np.testing.assert_array_equal(parts[name], tensor)
  tokens = np.zeros((1, 12), np.int32)
  np.testing.assert_array_equal(
    sedd_jax.load(folder).log_score(tokens, 0.5), sedd_jax.load(exported).log_score(tokens, 0.5)
  )
  described = [json.loads(sedd("info", x, "--json").stdout) for x in (folder, exported)]
  assert described[0]["parameters"] == described[1]["parameters"]


def test_a_missing_file_of_several_is_named(folder):
  split(folder)
  (folder / "model-00002-of-00002.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match="model-00002-of-00002"):
    sedd_jax.load(folder)


@pytest.mark.parametrize(
  ("index", "why"),
  [
    ("{", "damaged"),
    ("[]", "damaged"),
    ('{"weight_map": {}}', "must name files"),
    ('{"weight_map": {"a": "../model.safetensors"}}', "of its own folder"),
    ('{"weight_map": {"a": 1}}', "damaged"),
  ],
)
def test_an_index_that_is_none_is_named(folder, index, why):
  split(folder)
  (folder / "model.safetensors.index.json").write_text(index)
  with pytest.raises(ValueError, match=rf"index\.json.* {why}"):
    sedd_jax.load(folder)


def test_a_tensor_in_two_files_is_named(folder):
  split(folder, lambda names: (names, names[:1]))
  with pytest.raises(ValueError, match="is in another file too"):
    sedd_jax.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("verb", ["sample", "info"])
def test_a_pointer_of_git_lfs_is_called_one(folder, name, verb):
  (folder / name).write_text(POINTER)
  done = sedd(verb, f"--checkpoint={folder}" if verb == "sample" else folder)
  assert done.returncode == 2
  assert f"{folder / name} is a Git LFS pointer" in done.stderr


def test_a_pointer_is_no_text(tmp_path):
  (tmp_path / "text.txt").write_text(POINTER)
  done = sedd(
    "prepare", f"--files={tmp_path}/text.txt", "--tokenizer=bytes", f"--out={tmp_path}/out"
  )
  assert done.returncode == 2
  assert f"{tmp_path}/text.txt is a Git LFS pointer" in done.stderr
  assert not (tmp_path / "out").exists()


def test_heads_are_checked_by_the_rotary_frequencies(tmp_path, folder):
  original = tmp_path / "original"
  convert(folder, original, layout="original")
  config = json.loads((original / "config.json").read_text())
  heads = config["model"]["n_heads"]
  config["model"]["n_heads"] = 2 * heads
  (original / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=f"n_heads={2 * heads} .*n_heads should be {heads}$"):
    sedd_jax.load(original)


def test_gpt2_is_recognised_without_a_model_type(shared_path, tmp_path):
  folder = shutil.copytree(shared_path("golden/gpt2_tiny"), tmp_path / "gpt2")
  before = sedd_jax.load(folder)
  config = json.loads((folder / "config.json").read_text())
  del config["model_type"]
  (folder / "config.json").write_text(json.dumps(config))
  tokens = np.zeros((1, 4), np.int32)
  np.testing.assert_array_equal(sedd_jax.load(folder).logits(tokens), before.logits(tokens))
  assert json.loads(sedd("info", folder, "--json").stdout)["kind"] == "weights of GPT-2"


# Replays.


def test_a_replay_tells_the_steps_that_were_asked_for(exported, tmp_path):
  """Its frames are one more: the last step removes the remaining noise."""
  trace = tmp_path / "trace.txt"
  assert sedd("sample", f"--checkpoint={exported}", "--steps=4", f"--trace={trace}").returncode == 0
  assert ", steps 4, " in trace.read_text().replace("\n", " ")


# Preparing.


def test_a_prepare_that_failed_blocks_no_other(tmp_path):
  text, out = tmp_path / "text.txt", tmp_path / "out"
  text.write_text("some text\n\nand more of it\n\n" * 20)
  prepare = ("prepare", f"--files={text}", f"--out={out}", "--workers=1")
  for wrong in ("--tokenizer=gpt2:nowhere", "--tokenizer=gpt", "--text_field=x --files=y"):
    assert sedd(*prepare, *wrong.split()).returncode == 2
  assert sedd(*prepare, "--tokenizer=bytes").returncode == 0
  assert json.loads((out / "manifest.json").read_text())["settings"]["tokenizer"] == "bytes"


@pytest.mark.parametrize(
  ("flags", "note"),
  [
    (["--tokenizer=bytes"], "tokenizer='bytes' is not used: "),
    (["--tokenizer_eos=a"], "tokenizer_eos='a' is not used: "),
    ([], None),
  ],
)
def test_a_tokenizer_that_is_not_used_is_told(exported, flags, note):
  done = sedd("sample", f"--checkpoint={exported}", "--steps=2", *flags)
  assert done.returncode == 0
  told = [line for line in done.stderr.splitlines() if "is not used" in line]
  assert len(told) == (note is not None)
  assert all(line.startswith(note) for line in told)


def test_a_tokenizer_that_is_the_weights_own_is_fine(tmp_path):
  network = small_network(Absorbing(257))
  tokenizer = Bytes(eos=True)
  model = sedd_jax.Model(
    network=network, params=random_params(network), noise=LogLinear(), length=8, tokenizer=tokenizer
  )
  export(model, tmp_path / "bytes")
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    sedd_jax.load(tmp_path / "bytes", tokenizer="bytes:eos", tokenizer_eos="")
  with pytest.raises(ValueError, match="tokenizer='nonsense' must be"):
    sedd_jax.load(tmp_path / "bytes", tokenizer="nonsense")
