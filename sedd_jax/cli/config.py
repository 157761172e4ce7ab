"""The flag --config with its overrides, checked together."""

import ast
import contextlib
import dataclasses
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from sedd_jax.files.shipped import config_file, config_names
from sedd_jax.studies.loop import GenerationsConfig, Loop

_NAME = re.compile(r"--?(?P<no>no)?config(?:\.(?P<path>[^=]+))?(?:=|$)")
_PARSERS = {int: flags.IntegerParser(), float: flags.FloatParser(), bool: flags.BooleanParser()}


def define_config() -> flags.FlagHolder:
  """The flag --config of a verb; its value is the config of the file, with overrides."""
  holder = config_flags.DEFINE_config_file(
    "config",
    None,
    f"Config file, or the name of one that comes with the package: {', '.join(config_names())}; "
    "with :argument where it takes one. --config.SECTION.FIELD=VALUE sets any field of it.",
  )
  parser = flags.FLAGS["config"].parser
  load = parser.parse

  def load_whole(argument: str) -> Any:
    path, words = config_file(argument)
    return _with_generations(load(":".join([str(path), *words])))

  parser.parse = load_whole
  return holder


def _with_generations(config: Any) -> Any:
  """The config with the section `generations`, so that its flags exist for any config file."""
  if isinstance(config, ConfigDict) and "generations" not in config:
    with config.unlocked():
      config.generations = dataclasses.asdict(GenerationsConfig())
  return config


def config_faults(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """Faults of the config that a command line names.

  ml_collections stops at the first override it rejects. So all overrides are put into the file's
  config here, wrong ones too, and the experiment checks the result.

  Args:
    arguments: the command line without the program.

  Returns:
    A line for each fault, and the arguments that do not belong to the config.
  """
  file, overrides, others = _given(arguments)
  if file is None:
    return [f"--config.{path} needs --config=FILE" for path, _ in overrides[:1]], others
  try:
    config = _with_generations(_load(file)).to_dict()
  except ValueError as error:
    # The message may name the flag itself.
    return [f"--config={file}: {str(error).removeprefix(f'--config={file!r} ')}"], others
  for path, value in overrides:
    _set(config, path.split("."), value)
  try:
    Loop.from_config(config)
  except ValueError as error:
    return str(error).split("\n"), others
  return [], others


def _given(
  arguments: Sequence[str],
) -> tuple[str | None, list[tuple[str, str | None]], list[str]]:
  """The config file, its overrides in order (dotted field, text), and the other arguments."""
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


def load_module(path: Path) -> ModuleType:
  """The module of a config file.

  Raises:
    ValueError: it is no Python file, or fails; the message says where.
  """
  spec = importlib.util.spec_from_file_location("sedd_config", path)
  if spec is None or spec.loader is None:
    raise ValueError("it must be a Python file (.py), with :argument where it takes one")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # Dataclasses in the file need it.
  with _named_faults(path):
    spec.loader.exec_module(module)
  return module


def _load(file: str) -> ConfigDict:
  """The result of the config file's get_config.

  Raises:
    ValueError: the file is missing, is no config, or fails; the message says where.
  """
  path, argument = config_file(file)
  module = load_module(path)
  if not callable(getattr(module, "get_config", None)):
    raise ValueError("AttributeError: it must define get_config(), which returns a ConfigDict")
  with _named_faults(path):
    config = module.get_config(*argument)
  if not isinstance(config, ConfigDict):
    kind = type(config).__name__
    raise ValueError(f"get_config must return an ml_collections.ConfigDict, not {kind}")
  return config


@contextlib.contextmanager
def _named_faults(path: Path) -> Iterator[None]:
  """Turns what the code of a config file raises into ValueErrors that say where."""
  try:
    yield
  except FileNotFoundError as error:
    raise ValueError(f"there is no file {error.filename}") from error
  except ValueError:
    raise
  except Exception as error:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == str(path)]  # fmt: skip
    where = f", line {lines[-1]}" if lines else ""
    raise ValueError(f"{type(error).__name__}{where}: {error}") from error


def _set(config: dict[str, Any], path: list[str], text: str | None) -> None:
  """Sets a field, or adds it."""
  *sections, last = path
  for section in sections:
    inner = config.get(section)
    if not isinstance(inner, Mapping):
      inner = config[section] = {}
    config = inner  # pyright: ignore[reportAssignmentType]
  config[last] = _value(text, config.get(last))


def _value(text: str | None, default: Any) -> Any:
  """The text as a value of the default's type, or the text itself if it cannot be read as one."""
  if text is None:
    return isinstance(default, bool) or None
  try:
    if isinstance(default, tuple):
      value = ast.literal_eval(text)
      return value if isinstance(value, tuple) else (value,)
    return _PARSERS[type(default)].parse(text) if type(default) in _PARSERS else text
  except (ValueError, SyntaxError, TypeError):
    return text
