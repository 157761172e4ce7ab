"""Configs: every one is sound, overrides are typed, and every fault is named."""

import contextlib
import dataclasses
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
from golden_configs import ARGUMENTS, CONFIGS, GOLDEN, get_config, golden_file, read, resolved

from sedd_jax.cli.config import config_faults
from sedd_jax.files.shipped import config_file, config_names
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.loop import train


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_every_config_is_an_experiment_and_back(name, argument):
  config = get_config(name, argument).to_dict()
  assert dataclasses.asdict(read(name, argument)) == config


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_changed_default_shows_in_review(name, argument):
  """After a change that is meant: python tests/golden_configs.py"""
  assert resolved(name, argument) == golden_file(name, argument).read_text()


def test_every_config_file_is_tested():
  assert {path.stem for path in CONFIGS.glob("*.py")} == {name for name, _ in ARGUMENTS}
  assert set(GOLDEN.iterdir()) == {golden_file(*one) for one in ARGUMENTS}


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_every_docstring_has_the_command_the_cost_and_the_result(name, argument):
  del argument
  text = (CONFIGS / f"{name}.py").read_text().split('"""')[1]
  assert f"sedd train --config=configs/{name}.py" in text
  assert "not measured" in text or "bits per character" in text


@pytest.mark.parametrize(
  ("argument", "count"), [("small,absorb", 169_627_218), ("medium,absorb", 424_477_010)]
)
def test_openwebtext_configs_are_the_published_models(argument, count):
  experiment = Experiment.from_config(get_config("openwebtext", argument).to_dict())
  assert experiment.network(50257).num_parameters() == count
  assert (experiment.train.batch_size, experiment.train.accumulation) == (512, 1)


@pytest.mark.parametrize(
  ("name", "argument"),
  [
    *(("openwebtext", argument) for argument in ("large,absorb", "small,mask", "small")),
    ("text8", "mask"), ("lm1b", "mask"), ("books", "huge"),
  ],
)  # fmt: skip
def test_unknown_arguments_are_refused(name, argument):
  with pytest.raises(ValueError, match="must be"):
    get_config(name, argument)


FAULTS = [
  ({"modle": {}}, "config.modle is unknown: did you mean 'model'?"),
  ({"model": {"widht": 3}}, "config.model.widht is unknown: did you mean 'width'?"),
  ({"width": 3}, "config.width is unknown: did you mean 'model.width'?"),
  ({"model": {"zzz": 3}}, "config.model.zzz is unknown: there are width, blocks,"),
  ({"model": 3}, "config.model=3 must be a section, with fields width, blocks,"),
  ({"model": {"width": "3"}}, "config.model.width='3' must be of type int, like 768"),
  ({"model": {"time_input": 1}}, "config.model.time_input=1 must be of type bool, like True"),
  ({"train": {"steps": True}}, "config.train.steps=True must be of type int, like 400000"),
  ({"data": {"split": 0.9}}, "config.data.split=0.9 must be of type tuple"),
  ({"data": {"split": ["a", 1]}}, "config.data.split=('a', 1.0) must be of type tuple"),
  ({"model": {"heads": 5}}, "model.heads=5 must divide model.width=768"),
  ({"model": {"heads": 0}}, "model.heads=0 must be at least 1"),
  ({"model": {"dropout": 1.0}}, "model.dropout=1.0 must lie in [0, 1)"),
  ({"model": {"dtype": "float16"}}, "model.dtype='float16' must be"),
  ({"model": {"remat": "all"}}, "model.remat='all' must be"),
  ({"model": {"attention": "flash"}}, "model.attention='flash' must be"),
  ({"train": {"steps": 0}}, "train.steps=0 must be at least 1"),
  ({"train": {"batch_size": 9, "accumulation": 2}}, "train.batch_size=9 must be a multiple of"),
  ({"diffusion": {"process": "gauss"}}, "diffusion.process='gauss' must be 'absorbing' or"),
  ({"diffusion": {"noise": "cosine"}}, "diffusion.noise='cosine' must be 'loglinear' or"),
  ({"diffusion": {"process": "uniform"}}, "diffusion.parameterization='scaled' needs the absorb"),
  ({"diffusion": {"time_sampling": "x"}}, "diffusion.time_sampling='x' must be"),
  ({"diffusion": {"parameterization": "x"}}, "diffusion.parameterization='x' must be"),
  ({"diffusion": {"eps": 2}}, "diffusion: LogLinear: eps=2.0 must lie in (0, 1)"),
  ({"diffusion": {"sigma_max": 0.0}}, "diffusion: Geometric: sigma_min=0.0001, sigma_max=0.0"),
  ({"optimizer": {"ema": 1.0}}, "optimizer.ema=1.0 must lie in [0, 1)"),
  ({"optimizer": {"clip": float("nan")}}, "optimizer.clip=nan must not be negative"),
  ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate=0.0 must be positive"),
  ({"optimizer": {"schedule": "linear"}}, "optimizer.schedule='linear' must be"),
  ({"report": {"evaluate_times": 3}}, "report.evaluate_times=3 must be positive and even"),
  ({"report": {"log_every": -1}}, "report.log_every=-1 must not be negative"),
  ({"checkpoint": {"every": 0}}, "checkpoint.every=0 must be at least 1"),
  ({"checkpoint": {"keep_every": -1}}, "checkpoint.keep_every=-1 must not be negative"),
  ({"data": {"length": 0}}, "data.length=0 must be at least 1"),
  ({"data": {"visibility": "all"}}, "data.visibility='all' must be one of row, document"),
  ({"data": {"visibility": "document"}}, "'document' needs data.packing='pack', not 'stream'"),
  (
    {"data": {"visibility": "document", "packing": "pad", "tokenizer": "bytes:eos"}},
    "data.visibility='document' needs data.packing='pack', not 'pad'",
  ),
  ({"mesh": {"tensor": 0}}, "mesh.tensor=0 must be at least 1"),
  ({"mesh": {"tensor": -1}}, "at most one may be -1"),
  ({"seed": -1}, "seed=-1 must lie in [0, 2^32)"),
  ({"init_tokenizer": "new"}, "init_tokenizer='new' needs init_from, which is empty"),
  ({"init_tokenizer": "old"}, "init_tokenizer='old' must be"),
]


