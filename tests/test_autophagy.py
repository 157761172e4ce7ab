"""Self-consuming loops: what each generation sees, how a stopped one goes on, the report."""

import dataclasses
import json

import numpy as np
import pytest
from support.command import sedd
from support.experiments import TINY

from sedd_jax.cli.config import config_faults
from sedd_jax.data import load_dataset
from sedd_jax.studies import autophagy
from sedd_jax.studies.autophagy import run_loop
from sedd_jax.studies.loop import GenerationsConfig, Loop
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.operations import Operations

LOOP = dataclasses.replace(
  Loop(**{field.name: getattr(TINY, field.name) for field in dataclasses.fields(TINY)}),
  label="loop",
  train=dataclasses.replace(TINY.train, steps=3),
  report=dataclasses.replace(
    TINY.report, evaluate_every=0, preview_every=0, samples=1, final_blocks=16
  ),
  generations=GenerationsConfig(count=1, rows=40, steps=2),
)


def run(experiment, workdir):
  return run_loop(experiment, workdir, Operations(), lambda text: None)


def seen(workdir, number):
  """Rows of text that a generation was trained on."""
  config = json.loads((workdir / f"gen_{number:03d}" / "config.json").read_text())
  return "".join(open(part).read() for part in config["data"]["files"].split(";"))


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
  """A loop that was stopped in its second generation, and went on."""
  workdir = tmp_path_factory.mktemp("loops") / "loop"
  trained = autophagy.train
  calls = []

  def stopped(*arguments):
    calls.append(arguments[1].name)
    return 143 if len(calls) == 2 else trained(*arguments)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(autophagy, "train", stopped)
    assert run(LOOP, workdir) == 143
  assert len(json.loads((workdir / "evaluation.json").read_text())["rows"]) == 1
  assert run(LOOP, workdir) == 0
  return workdir


def test_each_generation_sees_the_samples_of_the_one_before(loop):
  real = load_dataset(TINY.data)
  first = "".join(real.tokenizer.decode(row) for row in real.train_rows[0][:40].tokens)
  assert seen(loop, 0) == first
  lines = (loop / "gen_000" / "samples.jsonl").read_text().splitlines()
  texts = [json.loads(line)["text"] for line in lines]
  assert len(texts) == 40
  assert seen(loop, 1) == "".join(texts)


def test_rows_are_cut_again_as_they_were_sampled(loop):
  lines = (loop / "gen_000" / "samples.jsonl").read_text().splitlines()
  tokens = np.array([json.loads(line)["tokens"] for line in lines])

  stored = json.loads((loop / "gen_001" / "config.json").read_text())
  tokenizer = load_dataset(TINY.data).tokenizer
  own = load_dataset(Experiment.from_config(stored).data, tokenizer=tokenizer)
  np.testing.assert_array_equal(np.concatenate([part[:].tokens for part in own.train_rows]), tokens)


def test_every_generation_draws_its_own_random_words(loop):
  """Samples of two alike models would be alike otherwise, and `augmented` text repeat itself."""
  folders = [loop / f"gen_{number:03d}" for number in range(2)]
  trained = [json.loads((folder / "config.json").read_text())["seed"] for folder in folders]
  sampled = [
    json.loads((folder / "samples.jsonl").read_text().splitlines()[0])["seed"] for folder in folders
  ]
  assert trained == sampled
  assert trained[0] == LOOP.seed
  assert len(set(trained)) == 2


def test_text_that_would_be_cut_otherwise_is_refused(tmp_path):
  """Samples of bytes need not be UTF-8, and line ends of files become \\n."""
  dos = tmp_path / "dos.jsonl"
  dos.write_text(json.dumps({"text": "a line\r\n" * 400}) + "\n")
  for fields in ({"tokenizer": "bytes"}, {"tokenizer": "chars", "files": str(dos)}):
    experiment = dataclasses.replace(LOOP, data=dataclasses.replace(LOOP.data, **fields))
    with pytest.raises(ValueError, match=r"data\.tokenizer='chars'"):
      run(experiment, tmp_path / fields["tokenizer"])


def test_every_generation_is_judged_on_the_same_real_text(loop):
  report = json.loads((loop / "evaluation.json").read_text())
  assert report["kind"] == "generations"
  assert [row["generation"] for row in report["rows"]] == [0, 1]
  corpora = [
    json.loads((loop / f"gen_{i:03d}" / "config.json").read_text())["data"]["heldout_files"]
    for i in range(2)
  ]
  assert len(set(corpora)) == 1
  for row in report["rows"]:
    own = json.loads((loop / f"gen_{row['generation']:03d}" / "evaluation.json").read_text())
    assert row["bits_per_char_strict"] == own["heldout_bits_per_char_strict"]
    assert 0 < row["distinct_2"] <= 1
    assert row["token_entropy"] > 0


