"""Where the packages lie: configs/ and launch/ go into sedd_jax, and are no packages of their own.

All else is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class Build(build_py):
  """Builds the package from what is in the tree now."""

  def run(self):
    # Modules of an earlier build, gone from the tree since, would go into the wheel too.
    if not self.editable_mode:
      shutil.rmtree(Path(self.build_lib, "sedd_jax"), ignore_errors=True)
    super().run()

  def find_package_modules(self, package, package_dir):
    # launch/sweep.py is for checkouts: `sedd sweep` does the same.
    if package == "sedd_jax.launch":
      return []
    return super().find_package_modules(package, package_dir)


setup(
  packages=[*find_packages(include=["sedd_jax*"]), "sedd_jax.configs", "sedd_jax.launch"],
  package_dir={"sedd_jax.configs": "configs", "sedd_jax.launch": "launch"},
  cmdclass={"build_py": Build},
)
