"""The scripts in launch/."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUPERVISE = ROOT / "launch" / "supervise.sh"
SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.s[hb]*"))


def supervise(script, log, retries=5):
  return subprocess.run(
    [SUPERVISE, "bash", "-c", script],
    env=os.environ | {"PAUSE": "0", "RETRIES": str(retries), "LOG": str(log)},
    capture_output=True,
    text=True,
  )


def test_a_preempted_command_is_started_again_until_it_is_done(tmp_path):
  log = tmp_path / "log"
  script = 'echo run >> "$LOG"; [ "$(wc -l < "$LOG")" -ge 3 ] || exit 143'
  done = supervise(script, log)
  assert done.returncode == 0
  assert log.read_text() == "run\n" * 3
  assert "exit code 143, restart 2 of 5" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_on_to_the_command_and_nothing_is_restarted(tmp_path, number):
  log = tmp_path / "log"
  script = (
    'trap \'echo saved >> "$LOG"; exit 9\' TERM INT; echo run >> "$LOG";'
    " while true; do sleep 0.05; done"
  )
  # A pytest in the background would hand on an ignored SIGINT, which bash cannot trap.
  listen = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    " os.execv(sys.argv[1], sys.argv[1:])"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", listen, SUPERVISE, "bash", "-c", script],
    env=os.environ | {"PAUSE": "0", "LOG": str(log)},
    stderr=subprocess.DEVNULL,
  )
  while not log.is_file() or not log.read_text():
    time.sleep(0.02)
  process.send_signal(number)
  assert process.wait(timeout=20) == 9
  assert log.read_text() == "run\nsaved\n"


@pytest.mark.parametrize(("code", "runs"), [(2, 1), (130, 1), (0, 1), (137, 3)])
def test_errors_of_the_user_are_not_repeated(tmp_path, code, runs):
  log = tmp_path / "log"
  done = supervise(f'echo run >> "$LOG"; exit {code}', log, retries=2)
  assert done.returncode == code
  assert log.read_text() == "run\n" * runs


# ------------------------------------------------------------------------------------ All scripts


def launch(script, *arguments, env=None, timeout=30, **more):
  """Runs a script of launch/ from the checkout."""
  return subprocess.run(
    ["bash", f"launch/{script}", *arguments],
    env=os.environ | (env or {}),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=timeout,
    **more,
  )


def commands(done):
  """The commands that a dry run printed, without its comments."""
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""
  return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]


def fake(folder, name, script):
  """Puts a stand-in for a program into a folder."""
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
  (folder / name).chmod(0o755)


def path_with(folder):
  return {"PATH": f"{folder}:{os.environ['PATH']}"}


def until(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "it did not come"
    time.sleep(0.02)


# A pytest in the background would hand on an ignored SIGINT, which bash cannot trap.
LISTEN = [
  sys.executable,
  "-c",
  "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
  " os.execvp(sys.argv[1], sys.argv[1:])",
]


def test_the_scripts_are_clean():
  if shutil.which("shellcheck") is None:
    pytest.skip("shellcheck is not installed (a package of Debian's)")
  done = subprocess.run(
    ["shellcheck", "--external-sources", *SCRIPTS], cwd=ROOT / "launch", capture_output=True
  )
  assert done.stdout.decode() == ""
  assert done.returncode == 0


@pytest.mark.parametrize("script", ["local.sh", "slurm.sbatch", "tpu_vm.sh", "xpk.sh"])
def test_help_shows_examples(script):
  done = launch(script, "--help")
  assert done.returncode == 0
  assert done.stderr == ""
  assert f"launch/{script} " in done.stdout
  assert "--dry-run" in done.stdout
  assert "set -u" not in done.stdout


SLICE = ("--name=pod", "--zone=us-west4-a", "--type=v5litepod-16")
GKE = ("--cluster=pod", "--zone=us-west4-a")
WORKLOAD = ("workload", *GKE, "--type=v5litepod-16", "--image=R/sedd:1")


@pytest.mark.parametrize(
  ("script", "arguments", "message"),
  [
    ("local.sh", ["--processes=2"], "the command is missing"),
    ("local.sh", ["sedd"], "--processes=N is missing"),
    ("local.sh", ["--processes=x", "sedd"], "--processes=x must be a whole number"),
    ("local.sh", ["--processes=0", "sedd"], "--processes=0 must be at least 1"),
    ("local.sh", ["--processes=1", "--grace=-1", "sedd"], "--grace=-1 must be a whole number"),
    ("local.sh", ["--processes=1", "--devices=1", "--gpus=1", "sedd"], "--devices is for CPUs"),
    ("local.sh", ["--process=1", "sedd"], "unknown option --process=1"),
    ("slurm.sbatch", [], "the command is missing"),
    ("slurm.sbatch", ["--nodes=2", "sedd"], "unknown option --nodes=2"),
    ("slurm.sbatch", ["sedd", "train"], "this is no SLURM job"),
    ("tpu_vm.sh", ["start", *SLICE], "unknown verb start"),
    ("tpu_vm.sh", ["create", "--name=pod"], "--name and --zone are needed"),
    ("tpu_vm.sh", ["create", *SLICE[:2], "--dry-run"], "--type is missing"),
    ("tpu_vm.sh", ["create", *SLICE[:2], "--type=tpu7x-8", "--dry-run"], "give --version"),
    ("tpu_vm.sh", ["create", *SLICE, "--sopt"], "unknown option --sopt"),
    ("tpu_vm.sh", ["run", *SLICE], "the command is missing"),
    ("tpu_vm.sh", ["stop", *SLICE, "sedd"], "stop takes no sedd"),
    ("tpu_vm.sh", ["resume", *SLICE, "--poll=x", "sedd"], "--poll=x must be a whole number"),
    ("tpu_worker.sh", ["restart"], "restart COMMAND..."),
    ("xpk.sh", ["submit"], "unknown verb submit"),
    ("xpk.sh", ["list", "--zone=z"], "--cluster is missing"),
    ("xpk.sh", ["cluster", *GKE, "--type=v6e-8"], "give one of --spot"),
    ("xpk.sh", [*WORKLOAD, "--workload=a"], "the command is missing"),
    ("xpk.sh", [*WORKLOAD, "--workload=A", "sedd"], "--workload=A must be at most 40"),
    ("xpk.sh", [*WORKLOAD, "--workload=" + "a" * 41, "sedd"], "must be at most 40"),
    ("xpk.sh", [*WORKLOAD, "--num-slices=two", "sedd"], "--num-slices=two must be a whole"),
    ("xpk.sh", ["delete", *GKE], "--workload is missing"),
  ],
  ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_are_refused(tmp_path, script, arguments, message):
  for name in ("gcloud", "xpk", "srun"):
    fake(tmp_path, name, f'touch "{tmp_path}/called"')
  env = path_with(tmp_path)
  for name in [name for name in os.environ if name.startswith("SLURM_")]:
    env[name] = ""
  done = launch(script, *arguments, env=env)
  assert done.returncode == 2
  assert message in done.stderr
  assert done.stdout == ""
  assert not (tmp_path / "called").exists()


def test_no_verb_shows_the_usage():
  for script in ("tpu_vm.sh", "xpk.sh", "tpu_worker.sh"):
    done = launch(script)
    assert done.returncode == 2
    assert f"{script} " in done.stderr


def test_quoted_commands_read_back():
  arguments = ["plain", "a b", "it's", "", "$HOME", "`x`", 'say "hi"', "*", "a\\b", "''", "x\ny"]
  script = '. launch/common.sh; quote "$@"'
  done = subprocess.run(
    ["bash", "-c", script, "_", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert shlex.split(done.stdout) == arguments
  assert done.stdout.startswith("plain 'a b' ")
  echoed = subprocess.run(
    ["bash", "-c", f"printf '%s|' {done.stdout}"], capture_output=True, text=True, check=True
  )
  assert echoed.stdout == "".join(f"{argument}|" for argument in arguments)


def test_the_image_copies_what_there_is_and_is_not_root():
  lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
  copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
  assert {"sedd_jax", "configs", "pyproject.toml"} <= set(copied)
  assert all((ROOT / name).exists() for name in copied)
  ignored = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines()
  assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
  assert "ARG RUN_AS=1000" in lines
  assert [line for line in lines if line.startswith("USER ")] == ["USER ${RUN_AS}"]
  assert not any(line.startswith("ENTRYPOINT") for line in lines)


# --------------------------------------------------------------------------------------- local.sh


def test_local_prints_one_command_for_each_process():
  done = launch(
    "local.sh",
    *("--processes=2", "--devices=3", "--port=1234", "--logs=my logs", "--dry-run"),
    *("sedd", "train", "--config.data.files=a b*"),
  )
  tail = ["JAX_NUM_CPU_DEVICES=3", "JAX_PLATFORMS=cpu", "sedd", "train", "--config.data.files=a b*"]
  head = ["env", "JAX_COORDINATOR_ADDRESS=127.0.0.1:1234", "JAX_NUM_PROCESSES=2"]
  assert commands(done) == [
    ["mkdir", "-p", "my logs"],
    [*head, "JAX_PROCESS_ID=1", *tail, ">my logs/process_1.log", "2>&1", "&"],
    [*head, "JAX_PROCESS_ID=0", *tail],
  ]


def test_local_deals_out_gpus_and_finds_a_port():
  found = set()
  for _ in range(3):
    lines = commands(launch("local.sh", "--processes=3", "--gpus=2", "--dry-run", "sedd"))
    gpus = [word for line in lines for word in line if word.startswith("JAX_LOCAL_DEVICE_IDS=")]
    assert [word.split("=")[1] for word in gpus] == ["4,5", "2,3", "0,1"]
    assert "JAX_PLATFORMS" not in str(lines)
    (address,) = {word for line in lines for word in line if "ADDRESS" in word}
    host, port = address.split("=")[1].split(":")
    found.add(port)
    with socket.socket() as listener:
      listener.bind((host, int(port)))
  assert len(found) > 1


# Does what STEPS says: `I sleeps`, `I exits CODE`, ...; writes what it saw.
PROCESS = """
import json, os, signal, sys, time
from pathlib import Path

