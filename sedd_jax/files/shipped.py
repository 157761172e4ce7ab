"""What comes with the package beside its modules: configs and launch scripts.

An installed wheel has both inside the package, a checkout beside it (setup.py).
"""

import difflib
from pathlib import Path

from sedd_jax.files.paths import local_name

_PACKAGE = Path(__file__).resolve().parent.parent


def configs() -> Path:
  """The folder of the configs that `--config` knows by name."""
  return _folder("configs")


def launchers() -> Path:
  """The folder of the launch scripts."""
  return _folder("launch")


def _folder(name: str) -> Path:
  inside = _PACKAGE / name
  return inside if inside.is_dir() else _PACKAGE.parent / name


def config_names() -> list[str]:
  """The names of the configs that come with the package."""
  return sorted(path.stem for path in configs().glob("*.py") if path.stem != "__init__")


def config_file(text: str) -> tuple[Path, list[str]]:
  """The file that --config names, and its argument as a list of none or one.

  Args:
    text: a file, or the name of a config that comes with the package; then :argument where it takes
      one. A file that exists wins over a name.

  Raises:
    ValueError: there is no such file or name, or the text can be no path.
  """
  name, *argument = local_name(text, "--config").split(":", 1)
  path, known = Path(name), config_names()
  if path.is_file():
    return path, argument
  if name in known:
    return configs() / f"{name}.py", argument
  if path.suffix or len(path.parts) != 1:
    hint = f"; --config={path.stem} comes with the package" if path.stem in known else ""
    raise ValueError(f"there is no file {path}{hint}")
  near = difflib.get_close_matches(name, known, n=1)
  meant = f"did you mean {near[0]!r}? " if near else ""
  raise ValueError(
    f"there is no config {name!r}: {meant}With the package come {', '.join(known)}; any other is a "
    "Python file"
  )