def test_a_loop_of_an_older_version_goes_on(loop):
  """Its settings lack fields that came later; they have their defaults."""
  stored = json.loads((loop / "settings.json").read_text())
  whole = json.dumps(stored)
  del stored["data"]["visibility"], stored["train"]["hold"]
  (loop / "settings.json").write_text(json.dumps(stored))
  assert run(LOOP, loop) == 0
  (loop / "settings.json").write_text(whole)


@pytest.mark.slow
def test_a_finished_loop_takes_more_generations_and_no_other_settings(loop):
  before = json.loads((loop / "evaluation.json").read_text())["rows"]
  more = dataclasses.replace(LOOP, generations=dataclasses.replace(LOOP.generations, count=2))
  assert run(more, loop) == 0
  after = json.loads((loop / "evaluation.json").read_text())["rows"]
  assert after[:2] == before
  assert len(after) == 3
  other = dataclasses.replace(LOOP, generations=dataclasses.replace(LOOP.generations, rows=20))
  with pytest.raises(ValueError, match="generations"):
    run(other, loop)


@pytest.mark.parametrize(
  ("regime", "files"),
  [
    ("synthetic", ["gen_001/samples.txt"]),
    ("augmented", ["text/real_000.txt", "gen_000/samples.txt", "gen_001/samples.txt"]),
    ("fresh", ["text/real_002.txt", "gen_001/samples.txt"]),
  ],
)
def test_what_a_regime_shows_the_third_generation(tmp_path, regime, files):
  experiment = dataclasses.replace(
    LOOP,
    data=dataclasses.replace(LOOP.data, detokenizer="wikitext"),
    generations=dataclasses.replace(LOOP.generations, regime=regime),
  )
  real = load_dataset(TINY.data)
  own = autophagy._generation(experiment, tmp_path, 2, real)
  assert own.data.files == ";".join(str(tmp_path / file) for file in files)
  assert type(own) is Experiment, "an ordinary run"
  assert own.data.detokenizer == "none", "it was applied when the text was read"
  for number in (0, 2):
    file = tmp_path / "text" / f"real_{number:03d}.txt"
    if str(file) in own.data.files:
      rows = real.train_rows[0][np.arange(40 * number, 40 * (number + 1))].tokens
      assert file.read_text() == "".join(real.tokenizer.decode(row) for row in rows)


@pytest.mark.slow
def test_the_command_runs_a_loop_of_an_autoregressive_model(tmp_path):
  fields = {
    "data.length": 32, "model.width": 16, "model.blocks": 1, "model.heads": 2,
    "train.steps": 3, "train.batch_size": 4, "report.final_blocks": 16,
    "generations.count": 1, "generations.rows": 20,
  }  # fmt: skip
  arguments = [f"--config.{name}={value}" for name, value in fields.items()]
  done = sedd(
    "train", "--config=configs/autophagy.py:ar,fresh", f"--workdir={tmp_path / 'loop'}", *arguments
  )
  assert done.returncode == 0, done.stderr
  assert "generation 1: bound" in done.stdout
  shown = sedd("report", str(tmp_path / "loop"))
  assert shown.returncode == 0, shown.stderr
  assert "Generations" in shown.stdout


@pytest.mark.parametrize(
  ("changes", "workdir", "message"),
  [
    (dict(rows=10**7), "loop", "generations.rows=10000000"),
    (dict(), "a,b", "holds ,"),
  ],
)
def test_loops_that_cannot_be_are_refused(tmp_path, changes, workdir, message):
  experiment = dataclasses.replace(
    LOOP, generations=dataclasses.replace(LOOP.generations, **changes)
  )
  with pytest.raises(ValueError, match=message):
    run(experiment, tmp_path / workdir)


def test_settings_are_checked():
  with pytest.raises(ValueError, match=r"generations\.regime='other'"):
    GenerationsConfig(regime="other")
  with pytest.raises(ValueError, match=r"generations\.temperature=0\.0"):
    GenerationsConfig(temperature=0.0)


def test_any_config_file_takes_generations_and_older_runs_have_stored_them():
  file = "--config=configs/quickstart.py"
  assert config_faults([file, "--config.generations.count=2"])[0] == []
  (fault,), _ = config_faults([file, "--config.generations.regime=other"])
  assert "generations.regime='other'" in fault
  assert Experiment.from_config({"generations": {"count": 0}, "seed": 3}) == Experiment(seed=3)
