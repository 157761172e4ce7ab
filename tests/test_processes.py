"""Several processes: how they find each other, what they share, what a lost one does."""

import os
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
from support.paths import REPOSITORY
from support.runs import command

from sedd_jax.parallel import processes
from sedd_jax.training import rundir
from sedd_jax.training.metrics import read_metrics

HEARTBEAT = 10
SLURM = {
  "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n1,n2", "SLURM_NTASKS": "2", "SLURM_PROCID": "1",
  "SLURM_LOCALID": "0",
}  # fmt: skip
# conftest compiles without optimizing; what holds for users is shown with what users have.
AS_USERS_RUN = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
EXPLICIT = {
  "JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"
}  # fmt: skip


@pytest.mark.parametrize(
  ("variables", "on_tpu", "found"),
  [
    ({}, False, None),
    ({}, True, "tpu"),
    (EXPLICIT, False, "explicit"),
    (EXPLICIT | SLURM, True, "explicit"),
    (SLURM, False, "slurm"),
    (SLURM | {"SLURM_NTASKS": "1"}, False, None),
    # The script of a job, outside srun.
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False, None),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, False, "openmpi"),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, False, None),
    # jax reads the address by itself, beside any launcher.
    (SLURM | {"JAX_COORDINATOR_ADDRESS": "h:1"}, False, "slurm"),
  ],
)
def test_environment_names_the_launcher(variables, on_tpu, found):
  assert processes.environment(variables, on_tpu=on_tpu) == found


def test_half_of_the_variables_is_refused():
  with pytest.raises(ValueError, match=r"JAX_PROCESS_ID without JAX_COORDINATOR_ADDRESS, JAX_NUM"):
    processes.environment({"JAX_PROCESS_ID": "1"}, on_tpu=False)


@pytest.fixture
def joined(monkeypatch):
  """What jax.distributed.initialize is called with."""
  calls = []
  open_mpi = [name for name in os.environ if name.startswith("OMPI_")]
  for name in (*EXPLICIT, *SLURM, *open_mpi):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
  return calls


def test_flags_stand_for_the_variables(joined):
  processes.initialize(
    coordinator_address="h:9", num_processes=4, process_id=3, heartbeat_timeout=7
  )
  (arguments,) = joined
  assert arguments["coordinator_address"] == "h:9"
  assert (arguments["num_processes"], arguments["process_id"]) == (4, 3)
  assert arguments["heartbeat_timeout_seconds"] == arguments["shutdown_timeout_seconds"] == 7


def test_alone_nothing_is_joined_unless_asked(joined, monkeypatch):
  processes.initialize("auto")
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
  processes.initialize("off")
  assert not joined
  monkeypatch.delenv("OMPI_COMM_WORLD_SIZE")
  processes.initialize("on")
  assert "num_processes" not in joined[0], "jax is asked what it knows (Kubernetes)"


def test_on_without_others_fails_with_what_would_do(joined, monkeypatch):
  def refuse(**arguments):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", refuse)
  with pytest.raises(ValueError, match="--distributed=on, but nothing says"):
    processes.initialize("on")


def test_address_without_the_numbers_is_refused_and_beside_a_launcher_passed_on(
  joined, monkeypatch
):
  with pytest.raises(ValueError, match=r"--coordinator_address=h:9 needs --num_processes and"):
    processes.initialize(coordinator_address="h:9")
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  processes.initialize(coordinator_address="h:9")
  assert joined[0]["coordinator_address"] == "h:9"


def test_slurm_is_left_to_jax(joined, monkeypatch):
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  processes.initialize()
  assert "coordinator_address" not in joined[0]


def test_open_mpi(joined, monkeypatch):
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
  monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
  with pytest.raises(ValueError, match=r"Open MPI 5 .*JAX_COORDINATOR_ADDRESS=HOST:PORT"):
    processes.initialize()
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "h:1")
  processes.initialize()
  assert joined[0]["process_id"] == 1
  monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1.0;tcp://10.0.0.1:3")
  processes.initialize()
  assert "process_id" not in joined[1], "jax reads Open MPI 4 by itself"


