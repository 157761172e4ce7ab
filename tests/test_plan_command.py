"""The command `sedd plan`."""

import dataclasses
import json
import subprocess
import sys

import pytest
from support.plans import OUT_OF_MEMORY, PROGRAM

from sedd_jax.planning import Plan


def sedd_plan(*arguments, prelude=""):
  script = f"import sedd_jax.cli.plan as cli\n{prelude}\ncli.run()"
  return subprocess.run(
    [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300
  )


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("configs") / "tiny.py"
  path.write_text(
    "import dataclasses\nfrom ml_collections import ConfigDict\n"
    "from sedd_jax.data import DataConfig\n"
    "from sedd_jax.training.experiment import Experiment, ModelConfig, TrainConfig\n"
    "def get_config():\n"
    "  made = Experiment(data=DataConfig(length=32),\n"
    "    model=ModelConfig(width=16, blocks=1, heads=2, cond_dim=8),\n"
    "    train=TrainConfig(steps=8, batch_size=4))\n"
    "  return ConfigDict(dataclasses.asdict(made))\n"
  )
  return f"--config={path}"


# Stands for libtpu: four CPU devices, and what its compiler says of too large a program.
ON_CPU = f"""
import dataclasses, jax, types
from sedd_jax.parallel.chips import TPUS
from sedd_jax.planning import Slice, plan
jax.config.update("jax_num_cpu_devices", 4)
def fake(topology):
  chip = dataclasses.replace(TPUS["v5e"], hbm_bytes=2**30)
  return Slice(name=topology, chip=chip, chips=4, slices=1, devices=tuple(jax.devices("cpu")),
    compiler="a compiler")
cli.find_slice = fake
def compile(lowered):
  if "tensor<4096x32xi32>" in lowered.as_text():
    raise jax.errors.JaxRuntimeError({OUT_OF_MEMORY!r})
  memory = types.SimpleNamespace(argument_size_in_bytes=1000, output_size_in_bytes=0,
    alias_size_in_bytes=0, temp_size_in_bytes=100, generated_code_size_in_bytes=10)
  return memory, {PROGRAM!r}
plan.compiled = compile
"""

KEYS = (
  "chips", "hbm_bytes", "bytes_per_chip", "temp_bytes_per_chip", "fits", "hlo_flops_per_step",
  "model_flops_per_step", "collective_bytes", "tokens_per_second_bound",
)  # fmt: skip


def test_json_is_all_that_stdout_holds(config_file):
  arguments = (config_file, "--topology=v5e:2x2", "--vocab_size=65", "--json")
  done = sedd_plan(*arguments, prelude=ON_CPU)
  assert done.returncode == 0, done.stderr
  plan = json.loads(done.stdout)
  assert set(KEYS) < set(plan)
  assert set(plan) == {field.name for field in dataclasses.fields(Plan)}
  assert plan["mesh"] == {"replica": 1, "fsdp": 4, "tensor": 1}
  assert plan["collectives"][0]["axes"]
  assert "compiling for v5e:2x2 with fsdp=-1: batch 4, accumulation 1, remat none" in done.stderr


@pytest.mark.slow
def test_what_does_not_fit_exits_with_1_and_is_null(config_file):
  arguments = (config_file, "--topology=v5e:2x2", "--vocab_size=65", "--batch=4096")
  done = sedd_plan(*arguments, "--json", prelude=ON_CPU)
  assert done.returncode == 1, done.stderr
  plan = json.loads(done.stdout, parse_constant=pytest.fail)
  assert plan["fits"] is False
  assert plan["bytes_per_chip"] == 27.5 * 2**30
  assert plan["tokens_per_second_bound"] is None
  done = sedd_plan(*arguments, prelude=ON_CPU)
  assert done.returncode == 1
  assert "does not fit: RESOURCE_EXHAUSTED" in done.stdout
  assert "nan" not in done.stdout


@pytest.mark.slow
def test_meshes_stand_side_by_side(config_file):
  arguments = (config_file, "--topology=v5e:2x2", "--vocab_size=65")
  compare = "--compare=fsdp=4;fsdp=2,tensor=2"
  done = sedd_plan(*arguments, compare, prelude=ON_CPU)
  assert done.returncode == 0, done.stderr
  assert "planned, not run" in done.stdout
  lines = {line.split("  ")[0]: line.split() for line in done.stdout.splitlines()}
  assert lines["mesh"][1:] == ["fsdp=4", "fsdp=2,tensor=2"]
  assert lines["fits"][1:] == ["yes", "yes"]
  assert len({len(line) for line in done.stdout.splitlines()[1:15]}) == 1
  done = sedd_plan(*arguments, compare, "--json", prelude=ON_CPU)
  assert [plan["mesh"]["tensor"] for plan in json.loads(done.stdout)] == [1, 2]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--topology=v5e:4x4"], "--config is missing"),
    (["CONFIG"], "--topology is missing"),
    (["CONFIG", "--topology=v5e:4x4", "--fit", "--compare=fsdp=4"], "two questions"),
    (["CONFIG", "--topology=v5e:4x4", "--batch=0"], "--batch=0 must be at least 1"),
    (["CONFIG", "--topology=v5e:4x4", "--vocab_size=0"], "--vocab_size=0 must be at least 2"),
    (["CONFIG", "--topology=v5e:4x4", "--compare=;"], "no mesh in ';'"),
    (["CONFIG", "--topology=v9:4x4", "--vocab_size=65"], "must be a generation"),
  ],
)
def test_refusals(config_file, arguments, message):
  done = sedd_plan(*(config_file if one == "CONFIG" else one for one in arguments))
  assert done.returncode == 2
  assert done.stderr.startswith("error: ")
  assert message in done.stderr
  assert not done.stdout


def test_the_vocabulary_of_a_corpus_that_is_not_named(config_file):
  characters = (config_file, "--topology=v5e:2x2", "--config.data.tokenizer=chars")
  done = sedd_plan(*characters, "--config.data.files=", prelude=ON_CPU)
  assert done.returncode == 2
  assert "--vocab_size" in done.stderr


def test_a_compiler_that_fails_ends_with_2(config_file):
  fails = ON_CPU + (
    "def compile(lowered):\n"
    "  raise jax.errors.JaxRuntimeError('INTERNAL: Async done requires its operand')\n"
    "plan.compiled = compile\n"
  )
  done = sedd_plan(config_file, "--topology=v6e:2x2", "--vocab_size=65", prelude=fails)
  assert done.returncode == 2
  assert "error: a compiler cannot compile this for v6e:2x2: INTERNAL: Async done" in done.stderr
  assert not done.stdout
