"""What every config resolves to, one field a line, so that a change of a default shows in review.

python tests/golden_configs.py        # writes tests/golden/configs anew
"""

import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

from sedd_jax.studies.loop import Loop
from sedd_jax.training.experiment import Experiment

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GOLDEN = Path(__file__).resolve().parent / "golden" / "configs"
ARGUMENTS = [
  ("quickstart", None),
  ("stories", None),
  ("text8", "absorb"),
  ("text8", "uniform"),
  ("lm1b", "absorb"),
  ("lm1b", "uniform"),
  ("books", "base"),
  ("books", "tiny"),
  *(("peers", p) for p in ("sedd-absorb", "sedd-uniform", "mdlm", "md4", "d3pm", "udlm", "ar")),
  *(("autophagy", f"{m},{r}") for m in ("sedd", "ar") for r in ("synthetic", "augmented", "fresh")),
  *(("openwebtext", f"{s},{p}") for s in ("small", "medium", "xl") for p in ("absorb", "uniform")),
]


def get_config(name: str, argument: str | None = None):
  """The ConfigDict of a config file."""
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*([] if argument is None else [argument]))


def golden_file(name: str, argument: str | None) -> Path:
  return GOLDEN / f"{'_'.join([name, *(argument or '').split(',')]).rstrip('_')}.txt"


def read(name: str, argument: str | None) -> Experiment:
  """The experiment of a config file, with its loop if the file has one."""
  cls = Loop if name == "autophagy" else Experiment
  return cls.from_config(get_config(name, argument).to_dict())


def resolved(name: str, argument: str | None) -> str:
  """All fields of a config."""
  return "\n".join(sorted(_lines(dataclasses.asdict(read(name, argument))))) + "\n"


def _lines(config: Mapping, prefix: str = "") -> Iterator[str]:
  for key, value in config.items():
    if isinstance(value, Mapping):
      yield from _lines(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key} = {value!r}"


def write() -> None:
  GOLDEN.mkdir(parents=True, exist_ok=True)
  for file in GOLDEN.glob("*.txt"):
    file.unlink()
  for name, argument in ARGUMENTS:
    golden_file(name, argument).write_text(resolved(name, argument))


if __name__ == "__main__":
  write()
