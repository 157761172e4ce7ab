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
    (["sample", "--checkpoint=x", "--steps=0"], "steps=0 must be at least 1"),
    (["sample", "--checkpoint=x", "--sampler=tweedy"], "did you mean 'tweedie'"),
    (["sample", "--checkpoint=x", "--trace=x.mp4"], ".gif"),
    (["sample", "--checkpoint=x", "--trace=x.gif", "--num=65"], "--num=64 at most"),
    (["sample", "--checkpoint=x", "--out=x.jsonl", "--json"], "--out excludes --json"),
    (["sample", "--checkpoint=x", "--out=x.txt"], "must end in .jsonl"),
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


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--prefix=abcdef", "--length=4"], "prefix 'abcdef' with suffix '' takes 6 tokens"),
    (["--prefix=a", "--template=b[[*]]"], "only one of them"),
    (["--template=abc"], "leaves nothing to fill in"),
    (["--devices=9999"], "--devices=9999"),
    (["--sampler=first_hitting", "--steps=3"], "sets its own times"),
    (["--num=0"], "num=0"),
  ],
  ids=str,
)
def test_samples_that_make_no_sense_are_refused(run, arguments, message):
  done = sedd("sample", f"--checkpoint={run}", *arguments)
  assert done.returncode == 2
  assert message in done.stderr
  assert "Traceback" not in done.stderr


def test_samples_go_into_a_file_and_a_replay(run, tmp_path):
  lines = tmp_path / "templates.txt"
  lines.write_text("def [[4]]:\n\n[[3]] = [[*]]\n")
  out, trace = tmp_path / "samples.jsonl", tmp_path / "replay.html"
  common = ("sample", f"--checkpoint={run}", "--steps=3", "--sampler=ancestral")
  done = sedd(*common, f"--templates={lines}", "--num=3", "--batch=2", f"--out={out}")
  assert done.returncode == 0, done.stderr
  found = [json.loads(line) for line in out.read_text().splitlines()]
  assert [line["index"] for line in found] == list(range(6))
  assert [len(line["text"]) for line in found] == [9] * 3 + [32] * 3
  done = sedd(*common, "--prefix=def ", "--num=2", f"--trace={trace}")
  assert done.returncode == 0, done.stderr
  assert "5 frames" in done.stdout
  assert "<html" in trace.read_text()

  done = sedd(*common, "--prefix=def ", "--num=2", "--json")
  printed = [json.loads(line) for line in done.stdout.splitlines()]
  assert [line["index"] for line in printed] == [0, 1]
  assert all(line["text"].startswith("def ") for line in printed)


def test_help_lists_every_verb(capsys, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["sedd", "--help"])
  cli.main()
  printed = capsys.readouterr().out
  assert all(f"sedd {verb}" in printed for verb in cli.VERBS)