me = os.environ["JAX_PROCESS_ID"]
out = Path(sys.argv[1])
todo = dict(word.split(":") for word in sys.argv[2:])

def on_signal(number, frame):
  (out / f"signal_{me}").write_text(signal.Signals(number).name)
  sys.exit(128 + number)

if todo.get(me) == "stubborn":
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
  signal.signal(signal.SIGTERM, on_signal)
  signal.signal(signal.SIGINT, on_signal)
seen = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
(out / f"env_{me}.partial").write_text(json.dumps(seen))
(out / f"env_{me}.partial").rename(out / f"env_{me}")
os.write(1, f"out of {me}\\n".encode())
os.write(2, f"err of {me}\\n".encode())
if todo.get(me, "").isdigit():
  sys.exit(int(todo[me]))
if me in todo:
  time.sleep(60)
"""


def local(tmp_path, *arguments, options=()):
  script = tmp_path / "process.py"
  script.write_text(PROCESS)
  command = ["bash", "launch/local.sh", *options, sys.executable, script, tmp_path, *arguments]
  return [*LISTEN, *map(str, command)]


@pytest.fixture
def no_jax_variables(monkeypatch):
  for name in [name for name in os.environ if name.startswith("JAX_")]:
    monkeypatch.delenv(name)


@pytest.mark.multiprocess
@pytest.mark.usefixtures("no_jax_variables")
def test_local_gives_each_process_its_environment_and_log(tmp_path):
  options = ("--processes=3", "--devices=2", f"--logs={tmp_path}/logs")
  done = subprocess.run(
    local(tmp_path, options=options), cwd=ROOT, capture_output=True, text=True, timeout=30
  )
  assert done.returncode == 0
  assert (done.stdout, done.stderr) == ("out of 0\n", "err of 0\n")
  seen = [json.loads((tmp_path / f"env_{i}").read_text()) for i in range(3)]
  (address,) = {each.pop("JAX_COORDINATOR_ADDRESS") for each in seen}
  assert address.startswith("127.0.0.1:")
  for i, each in enumerate(seen):
    assert each == {
      "JAX_NUM_PROCESSES": "3",
      "JAX_PROCESS_ID": str(i),
      "JAX_NUM_CPU_DEVICES": "2",
      "JAX_PLATFORMS": "cpu",
    }
  assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
    "process_1.log",
    "process_2.log",
  ]
  assert (tmp_path / "logs" / "process_2.log").read_text() == "out of 2\nerr of 2\n"


@pytest.mark.multiprocess
@pytest.mark.usefixtures("no_jax_variables")
def test_local_marks_the_lines_of_other_processes(tmp_path):
  done = subprocess.run(
    local(tmp_path, options=("--processes=2",)), cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0
  lines = done.stdout.splitlines()
  assert sorted(lines) == ["[1] err of 1", "[1] out of 1", "out of 0"]


@pytest.mark.multiprocess
@pytest.mark.usefixtures("no_jax_variables")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_hands_signals_on(tmp_path, number):
  process = subprocess.Popen(
    local(tmp_path, "0:sleeps", "1:sleeps", options=("--processes=2",)),
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  until(lambda: all((tmp_path / f"env_{i}").exists() for i in range(2)))
  process.send_signal(number)
  assert process.wait(timeout=20) == 128 + number
  assert [(tmp_path / f"signal_{i}").read_text() for i in range(2)] == [number.name] * 2


@pytest.mark.multiprocess
@pytest.mark.usefixtures("no_jax_variables")
def test_local_kills_who_stays_behind_a_failed_process(tmp_path):
  began = time.monotonic()
  done = subprocess.run(
    local(tmp_path, "0:stubborn", "1:7", options=("--processes=3", "--grace=1")),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=30,
  )
  assert done.returncode == 7
  assert "process 1 ended with exit code 7; the others have 1 s" in done.stderr
  assert "1 s are over: killing process 0" in done.stderr
  assert 0.9 < time.monotonic() - began < 20


@pytest.mark.multiprocess
@pytest.mark.usefixtures("no_jax_variables")
def test_local_waits_for_a_process_that_is_last_to_end_well(tmp_path):
  script = '[ "$JAX_PROCESS_ID" = 1 ] || { sleep 1.5; echo late; }'
  done = launch("local.sh", "--processes=2", "--grace=0", "bash", "-c", script)
  assert (done.returncode, done.stdout, done.stderr) == (0, "late\n", "")


# ----------------------------------------------------------------------------------- slurm.sbatch

# Two tasks with what SLURM tells them; the exit code is the highest.
SRUN = """
echo "$@" >>"$FAKE/srun"
while [[ $1 == -* ]]; do shift; done
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 SLURM_STEP_NODELIST=node1 "$@" &
  tasks[task]=$!
