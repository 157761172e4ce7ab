"""launch/slurm.sbatch and launch/xpk.sh."""

import os
import signal
import subprocess
import time

import pytest
from support.launching import commands, fake, launch, path_with, until
from support.paths import REPOSITORY

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
  lines = (REPOSITORY / "launch" / "slurm.sbatch").read_text().splitlines()
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
    cwd=REPOSITORY,
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
      *("docker", "build", "--platform=linux/amd64", f"--file={REPOSITORY}/launch/Dockerfile"),
      *("--build-arg=EXTRA=cuda", "--tag=R/sedd:1", str(REPOSITORY)),
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
