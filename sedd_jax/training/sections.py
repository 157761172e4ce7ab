"""Frozen dataclasses from nested dicts, with all errors in one message.

A section is a dataclass whose fields have defaults; fields may be sections themselves. Errors that
a section's `__post_init__` raises and type errors are collected together, one per line.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from sedd_jax.ranges import number_outside

Section = TypeVar("Section")


def read_section(cls: type[Section], config: Mapping[str, Any], name: str) -> Section:
  """A section with the sections inside it; missing fields have their defaults.

  Args:
    cls: its class.
    config: nested dicts.
    name: what to call it in messages.

  Raises:
    ValueError: fields are unknown, of the wrong type, out of range or incompatible; the message
      has a line for each.
  """
  section, faults = _read(cls, config, name)
  if faults:
    raise ValueError("\n".join(faults))
  return section


def below(section: Any, name: str, least: int, *fields: str) -> list[str]:
  """One line for each of the given fields that is below `least`."""
  wanted = f"be at least {least}" if least else "not be negative"
  return [
    f"{name}.{field}={getattr(section, field)} must {wanted}"
    for field in fields
    if not getattr(section, field) >= least  # True for NaN too.
  ]


def _read(cls: type[Any], config: Any, name: str) -> tuple[Any, list[str]]:
  """The section, and a line for each error; with errors the section is only a placeholder."""
  if not isinstance(config, Mapping):
    return cls(), [f"{name}={config!r} must be a section, with fields {', '.join(_names(cls))}"]
  defaults = {field.name: field.default for field in dataclasses.fields(cls)}
  values, faults, faulty = {}, [], []
  for key, value in config.items():
    path = f"{name}.{key}"
    if key not in defaults:
      faults.append(f"{path} is unknown: {_hint(cls, key)}")
      continue
    default = defaults[key]
    if dataclasses.is_dataclass(default):
      values[key], faults_here = _read(type(default), value, path)
    else:
      values[key], faults_here = _typed(value, default, path)
    if faults_here:
      faults += faults_here
      faulty.append(path)
      del values[key]
  try:
    section = cls(**values)
  except ValueError as error:
    section = cls()
    # A default that replaces a faulty field may itself be incompatible with other fields.
    faults += [line for line in str(error).split("\n") if not _names_one_of(faulty, line)]
  return section, faults


def _typed(value: Any, default: Any, path: str) -> tuple[Any, list[str]]:
  """The value converted to the type of its field, and a line for each error."""
  wanted = type(default)
  entries = value if wanted is tuple and isinstance(value, list | tuple) else (value,)
  if wanted in (int, float, tuple) and (faults := [
    line for entry in entries if _is_number(entry) for line in number_outside(path, entry)
  ]):  # fmt: skip
    return value, faults
  if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
    return float(value), []
  if wanted is tuple and isinstance(value, list | tuple):
    # Entries have the type of the default's first entry, if there is one.
    value = (
      tuple(_typed(entry, default[0], path)[0] for entry in value) if default else tuple(value)
    )
    fits = all(type(entry) is type(default[0]) for entry in value) if default else True
  else:
    fits = type(value) is wanted
  if not fits:
    return value, [f"{path}={value!r} must be of type {wanted.__name__}, like {default!r}"]
  return value, []


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _hint(cls: type[Any], key: str) -> str:
  """A hint for an unknown field: a similar name, in this section or in one inside it."""
  names = [field.name for field in dataclasses.fields(cls)]
  deeper = [name for name in _names(cls) if name not in names]
  if near := difflib.get_close_matches(key, names, n=1):
    return f"did you mean {near[0]!r}?"
  last = {name.rsplit(".", 1)[-1]: name for name in deeper}
  if near := difflib.get_close_matches(key, last, n=1):
    return f"did you mean {last[near[0]]!r}?"
  return f"there are {', '.join(names)}"


def _names(cls: type[Any], prefix: str = "") -> Iterator[str]:
  """Names of all fields; those inside sections are dotted."""
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(field.default):
      yield from _names(type(field.default), f"{prefix}{field.name}.")
    else:
      yield prefix + field.name


def _names_one_of(paths: list[str], line: str) -> bool:
  """Whether a section's message is about one of the fields. Messages leave `config.` out."""
  return any(f"{path.split('.', 1)[1]}=" in line for path in paths)