done
highest=0
for task in 0 1; do
  wait "${tasks[task]}"
  code=$?
  [ $code -le $highest ] || highest=$code
done
exit $highest
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
  """Runs slurm.sbatch as SLURM would, with stand-ins for its programs."""
  fake(tmp_path / "bin", "srun", SRUN)
  fake(tmp_path / "bin", "scontrol", 'echo "$@" >>"$FAKE/scontrol"; exit "${REFUSE:-0}"')
  for name in [name for name in os.environ if name.startswith("SLURM_")]:
    monkeypatch.delenv(name)
  known = {"SLURM_JOB_ID": "41", "SLURM_NTASKS_PER_NODE": "2", "SLURM_GPUS_ON_NODE": "2"}
  known |= {"FAKE": str(tmp_path)} | path_with(tmp_path / "bin")

  def run(*command, **more):
    return launch("slurm.sbatch", *command, env=known | more)

  run.env = known
  return run


def test_slurm_asks_for_a_notice_and_for_one_task_for_each_gpu():
  lines = (ROOT / "launch" / "slurm.sbatch").read_text().splitlines()
  asked = dict(
    line[8:].split("=", 1) for line in lines if line.startswith("#SBATCH") and "=" in line
  )
  # Without B: the tasks get the signal, and the script lives on to queue the job again.
  assert asked["--signal"] == "TERM@120"
  assert asked["--ntasks-per-node"] == asked["--gpus-per-node"]
  assert asked["--open-mode"] == "append"
  assert "#SBATCH --requeue" in lines
  # SLURM stops reading options at the first command.
  first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
  assert not any(line.startswith("#SBATCH") for line in lines[first:])


