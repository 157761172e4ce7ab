"""Configs: every one is sound, overrides are typed, and every fault is named."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from sedd_jax.training.experiment import Experiment

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
ARGUMENTS = [
  ("quickstart", None),
  ("text8", "absorb"),
  ("text8", "uniform"),
  *(("openwebtext", f"{s},{p}") for s in ("small", "medium") for p in ("absorb", "uniform")),
]


def get_config(name, argument=None):
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*([] if argument is None else [argument]))


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_every_config_is_an_experiment_and_back(name, argument):
  config = get_config(name, argument)
  experiment = Experiment.from_config(config.to_dict())
  assert dataclasses.asdict(experiment) == config.to_dict()


def test_every_config_file_is_tested():
  assert {path.stem for path in CONFIGS.glob("*.py")} == {name for name, _ in ARGUMENTS}


@pytest.mark.parametrize(
  ("argument", "count"), [("small,absorb", 169_627_218), ("medium,absorb", 424_477_010)]
)
def test_openwebtext_configs_are_the_published_models(argument, count):
  experiment = Experiment.from_config(get_config("openwebtext", argument).to_dict())
  assert experiment.network(50257).num_parameters() == count
  assert (experiment.train.batch_size, experiment.train.accumulation) == (512, 1)


@pytest.mark.parametrize("argument", ["large,absorb", "small,mask", "small"])
def test_unknown_arguments_are_refused(argument):
  with pytest.raises(ValueError, match="must be"):
    get_config("openwebtext", argument)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"modle": {}}, r"config\.modle is unknown: did you mean 'model'"),
    ({"model": {"widht": 3}}, r"config\.model\.widht is unknown: did you mean 'width'"),
    ({"model": {"width": "3"}}, r"config\.model\.width='3' must be of type int"),
    ({"model": {"heads": 5}}, r"model\.heads=5 must divide model\.width=768"),
    ({"train": {"steps": 0}}, r"train\.steps=0 must be at least 1"),
    ({"train": {"batch_size": 9, "accumulation": 2}}, r"train\.batch_size=9 .*accumulation=2"),
    ({"diffusion": {"process": "gauss"}}, r"diffusion\.process='gauss'"),
    ({"diffusion": {"noise": "cosine"}}, r"diffusion\.noise='cosine'"),
    ({"diffusion": {"process": "uniform"}}, r"parameterization='scaled' needs the absorbing"),
    ({"diffusion": {"eps": 2}}, r"eps=2\.0 must lie in \(0, 1\)"),
    ({"optimizer": {"ema": 1.0}}, r"optimizer\.ema=1\.0 must lie in \[0, 1\)"),
    ({"report": {"evaluate_times": 3}}, r"report\.evaluate_times=3 must be .*even"),
    ({"checkpoint": {"every": 0}}, r"checkpoint\.every=0 must be at least 1"),
    ({"data": {"length": 0}}, r"data\.length=0 must be at least 1"),
  ],
  ids=lambda value: value if isinstance(value, str) else "",
)
def test_faults_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    Experiment.from_config(change)
