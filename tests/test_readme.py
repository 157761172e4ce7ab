"""Every command of the README, as a reader types it, with sizes that take seconds."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from support.command import sedd
from support.networks import random_params, small_network
from support.paths import REPOSITORY

import sedd_jax
from sedd_jax.data.library_tokenizer import LibraryTokenizer
from sedd_jax.diffusion import Absorbing, LogLinear

TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# What is added to commands, by the verb, so that they take seconds.
SMALL = {
  "train": [
    *("--config.train.steps=4", "--config.train.batch_size=8", "--config.model.width=16"),
    *("--config.model.blocks=1", "--config.model.heads=2", "--config.model.cond_dim=8"),
    *("--config.data.tokenizer=bytes:eos", "--config.report.final_blocks=2"),
    *("--config.report.preview_steps=2", "--config.report.samples=1"),
  ],
  "sample": ["--steps=2"],
  "evaluate": ["--num_times=2"],
}
ELSEWHERE = ("demo", "plan", "sweep")
DOWNLOADED = "louaaron/sedd-small"


def blocks(language):
  fenced = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
  return [block for name, block in fenced if name == language]


def commands():
  """The commands in order, without comments and without the installation before them."""
  for block in blocks(""):
    for line in block.replace("\\\n", " ").splitlines():
      words = shlex.split(line, comments=True)
      yield words[words.index("&&") + 1 :] if "&&" in words else words


COMMANDS = [words for words in commands() if words]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Where the paths of the README are true; what is downloaded lies there too."""
  from tokenizers import Tokenizer, models

  here = tmp_path_factory.mktemp("readme")
  for name in ("configs", "launch"):
    (here / name).symlink_to(REPOSITORY / name)
  (here / "texts").mkdir()
  (here / "texts" / "a.txt").write_text("A text of one's own. " * 2000)
  library = Tokenizer(models.WordLevel({f"w{i}": i for i in range(7)}, unk_token="w0"))
  library.save(str(here / "gpt2.json"))
  network = small_network(Absorbing(7))
  model = sedd_jax.Model(
    network=network,
    params=random_params(network),
    noise=LogLinear(),
    length=12,
    tokenizer=LibraryTokenizer.from_file(here / "gpt2.json"),
  )
  weights = sedd_jax.export(model, here / DOWNLOADED, layout="original")
  (weights / "sedd_tokenizer.json").unlink()
  return here


def test_commands_run_in_their_order(folder, monkeypatch):
  monkeypatch.chdir(folder)
  ran = set()
  for words in COMMANDS:
    if words[0] != "sedd" or words[1] in ELSEWHERE:
      continue
    small = [word.replace("=gpt2", "=gpt2.json") for word in words[1:]]
    done = sedd(*small, *SMALL.get(words[1], []))
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    ran.add(words[1])
  assert ran == {"train", "sample", "evaluate", "report", "convert"}
  assert (folder / "replay.html").is_file()
  assert (folder / "report.html").is_file()
  for block in blocks("python"):
    code = re.sub(r"(steps|num_times)=64", r"\1=2", block)
    done = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert np.isfinite(float(done.stdout.splitlines()[-1].strip("[]").split()[0]))


def test_others_are_run_elsewhere():
  """By the slow tests below, tests/test_demo.py, tests of plans (-m tpu_plugin), and .ci/run."""
  others = [words for words in COMMANDS if words[0] != "sedd" or words[1] in ELSEWHERE]
  assert [words[:2] for words in others] == [
    ["sedd", "demo"],
    ["pytest"],
    ["sedd", "sweep"],
    ["launch/local.sh", "--processes=2"],
    ["sedd", "plan"],
  ]


@pytest.mark.slow
def test_two_processes_run_as_the_readme_says(folder):
  (words,) = [words for words in COMMANDS if words[0] == "launch/local.sh"]
  done = subprocess.run(
    [*words, *SMALL["train"]], cwd=folder, capture_output=True, text=True, timeout=300, check=False
  )
  assert done.returncode == 0, done.stderr
  assert (folder / "runs" / "two" / "evaluation.json").is_file()


@pytest.mark.slow
def test_a_sweep_runs_as_the_readme_says(folder):
  (words,) = [words for words in COMMANDS if words[:2] == ["sedd", "sweep"]]
  small = [flag for flag in SMALL["train"] if "model.width" not in flag]
  done = subprocess.run(
    [sys.executable, "-m", "sedd_jax.cli.main", *words[1:], *small],
    cwd=folder, capture_output=True, text=True, timeout=600, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert len((folder / "runs" / "sweep" / "results.csv").read_text().splitlines()) == 5


def test_links_lead_somewhere():
  for link in re.findall(r"\]\(([^)#]+)", TEXT):
    assert link.startswith("https://") or (REPOSITORY / link).exists(), link
