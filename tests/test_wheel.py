"""The wheel: it holds the whole package, and works outside any checkout."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from support.paths import REPOSITORY

from sedd_jax.interop.load import STORIES

SOURCES = ("LICENSE", "README.md", "pyproject.toml", "setup.py", "sedd_jax", "configs", "launch")
LAUNCHERS = ("common.sh", "local.sh", "slurm.sbatch", "supervise.sh", "xpk.sh")
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel of this tree, built in a copy of it that another version was built in before."""
  tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
  for name in SOURCES:
    if (REPOSITORY / name).is_dir():
      ignored = shutil.ignore_patterns("__pycache__")
      shutil.copytree(REPOSITORY / name, tree / name, ignore=ignored)
    else:
      shutil.copy(REPOSITORY / name, tree / name)
  left = tree / "build" / "lib" / "sedd_jax" / "left.py"
  left.parent.mkdir(parents=True)
  left.write_text("")
  done = subprocess.run(
    [sys.executable, "-c", BUILD, str(out)], cwd=tree, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  (file,) = out.glob("*.whl")
  return file


def test_the_wheel_holds_the_package_with_configs_and_launchers_and_no_more(wheel):
  def files(folder):
    found = (path for path in (REPOSITORY / folder).rglob("*") if "__pycache__" not in path.parts)
    return {path.relative_to(REPOSITORY).as_posix() for path in found if path.is_file()}

  expected = files("sedd_jax")
  expected |= {f"sedd_jax/{name}" for name in files("configs") if name.endswith(".py")}
  expected |= {f"sedd_jax/launch/{name}" for name in LAUNCHERS}
  with zipfile.ZipFile(wheel) as archive:
    held = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
  assert {name for name in held if ".dist-info/" not in name} == expected
  assert held["sedd_jax/launch/local.sh"] & 0o111, "sweeps start it by its path"


def test_launchers_that_copy_a_checkout_stay_there():
  """A new script is in the wheel, or named here."""
  left = {"Dockerfile", "Dockerfile.dockerignore", "sweep.py"}
  left |= {"tpu_slice.sh", "tpu_vm.sh", "tpu_worker.sh"}
  there = {path.name for path in (REPOSITORY / "launch").iterdir() if path.is_file()}
  assert there == left | set(LAUNCHERS)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
  """A folder outside any checkout, with an environment whose only own package is the wheel.

  What the package needs comes from the running environment, whose packages are only put on the
  path: an editable install among them is not found, since its .pth file is not read.
  """
  folder = tmp_path_factory.mktemp("elsewhere")
  venv.create(folder / "env", symlinks=True)
  python = folder / "env" / "bin" / "python"
  # Not from the checkout, nor with it on the path: its egg-info is an installed package to pip.
  pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
  done = outside(folder, *pip, "install", "--no-deps", "--no-index", str(wheel))
  assert done.returncode == 0, done.stderr
  (site,) = folder.glob("env/lib/python*/site-packages")
  paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
  (site / "needed.pth").write_text("\n".join(paths) + "\n")
  return folder


def outside(folder, *command):
  """A finished command that ran in the folder, where nothing leads to the checkout."""
  env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
  env["PATH"] = f"{folder}/env/bin:{env['PATH']}"
  return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def sedd(folder, *arguments):
  """The output of the environment's command."""
  done = outside(folder, f"{folder}/env/bin/sedd", *arguments)
  assert done.returncode == 0, done.stderr
  assert "Traceback" not in done.stderr
  return done.stdout


@pytest.mark.slow
def test_it_works_outside_any_checkout(installed):
  python = f"{installed}/env/bin/python"
  where = outside(installed, python, "-c", "import sedd_jax; print(sedd_jax.__file__)").stdout
  assert Path(where).is_relative_to(installed / "env")
  for name in ("configs", "launch", "tests"):
    done = outside(installed, python, "-c", f"import {name}")
    assert f"No module named '{name}'" in done.stderr

  verbs = sedd(installed, "--help")
  assert all(f"\n  {verb} " in verbs for verb in ("train", "sweep", "sample", "report"))
  assert "quickstart, stories, text8" in " ".join(sedd(installed, "plan", "--help").split())
  sedd(
    installed, "train", "--config=quickstart", "--workdir=run",
    "--config.train.steps=2", "--config.train.batch_size=4", "--config.data.tokenizer=bytes",
    "--config.model.width=16", "--config.model.blocks=1", "--config.model.heads=2",
    "--config.report.evaluate_times=2", "--config.report.evaluate_blocks=4",
    "--config.report.preview_steps=2", "--config.report.final_blocks=4",
  )  # fmt: skip
  sampled = sedd(installed, "sample", "--checkpoint=run", "--num=1", "--steps=2", "--length=16")
  assert "--- sample " in sampled
  sedd(installed, "report", "run", "--out=report.html")
  assert "<svg" in (installed / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not STORIES.is_dir(), reason="the model in the box is not in this tree")
def test_the_model_in_the_box_is_in_it(installed):
  assert "--- sample " in sedd(installed, "sample", "--num=1", "--steps=4")


@pytest.mark.slow
def test_sweeps_find_their_launchers_there(installed):
  (folder,) = installed.glob("env/lib/python*/site-packages/sedd_jax/launch")
  assert str(folder) in sedd(installed, "sweep", "--help")
  sweep = ("sweep", "--config=quickstart", "--root=runs", "--sweep=seed=1,2")
  lines = sedd(installed, *sweep, "--dry-run").splitlines()
  head = ["sedd", "train", "--config=quickstart"]
  assert [shlex.split(line) for line in lines] == [
    [*head, f"--workdir=runs/seed-{seed}", f"--config.seed={seed}"] for seed in (1, 2)
  ]

  line, _ = sedd(installed, *sweep, "--dry-run", "--processes=2").splitlines()
  local, *command = shlex.split(line)
  assert (installed / local).samefile(folder / "local.sh")
  printed = outside(installed, local, "--dry-run", *command)
  assert printed.stdout.count("sedd train --config=quickstart") == 2, printed.stderr

  refused = outside(installed, f"{installed}/env/bin/sedd", *sweep, "--backend=tpu_vm")
  assert (refused.returncode, refused.stdout) == (2, "")
  assert "--backend=tpu_vm needs a checkout" in refused.stderr
  image = outside(installed, "bash", str(folder / "xpk.sh"), "image", "--image=a")
  assert (image.returncode, "image needs a checkout" in image.stderr) == (2, True)
