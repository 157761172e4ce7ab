"""What a sweep is made of: the grid, names, commands and table."""

import csv
import importlib
import json
import re
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.sweeps import CONFIG, make_runs, run_directory

from sedd_jax.sweeps import grid as sweep_grid
from sedd_jax.sweeps import runs as sweep_runs
from sedd_jax.sweeps import table as sweep_table

# ------------------------------------------------------------------------------------------- Grid


def test_the_grid_is_a_product_with_the_last_key_fastest():
  assert sweep_grid.grid("model.width=256,512; seed=1..3", CONFIG) == [
    {"model.width": width, "seed": seed} for width in (256, 512) for seed in (1, 2, 3)
  ]


@pytest.mark.parametrize(
  ("text", "values"),
  [
    ("seed=3", [3]),
    ("seed=3..3", [3]),
    ("seed=0,5..7,9", [0, 5, 6, 7, 9]),
    ("model.dropout=0,1e-1,0.5", [0.0, 0.1, 0.5]),
    ("model.dropout=1..2", [1.0, 2.0]),
    ("model.dtype=bfloat16,float32", ["bfloat16", "float32"]),
    ("data.files=1..2,7", ["1..2", "7"]),
    ("data.files='a,b;c',\"d e\"", ["a,b;c", "d e"]),
    ("data.files=a=b", ["a=b"]),
    ("data.split=(0.9,1.0),(0.8,0.9)", [(0.9, 1.0), (0.8, 0.9)]),
    ("flag=true,False", [True, False]),
  ],
)
def test_values_have_the_type_of_the_field(text, values):
  points = sweep_grid.grid(text, CONFIG | {"flag": False})
  found = [value for point in points for value in point.values()]
  assert found == values
  assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("model.widht=3", r"no field model\.widht: did you mean model\.width\?"),
    ("model=3", "no field model"),
    ("zzz=3", r"no field zzz: there are seed, data\.files"),
    ("seed=1.5", r"seed=1\.5 must be of type int, like 0"),
    ("seed=true", "must be of type int"),
    ("seed=3..1", r"seed=3\.\.1 must be of type int"),
    ("model.dropout=much", "must be of type float"),
    ("data.split=0.5", "must be of type tuple"),
    ("seed", "must be key=value,value"),
    ("seed=", "must be key=value,value"),
    ("seed=1;seed=2", "seed is given twice"),
  ],
)
def test_faults_of_the_grid_are_named(text, message):
  with pytest.raises(ValueError, match=message):
    sweep_grid.grid(text, CONFIG)


def test_names_are_short_safe_and_unique():
  points = [
    {"optimizer.learning_rate": 3e-4, "seed": 1},
    {"optimizer.learning_rate": 1e-5, "seed": -1},
    {},
    {"data.files": "/data/a b*.gz"},
    {"data.files": "/data/a b?.gz"},
    {"data.files": "/data/" + "long" * 50},
    {"model.width": 1},
    {"data.width": 1},
    {"data.split": (0.9, 1.0)},
  ]
  names = sweep_grid.names(points)
  assert names[:3] == ["learning_rate-0.0003_seed-1", "learning_rate-1e-05_seed--1", "base"]
  assert len(set(names)) == len(points)
  for name in names:
    assert re.fullmatch(r"[A-Za-z0-9_.+-]{1,89}", name)
    assert name not in (".", "..")
  # The same tomorrow, and whatever the order.
  assert sweep_grid.names(points[::-1])[::-1] == names
  assert names[6].startswith("width-1_")
  assert sweep_grid.names([{"data.files": "x y"}]) == ["files-x-y_c49ce8c8"]


def test_a_run_that_is_there_twice_is_refused():
  with pytest.raises(ValueError, match="this run twice: seed=1"):
    sweep_grid.names([{"seed": 1}, {"seed": 2}, {"seed": 1}])


