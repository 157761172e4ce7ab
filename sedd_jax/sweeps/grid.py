"""The points of a sweep, parsed from --sweep and checked against the config, and their names."""

import ast
import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sedd_jax.studies.loop import Loop


def grid(text: str, config: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The product of `key=value,value;key=a..b`, with the last key varying fastest.

  Values have the type of the config's field; a..b are whole numbers, including both ends. Values
  with a comma or a semicolon need quotes; tuples are written as in Python.

  Raises:
    ValueError: a field is unknown, or a value has another type.
  """
  axes: dict[str, list[Any]] = {}
  for part in _split(text, ";"):
    key, equals, values = part.partition("=")
    key = key.strip()
    if not equals or not values.strip():
      raise ValueError(f"--sweep: {part!r} must be key=value,value")
    if key in axes:
      raise ValueError(f"--sweep: {key} is given twice")
    like = lookup(config, key)
    axes[key] = [value for word in _split(values, ",") for value in _values(word, like, key)]
  return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def _split(text: str, separator: str) -> list[str]:
  """Parts between separators outside quotes and brackets."""
  quoted = r"""'[^']*'|"[^"]*"|\([^()]*\)|\[[^][]*\]"""
  parts = re.findall(rf"(?:{quoted}|[^{separator}])+", text)
  return [part.strip() for part in parts if part.strip()]


def _values(word: str, like: Any, key: str) -> list[Any]:
  ends = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", word)
  try:
    if ends and type(like) in (int, float):
      first, last = map(int, ends.groups())
      if last < first:
        raise ValueError
      return [type(like)(value) for value in range(first, last + 1)]
    match like:
      case bool():
        return [{"true": True, "false": False}[word.lower()]]
      case int() | float():
        return [type(like)(word)]
      case str():
        return [word[1:-1] if re.fullmatch(r"'.*'|\".*\"", word) else word]
      case tuple():
        return [tuple(ast.literal_eval(word))]
  except (ValueError, KeyError, SyntaxError, TypeError):
    pass
  raise ValueError(f"{key}={word} must be of type {type(like).__name__}, like {like!r}")


def lookup(config: Mapping[str, Any], key: str) -> Any:
  """The value of a dotted field.

  Raises:
    ValueError: there is no such field; the message suggests the nearest name.
  """
  fields = dict(_flat(config))
  if key not in fields:
    near = difflib.get_close_matches(key, fields, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
    raise ValueError(f"the config has no field {key}: {hint}")
  return fields[key]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in config.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def experiment(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Loop:
  """The checked config with its overrides.

  Raises:
    ValueError: a field is unknown, of the wrong type or out of range.
  """
  changed = json.loads(json.dumps(config))  # A copy; lists may stand for tuples.
  for key, value in overrides.items():
    lookup(config, key)
    *sections, field = key.split(".")
    section = changed
    for name in sections:
      section = section[name]
    section[field] = value
  try:
    return Loop.from_config(changed)
  except ValueError as error:
    raise ValueError(f"run {describe(overrides)}: {error}") from None


def describe(overrides: Mapping[str, Any]) -> str:
  """`a.b=1 c=2`, as in flags."""
  return " ".join(f"{key}={text(value)}" for key, value in overrides.items()) or "(no overrides)"


def text(value: Any) -> str:
  """A value in the syntax of the trainer's flags."""
  return value if isinstance(value, str) else repr(value)


def names(points: Sequence[Mapping[str, Any]]) -> list[str]:
  """A directory name for each point: short, safe in file systems, unique and deterministic.

  `learning_rate-0.0003_seed-1`: last parts of the fields, and values. If this is too long, not
  unique or has unsafe characters, a hash of the point is appended.

  Raises:
    ValueError: a point occurs twice.
  """
  plain = [
    "_".join(f"{key.split('.')[-1]}-{text(value)}" for key, value in point.items()) or "base"
    for point in points
  ]
  unique = []
  for point, name in zip(points, plain, strict=True):
    safe = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name)[:80]
    usable = safe == name and plain.count(name) == 1
    unique.append(safe if usable else f"{safe}_{short_hash(point)}")
    if unique.count(unique[-1]) > 1:
      raise ValueError(f"the sweep has this run twice: {describe(point)}")
  return unique


def short_hash(value: Any) -> str:
  """A deterministic hash of eight characters."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
