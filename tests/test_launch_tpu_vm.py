"""launch/tpu_vm.sh, and launch/tpu_worker.sh that it runs on the workers."""

import contextlib
import os
import signal
import subprocess
import time

import pytest
from support.launching import LISTEN, SLICE, commands, fake, launch, until
from support.paths import REPOSITORY

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
      *("tar", "--create", "--gzip", f"--file={archive}", f"--directory={REPOSITORY}"),
      *("--exclude=__pycache__", "LICENSE", "README.md", "configs", "launch"),
      *("pyproject.toml", "sedd_jax", "setup.py"),
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
      cwd=REPOSITORY,
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
  assert followed.stdout.endswith(f"{REPOSITORY}\n")
  assert status() == "exited 3"
  # After a restart of the machine the numbers of its processes mean nothing.
  (state / "code").unlink()
  (state / "process").write_text(f"{os.getpid()} another-boot\n")
  assert status() == "none"
  assert worker("stop").returncode == 0
