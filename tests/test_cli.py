"""The command line, as a user types it."""

import json
import subprocess
import sys

import pytest
from test_loop import TINY

from sedd_jax.cli import main as cli
from sedd_jax.training.loop import train


def sedd(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "sedd_jax.cli.main", *arguments], capture_output=True, text=True
  )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "cli"
  assert train(TINY, workdir) == 0
  return workdir


def test_evaluate_prints_one_json_object(run):
  done = sedd("evaluate", f"--checkpoint={run}", "--num_times=4", "--json")
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  assert report["step"] == 8
  for name in ("bits_per_char_paper", "bits_per_char_strict"):
    assert 3.0 < report[name] < 9.0
    assert 0.0 < report[f"{name}_stderr"] < 0.5
  assert report["bits_per_char_paper"] <= report["bits_per_char_strict"]
  assert report["bigram_bits_per_char"] < report["unigram_bits_per_char"]


def test_sample_prints_the_prefix_and_the_suffix(run):
  arguments = ("sample", f"--checkpoint={run}", "--num=2", "--steps=3", "--length=20")
  done = sedd(*arguments, "--prefix=def ", "--suffix=):")
  assert done.returncode == 0, done.stderr
  texts = done.stdout.split("--- sample ")[1:]
  assert len(texts) == 2
  for text in texts:
    body = text.split("\n", 1)[1].removesuffix("\n")
    assert body.startswith("def ")
    assert body.endswith("):")
    assert len(body) == 20


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["trian"], "did you mean 'train'"),
    (["train"], "--config is missing"),
    (["sample"], "--checkpoint is missing"),
    (["sample", "--checkpiont=x"], "Did you mean: checkpoint"),
    (["sample", "--checkpoint=/no/such/run"], "does not exist"),
    (["sample", "--checkpoint=x", "--steps=0"], "--steps=0 must be at least 1"),
    (["evaluate", "--checkpoint=x", "--num_times=3"], "must be even"),
    (["train", "--config=configs/quickstart.py", "--config.model.widht=3"], 'Did you mean "width"'),
  ],
  ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_an_error_without_a_traceback(arguments, message):
  done = sedd(*arguments)
  assert done.returncode != 0
  assert message in done.stderr + done.stdout
  assert "Traceback" not in done.stderr


def test_prompt_longer_than_the_length_is_refused(run):
  done = sedd("sample", f"--checkpoint={run}", "--prefix=abcdef", "--length=4")
  assert done.returncode == 2
  assert "--prefix (6 tokens)" in done.stderr


def test_help_lists_every_verb(capsys, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["sedd", "--help"])
  cli.main()
  printed = capsys.readouterr().out
  assert all(f"sedd {verb}" in printed for verb in cli.VERBS)
