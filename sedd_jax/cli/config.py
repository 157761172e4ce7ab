"""The flag --config with its overrides, and all that is wrong with them at once."""

import ast
import importlib.util
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from sedd_jax.training.experiment import Experiment

_NAME = re.compile(r"--?(?P<no>no)?config(?:\.(?P<path>[^=]+))?(?:=|$)")
_PARSERS = {int: flags.IntegerParser(), float: flags.FloatParser(), bool: flags.BooleanParser()}


def define_config() -> flags.FlagHolder:
  """The flag --config of a verb; its value is what the file gives, with overrides."""
  return config_flags.DEFINE_config_file("config", None, "Config file, with :argument.")


def config_faults(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """What is wrong with the config that a command line names.

  The flags of ml_collections stop at the first override that they do not take. So the overrides
  are laid over the file's config here, wrong ones as they stand, and the experiment says what it
  thinks of them all.

  Args:
    arguments: the command line without the program.

  Returns:
    A line for each fault, and the arguments that are not about the config.
  """
  file, overrides, others = _given(arguments)
  if file is None:
    return [f"--config.{path} needs --config=FILE" for path, _ in overrides[:1]], others
  try:
    config = _load(file).to_dict()
  except ValueError as error:
    return [f"--config={file}: {error}"], others
  for path, value in overrides:
    _lay(config, path.split("."), value)
  try:
    Experiment.from_config(config)
  except ValueError as error:
    return str(error).split("\n"), others
  return [], others


def _given(
  arguments: Sequence[str],
) -> tuple[str | None, list[tuple[str, str | None]], list[str]]:
  """The config file, its overrides in order (a field with dots, its text), and what is left."""
  file, overrides, others = None, [], []
  left = list(arguments)
  while left:
    argument = left.pop(0)
    # A value may stand in an argument of its own.
    value = argument.partition("=")[2] if "=" in argument else None
    found = _NAME.match(argument)
    if found and not found["no"] and value is None and left and not left[0].startswith("-"):
      value = left.pop(0)
    if not found:
      others.append(argument)
    elif found["path"] is None:
      file = value
    else:
      overrides.append((found["path"], "false" if found["no"] else value))
  return file, overrides, others


def _load(file: str) -> ConfigDict:
  """What the config file's get_config gives.

  Raises:
    ValueError: there is no such file, it is no config, or it fails; the message says where.
  """
  path, *argument = file.split(":", 1)
  spec = importlib.util.spec_from_file_location("sedd_config", path)
  if spec is None or spec.loader is None:
    raise ValueError("it must be a Python file (.py), with :argument where it takes one")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # Where dataclasses in the file look for their names.
  try:
    spec.loader.exec_module(module)
    return module.get_config(*argument)
  except FileNotFoundError as error:
    raise ValueError(f"there is no file {error.filename}") from error
  except ValueError:
    raise
  except Exception as error:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == path]  # fmt: skip
    where = f", line {lines[-1]}" if lines else ""
    raise ValueError(f"{type(error).__name__}{where}: {error}") from error


def _lay(config: dict[str, Any], path: list[str], text: str | None) -> None:
  """Sets a field, also where there is none."""
  *sections, last = path
  for section in sections:
    inner = config.get(section)
    if not isinstance(inner, Mapping):
      inner = config[section] = {}
    config = inner  # pyright: ignore[reportAssignmentType]
  config[last] = _value(text, config.get(last))


def _value(text: str | None, default: Any) -> Any:
  """A text as a value of the default's type; the text itself where it is none of these."""
  if text is None:
    return isinstance(default, bool) or None
  try:
    if isinstance(default, tuple):
      value = ast.literal_eval(text)
      return value if isinstance(value, tuple) else (value,)
    return _PARSERS[type(default)].parse(text) if type(default) in _PARSERS else text
  except (ValueError, SyntaxError, TypeError):
    return text
