"""Every flag, field and argument that takes a path, found by a walk: no new one is left out."""

import dataclasses
import importlib
import sys

import pytest
from absl import flags
from support.command import _forget as forget
from support.command import sedd

import sedd_jax
from sedd_jax.cli import main as cli
from sedd_jax.cli.path_flags import PathParser
from sedd_jax.data import DataConfig
from sedd_jax.data.prepare import prepare
from sedd_jax.data.prepared import check, open_prepared
from sedd_jax.generation.samples import check_path
from sedd_jax.generation.templates import Prompts
from sedd_jax.generation.traces.write import check_trace_path
from sedd_jax.interop.export import convert
from sedd_jax.interop.info import describe
from sedd_jax.reports.report import collect
from sedd_jax.reports.write import check_report_path
from sedd_jax.studies.autophagy import run_loop
from sedd_jax.studies.frontier import FrontierConfig
from sedd_jax.studies.grades import GradeConfig
from sedd_jax.studies.loop import Loop
from sedd_jax.studies.suites import SuiteConfig
from sedd_jax.training.experiment import Experiment
from sedd_jax.training.loop import train
from sedd_jax.training.operations import Operations

# Flags whose text is no path. `tokenizer` names a kind first; `data` is checked by `SuiteConfig`.
WORDS = {
  "command", "coordinator_address", "compare", "data", "host", "judge_tokenizer",
  "judge_tokenizer_eos", "launch_args", "length", "prefix", "profile_steps", "protocol", "sampler",
  "samplers", "schedule", "sets", "split", "steps", "suffix", "suite", "sweep", "temperatures",
  "template", "text_field", "tokenizer", "tokenizer_eos", "topology",
}  # fmt: skip
# Fields of a config whose text is a path, and all others.
PATH_FIELDS = {"init_from", "data.files", "data.heldout_files"}
WORD_FIELDS = {
  "label", "objective", "init_tokenizer", "data.text_field", "data.tokenizer", "data.tokenizer_eos",
  "data.detokenizer",
  "data.packing", "data.fill", "data.visibility", "data.on_fault", "diffusion.process",
  "diffusion.noise", "diffusion.parameterization", "diffusion.time_sampling", "model.dtype",
  "model.remat", "model.stream", "model.attention", "optimizer.name", "optimizer.schedule",
  "train.hold", "generations.regime",
}  # fmt: skip
ADDRESSES = ["gs://bucket/a b", "s3://bucket", "https://host/x"]
QUICKSTART = "--config=configs/quickstart.py"


def string_flags(verb):
  """Whether each flag of a verb that takes text takes a path, by its name."""
  forget()
  importlib.import_module(f"sedd_jax.cli.{verb}")
  found = {
    flag.name: isinstance(flag.parser, PathParser)
    for module, defined in flags.FLAGS.flags_by_module_dict().items()
    if module.startswith("sedd_jax.cli")
    for flag in defined
    if isinstance(flag.parser, PathParser)
    or not isinstance(
      flag.parser,
      flags.BooleanParser | flags.IntegerParser | flags.FloatParser | flags.EnumParser,
    )
  }
  forget()
  return {name: is_path for name, is_path in found.items() if name.split(".")[0] != "config"}


@pytest.fixture(autouse=True)
def here(monkeypatch, pytestconfig):
  """Where the paths of configs are true."""
  monkeypatch.chdir(pytestconfig.rootpath)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_flag_of_text_takes_a_path_or_is_known_not_to(verb):
  found = string_flags(verb)
  paths = {name for name, is_path in found.items() if is_path}
  assert set(found) - paths <= WORDS, "a new flag: define it by path_flags, or add it to WORDS"
  assert not paths & WORDS
  for name in sorted(paths):
    for address in ADDRESSES:
      done = sedd(verb, f"--{name}={address}")
      assert done.returncode == 2, (name, done)
      assert f"flag --{name}={address}: is an address; only local paths" in done.stderr
    for value, why in (("~nobody-of-this-name/x", "~nobody-of-this-name"), ("a\0b", "NUL")):
      if string_flags(verb)[name] and not (name.endswith(("files", "reference")) and "~" in value):
        done = sedd(verb, f"--{name}={value}")
        assert done.returncode == 2
        assert why in done.stderr