def test_slurm_dry_run():
  done = launch("slurm.sbatch", "--dry-run", "sedd", "train", "--config.data.files=a b")
  assert commands(done) == [
    [
      *("srun", "--kill-on-bad-exit=0", "--wait=0", "--gpu-bind=none"),
      *("sedd", "train", "--config.data.files=a b"),
    ]
  ]
  assert done.stdout.splitlines()[1] == "# after exit code 143: scontrol requeue JOB"


@pytest.mark.multiprocess
def test_slurm_tasks_see_who_they_are(job, tmp_path):
  script = 'echo "$SLURM_PROCID $SLURM_LOCALID $SLURM_NTASKS $SLURM_JOB_ID $1"'
  done = job("bash", "-c", script, "_", "a b", SLURM_CPUS_PER_TASK="6", SLURM_RESTART_COUNT="1")
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert lines[0].startswith("slurm: job 41, start 2: bash -c ")
  assert sorted(lines[1:]) == ["0 0 2 41 a b", "1 1 2 41 a b"]
  asked = (tmp_path / "srun").read_text()
  assert asked.startswith("--kill-on-bad-exit=0 --wait=0 --gpu-bind=none --cpus-per-task=6 bash")
  assert not (tmp_path / "scontrol").exists()


@pytest.mark.multiprocess
def test_slurm_job_that_saved_is_queued_again(job, tmp_path):
  done = job("bash", "-c", "exit 143")
  assert done.returncode == 143
  assert (tmp_path / "scontrol").read_text() == "requeue 41\n"
  assert "slurm: saved; queueing job 41 again" in done.stderr
  done = job("bash", "-c", "exit 143", REFUSE="1")
  assert done.returncode == 143
  assert "submit the same command again" in done.stderr


@pytest.mark.multiprocess
@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_slurm_job_that_ended_otherwise_is_not(job, tmp_path, code):
  done = job("bash", "-c", f"exit $((SLURM_PROCID * {code}))")
  assert done.returncode == code
  assert not (tmp_path / "scontrol").exists()


@pytest.mark.multiprocess
def test_slurm_job_that_is_cancelled_is_not_queued_again(job, tmp_path):
  # scancel sends SIGTERM to the script and to the tasks.
  note = f'echo $BASHPID >"{tmp_path}/task_$SLURM_PROCID"'
  task = f'trap "exit 143" TERM; {note}; while :; do sleep 0.1; done'
  process = subprocess.Popen(
    ["bash", "launch/slurm.sbatch", "bash", "-c", task],
    cwd=ROOT,
    env=os.environ | job.env,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  files = [tmp_path / f"task_{i}" for i in range(2)]
  until(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files))
  process.send_signal(signal.SIGTERM)
  for file in files:
    os.kill(int(file.read_text()), signal.SIGTERM)
  assert process.wait(timeout=20) == -signal.SIGTERM
  time.sleep(0.3)
  assert not (tmp_path / "scontrol").exists()


