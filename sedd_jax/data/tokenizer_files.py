"""Files of tokenizers: those of a folder, plain or compressed, and tokenizer_config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sedd_jax.data.compression import OPENERS, UNREADABLE, read_text
from sedd_jax.files.pointers import check_no_pointer

DEFINITION, CONFIG = "tokenizer.json", "tokenizer_config.json"


def find_beside(folder: Path, *names: str) -> Path | None:
  """The first of some files that a folder has, plain or compressed (.gz, .xz, .bz2, .zst)."""
  files = (folder / (name + suffix) for name in names for suffix in ("", *OPENERS))
  return next((file for file in files if file.is_file()), None)


def read_file(file: Path, field: str = "data.tokenizer") -> str:
  """The text of a tokenizer's file.

  Args:
    file: plain or compressed.
    field: what the user set, for messages.

  Raises:
    ValueError: it is no text in UTF-8, or damaged, or a Git LFS pointer; the message names it.
  """
  if file.is_file():
    check_no_pointer(file)
  try:
    return read_text(file, field)
  except UNREADABLE as error:
    if str(file) in str(error):
      raise
    raise ValueError(f"{field}: {file} cannot be read: {error}") from error


def eos_beside(folder: Path) -> str | None:
  """The end-of-text token that a folder's tokenizer_config.json names, if it names one.

  Raises:
    ValueError: as of `eos_of`.
  """
  if (file := find_beside(folder, CONFIG)) is None:
    return None
  return eos_of(read_file(file), str(file))


def eos_of(config: str, source: str) -> str | None:
  """The end-of-text token that a tokenizer_config.json names, if it names one.

  Args:
    config: its text.
    source: where it is from, for messages.

  Raises:
    ValueError: it is no JSON object, or names something else than a token.
  """
  written = setting(config, "eos_token", source)
  token = written.get("content") if isinstance(written, Mapping) else written
  if written is not None and not isinstance(token, str):
    raise ValueError(
      f"{source}: eos_token={written!r} must be a string, or an object whose content is a string"
    )
  return token


def setting(config: str, name: str, source: str) -> Any:
  """A field of a tokenizer_config.json, or None.

  Raises:
    ValueError: it is no JSON object.
  """
  try:
    found = json.loads(config)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{source} is not JSON: {error}") from error
  if not isinstance(found, Mapping):
    raise ValueError(f"{source} must hold named fields, not {found!r:.40}")
  return found.get(name)