def test_runs_are_commands_of_the_trainer():
  (run,) = make_runs([{"model.width": 24, "seed": 1}], {"train.steps": 50, "data.files": "x y"})
  assert run.name == "width-24_seed-1"
  assert run.overrides == {"model.width": 24, "seed": 1}
  assert run.steps == 50
  assert run.command == [
    *("sedd", "train", "--config=configs/x.py:a", "--workdir=runs/a b/width-24_seed-1"),
    *("--config.train.steps=50", "--config.data.files=x y"),
    *("--config.model.width=24", "--config.seed=1"),
  ]
  (longer,) = make_runs([{"train.steps": 70}])
  assert longer.steps == 70


@pytest.mark.parametrize(
  ("points", "message"),
  [
    ([], "the sweep has no runs"),
    ([{"seed": 1}, {"model.widht": 3}], r"did you mean model\.width"),
    ([{"seed": 1}, {"model.width": 100}], r"run model\.width=100: model\.heads=12 must divide"),
    ([{"seed": "1"}], r"run seed=1: config\.seed='1' must be of type int"),
    ([{"data.files": "x"}], r"data\.files is swept and given as --config\.data\.files too"),
  ],
)
def test_runs_that_the_config_refuses_are_named(points, message):
  with pytest.raises(ValueError, match=message):
    make_runs(points, {"data.files": "y"})


def test_the_sweep_of_text8_is_sound():
  text8 = import_config("text8")
  points = list(text8.sweep())
  runs = make_runs(points, config=text8.get_config("uniform").to_dict())
  assert len(runs) == 6
  assert {run.overrides["seed"] for run in runs} == {0, 1}
  assert text8.get_config().optimizer.learning_rate in {
    run.overrides["optimizer.learning_rate"] for run in runs
  }


def import_config(name):
  spec = importlib.util.spec_from_file_location(name, REPOSITORY / "configs" / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_each_backend_has_its_command():
  (run,) = make_runs([{"model.width": 24}])

  def command(backend, *options, processes=0):
    whole = sweep_runs.launch_command(
      backend, run, root=Path("runs/a"), folder="launch", options=options, processes=processes
    )
    assert whole[len(whole) - len(run.command) :] == run.command
    return whole[: len(whole) - len(run.command)]

  assert command("local") == command("print") == []
  local = ["launch/local.sh", "--processes=2", "--devices=2"]
  assert command("local", "--devices=2", processes=2) == local
  assert command("slurm", "--nodes=2") == [
    *("sbatch", "--job-name=a-width-24", "--dependency=singleton"),
    *("--nodes=2", "launch/slurm.sbatch"),
  ]
  assert command("tpu_vm", "--name=p") == ["launch/tpu_vm.sh", "resume", "--name=p"]
  script, verb, workload, option = command("xpk", "--cluster=c")
  assert (script, verb, option) == ("launch/xpk.sh", "workload", "--cluster=c")
  assert re.fullmatch(r"--workload=s-width-24-[0-9a-f]{8}", workload)
  with pytest.raises(ValueError, match="'ray' must be one of print, local"):
    command("ray")


def test_workload_names_suit_kubernetes():
  runs = make_runs([{"data.files": "Ä" * 80}, {"data.files": "A_" * 80}, {"seed": 1}])
  names = {
    sweep_runs.workload_name(Path(root), run) for run in runs for root in ("runs/a", "runs/b")
  }
  assert len(names) == 6
  assert all(re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) for name in names)
  assert all(len(name) <= 28 for name in names)


def test_differences_between_sweeps_are_named():
  def spec(points, common=None, config="a.py"):
    return sweep_runs.make_spec(make_runs(points), config, common or {})

  old = spec([{"seed": 1}, {"seed": 2}], {"train.steps": 5})
  assert sweep_runs.differences(old, old) == []
  assert sweep_runs.differences(old, spec([{"seed": 2}, {"seed": 3}], {"data.files": "x"})) == [
    "  --config.data.files: (not given) -> x",
    "  --config.train.steps: 5 -> (not given)",
    "  gone: seed=1",
    "  new: seed=3",
  ]
  other = spec([{"seed": 1}, {"seed": 2}], {"train.steps": 5}, "b.py")
  assert sweep_runs.differences(old, other) == ["  --config: a.py -> b.py"]
  tuples = spec([{"data.split": (0.9, 1.0)}])
  assert sweep_runs.differences(json.loads(json.dumps(tuples)), tuples) == []


