"""Typed access to the fields of a config that other code wrote; errors name the field."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sedd_jax.files.pointers import check_no_pointer


@dataclasses.dataclass(frozen=True)
class Fields:
  """Nested dicts read from a file.

  Attributes:
    values: the dicts.
    source: the file, for messages.

  Raises (all methods but `get`):
    ValueError: the field is missing or of another type; the message names file, field and value.
  """

  values: Mapping[str, Any]
  source: Path

  @classmethod
  def from_json(cls, file: Path) -> "Fields":
    """Raises:
    ValueError: the file is not JSON, or holds no object."""
    return cls._parsed(file, json.loads)

  @classmethod
  def from_yaml(cls, file: Path) -> "Fields":
    """Raises:
    ValueError: the file is not YAML, or holds no mapping."""
    return cls._parsed(file, yaml.safe_load)

  @classmethod
  def _parsed(cls, file: Path, parse: Callable[[str], Any]) -> "Fields":
    check_no_pointer(file)
    try:
      values = parse(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
      raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(values, Mapping):
      raise ValueError(f"{file} must hold named fields, not {type(values).__name__}")
    return cls(values, file)

  def get(self, *keys: str) -> Any:
    """The value of a field, or None if it is missing."""
    value: Any = self.values
    for key in keys:
      if not isinstance(value, Mapping) or key not in value:
        return None
      value = value[key]
    return value

  def require(self, *keys: str) -> Any:
    """The value of a field; null counts as missing."""
    value = self.get(*keys)
    if value is None:
      raise ValueError(f"{self.source}: field {'.'.join(keys)!r} is missing")
    return value

  def integer(self, *keys: str) -> int:
    """A size: at least 1."""
    value = self.require(*keys)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise self.wrong(value, "an integer of at least 1", *keys)
    return value

  def number(self, *keys: str) -> float:
    """A float. YAML 1.1 reads `1e-4` as text, so text that is a number counts."""
    value = self.require(*keys)
    try:
      if isinstance(value, bool):
        raise TypeError
      return float(value)
    except (TypeError, ValueError):
      raise self.wrong(value, "a number", *keys) from None

  def flag(self, *keys: str) -> bool:
    value = self.require(*keys)
    if not isinstance(value, bool):
      raise self.wrong(value, "true or false", *keys)
    return value

  def wrong(self, value: Any, wanted: str, *keys: str) -> ValueError:
    """The error for a field with a wrong value."""
    return ValueError(f"{self.source}: {'.'.join(keys)}={value!r} must be {wanted}")
