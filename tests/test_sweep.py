"""launch/sweep.py: the grid, names, commands and table; and sweeps over a stand-in trainer."""

import csv
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "launch"))
sweep_grid = importlib.import_module("sweep_grid")
sweep_runs = importlib.import_module("sweep_runs")
sweep_state = importlib.import_module("sweep_state")
sweep_table = importlib.import_module("sweep_table")

CONFIG = {
  "seed": 0,
  "data": {"files": "embedded", "split": (0.9, 1.0)},
  "model": {"width": 768, "heads": 12, "dropout": 0.1, "dtype": "float32"},
  "train": {"steps": 50},
}

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
    ("seed=1;seed=2", "seed stands there twice"),
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


# ------------------------------------------------------------------------------- Runs and commands


def make_runs(points, common=None, config=CONFIG):
  return sweep_runs.make_runs(
    points,
    config=config,
    config_flag="configs/x.py:a",
    common=common or {},
    root=Path("runs/a b"),
    program=["sedd", "train"],
  )


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
  spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
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


def run_directory(folder, *lines, evaluation=None, tail=""):
  folder.mkdir(parents=True, exist_ok=True)
  if lines:
    content = "".join(json.dumps(line) + "\n" for line in lines) + tail
    (folder / "metrics.jsonl").write_text(content)
  if evaluation:
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
  return folder


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


# ------------------------------------------------------------------------------------- For real

# Trains as the trainer does, in no time: saves on SIGTERM, goes on from there, writes its result.
TRAINER = """
import json, os, signal, sys, time
from pathlib import Path

flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
workdir, seed = Path(flags["workdir"]), int(flags["config.seed"])
steps = int(flags["config.train.steps"])
workdir.mkdir(parents=True, exist_ok=True)
saved = workdir / "saved"
step = int(saved.read_text()) if saved.exists() else 0
stop = []
signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
print("starts at", step, os.environ.get("JAX_NUM_PROCESSES"), flush=True)
code = os.environ.get(f"EXIT_{seed}")
if code:
  sys.exit(int(code))
while step < steps and not stop:
  step += 1
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": step}) + "\\n")
  while "FOREVER" in os.environ and step == 2 and not stop:
    time.sleep(0.02)
if stop:
  saved.write_text(str(step))
  sys.exit(143)
result = {"step": step, "heldout_bits_per_char_strict": 3 - seed / 4}
result["heldout_bits_per_char_strict_stderr"] = 0.01
if os.environ.get("JAX_PROCESS_ID", "0") == "0":
  (workdir / "evaluation.json").write_text(json.dumps(result))
"""