def text_fields(config, prefix=""):
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from text_fields(value, f"{prefix}{field.name}.")
    elif isinstance(value, str):
      yield prefix + field.name


def test_every_field_of_text_takes_a_path_or_is_known_not_to():
  assert set(text_fields(Loop())) == PATH_FIELDS | WORD_FIELDS, "a new field: add it to one of them"


@pytest.mark.parametrize("field", sorted(PATH_FIELDS))
@pytest.mark.parametrize("address", ADDRESSES)
def test_fields_refuse_addresses_with_all_other_faults(field, address):
  done = sedd("train", QUICKSTART, f"--config.{field}={address}", "--config.seed=-1")
  assert done.returncode == 2
  assert f"{field}='{address}' is an address" in done.stderr
  assert "seed=-1" in done.stderr


def test_config_files_are_paths_too(monkeypatch, tmp_path, pytestconfig):
  done = sedd("train", "--config=gs://bucket/x.py", "--workdir=x")
  assert done.returncode == 2
  assert "--config=gs://bucket/x.py: is an address" in done.stderr
  (tmp_path / "my config.py").write_text(
    (pytestconfig.rootpath / "configs" / "quickstart.py").read_text()
  )
  monkeypatch.setenv("HOME", str(tmp_path))
  done = sedd("train", "--config=~/my config.py", "--config.seed=-1")
  assert done.stderr.startswith("error: config.seed=-1")


# What Python code calls with a path.
CALLS = {
  "load": sedd_jax.load,
  "export": lambda path: sedd_jax.export(None, path),
  "convert from": lambda path: convert(path, "new"),
  "convert to": lambda path: convert("old", path),
  "train": lambda path: train(Experiment(), path),
  "run_loop": lambda path: run_loop(Loop(), path, Operations(), print),
  "prepare": lambda path: prepare(DataConfig(tokenizer="bytes"), path),
  "prepare files": lambda path: prepare(DataConfig(files=path, tokenizer="bytes"), "new"),
  "check": check,
  "open_prepared": open_prepared,
  "describe": describe,
  "collect": lambda path: collect([path]),
  "report": lambda path: check_report_path(path + ".html"),
  "samples": lambda path: check_path(path + ".jsonl"),
  "trace": lambda path: check_trace_path(path + ".html"),
  "templates": lambda path: Prompts(file=path).templates(list, 8),
  "grade": lambda path: GradeConfig(samples=[path], judge="x"),
  "grade out": lambda path: GradeConfig(samples=[], judge="x", out=path),
  "judge": lambda path: GradeConfig(samples=[], judge=path),
  "reference": lambda path: GradeConfig(samples=[], judge="x", reference=path),
  "baseline": lambda path: FrontierConfig(checkpoints=["x"], judge="x", baseline=path),
  "checkpoints": lambda path: FrontierConfig(checkpoints=[path], judge="x", baseline="x"),
  "suite": lambda path: SuiteConfig(checkpoint="x", suite="zero-shot", protocol="sedd", out=path),
  "suite checkpoint": lambda path: SuiteConfig(
    checkpoint=path, suite="zero-shot", protocol="sedd"
  ),
  "suite data": lambda path: SuiteConfig(
    checkpoint="x", suite="zero-shot", protocol="sedd", data=[f"lambada={path}"]
  ),
  "files": lambda path: DataConfig(files=f"a.txt,{path}"),
  "part": lambda path: DataConfig(files=f"a.txt; {path}"),
  "init_from": lambda path: Experiment(init_from=path),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("address", ["gs://bucket/x", "s3://bucket/x", "hdfs:/x"])
def test_calls_refuse_addresses(name, address, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="is an address; only local paths"):
    CALLS[name](address)
  assert not list(tmp_path.iterdir())


def test_no_module_of_ours_was_left_out():
  """A verb that a test has imported would keep its flags."""
  assert not [name for name in sys.modules if name in {f"sedd_jax.cli.{v}" for v in cli.VERBS}]