def test_process_beyond_the_last_is_refused(joined):
  with pytest.raises(ValueError, match=r"process_id=2 must lie in \[0, 2\)"):
    processes.initialize(coordinator_address="h:9", num_processes=2, process_id=2)


def test_run_of_another_process_is_recognised(tmp_path, monkeypatch):
  monkeypatch.setattr(rundir, "_SHARED_SECONDS", 0.0)
  meta = {"config": {"split": (0.9, 1.0)}, "corpus": {"name": "a"}, "tokenizer": {"type": "bytes"}}
  with pytest.raises(FileNotFoundError, match="does not see them"):
    rundir.check_shared(tmp_path, meta)
  rundir.write_run(tmp_path, meta)
  rundir.check_shared(tmp_path, meta)
  with pytest.raises(ValueError, match=r"does not run what process 0 runs: corpus\.json in"):
    rundir.check_shared(tmp_path, meta | {"corpus": {"name": "b"}})


# --- real processes


class Pair:
  """Two processes of one tiny run, two fake devices each."""

  def __init__(self, workdir, *overrides, of_second=()):
    with socket.socket() as found:
      found.bind(("127.0.0.1", 0))
      port = found.getsockname()[1]
    self.workdir, self.began = workdir, time.time()
    self.outputs = [workdir.with_name(f"{workdir.name}.{i}.{port}.log") for i in range(2)]
    self.processes = []
    for i, output in enumerate(self.outputs):
      variables = {
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "JAX_PROCESS_ID": str(i),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2",
        **AS_USERS_RUN,
      }  # fmt: skip
      with output.open("w") as file:
        self.processes.append(
          subprocess.Popen(
            [
              *command(workdir, *overrides), *(of_second if i else ()),
              "--config.report.log_every=1", f"--heartbeat_timeout={HEARTBEAT}",
              "--config.mesh.replica=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=2",
            ],
            stdout=file, stderr=subprocess.STDOUT, env=os.environ | variables, cwd=REPOSITORY,
          )
        )  # fmt: skip

  def text(self, i):
    return self.outputs[i].read_text()

  def step(self):
    """The last step that these processes logged."""
    try:
      lines = read_metrics(self.workdir)
      return max((line["step"] for line in lines if line["time"] > self.began), default=0)
    except FileNotFoundError:
      return 0

  def wait_for_step(self, step):
    deadline = time.monotonic() + 180
    while self.step() < step:
      for i, process in enumerate(self.processes):
        assert process.poll() is None, f"process {i} ended early: {self.text(i)}"
      assert time.monotonic() < deadline, f"no step {step}: {self.text(0)}"
      time.sleep(0.05)

  def codes(self, within):
    return [process.wait(timeout=within) for process in self.processes]


@pytest.fixture
def pair():
  """Starts pairs; none is left running."""
  started = []

  def start(workdir, *overrides, of_second=()):
    started.append(Pair(workdir, *overrides, of_second=of_second))
    return started[-1]

  yield start
  for one in started:
    for process in one.processes:
      process.kill()
      process.wait()


def curve(workdir):
  lines = read_metrics(workdir)
  return {d["step"]: d["loss_nats_per_sequence"] for d in lines if "grad_norm" in d}


def told_of_a_loss(text):
  """Ours, where an exchange fails; JAX's own, where the heartbeat stops first."""
  ours, jaxs = "of 2 stops; the others stop within", "another task died"
  return ours in text or jaxs in text