def test_slurm_wants_as_many_tasks_as_gpus(job, tmp_path):
  done = job("sedd", SLURM_NTASKS_PER_NODE="1")
  assert done.returncode == 2
  assert "1 tasks on a node with 2 GPUs: give --ntasks-per-node=2" in done.stderr
  assert not (tmp_path / "srun").exists()


# ----------------------------------------------------------------------------------------- xpk.sh


def test_xpk_dry_runs():
  place = ["--cluster=pod", "--zone=us-west4-a", "--project=p"]
  train = ("sedd", "train", "--config=configs/text8.py", "--config.data.files=a b")

  def dry(verb, *arguments):
    return commands(launch("xpk.sh", verb, "--dry-run", *arguments))

  assert dry("cluster", *place, "--type=v5litepod-16", "--num-slices=2", "--spot") == [
    ["xpk", "cluster", "create", *place, "--tpu-type=v5litepod-16", "--num-slices=2", "--spot"]
  ]
  assert dry("image", "--image=R/sedd:1", "--extra=cuda") == [
    [
      *("docker", "build", "--platform=linux/amd64", f"--file={ROOT}/launch/Dockerfile"),
      *("--build-arg=EXTRA=cuda", "--tag=R/sedd:1", str(ROOT)),
    ],
    ["docker", "push", "R/sedd:1"],
  ]
  (line,) = dry("workload", *place, "--type=v6e-8", "--workload=a", "--image=I", *train)
  (command,) = (word for word in line if word.startswith("--command="))
  # The container's shell runs it: quoted for that shell, and replacing it, for the sake of SIGTERM.
  assert command == "--command=exec sedd train --config=configs/text8.py '--config.data.files=a b'"
  (line,) = dry(
    *("workload", *place, "--type=v5litepod-16", "--num-slices=2", "--workload=text8"),
    *("--image=R/sedd:1", "--storage=b1", "--storage=b2", "--restarts=3", "--grace=60", "sedd"),
  )
  assert line == [
    *("xpk", "workload", "create", *place, "--workload=text8", "--tpu-type=v5litepod-16"),
    *("--num-slices=2", "--docker-image=R/sedd:1", "--command=exec sedd", "--max-restarts=3"),
    *("--restart-on-exit-codes=1", "--termination-grace-period-seconds=60"),
    *("--storage=b1", "--storage=b2"),
  ]
  assert dry("list", *place) == [["xpk", "workload", "list", *place]]
  labels = (
    "jobset.sigs.k8s.io/jobset-name=a,jobset.sigs.k8s.io/job-index=1,"
    "batch.kubernetes.io/job-completion-index=3"
  )
  assert dry("logs", *place, "--workload=a", "--slice=1", "--worker=3") == [
    [
      *("gcloud", "container", "clusters", "get-credentials", "pod"),
      *("--location=us-west4", "--project=p"),
    ],
    ["kubectl", "logs", "--follow", "--tail=-1", f"--selector={labels}", "--container=jax-tpu"],
  ]
  delete = ["xpk", "workload", "delete", *place, "--workload=a"]
  assert dry("delete", *place, "--workload=a") == [delete]
  assert dry("delete", *place, "--workload=a", "--yes") == [[*delete, "--force"]]


# -------------------------------------------------------------------------------------- tpu_vm.sh

PLACE = ["--zone=us-west4-a", "--project=p"]
TPUS = ["gcloud", "compute", "tpus"]
DESCRIBE = [
  [*TPUS, "queued-resources", "describe", "pod", *PLACE, "--format=value(state.state)"],
  [*TPUS, "tpu-vm", "describe", "pod", *PLACE, "--format=value(state)"],
]
WORKER = "bash sedd_jax/launch/tpu_worker.sh"


def ssh(workers, command):
  return [*TPUS, "tpu-vm", "ssh", "pod", *PLACE, f"--worker={workers}", f"--command={command}"]


def tpu(verb, *arguments):
  return commands(launch("tpu_vm.sh", verb, *SLICE, "--project=p", "--dry-run", *arguments))


