"""The scripts in launch/: what all of them do, and supervise.sh."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support.launching import SLICE, fake, launch, path_with
from support.paths import REPOSITORY

SUPERVISE = REPOSITORY / "launch" / "supervise.sh"
SCRIPTS = sorted(path.name for path in (REPOSITORY / "launch").glob("*.s[hb]*"))


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


def test_the_scripts_are_clean():
  if shutil.which("shellcheck") is None:
    pytest.skip("shellcheck is not installed (a package of Debian's)")
  done = subprocess.run(
    ["shellcheck", "--external-sources", *SCRIPTS], cwd=REPOSITORY / "launch", capture_output=True
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
    ["bash", "-c", script, "_", *arguments],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    check=True,
  )
  assert shlex.split(done.stdout) == arguments
  assert done.stdout.startswith("plain 'a b' ")
  echoed = subprocess.run(
    ["bash", "-c", f"printf '%s|' {done.stdout}"], capture_output=True, text=True, check=True
  )
  assert echoed.stdout == "".join(f"{argument}|" for argument in arguments)


def test_the_image_copies_what_there_is_and_is_not_root():
  lines = (REPOSITORY / "launch" / "Dockerfile").read_text().splitlines()
  copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
  assert {"sedd_jax", "configs", "pyproject.toml"} <= set(copied)
  assert all((REPOSITORY / name).exists() for name in copied)
  ignored = (REPOSITORY / "launch" / "Dockerfile.dockerignore").read_text().splitlines()
  assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
  assert "ARG RUN_AS=1000" in lines
  assert [line for line in lines if line.startswith("USER ")] == ["USER ${RUN_AS}"]
  assert not any(line.startswith("ENTRYPOINT") for line in lines)
