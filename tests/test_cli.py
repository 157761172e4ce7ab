"""The command line, as a user types it."""

import json
import re
import subprocess
import sys

import jax
import pytest
from support.command import sedd
from support.experiments import TINY

from sedd_jax.cli import main as cli
from sedd_jax.files.shipped import config_names
from sedd_jax.training.loop import train

QUICKSTART = "--config=configs/quickstart.py"


@pytest.fixture(autouse=True)
def here(monkeypatch, pytestconfig):
  """Where the paths of configs are true; and jax's settings as they were."""
  monkeypatch.chdir(pytestconfig.rootpath)
  platforms = jax.config.jax_platforms
  yield
  jax.config.update("jax_platforms", platforms)


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
  ("arguments", "messages"),
  [
    (["trian"], ["did you mean 'train'"]),
    (
      ["train"],
      ["--config and --workdir are missing", "sedd train --config=quickstart --workdir"],
    ),
    (["train", QUICKSTART], ["--workdir is missing"]),
    (["train", QUICKSTART, "--workdir=gs://x"], ["must be a path of a file system"]),
    (["train", "--config=configs/none.py"], ["--config=configs/none.py: there is no file"]),
    (["train", "--config=quikstart"], ["--config=quikstart: there is no config", "'quickstart'?"]),
    (["sweep", "--config=quikstart"], ["--config=quikstart: there is no config", "'quickstart'?"]),
    (["sweep", "--config=peers:mdlm"], ["--root is missing", "sedd sweep --config=quickstart"]),
    (["train", "--config=configs/text8.py:mask"], ["'mask' must be 'absorb' or 'uniform'"]),
    (["train", QUICKSTART, "--config.seed=-1"], ["seed=-1 must lie in [0, 2^32)"]),
    (
      [
        *("train", QUICKSTART, "--config.model.widht=3", "--config.train.step=5", "--worfdir=x"),
        *("--config.model.heads=x", "--config.optimizer.ema=2", "stray", "--hang=3"),
      ],
      [
        "7 faults:",
        "config.model.widht is unknown: did you mean 'width'?",
        "config.train.step is unknown: did you mean 'steps'?",
        "config.model.heads='x' must be of type int, like 12",
        "optimizer.ema=2.0 must lie in [0, 1)",
        "unknown flag --worfdir: did you mean --workdir?",
        "unexpected argument 'stray'",
        "unknown flag --hang: did you mean --hang_seconds?",
      ],
    ),
    (["train", QUICKSTART, "--workdir=x", "--hang_seconds=x"], ["flag --hang_seconds=x"]),
    (["plan", QUICKSTART, "--config.model.widht=3"], ["did you mean 'width'"]),
    (["evaluate"], ["--checkpoint is missing"]),
    (["sample", "--checkpiont=x"], ["unknown flag --checkpiont: did you mean --checkpoint?"]),
    (["sample", "--num=many"], ["flag --num=many"]),
    (["sample", "runs/x"], ["unexpected argument 'runs/x'"]),
    (["sample", "--checkpoint=/no/such/run"], ["does not exist"]),
    (["sample", "--checkpoint=x", "--steps=0"], ["steps=0 must be at least 1"]),
    (["sample", "--checkpoint=x", "--sampler=tweedy"], ["did you mean 'tweedie'"]),
    (["sample", "--checkpoint=x", "--trace=x.mp4"], [".gif"]),
    (["sample", "--checkpoint=x", "--trace=x.gif", "--num=65"], ["--num=64 at most"]),
    (["sample", "--checkpoint=x", "--out=x.jsonl", "--json"], ["--out excludes --json"]),
    (["sample", "--checkpoint=x", "--out=x.txt"], ["must end in .jsonl"]),
    (["evaluate", "--checkpoint=x", "--num_times=3"], ["must be even"]),
    (["export", "--out=x"], ["--checkpoint is missing", "sedd export --checkpoint=runs/quickst"]),
    (["info"], ["--checkpoint is missing", "sedd info runs/quickstart"]),
    (["info", "/no/such/run"], ["is no folder"]),
    (["info", "tests", "more"], ["unexpected argument 'more'"]),
  ],
  ids=lambda value: " ".join(value)[:60],
)
def test_bad_input_is_an_error_without_a_traceback(arguments, messages):
  done = sedd(*arguments)
  assert done.returncode == 2
  assert done.stdout == ""
  for message in messages:
    assert message in done.stderr
  assert "Traceback" not in done.stderr
  assert done.stderr.count("error: ") <= 1


def test_a_process_of_its_own_says_the_same():
  """As the console command runs it, with everything that Python and absl add."""
  command = [sys.executable, "-m", "sedd_jax.cli.main", "train", QUICKSTART, "--config.seed=x"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stderr == "error: config.seed='x' must be of type int, like 0\n"


def test_debug_shows_the_traceback_of_an_error():
  with pytest.raises(FileNotFoundError, match="does not exist"):
    sedd("sample", "--checkpoint=/no/such/run", "--debug")


def test_a_bug_shows_its_traceback_and_asks_for_a_report(monkeypatch):
  monkeypatch.setattr("sedd_jax.load", lambda *_, **__: {}["key"])
  done = sedd("sample", "--checkpoint=x")
  assert done.returncode == 1
  assert "Traceback" in done.stderr
  assert done.stderr.endswith(
    "error: KeyError: a bug of sedd_jax. Please report it with the lines above\n"
  )


def test_a_full_device_is_no_bug(monkeypatch):
  def fails(*_, **__):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nDetails")

  monkeypatch.setattr("sedd_jax.load", fails)
  done = sedd("sample", "--checkpoint=x")
  assert done.returncode == 1
  assert (
    "memory is not enough (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.)" in done.stderr
  )
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb_is_short_and_has_examples(verb, monkeypatch):
  monkeypatch.setenv("COLUMNS", "80")
  done = sedd(verb, "--help")
  assert (done.returncode, done.stderr) == (0, "")
  usage, _, listed = done.stdout.partition("\nflags:\n")
  assert f"\n  sedd {verb} " in usage
  assert "--[no]debug" in listed
  assert "--pdb_post_mortem" not in listed, "absl's own"
  assert len(done.stdout.split("\n")) < 110
  assert all(len(line) <= 80 for line in listed.split("\n"))
  defined = re.findall(r"^  --(?:\[no\])?(\w+)", listed, re.MULTILINE)
  assert len(defined) == len(set(defined)) > 3


@pytest.mark.parametrize("verb", ["train", "plan", "sweep"])
def test_help_names_the_configs(verb, monkeypatch):
  monkeypatch.setenv("COLUMNS", "80")
  listed = " ".join(sedd(verb, "--help").stdout.split())
  assert ", ".join(config_names()) in listed


def test_info_prints_a_table_or_json(run):
  done = sedd("info", run)
  assert done.returncode == 0, done.stderr
  assert f"{run}: run, finished: saved at step 8 of 8" in done.stdout
  assert re.search(r"parameters    9,\d{3}\n", done.stdout)
  assert "language reference" in done.stdout
  assert "train.steps = 8" not in done.stdout
  assert "train.steps = 8" in sedd("info", run / "checkpoints" / "4", "--all").stdout
  found = json.loads(sedd("info", f"--checkpoint={run}", "--json").stdout)
  assert (found["kind"], found["step"]) == ("run", 8)


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
  assert done.returncode == 2, done.stderr
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
  assert all(f"\n  {verb:<9} " in printed for verb in cli.VERBS)