def test_tpu_vm_dry_runs():
  request = [*TPUS, "queued-resources", "create", "pod", *PLACE, "--accelerator-type=v5litepod-16"]
  request += ["--runtime-version=v2-alpha-tpuv5-lite", "--node-id=pod"]
  direct = [*TPUS, "tpu-vm", "create", "pod", *PLACE, "--accelerator-type=v5litepod-16"]
  remove = [*TPUS, "queued-resources", "delete", "pod", *PLACE, "--force", "--quiet"]
  assert tpu("create", "--spot") == [[*request, "--spot"], *DESCRIBE]
  assert tpu("create", "--direct", "--version=v") == [[*direct, "--version=v"], DESCRIBE[1]]
  assert tpu("delete") == [remove]
  assert tpu("delete", "--direct") == [[*TPUS, "tpu-vm", "delete", "pod", *PLACE, "--quiet"]]
  assert tpu("stop") == [ssh("all", f"{WORKER} stop")]
  assert tpu("status") == [*DESCRIBE, ssh("0", f"{WORKER} status")]
  assert tpu("logs", "--worker=3") == [ssh("3", "tail -n +1 -F sedd_run/log")]
  train = ("sedd", "train", "--config.data.files=it's a b")
  start = ssh("all", f"{WORKER} start sedd train '--config.data.files=it'\\''s a b'")
  assert tpu("run", *train) == [start, ssh("0", f"{WORKER} follow")]
  assert tpu("run", "--detach", *train) == [start]

  archive = f"{os.environ.get('TMPDIR', '/tmp')}/sedd_jax-pod.tgz"
  install = [
    [
      *("tar", "--create", "--gzip", f"--file={archive}", f"--directory={ROOT}"),
      *("--exclude=__pycache__", "LICENSE", "README.md", "configs", "launch"),
      *("pyproject.toml", "sedd_jax"),
    ],
    [*TPUS, "tpu-vm", "scp", archive, "pod:sedd_jax.tgz", *PLACE, "--worker=all"],
    ssh("all", "rm -rf sedd_jax && mkdir sedd_jax && tar -xzf sedd_jax.tgz -C sedd_jax"),
    ssh("all", "mount it"),
    ssh("all", f"{WORKER} install tpu"),
  ]
  assert tpu("install", "--setup=mount it") == install
  status = (
    f"if [ -f sedd_jax/launch/tpu_worker.sh ]; then {WORKER} status sedd; else echo absent; fi"
  )
  assert tpu("resume", "--setup=mount it", "--spot", "sedd") == [
    *(*DESCRIBE, remove, [*request, "--spot"], ssh("0", status), *install),
    *(ssh("all", "mount it"), ssh("all", f"{WORKER} restart sedd")),
  ]


@pytest.mark.parametrize(
  ("kind", "version"),
  [
    ("v4-32", "tpu-ubuntu2204-base"),
    ("v5litepod-4", "v2-alpha-tpuv5-lite"),
    ("v5p-8", "v2-alpha-tpuv5"),
    ("v6e-16", "v2-alpha-tpuv6e"),
  ],
)
def test_tpu_vm_knows_the_runtime_of_a_type(kind, version):
  assert f"--runtime-version={version}" in tpu("create", f"--type={kind}")[0]


