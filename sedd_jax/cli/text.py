"""Text as the command line shows it: wrapped by words for a terminal, and the help of a verb."""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, TextIO

from absl import flags

_WIDEST = 100


def wrap(text: str, stream: TextIO) -> str:
  """The text for a stream: on a terminal, long lines are wrapped between words, except those that
  start with a space (examples and tables)."""
  if not stream.isatty():
    return text
  width = shutil.get_terminal_size().columns
  return "\n".join(line if line[:1] == " " else _filled(line, width) for line in text.split("\n"))


def row(name: str, value: str, stream: TextIO) -> str:
  """A line of a table of names and values; a terminal wraps values within their column."""
  width = shutil.get_terminal_size().columns if stream.isatty() else sys.maxsize
  return _filled(value, width, indent=" " * 16, first=f"  {name:<14}")


def help_text(usage: str, hidden: Sequence[str] = ()) -> str:
  """The text of --help: a verb's usage and its own flags, no wider than the terminal."""
  width = min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)
  blocks = [_reflowed(block, width) for block in usage.strip("\n").split("\n\n")]
  shown = "\n".join(_flag_lines(flag, width) for flag in _own_flags() if flag.name not in hidden)
  return "\n\n".join([*blocks, f"flags:\n{shown}", "--helpfull lists those of libraries too."])


def _reflowed(block: str, width: int) -> str:
  """A paragraph, refilled; a block with indented lines (examples) keeps its line breaks."""
  lines = block.split("\n")
  if any(line.startswith(" ") for line in lines):
    return "\n".join(line if line[:1] == " " else _filled(line, width) for line in lines)
  return _filled(" ".join(lines), width)


def _own_flags() -> list[flags.Flag]:
  """Flags defined under sedd_jax.cli or in the running script."""
  modules = flags.FLAGS.flags_by_module_dict()
  ours = [name for name in modules if name.startswith("sedd_jax.cli") or name == sys.argv[0]]
  # The verb's own come first, then those that all verbs share.
  ours.sort(key=lambda name: name in ("sedd_jax.cli.distributed", "sedd_jax.cli.app"))
  return [flag for name in ours for flag in modules[name] if "." not in flag.name]


def _flag_lines(flag: Any, width: int) -> str:
  head = f"  --[no]{flag.name}" if flag.boolean else f"  --{flag.name}=..."
  words = [flag.help]
  if isinstance(flag.default, str | int | float) and flag.default not in ("", False):
    words.append(f"Default: {flag.default}.")
  return f"{head}\n{_filled(' '.join(words), width, indent='      ')}"


def _filled(text: str, width: int, indent: str = "", first: str | None = None) -> str:
  return textwrap.fill(
    text,
    max(width, 30),
    initial_indent=indent if first is None else first,
    subsequent_indent=indent,
    break_long_words=False,
    break_on_hyphens=False,
  )
