"""Whole runs: what they leave behind, and that nothing is lost when they are stopped."""

import dataclasses
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from support.experiments import TINY, with_steps
from support.runs import command, final_state, load_state, wait_for

import sedd_jax
from sedd_jax.data import DataConfig
from sedd_jax.parallel import MeshConfig, make_mesh
from sedd_jax.training import rundir
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.loop import train
from sedd_jax.training.metrics import MetricsWriter, read_metrics


def compilations(caplog):
  """How often each of the loop's programs was compiled, by name."""
  found = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
  return {name: found.count(name) for name in ("train_step", "terms", "draw")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A finished tiny run."""
  workdir = tmp_path_factory.mktemp("runs") / "tiny"
  assert train(TINY, workdir) == 0
  return workdir


def test_run_directory_holds_all_that_it_should(run):
  assert Experiment.from_config(json.loads((run / "config.json").read_text())) == TINY
  assert json.loads((run / "versions.json").read_text())["jax"] == jax.__version__
  assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
  assert list((run / "tensorboard").glob("events.*"))
  assert {path.name for path in (run / "samples").iterdir()} == {
    "step_00000004.txt", "final_00000008.txt",
  }  # fmt: skip
  assert {int(path.name) for path in (run / "checkpoints").iterdir()} == {4, 8}
  lines = read_metrics(run)
  assert [line["step"] for line in lines if "grad_norm" in line] == [2, 4, 6, 8]
  assert [line["step"] for line in lines if "heldout_bits_per_char_strict" in line] == [4, 8]
  assert not list(run.rglob("*.partial"))


def test_every_metric_is_documented(run):
  document = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
  documented = set(re.findall(r"^\| `(\w+)` \|", document.read_text(), re.MULTILINE))
  written = {key for line in read_metrics(run) for key in line}
  assert written <= documented
  # What a CPU has no measure of, and keys that other settings give.
  assert {"mfu", "step_seconds", "skipped_steps", "input_faults"} <= documented


def test_metrics_report_the_loss_before_each_update(run):
  """At its zero start the scaled network is the uniform law: about log2 V bits per character."""
  first = next(x for x in read_metrics(run) if "train_bits_per_char" in x)
  assert first["train_bits_per_char"] == pytest.approx(np.log2(103), rel=0.35)
  assert first["learning_rate"] == pytest.approx(1e-3 * 2 / 5)


@pytest.mark.slow
def test_finished_run_resumed_changes_nothing(run):
  before = final_state(run)
  assert train(TINY, run) == 0
  jax.tree.map(np.testing.assert_array_equal, final_state(run), before)


def test_loaded_run_samples_and_refuses_unknown_characters(run):
  model = sedd_jax.load(run)
  texts = model.decode(model.sample(2, steps=3))
  assert [len(text) for text in texts] == [32, 32]
  assert model.info["step"] == 8
  with pytest.raises(ValueError, match="東"):
    model.encode("東")


def test_loaded_run_uses_the_moving_average(run):
  model = sedd_jax.load(run)
  _, state = final_state(run)
  jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, model.params), state.ema)
  difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.ema, state.params)
  assert max(jax.tree.leaves(difference)) > 0


def test_a_checkpoint_restores_onto_another_mesh(run):
  """Saved on four replicas; the tables of 104 states are padded to 128 on any mesh."""
  network = sedd_jax.load(run).network
  want = final_state(run)[1]
  for axes in (dict(replica=1, fsdp=4), dict(replica=1, fsdp=2, tensor=2)):
    mesh = make_mesh(MeshConfig(**axes))
    state = load_state(run, 8, network, TINY, mesh)
    kernel = state.params["ends"]["output"]["kernel"]
    assert kernel.shape == (16, 128)
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), state.params, want.params
    )


def test_a_field_that_a_stored_config_lacks_has_its_default(run, tmp_path):
  workdir = tmp_path / "old"
  workdir.mkdir()
  config = json.loads((run / "config.json").read_text())
  del config["optimizer"]["weight_decay"]
  (workdir / "config.json").write_text(json.dumps(config))
  assert rundir.find_run(workdir, TINY) == TINY


def test_a_run_killed_before_its_first_file_was_whole_can_start_again(tmp_path):
  (tmp_path / "config.json.partial").write_text("{")
  assert rundir.find_run(tmp_path, TINY) is None


def test_metrics_survive_a_line_that_a_kill_cut_short(tmp_path):
  with MetricsWriter(tmp_path, 1) as metrics:
    metrics.write(1, {"loss": 1.0})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 2, "lo')
  with MetricsWriter(tmp_path, 2) as metrics:
    metrics.write(2, {"loss": 2.0})
  assert [line["loss"] for line in read_metrics(tmp_path)] == [1.0, 2.0]


def test_changed_config_is_refused_with_the_difference(run):
  other = dataclasses.replace(TINY, seed=1)
  with pytest.raises(ValueError, match=r"config\.seed: 0 -> 1"):
    train(other, run)


@pytest.mark.slow
def test_changed_corpus_is_refused_by_name(tmp_path):
  text = tmp_path / "text.txt"
  text.write_text("the quick brown fox " * 200)
  experiment = dataclasses.replace(with_steps(4), data=DataConfig(files=str(text), length=16))
  workdir = tmp_path / "run"
  assert train(experiment, workdir) == 0
  moved = text.rename(tmp_path / "moved.txt")
  data = dataclasses.replace(experiment.data, files=str(moved))
  experiment = dataclasses.replace(experiment, data=data)
  assert train(with_steps(5, experiment), workdir) == 0, "the same text in another place"
  moved.write_text("the quick brown dog " * 200)
  before = (workdir / "config.json").read_bytes()
  with pytest.raises(ValueError, match=r"trained on the corpus .*moved\.txt"):
    train(with_steps(6, experiment), workdir)
  assert (workdir / "config.json").read_bytes() == before, "a refused run was written to"


def test_directory_of_something_else_is_refused(tmp_path):
  (tmp_path / "thesis.tex").write_text("precious")
  with pytest.raises(FileExistsError, match="not empty"):
    train(TINY, tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
  "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_signal_saves_and_says_how_to_go_on(tmp_path, number):
  workdir = tmp_path / "run"
  process = subprocess.Popen(
    command(workdir, "--config.train.steps=1000000", "--config.checkpoint.every=1000000"),
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {"PYTHONUNBUFFERED": "1"},
  )
  metrics = workdir / "metrics.jsonl"
  wait_for(lambda: metrics.is_file() and metrics.stat().st_size, process, "metrics")
  process.send_signal(number)
  out, _ = process.communicate(timeout=60)
  assert process.returncode == 128 + number
  assert "The same command goes on from there" in out
  assert sedd_jax.load(workdir).info["step"] > 0


# Starting.


def test_each_program_is_compiled_once_and_the_first_step_is_timed(tmp_path, caplog):
  with jax.log_compiles(True):
    assert train(TINY, tmp_path / "run") == 0
  assert compilations(caplog) == {"train_step": 1, "terms": 1, "draw": 1}
  caplog.clear()
  with jax.log_compiles(True):
    assert train(with_steps(12), tmp_path / "run") == 0
  assert compilations(caplog)["train_step"] == 1, "a restored state is like a fresh one"
  times = [x for x in read_metrics(tmp_path / "run") if "seconds_to_first_step" in x]
  assert [x["step"] for x in times] == [1, 9]
  assert all(0 < x["seconds_to_first_step"] < 300 for x in times)