# Two workers are two folders of $FAKE, whose commands run here. The states of a slice come from the
# file `plan`, a line for each creation; the last state stays.
GCLOUD = r"""
echo "$*" >>"$FAKE/calls"
shift 2
each() { # each WORKERS COMMAND
  local worker code=0
  for worker in 0 1; do
    [[ $1 == all || $1 == "$worker" ]] || continue
    (cd "$FAKE/worker$worker" && HOME=$PWD bash -c "$2") || code=$?
  done
  return $code
}
case "$1 $2" in
  *' create')
    sed -n 1p "$FAKE/plan" | tr ' ' '\n' >"$FAKE/states"
    sed -i 1d "$FAKE/plan"
    mkdir "$FAKE/worker0" "$FAKE/worker1"
    ;;
  *' delete')
    for worker in 0 1; do
      read -r pid _ <"$FAKE/worker$worker/sedd_run/process" && kill -KILL "$pid"
      rm -rf "$FAKE/worker$worker"
    done
    echo NOT_FOUND >"$FAKE/states"
    ;;
  *' describe')
    state=$(head -n 1 "$FAKE/states")
    case "$1 $state" in
      queued*READY | queued*PREEMPTED) state=ACTIVE ;;
      *) [ "$(wc -l <"$FAKE/states")" -le 1 ] || sed -i 1d "$FAKE/states" ;;
    esac
    case $state in
      NOT_FOUND) echo "ERROR: (gcloud) NOT_FOUND: Resource 'pod' was not found" >&2; exit 1 ;;
      OFFLINE) echo "ERROR: (gcloud) no connection" >&2; exit 1 ;;
    esac
    echo "$state"
    ;;
  'tpu-vm scp') each all "cp '$3' sedd_jax.tgz" ;;
  'tpu-vm ssh')
    for argument; do
      case $argument in
        --worker=*) workers=${argument#*=} ;;
        --command=*) command=${argument#*=} ;;
      esac
    done
    each "$workers" "$command"
    ;;
esac
"""
# On a worker: pip and uv, which put a stand-in for the trainer there.
PYTHON3 = """
case "$*" in
  *' venv '*) mkdir -p "${@: -1}/bin" && cp "$FAKE/sedd" "${@: -1}/bin/sedd" ;;
esac
"""
TRAINER = """
trap 'echo saved; exit 143' TERM
echo "trains: $*"
eval "$BEHAVIOUR"
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  """A stand-in for gcloud and a slice of two workers; kills what is left at the end."""
  fake(tmp_path / "bin", "gcloud", GCLOUD)
  fake(tmp_path / "bin", "python3", PYTHON3)
  fake(tmp_path, "sedd", TRAINER)
  (tmp_path / "states").write_text("NOT_FOUND\n")
  monkeypatch.setenv("FAKE", str(tmp_path))
  monkeypatch.setenv("TMPDIR", str(tmp_path))
  monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
  monkeypatch.setenv("GRACE", "5")
  yield tmp_path
  for file in tmp_path.glob("worker*/sedd_run/process"):
    with contextlib.suppress(ProcessLookupError):
      os.kill(int(file.read_text().split()[0]), signal.SIGKILL)


WORDS = ("status", "install", "restart", "start", "follow", "stop")


def calls(cloud):
  """What gcloud was asked to do, without the questions about states."""
  short = []
  for line in (cloud / "calls").read_text().splitlines():
    word = line.split()[3]
    if word == "ssh":
      asked = (name for name in WORDS if f"tpu_worker.sh {name}" in line)
      word = next(asked, "unpack" if "tar -xzf" in line else "setup")
    if word not in ("describe", "status"):
      short.append(word)
  return short


SET_UP = ["create", "scp", "unpack", "install", "restart"]
FOREVER = "while :; do sleep 0.1; done"
# In its first life; the folder is on the file system that outlives the slice.
ONCE = 'if mkdir "$FAKE/lived_$(basename "$HOME")" 2>/dev/null; then {}; fi'


def resume(cloud, plan, behaviour, *options):
  (cloud / "plan").write_text(plan)
  arguments = ("resume", *SLICE, "--poll=0", *options, "sedd", "train", "--workdir=my runs")
  return launch("tpu_vm.sh", *arguments, env={"BEHAVIOUR": behaviour})


@pytest.mark.multiprocess
def test_tpu_vm_resume_outlives_a_preemption(cloud):
  # The first slice waits in the queue and is lost while it trains; the second one finishes. That
  # gcloud once has no connection is no reason to delete anything.
  plan = "WAITING_FOR_RESOURCES CREATING READY READY OFFLINE READY PREEMPTED\nREADY\n"
  done = resume(cloud, plan, ONCE.format(FOREVER), "--spot", "--setup=touch mounted")
  assert done.returncode == 0, done.stderr
  once = ["create", "scp", "unpack", "setup", "install", "restart"]
  assert calls(cloud) == [*once, "delete", *once]
  for message in ("pod was preempted; again", "no connection", "tpu_vm: finished"):
    assert message in done.stderr
  for worker in range(2):
    home = cloud / f"worker{worker}"
    assert (home / "mounted").exists()
    assert (home / "sedd_jax" / "configs" / "text8.py").is_file()
    assert "trains: train --workdir=my runs" in (home / "sedd_run" / "log").read_text()


@pytest.mark.multiprocess
def test_tpu_vm_resume_starts_a_crashed_command_again(cloud):
  done = resume(cloud, "READY\n", ONCE.format("exit 1"))
  assert done.returncode == 0, done.stderr
  assert calls(cloud) == [*SET_UP, "restart"]
  assert "exited 1, restart 1 of 20" in done.stderr


@pytest.mark.multiprocess
@pytest.mark.parametrize(("code", "starts"), [(2, 1), (130, 1), (1, 3)])
def test_tpu_vm_resume_gives_up(cloud, code, starts):
  done = resume(cloud, "READY\n", f"exit {code}", "--retries=2")
  assert done.returncode == code
  assert calls(cloud) == SET_UP + ["restart"] * (starts - 1)


@pytest.fixture
def ready(cloud):
  """A slice on which everything is installed."""
  (cloud / "plan").write_text("CREATING READY\n")
  assert launch("tpu_vm.sh", "create", *SLICE, "--poll=0").returncode == 0
  assert launch("tpu_vm.sh", "install", *SLICE).returncode == 0
  return cloud


@pytest.fixture
def in_background():
  """Starts tpu_vm.sh; what a test leaves behind is killed."""
  processes = []

  def start(verb, *arguments, behaviour):
    process = subprocess.Popen(
      [*LISTEN, "bash", "launch/tpu_vm.sh", verb, *SLICE, *arguments],
      cwd=ROOT,
      env=os.environ | {"BEHAVIOUR": behaviour},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    processes.append(process)
    return process

  yield start
  for process in processes:
    process.kill()
    process.wait()
    process.stdout.close()


TRAIN = ("sedd", "train", "--x=a b")


@pytest.mark.multiprocess
def test_tpu_vm_run_shows_the_log_and_ends_with_the_exit_code(ready, in_background):
  process = in_background("run", *TRAIN, behaviour="echo out; exit 5")
  out, _ = process.communicate(timeout=20)
  assert process.returncode == 5
  assert "sedd train '--x=a b'\ntrains: train --x=a b\nout\n" in out
  assert calls(ready)[-2:] == ["start", "follow"]
  done = launch("tpu_vm.sh", "status", *SLICE)
  assert done.stdout.splitlines() == ["ACTIVE", "READY", "exited 5"]


@pytest.mark.multiprocess
def test_tpu_vm_run_goes_on_after_ctrl_c_and_stops_by_sigterm(ready, in_background):
  log = ready / "worker0" / "sedd_run" / "log"
  process = in_background("run", *TRAIN, behaviour=FOREVER)
  until(lambda: "follow" in calls(ready) and "trains" in log.read_text())
  time.sleep(0.3)  # The traps are set.
  process.send_signal(signal.SIGINT)
  out, _ = process.communicate(timeout=20)
  assert process.returncode == 130
  assert "it runs on" in out
  assert launch("tpu_vm.sh", "status", *SLICE).stdout.endswith("running\n")

  # The same command is not started twice, another one not beside it.
  other = launch("tpu_vm.sh", "run", *SLICE, "sedd", "other")
  assert other.returncode == 2
  assert "still runs another command: sedd train '--x=a b'" in other.stderr
  process = in_background("run", *TRAIN, behaviour=FOREVER)
  until(lambda: calls(ready)[-1] == "follow")
  time.sleep(0.3)
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=20)
  assert process.returncode == 143
  assert "runs already" in out
  assert out.count("trains:") == 1
  assert "saved" in out
  assert launch("tpu_vm.sh", "status", *SLICE).stdout.endswith("stopped 143\n")


@pytest.mark.multiprocess
def test_tpu_vm_resume_starts_what_was_stopped_before_but_heeds_a_stop(ready, in_background):
  forever = {"BEHAVIOUR": FOREVER}
  assert launch("tpu_vm.sh", "run", *SLICE, "--detach", "sedd", env=forever).returncode == 0
  assert launch("tpu_vm.sh", "stop", *SLICE).returncode == 0
  assert launch("tpu_vm.sh", "status", *SLICE).stdout.endswith("stopped 143\n")
  process = in_background("resume", "--poll=0", "sedd", behaviour=FOREVER)
  until(lambda: "restart" in calls(ready))
  until(lambda: launch("tpu_vm.sh", "status", *SLICE).stdout.endswith("running\n"))
  assert launch("tpu_vm.sh", "stop", *SLICE).returncode == 0
  assert process.wait(timeout=20) == 143
  assert calls(ready).count("restart") == 1


@pytest.mark.multiprocess
def test_tpu_vm_resume_ends_by_sigterm_with_everything_saved(ready, in_background):
  process = in_background("resume", "--poll=30", *TRAIN, behaviour=FOREVER)
  logs = [ready / f"worker{i}" / "sedd_run" / "log" for i in range(2)]
  until(lambda: all(log.is_file() and "trains" in log.read_text() for log in logs))
  time.sleep(0.5)  # It sleeps until the next look.
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=20)
  assert process.returncode == 143
  assert all("saved" in log.read_text() for log in logs)
  assert calls(ready)[-2:] == ["restart", "stop"]


@pytest.mark.parametrize(
  ("options", "answer", "code", "deleted"),
  [((), "n\n", 1, False), ((), "", 1, False), ((), "y\n", 0, True), (("--yes",), "", 0, True)],
)
def test_tpu_vm_delete_asks(cloud, options, answer, code, deleted):
  (cloud / "calls").touch()
  done = launch("tpu_vm.sh", "delete", *SLICE, *options, input=answer)
  assert done.returncode == code
  assert calls(cloud) == ["delete"] * deleted


def test_tpu_vm_create_says_when_the_request_failed(cloud):
  (cloud / "plan").write_text("WAITING_FOR_RESOURCES FAILED\n")
  done = launch("tpu_vm.sh", "create", *SLICE, "--poll=0")
  assert done.returncode == 1
  assert "was not granted" in done.stderr


# ----------------------------------------------------------------------------------- tpu_worker.sh


@pytest.mark.multiprocess
def test_a_worker_knows_the_state_of_its_command(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setenv("GRACE", "1")

  def worker(*arguments):
    return launch("tpu_worker.sh", *arguments)

  def status(*command):
    return worker("status", *command).stdout.strip()

  assert status() == "absent"
  assert worker("follow").returncode == 2
  state = tmp_path / "sedd_run"
  state.mkdir()
  (state / "installed").touch()
  assert status() == "none"
  stubborn = ("bash", "-c", "trap '' TERM; while :; do sleep 0.1; done")
  assert worker("start", *stubborn).returncode == 0
  assert status() == status(*stubborn) == "running"
  assert status("sedd") == "busy"
  # Does not save within its time: killed.
  assert worker("stop").returncode == 0
  assert status() == "stopped 137"
  assert status("sedd") == "none"
  assert worker("start", "bash", "-c", "pwd; exit 3").returncode == 0
  followed = worker("follow")
  assert followed.returncode == 3
  assert followed.stdout.endswith(f"{ROOT}\n")
  assert status() == "exited 3"
  # After a restart of the machine the numbers of its processes mean nothing.
  (state / "code").unlink()
  (state / "process").write_text(f"{os.getpid()} another-boot\n")
  assert status() == "none"
  assert worker("stop").returncode == 0