def faults_of(config):
  with pytest.raises(ValueError, match=r".") as refused:
    Experiment.from_config(config)
  return str(refused.value).split("\n")


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=lambda value: str(value)[:60])
def test_every_fault_is_named_and_no_other(change, message):
  (line,) = faults_of(change)
  assert message in line


def test_all_faults_come_at_once():
  """One fault of each section and two of the model, whatever stands beside them."""
  config = {
    "seed": -1, "modle": {}, "data": {"length": 0}, "diffusion": {"eps": 2},
    "model": {"width": "3", "heads": 5, "dropout": 2}, "optimizer": {"ema": 1.0, "b1": -1.0},
    "train": {"batch_size": 9, "accumulation": 2, "steps": 0}, "report": {"samples": 0},
    "checkpoint": {"every": 0}, "mesh": {"fsdp": 0},
  }  # fmt: skip
  found = "\n".join(faults_of(config))
  for fault in (
    "seed=-1", "modle is unknown", "data.length=0", "eps=2.0", "model.width='3'",
    "model.dropout=2.0", "optimizer.ema=1.0", "optimizer.b1=-1.0", "batch_size=9", "steps=0",
    "report.samples=0", "checkpoint.every=0", "mesh.fsdp=0",
  ):  # fmt: skip
    assert fault in found
  assert len(found.split("\n")) == 13
  assert "heads=5" not in found, "the default stands for a width of the wrong type"


NAMES = [*dataclasses.asdict(Experiment()), *dataclasses.asdict(Experiment())["model"], "widht"]
VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=5)
  ),
  max_leaves=12,
)


@hypothesis.given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), VALUES, max_size=8))
@hypothesis.settings(deadline=None, max_examples=300)
def test_whatever_a_config_holds_is_an_experiment_or_a_fault(config):
  experiment = None
  with contextlib.suppress(ValueError):
    experiment = Experiment.from_config(config)
  if experiment is not None:
    assert Experiment.from_config(dataclasses.asdict(experiment)) == experiment


@hypothesis.given(st.sets(st.sampled_from(range(len(FAULTS))), min_size=1, max_size=8))
@hypothesis.settings(deadline=None, max_examples=200)
def test_any_faults_together_are_all_named(which):
  """Unless two are of one field: then the later one holds."""
  config, held = {}, {}
  for i in sorted(which):
    change, message = FAULTS[i]
    ((section, fields),) = change.items()
    if not isinstance(fields, dict) or section not in ("model", "train", "optimizer", "report"):
      continue
    for name, value in fields.items():
      config.setdefault(section, {})[name] = value
      held[section, name] = message
  hypothesis.assume(held)
  # Pairs, one side of which another fault has taken.
  hypothesis.assume(len(set(held.values())) == len(held) or ("train", "accumulation") in held)
  found = "\n".join(faults_of(config))
  width = ("model", "width")
  for field, message in held.items():
    if field == ("model", "heads") and "divide" in message and width in held:
      continue  # Heads are not judged by a width that is no number.
    assert message in found