@pytest.mark.slow  # .ci/run runs it too.
@pytest.mark.multiprocess
def test_signal_to_one_saves_on_all_a_lost_one_stops_the_others_and_nothing_is_lost(
  tmp_path, pair, fault
):
  """One run, stopped three ways on two processes, against one process without a stop."""
  workdir = tmp_path / "run"
  endless = "--config.train.steps=100000"

  # A preemption notice to one host.
  run = pair(workdir, endless)
  run.wait_for_step(3)
  run.processes[1].send_signal(signal.SIGTERM)
  assert run.codes(within=60) == [143, 143], run.text(0)
  assert "SIGTERM: saved step" in run.text(0)
  saved = run.step()
  assert not run.text(1).count("saved step"), "process 0 alone speaks"

  # One host gone.
  run = pair(workdir, endless)
  run.wait_for_step(saved + 12)
  assert f"going on from the checkpoint of step {saved}" in run.text(0)
  run.processes[1].kill()
  began = time.monotonic()
  code = run.processes[0].wait(timeout=2 * HEARTBEAT + 10)
  took = time.monotonic() - began
  assert code not in (0, 2, 130, 143), "a restart must follow"
  assert took < 2 * HEARTBEAT, f"took {took:.0f} s"
  assert told_of_a_loss(run.text(0)), run.text(0)

  # The host of process 0 gone, and with it the coordinator.
  run = pair(workdir, endless)
  run.wait_for_step(saved + 12)
  run.processes[0].kill()
  began = time.monotonic()
  assert run.processes[1].wait(timeout=2 * HEARTBEAT + 10) not in (0, 2, 130, 143)
  assert time.monotonic() - began < 2 * HEARTBEAT
  assert told_of_a_loss(run.text(1)), run.text(1)

  # The newest checkpoint damaged: both go on from the one before. To the end, against one process
  # on one device.
  last = saved // 10 * 10 + 25
  *_, before, newest = sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
  damaged = next((workdir / "checkpoints" / str(newest)).glob("params/ocdbt.process_1/d/*"))
  content = bytearray(damaged.read_bytes())
  content[len(content) // 2] ^= 1
  damaged.write_bytes(content)
  run = pair(workdir, f"--config.train.steps={last}")
  assert run.codes(within=120) == [0, 0], run.text(0)
  assert "ocdbt.process_1/d/" in run.text(0)
  assert f"going on from the checkpoint of step {before}" in run.text(0)
  fault(
    "one flipped bit in the file of process 1 of 2",
    injected=1,
    result="named; both resume from the checkpoint before, with the losses of one process",
  )
  assert "Next: sedd sample" in run.text(0)
  alone = tmp_path / "alone"
  one = [*command(alone, f"--config.train.steps={last}"), "--config.report.log_every=1"]
  subprocess.run(one, check=True, cwd=REPOSITORY, env=os.environ | AS_USERS_RUN)
  want, got = curve(alone), curve(workdir)
  assert sorted(got) == sorted(want) == list(range(1, last + 1))
  np.testing.assert_allclose([got[i] for i in want], list(want.values()), rtol=1e-6)


@pytest.mark.slow  # A minute's patience with file systems.
@pytest.mark.multiprocess
def test_processes_that_would_run_different_things_are_refused(tmp_path, pair):
  """Two seeds: without the check both would train to the end on nonsense."""
  run = pair(tmp_path / "run", "--config.train.steps=5", of_second=["--config.seed=1"])
  assert run.processes[1].wait(timeout=120) == 2, run.text(1)
  assert "process 1 does not run what process 0 runs: config.json" in run.text(1)
  assert run.processes[0].wait(timeout=2 * HEARTBEAT) not in (0, 143), run.text(0)


@pytest.mark.multiprocess
def test_local_launcher_and_an_error_that_all_see(tmp_path):
  """A bad config on two processes: one message, exit code 2, nobody hangs."""
  run = [
    str(REPOSITORY / "launch" / "local.sh"), "--processes=2", "--devices=2",
    *command(tmp_path / "run", "--config.train.batch_size=6"),
  ]  # fmt: skip
  done = subprocess.run(
    run, capture_output=True, text=True, timeout=120, check=False, cwd=REPOSITORY
  )
  assert done.returncode == 2, done.stderr
  assert "train.batch_size=6 must be a multiple of 4" in done.stderr
  assert not (tmp_path / "run").exists()
