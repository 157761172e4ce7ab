"""Flags that take paths. Every path on the command line passes through `files.paths.local_name`.

A test compares the flags of all verbs with these kinds, so that a new one cannot be forgotten.
"""

from collections.abc import Callable
from typing import Any

from absl import flags

from sedd_jax.data.patterns import source_faults
from sedd_jax.files.paths import local_name, local_path, split_paths

flags.disclaim_key_flags()  # They belong to the verb that defines them here.


class PathParser(flags.ArgumentParser[Any]):
  """Parses what one flag takes.

  Args:
    name: of the flag.
    read: gives the value of a text; its second argument is what messages call the flag.
  """

  def __init__(self, name: str, read: Callable[[str, str], Any]):
    super().__init__()
    self._name, self._read = name, read

  def parse(self, argument: Any) -> Any:
    if not isinstance(argument, str):  # A default.
      return argument
    try:
      return self._read(argument, f"--{self._name}")
    except ValueError as error:  # absl names flag and value itself.
      raise ValueError(str(error).removeprefix(f"--{self._name}={argument!r} ")) from None

  def flag_type(self) -> str:
    return "path"


def define_path(name: str, default: None, text: str) -> flags.FlagHolder[Any]:
  """A flag whose value is a Path, or None."""
  return _define(name, default, text, local_path)


def define_model(name: str, default: None, text: str) -> flags.FlagHolder[Any]:
  """A flag whose value is what `sedd_jax.load` takes: a path as text, or a hub id."""
  return _define(name, default, text, local_name)


def define_paths(name: str, default: None, text: str) -> flags.FlagHolder[Any]:
  """A flag whose value is a list of paths as text, or of hub ids, with commas between."""
  return _define(name, default, text, _listed)


def define_source(name: str, default: str | None, text: str) -> flags.FlagHolder[Any]:
  """A flag whose value is text in the notation of `data.files`; what reads it checks the paths."""
  return _define(name, default, text, _source)


def define_each_path(name: str, default: None, text: str) -> flags.FlagHolder[Any]:
  """A flag that can be repeated; its value is a list of Paths."""
  return flags.DEFINE_multi(PathParser(name, local_path), _SERIALIZER, name, default, text)


_SERIALIZER: flags.ArgumentSerializer[Any] = flags.ArgumentSerializer()


def _define(name: str, default: Any, text: str, read: Callable[[str, str], Any]) -> Any:
  return flags.DEFINE(PathParser(name, read), name, default, text, serializer=_SERIALIZER)


def _listed(text: str, name: str) -> list[str]:
  return [local_name(part, name) for part in split_paths(text, ",")]


def _source(text: str, name: str) -> str:
  if faults := source_faults(text, name):
    raise ValueError("\n".join(faults))
  return text