def test_what_the_mesh_does_not_divide_is_said_before_any_text_is_read(tmp_path):
  """Both faults at once, though the text is missing too."""
  experiment = Experiment.from_config(
    {
      "data": {"files": "/no/such/text"},
      "model": {"width": 30, "heads": 3},
      "train": {"batch_size": 5},
      "mesh": {"fsdp": 2, "tensor": 2},
    }
  )
  with pytest.raises(
    ValueError, match=r"(?s)batch_size=5 .* 4 or 6\nmesh\.tensor=2 .*heads=3: 1, 3"
  ):
    train(experiment, tmp_path / "run")
  assert not (tmp_path / "run").exists()


# The command line.


@pytest.mark.parametrize(
  ("overrides", "lines"),
  [
    ("--config.model.width=256 --config.train.steps 5 --noconfig.model.time_input", []),
    ("--config.data.split=(0.5,0.75) --config.optimizer.clip=1 --config.data.files=a=b", []),
    (
      "--config.model.widht=3 --config.train.step=5",
      [
        "config.model.widht is unknown: did you mean 'width'?",
        "config.train.step is unknown: did you mean 'steps'?",
      ],
    ),
    (
      "--config.model.width=wide --config.train.steps 1.5 --config.model.time_input=perhaps",
      [
        "config.model.width='wide' must be of type int, like 768",
        "config.model.time_input='perhaps' must be of type bool, like True",
        "config.train.steps='1.5' must be of type int, like 400000",
      ],
    ),
    ("--config.model=3", ["config.model='3' must be a section"]),
    ("--config.model.width.x=3", ["config.model.width={'x': '3'} must be of type int"]),
    ("--config.seed", ["config.seed=None must be of type int, like 0"]),
  ],
  ids=str,
)
def test_overrides_are_checked_together(overrides, lines):
  arguments = ["--flag", f"--config={CONFIGS}/quickstart.py", *overrides.split(), "--other=1"]
  faults, others = config_faults(arguments)
  assert len(faults) == len(lines), faults
  assert all(any(fault.startswith(line) for fault in faults) for line in lines), faults
  assert others == ["--flag", "--other=1"]


@pytest.mark.parametrize(
  ("file", "content", "message"),
  [
    ("none.py", None, "there is no file"),
    ("notes.txt", "x", "must be a Python file"),
    ("a.py", "def get_config(:", "SyntaxError: "),
    ("a.py", "\nx = 1 / 0", "ZeroDivisionError, line 2: division by zero"),
    ("a.py", "x = 1", "AttributeError"),
    ("a.py", "def get_config():\n  raise ValueError('no such size')", "no such size"),
  ],
)
def test_a_config_file_that_fails_is_named(tmp_path, file, content, message):
  if content is not None:
    (tmp_path / file).write_text(content)
  ((fault,), _) = config_faults([f"--config={tmp_path / file}"])
  assert fault.startswith(f"--config={tmp_path / file}: ")
  assert message in fault


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_every_config_has_a_name(name):
  assert name in config_names()
  assert config_file(f"{name}:a,b") == (CONFIGS / f"{name}.py", ["a,b"])


def test_a_config_is_named_with_its_argument_and_overrides(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert config_faults(["--config=peers:mdlm", "--config.seed=3"]) == ([], [])
  (fault,), _ = config_faults(["--config=peers:mdml"])
  assert fault.startswith("--config=peers:mdml: peers.py:mdml: 'mdml' must be one of")


def test_a_file_wins_over_a_name(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "text8").mkdir()
  assert config_file("text8")[0] == CONFIGS / "text8.py", "a folder is no file"
  (tmp_path / "quickstart").write_text("")
  assert config_file("quickstart:a") == (Path("quickstart"), ["a"])
  ((fault,), _) = config_faults(["--config=quickstart"])
  assert "must be a Python file" in fault


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("quikstart", "there is no config 'quikstart': did you mean 'quickstart'? With the package"),
    ("peer:mdlm", "there is no config 'peer': did you mean 'peers'? With the package"),
    ("zzz", "there is no config 'zzz': With the package come autophagy, books, lm1b,"),
    ("configs/text8.py:uniform", "there is no file configs/text8.py; --config=text8 comes with"),
    ("lm1b.py", "there is no file lm1b.py; --config=lm1b comes with the package"),
    ("configs/none.py", "there is no file configs/none.py"),
  ],
)
def test_unknown_configs_are_named_with_what_is_near(text, message, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  ((fault,), _) = config_faults([f"--config={text}"])
  assert fault.startswith(f"--config={text}: {message}")


def test_overrides_need_a_file():
  assert config_faults(["--config.seed=1"])[0] == ["--config.seed needs --config=FILE"]