@pytest.fixture
def sweep(tmp_path):
  """Starts launch/sweep.py with the stand-in trainer; what a test leaves behind is stopped."""
  script = tmp_path / "trainer.py"
  script.write_text(TRAINER)
  trainer = shlex.join([sys.executable, str(script)])
  processes = []

  def start(*arguments, config="configs/quickstart.py", steps=3, env=None):
    head = [sys.executable, "launch/sweep.py", f"--root={tmp_path}/root", f"--command={trainer}"]
    if config:
      head += [f"--config={config}", f"--config.train.steps={steps}"]
    process = subprocess.Popen(
      [*head, *arguments],
      cwd=ROOT,
      env=os.environ | {"COLUMNS": "200"} | (env or {}),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    processes.append(process)
    return process

  yield start
  for process in processes:
    if process.poll() is None:
      process.terminate()
      process.communicate(timeout=20)


def finish(process, timeout=40):
  out, err = process.communicate(timeout=timeout)
  return process.returncode, out, err


def statuses(tmp_path):
  with (tmp_path / "root" / "results.csv").open() as file:
    return {row["name"]: (row["status"], row["step"]) for row in csv.DictReader(file)}


def log(tmp_path, name):
  return (tmp_path / "root" / "logs" / f"{name}.log").read_text()


def until(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "it did not come"
    time.sleep(0.02)


@pytest.mark.multiprocess
def test_a_sweep_notes_failures_goes_on_and_starts_them_again(sweep, tmp_path):
  grid = "--sweep=seed=1..4"
  code, out, err = finish(sweep(grid, env={"EXIT_1": "2", "EXIT_3": "1"}))
  assert (code, err) == (1, "")
  assert statuses(tmp_path) == {
    "seed-4": ("done", "3"),
    "seed-2": ("done", "3"),
    "seed-1": ("failed (2)", ""),
    "seed-3": ("failed (1)", ""),
  }
  assert next(iter(statuses(tmp_path))) == "seed-4"  # The best first.
  assert f"seed=1: exit code 2, see {tmp_path}/root/logs/seed-1.log" in out
  assert re.search(r"1 .* 4 .* done .* 3/3 .* 2\.0000 ± 0\.0100", out)
  stored = json.loads((tmp_path / "root" / "sweep.json").read_text())
  assert stored["spec"]["runs"]["seed-2"] == {"seed": 2}
  assert stored["spec"]["common"] == {"train.steps": 3}
  assert shlex.split(stored["commands"]["seed-2"])[2:] == [
    *("--config=configs/quickstart.py", f"--workdir={tmp_path}/root/seed-2"),
    *("--config.train.steps=3", "--config.seed=2"),
  ]

  code, out, err = finish(sweep(grid))
  assert (code, err) == (0, "")
  assert {status for status, _ in statuses(tmp_path).values()} == {"done"}
  assert "seed=2: done" in out
  assert log(tmp_path, "seed-2").count("starts at") == 1
  assert log(tmp_path, "seed-3").count("starts at") == 2

  # Another sweep does not mix with it, and nothing is started.
  code, out, err = finish(sweep("--sweep=seed=4..5", steps=4))
  assert (code, out) == (2, "")
  assert "holds another sweep" in err
  for line in (
    "--config.train.steps: 3 -> 4",
    "gone: seed=1",
    "new: seed=5",
    "Choose a new --root",
  ):
    assert line in err
  assert not (tmp_path / "root" / "seed-5").exists()

  code, out, err = finish(sweep("--table", config=None))
  assert (code, err) == (0, "")
  assert out.count("done") == 4


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_goes_on_where_it_was(sweep, tmp_path, number):
  grid = ("--sweep=seed=1..3", "--parallel=2")
  process = sweep(*grid, env={"FOREVER": "1"})
  # Both stand at their step 2 at the same time.
  metrics = [tmp_path / "root" / f"seed-{seed}" / "metrics.jsonl" for seed in (1, 2)]
  until(lambda: all(file.exists() and file.read_text().count("\n") == 2 for file in metrics))
  process.send_signal(number)
  code, _, err = finish(process)
  assert (code, err) == (128 + number, "")
  assert statuses(tmp_path) == {
    "seed-1": ("stopped (143)", "2"),
    "seed-2": ("stopped (143)", "2"),
    "seed-3": ("not started", ""),
  }
  if number == signal.SIGTERM:
    return
  code, _, err = finish(sweep(*grid))
  assert (code, err) == (0, "")
  assert set(statuses(tmp_path).values()) == {("done", "3")}
  assert "starts at 2" in log(tmp_path, "seed-1")
  assert log(tmp_path, "seed-3") == "starts at 0 None\n"


@pytest.mark.multiprocess
def test_a_second_signal_kills(sweep, tmp_path):
  stubborn = tmp_path / "stubborn.sh"
  stubborn.write_text(f'trap "" TERM; touch "{tmp_path}/up"; while :; do sleep 0.05; done\n')
  process = sweep("--sweep=seed=1", f"--command=bash {stubborn}")
  until((tmp_path / "up").exists)
  process.send_signal(signal.SIGINT)
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(timeout=0.5)
  process.send_signal(signal.SIGINT)
  assert finish(process)[0] == 130
  assert statuses(tmp_path) == {"seed-1": ("failed (137)", "")}


@pytest.mark.multiprocess
def test_a_run_may_be_several_processes(sweep, tmp_path):
  process = sweep("--sweep=seed=1", "--processes=2", "--launch_args=--devices=2 --grace=5")
  code, _, err = finish(process)
  assert (code, err) == (0, "")
  lines = log(tmp_path, "seed-1").splitlines()
  assert sorted(lines) == ["[1] starts at 0 2", "starts at 0 2"]


@pytest.mark.multiprocess
def test_slurm_jobs_are_submitted_once(sweep, tmp_path):
  program = tmp_path / "bin" / "sbatch"
  program.parent.mkdir()
  program.write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/submitted"\n')
  program.chmod(0o755)
  env = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
  arguments = ("--sweep=seed=1,2", "--backend=slurm", "--launch_args=--nodes=2")
  assert finish(sweep(*arguments, env=env))[0] == 0
  lines = (tmp_path / "submitted").read_text().splitlines()
  head = "--job-name=root-seed-1 --dependency=singleton --nodes=2 launch/slurm.sbatch "
  assert len(lines) == 2
  assert lines[0].startswith(head)
  assert statuses(tmp_path)["seed-1"] == ("submitted", "")
  # The jobs wait in the queue; what --table shows of them comes from their directories.
  code, out, _ = finish(sweep(*arguments, env=env))
  assert code == 0
  assert "seed=1: submitted before; --resubmit" in out
  assert len((tmp_path / "submitted").read_text().splitlines()) == 2
  runs = make_runs([{"seed": 1}, {"seed": 2}])
  run_directory(tmp_path / "root" / "seed-2", evaluation={"step": 50})
  state = sweep_state.State(tmp_path / "root")
  assert state.left(runs, True) == (["seed-1"], {"seed-2": "done"})
  assert state.left(runs, False)[0] == []


def test_a_dry_run_prints_what_is_left_and_writes_nothing(sweep, tmp_path):
  arguments = ("--sweep=model.width=64,128;seed=1", "--config.data.files=a b*", "--command=sedd x")
  code, out, err = finish(sweep(*arguments, "--dry-run"))
  assert (code, err) == (0, "")
  root = tmp_path / "root"
  expected = [
    [
      *("sedd", "x", "--config=configs/quickstart.py", f"--workdir={root}/width-{width}_seed-1"),
      *("--config.train.steps=3", "--config.data.files=a b*"),
      *(f"--config.model.width={width}", "--config.seed=1"),
    ]
    for width in (64, 128)
  ]
  assert [shlex.split(line) for line in out.splitlines()] == expected
  assert not root.exists()
  run_directory(root / "width-64_seed-1", evaluation={"step": 3})
  code, out, _ = finish(sweep(*arguments, "--dry-run"))
  assert [shlex.split(line) for line in out.splitlines()] == expected[1:]
  assert [path.name for path in root.iterdir()] == ["width-64_seed-1"]


def test_points_come_from_the_config(sweep, tmp_path):
  code, out, err = finish(sweep("--backend=print", config="configs/text8.py:uniform"))
  assert (code, err) == (0, "")
  assert not (tmp_path / "root").exists()
  lines = out.splitlines()
  assert len(lines) == 6
  assert lines[0].endswith("--config.optimizer.learning_rate=0.0001 --config.seed=0")
  assert all("--config=configs/text8.py:uniform " in line for line in lines)


def test_faults_are_found_before_anything_starts(sweep, tmp_path):
  faults = {
    ("--sweep=model.width=128,100",): "run model.width=100: ",
    ("--sweep=seed=1", "--config.model.widht=3"): 'Did you mean "width"',
    (): "configs/quickstart.py has no sweep()",
    ("--sweep=seed=1", "--root=gs://bucket/x"): "must be a path here",
    ("--sweep=seed=1", "--command=no-such-program x"): "no program 'no-such-program'",
    ("--sweep=seed=1", "--backend=tpu_vm", "--parallel=2"): "are of --backend=local",
    ("--table",): "holds no sweep",
  }
  # Side by side: most of their time is the import of jax.
  started = [(sweep(*arguments), message) for arguments, message in faults.items()]
  for process, message in started:
    code, out, err = finish(process)
    assert (code, message in err, out) == (2, True, ""), err
    assert "Traceback" not in err
  assert not (tmp_path / "root").exists()
