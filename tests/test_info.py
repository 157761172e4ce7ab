"""sedd info: it says what a folder is, reads no weights, and changes nothing."""

import json
import re
import shutil

import pytest
from support.command import sedd
from support.experiments import TINY

import sedd_jax
from sedd_jax.interop.info import describe
from sedd_jax.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "tiny"
  assert train(TINY, workdir) == 0
  return workdir


def listing(folder):
  return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_run(run):
  before = listing(run)
  found = describe(run)
  assert listing(run) == before
  model = sedd_jax.load(run)
  assert found["kind"] == "run"
  assert (found["step"], found["steps"], found["finished"]) == (8, 8, True)
  assert found["checkpoints"] == [4, 8]
  assert found["parameters"] == model.network.num_parameters()
  assert found["corpus"] == model.info["corpus"]
  assert (found["tokenizer"], found["length"]) == ("chars", 32)
  assert found["vocab_size"] == model.tokenizer.vocab_size
  evaluation = model.info["evaluation"]
  assert found["bound"]["bits_per_char_strict"] == evaluation["heldout_bits_per_char_strict"]
  assert (found["bound"]["step"], found["bound"]["at_end"]) == (8, True)
  assert found["last"]["tokens_per_second"] > 0
  assert found["versions"]["jax"]
  assert found["bytes"] == sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
  assert found["config"]["train"]["steps"] == 8
  assert found["config_faults"] == []
  assert json.loads(json.dumps(found)) == found


def test_a_run_that_is_not_finished(run, tmp_path):
  """Stopped after an evaluation on the way, and going on with more steps."""
  workdir = shutil.copytree(run, tmp_path / "run")
  config = json.loads((workdir / "config.json").read_text())
  config["train"]["steps"] = 12
  (workdir / "config.json").write_text(json.dumps(config))
  shutil.rmtree(workdir / "checkpoints" / "8")
  (workdir / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()
  (workdir / "evaluation.json").unlink()
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  kept = [line for line in lines if json.loads(line)["step"] <= 4]
  (workdir / "metrics.jsonl").write_text("\n".join(kept) + '\n{"step": 5, "lo')
  found = describe(workdir)
  assert (found["step"], found["steps"], found["finished"]) == (4, 12, False)
  assert found["checkpoints"] == [4]
  assert (found["bound"]["step"], found["bound"]["at_end"]) == (4, False)
  assert found["last"]["step"] == 4


def test_a_run_before_its_first_checkpoint(run, tmp_path):
  shutil.copy(run / "config.json", tmp_path)
  found = describe(tmp_path)
  assert (found["step"], found["finished"], found["bound"], found["last"]) == (None, False) + (
    None,
  ) * 2
  assert found["parameters"] is None


def test_a_config_of_another_version_is_shown_with_what_is_not_known(run, tmp_path):
  workdir = shutil.copytree(run, tmp_path / "run")
  config = json.loads((workdir / "config.json").read_text())
  config["model"]["gates"] = 3
  (workdir / "config.json").write_text(json.dumps(config))
  found = describe(workdir)
  assert found["parameters"] is None
  assert found["config"]["model"]["gates"] == 3
  assert "config.model.gates is unknown" in found["config_faults"][0]


@pytest.mark.parametrize(
  ("change", "fault"),
  [
    ({"model": None}, "config.model=None must be a section"),
    ({"diffusion": 7, "model": []}, "config.diffusion=7 must be a section"),
    ({"model": {"width": 96, "heads": 5}}, "model.heads=5"),
  ],
)
def test_a_damaged_config_is_described(run, tmp_path, change, fault):
  workdir = shutil.copytree(run, tmp_path / "run")
  config = json.loads((workdir / "config.json").read_text())
  (workdir / "config.json").write_text(json.dumps(config | change))
  done = sedd("info", workdir)
  assert done.returncode == 0, done.stderr
  assert re.search(rf"not usable +{fault}", done.stdout), done.stdout
  del config["model"]
  (workdir / "config.json").write_text(json.dumps(config))
  assert "width ?" in sedd("info", workdir).stdout  # It is not said; what is read is the default.


@pytest.mark.parametrize(
  ("text", "fault"),
  [
    ("[1]", "must hold named fields"),
    ('{"step": "x"}', "step='x' must be an integer"),
    ('{"step": 8}', "field 'heldout_bits_per_char_strict' is missing"),
    ("{", "is damaged"),
  ],
)
def test_a_damaged_evaluation_is_named(run, tmp_path, text, fault):
  workdir = shutil.copytree(run, tmp_path / "run")
  (workdir / "evaluation.json").write_text(text)
  with pytest.raises(ValueError, match=rf"run/evaluation\.json.*{fault}"):
    describe(workdir)


def test_one_checkpoint_and_the_folder_of_all(run):
  found = describe(run / "checkpoints" / "4")
  assert (found["kind"], found["step"]) == ("checkpoint", 4)
  assert found["bytes"] < describe(run)["bytes"]
  assert describe(run / "checkpoints") | {"path": "", "bytes": 0} == describe(run) | {
    "path": "",
    "bytes": 0,
  }


def test_exports_and_weights(run, tmp_path):
  model = sedd_jax.load(run)
  ours = describe(sedd_jax.export(model, tmp_path / "ours"))
  assert (ours["kind"], ours["step"], ours["origin"]) == ("export", 8, "tiny")
  assert ours["parameters"] == model.network.num_parameters()
  assert (ours["length"], ours["tokenizer"]) == (32, "chars")
  assert ours["vocab_size"] == model.tokenizer.vocab_size
  theirs = describe(sedd_jax.export(model, tmp_path / "theirs", layout="original"))
  assert theirs["kind"] == "weights of the original code"
  assert theirs["parameters"] == model.network.num_parameters(), "buffers are no parameters"


def test_weights_of_the_original_code(shared_path):
  found = describe(shared_path("golden/hf_tiny"))
  assert found["kind"] == "weights of the original code"
  assert found["parameters"] == sedd_jax.load(found["path"]).network.num_parameters()
  assert describe(shared_path("golden/local_tiny"))["kind"] == "run of the original code"


def test_what_is_none_of_ours_is_refused(run, tmp_path):
  with pytest.raises(FileNotFoundError, match="is no folder"):
    describe(tmp_path / "nothing")
  with pytest.raises(FileNotFoundError, match="nothing that is known here"):
    describe(tmp_path)
  export = sedd_jax.export(sedd_jax.load(run), tmp_path / "export")
  whole = (export / "model.safetensors").read_bytes()
  for damaged in (b"", whole[:100], b"\xff" * 200):
    (export / "model.safetensors").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole"):
      describe(export)
  (export / "config.json").write_text("{")
  with pytest.raises(ValueError, match=r"config\.json is damaged"):
    describe(export)


def test_the_bound_that_counts_is_the_newest(run, tmp_path):
  """A run that went on has a newer bound than its evaluation.json."""
  workdir = shutil.copytree(run, tmp_path / "run")
  evaluation = json.loads((workdir / "evaluation.json").read_text())
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write(json.dumps(evaluation | {"step": 10, "time": 1.0}) + "\n")
  bound = describe(workdir)["bound"]
  assert (bound["step"], bound["at_end"]) == (10, False)
