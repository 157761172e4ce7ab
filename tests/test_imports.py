"""The floors of the house: a module imports its own floor and lower ones only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "sedd_jax"
FLOORS = (
  "files",
  "diffusion",
  "models",
  "data",
  "parallel",
  "evaluation",
  "training",
  "planning",
  "generation",
  "interop",
  "studies",
  "sweeps",
  "reports",
  "demo",
  "cli",
)
# Who may import what is kept to one place.
ONLY_IN = {
  "flax": ("training/state.py",),
  "orbax": ("training/checkpoints.py",),
  "grain": ("data",),
  "tensorflow_datasets": ("data",),
  "ml_collections": ("cli",),
  "absl": ("cli",),
  "starlette": ("demo",),
  "uvicorn": ("demo",),
  "torch": ("interop/weights.py",),
}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
  """Full names of all that a file imports, at any depth of the code."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      assert node.level == 0, f"{path}: a relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def faults(module: str, names: set[str]) -> list[str]:
  found = []
  floor = module.split("/")[0]
  for name in names:
    parts = name.split(".")
    ours = parts[0] == "sedd_jax" and len(parts) > 1 and {floor, parts[1]} <= set(FLOORS)
    if ours and FLOORS.index(parts[1]) > FLOORS.index(floor):
      found.append(f"{module} imports {name}, which lies above it")
    for package, places in ONLY_IN.items():
      if f"{name}.".startswith(f"{package}.") and not module.startswith(places):
        found.append(f"{module} imports {name}, which belongs in {', '.join(places)}")
    if floor == "diffusion" and parts[0] in ("flax", "optax", "chex"):
      found.append(f"{module} imports {name}: diffusion takes jax and numpy only")
  return found


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_its_floor_and_lower_ones_only(module):
  assert not faults(module, imported(PACKAGE / module))


def test_the_walk_finds_faults():
  assert faults("diffusion/x.py", {"sedd_jax.models.Network"})
  assert faults("training/loop.py", {"flax.struct"})
  assert faults("diffusion/x.py", {"optax.adamw"})
  assert not faults("training/x.py", {"sedd_jax.diffusion.sample"})
  assert not faults("training/state.py", {"flax.struct"})


def test_every_folder_of_the_package_is_a_floor():
  folders = {module.split("/")[0] for module in MODULES if "/" in module}
  assert folders == set(FLOORS)