# ------------------------------------------------------------------------------------------ Table

STRICT = "heldout_bits_per_char_strict"


def test_rows_tell_how_far_a_run_is(tmp_path):
  lines = [{"step": 5, STRICT: 3.0, f"{STRICT}_stderr": 0.2}, {"step": 7, "loss": 1.0}]
  evaluation = {"step": 10, STRICT: 2.5, f"{STRICT}_stderr": 0.1}
  done = run_directory(tmp_path / "done", *lines, evaluation=evaluation)
  halfway = run_directory(tmp_path / "half", *lines, tail='{"step": 8, "lo')

  def row(folder, noted=None, steps=10):
    found = sweep_table.make_row(folder, {"seed": 1}, steps, noted)
    return found.status, found.step, found.strict, found.stderr

  assert row(done) == row(done, 1) == ("done", 10, 2.5, 0.1)
  # An evaluation of an earlier, shorter training is not the result.
  assert row(done, steps=20) == ("unfinished", 7, 3.0, 0.2)
  assert row(halfway) == ("unfinished", 7, 3.0, 0.2)
  assert row(halfway, 143)[0] == "stopped (143)"
  assert row(halfway, 1)[0] == "failed (1)"
  assert row(halfway, 0)[0] == "no result"
  assert row(halfway, "submitted")[0] == "submitted"
  assert row(tmp_path / "none") == ("not started", None, None, None)


def test_a_loop_is_done_with_its_last_generation(tmp_path):
  rows = [
    {"generation": i, "bits_per_char_strict": 2.0 + i, "bits_per_char_strict_stderr": 0.1}
    for i in range(3)
  ]
  for there, status in ((2, "unfinished"), (3, "done")):
    report = {"kind": "generations", "settings": {"count": 2}, "rows": rows[:there]}
    folder = tmp_path / status
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps(report))
    found = sweep_table.make_row(folder, {}, 1000, None)
    assert (found.status, found.step) == (status, 1000)
    assert (found.strict, found.stderr) == (rows[there - 1]["bits_per_char_strict"], 0.1)
    assert sweep_table.is_done(folder, 1000) == (status == "done")


def test_the_table_has_the_best_first(tmp_path):
  def row(name, status, strict, **overrides):
    return sweep_table.Row(
      **{"name": name, "overrides": overrides, "status": status, "step": 5, "steps": 10},
      **{"strict": strict, "stderr": None if strict is None else 0.01},
    )

  rows = [
    row("a", "failed (2)", None, seed=1),
    row("b", "unfinished", 1.0, seed=2),
    row("c", "done", float("nan"), seed=3),
    row("d", "done", 2.5, seed=4),
    row("e", "done", 2.25, seed=5, width="x,y"),
  ]
  assert [row.name for row in sweep_table.best_first(rows)] == ["e", "d", "c", "b", "a"]
  assert sweep_table.cells(rows[4], ["seed", "width"]) == [
    *("5", "x,y", "done", "5/10", "2.2500 ± 0.0100")
  ]
  assert sweep_table.cells(rows[0], ["width"]) == ["", "failed (2)", "5/10", ""]
  lines = list(csv.reader(sweep_table.to_csv(rows).splitlines()))
  assert lines[0] == [
    *("name", "seed", "width", "status", "step", "steps", "strict", "strict_stderr")
  ]
  assert lines[1] == ["e", "5", "x,y", "done", "5", "10", "2.25", "0.01"]
  assert lines[5] == ["a", "1", "", "failed (2)", "5", "10", "", ""]
  every, means = sweep_table.render(rows).renderables
  assert (every.row_count, means.row_count) == (5, 2)
  assert list(means.columns[-2].cells) == ["2.2500", "nan"], "best first"
  assert list(means.columns[-1].cells) == ["", ""]
