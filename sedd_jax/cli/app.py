"""What all verbs share: flags are parsed, a main runs, results, help and errors are printed."""

import difflib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

from sedd_jax.cli import streams
from sedd_jax.cli.text import help_text, wrap
from sedd_jax.data.library_tokenizer import TokenizerWarning
from sedd_jax.ranges import number_outside

_DEBUG = flags.DEFINE_bool("debug", False, "Show Python tracebacks of errors.")

# Errors of bad input. Any other error is a bug and shows its traceback.
_USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)
_HELP = ("--help", "-help", "-h", "-?", "--helpshort")
# XLA's word for a device without enough memory.
_NO_MEMORY = "RESOURCE_EXHAUSTED"


def run(
  main: Callable[[], int | None],
  usage: str,
  *,
  on_error: Callable[[int], None] | None = None,
  check: Callable[[Sequence[str]], tuple[list[str], list[str]]] | None = None,
  takes: str | None = None,
  hidden: Sequence[str] = (),
) -> None:
  """Parses flags, runs main and exits with its result; with 2 after an error.

  Args:
    main: the verb.
    usage: shown by --help, examples included.
    on_error: called with the exit code after the message of an error; may end the process.
    check: gives the faults of arguments before absl parses them, a line for each, and the arguments
      it has not checked.
    takes: the flag that the first argument without a name sets; if the flag can be repeated, all
      such arguments.
    hidden: flags that --help leaves out.
  """
  streams.protect()
  warnings.showwarning = _show_warning
  logging.set_verbosity(logging.ERROR)  # Hides warnings of libraries.
  sys.modules["__main__"].__doc__ = usage
  flags.FLAGS.set_gnu_getopt(True)  # Flags may follow other arguments.

  def parse(argv: list[str]) -> list[str]:
    if any(argument in _HELP for argument in argv[1:]):
      print(help_text(usage, hidden))
      sys.exit(0)
    named = _name_first(argv[1:], takes)
    faults, others = ([], named) if check is None else check(named)
    try:
      unknown = flags.FLAGS([argv[0], *(others if faults else named)], known_only=True)[1:]
    except SystemExit:
      sys.exit(0)  # After absl's longer helps, which exit with another code.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
      # ml_collections raises the last of these. The text of a KeyError is quoted.
      faults.append(str(error.args[0] if isinstance(error, KeyError) else error))
      unknown = []
    faults += [_unknown(argument) for argument in unknown]
    faults += _integers_outside()
    if faults:
      _leave(2, faults[0] if len(faults) == 1 else "\n".join([f"{len(faults)} faults:", *faults]))
    return argv[:1]

  def guarded(argv: list[str]) -> None:
    del argv
    try:
      code = main()
    except KeyboardInterrupt:
      _leave(130, "interrupted", on_error)
    except (TimeoutError, ConnectionError) as error:
      # Another process or a server does not answer. Trying again may help.
      _leave(1, str(error), on_error)
    except _USER_ERRORS as error:
      if _DEBUG.value:
        raise
      _leave(2, str(error), on_error)
    except Exception as error:
      if _NO_MEMORY in str(error) and not _DEBUG.value:
        _leave(1, _memory_advice(error), on_error)
      if (fault := _no_platform()) and not _DEBUG.value:
        _leave(2, fault, on_error)
      traceback.print_exc()
      name = type(error).__name__
      _leave(1, f"{name}: a bug of sedd_jax. Please report it with the lines above", on_error)
    sys.exit(code or 0)

  app.run(guarded, flags_parser=parse)


def require(usage: str, *holders: flags.FlagHolder) -> list[Any]:
  """The values of required flags.

  Raises:
    ValueError: flags are missing; the message names them all, with the first example of the usage.
  """
  missing = [f"--{holder.name}" for holder in holders if holder.value is None]
  if missing:
    lines = usage.split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith(" "))
    last = next(i for i in range(first, len(lines)) if not lines[i].endswith("\\"))
    example = "\n".join(lines[first : last + 1])
    raise ValueError(
      f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; for example\n\n"
      f"{example}\n\n--help shows more"
    )
  return [holder.value for holder in holders]


def show(
  report: Mapping[str, Any], text: Callable[[Mapping[str, Any]], str], *, as_json: bool
) -> None:
  """Prints a report, as text or as one JSON object."""
  print(json.dumps(report) if as_json else text(report))


def note(text: str) -> None:
  """Prints a message that is no result."""
  print(text, file=sys.stderr, flush=True)


def _show_warning(message: Any, category: Any, *place: Any) -> None:
  """Prints ours as notes, and those of libraries with their place."""
  if issubclass(category, TokenizerWarning):
    note(str(message))
  else:
    _SHOWN(message, category, *place)


_SHOWN = warnings.showwarning


def _name_first(arguments: list[str], flag: str | None) -> list[str]:
  """The arguments; the first without a name becomes a value of the flag, or all such if the flag
  can be repeated."""
  if flag is None or not arguments:
    return arguments
  if not isinstance(flags.FLAGS[flag], flags.MultiFlag):
    named = arguments[0].startswith("-")
    return arguments if named else [f"--{flag}={arguments[0]}", *arguments[1:]]
  found, is_value = [], False
  for argument in arguments:
    is_flag = argument.startswith("-")
    found.append(argument if is_flag or is_value else f"--{flag}={argument}")
    is_value = is_flag and "=" not in argument and _needs_value(argument.lstrip("-"))
  return found


def _needs_value(name: str) -> bool:
  """Whether the argument after a flag without = is its value."""
  return name in flags.FLAGS and not flags.FLAGS[name].boolean


def _unknown(argument: str) -> str:
  """The message about an argument that is no flag of this verb."""
  if not argument.startswith("-"):
    return f"unexpected argument {argument!r}: flags start with --"
  name = argument.lstrip("-").split("=", 1)[0]
  known = [flag for flag in flags.FLAGS if "." not in flag]
  near = [flag for flag in known if flag.startswith(name)]
  near += difflib.get_close_matches(name, known, n=1)
  hint = f"did you mean --{near[0]}?" if near else "--help lists all flags"
  return f"unknown flag --{name}: {hint}"


def _integers_outside() -> list[str]:
  """A line for each integer flag, fields of configs aside, that is out of every verb's range."""
  return [
    line
    for name in flags.FLAGS
    if "." not in name and isinstance(value := flags.FLAGS[name].value, int)
    for line in number_outside(f"--{name}", value)
  ]


def _memory_advice(error: Exception) -> str:
  first = str(error).strip().split("\n", 1)[0]
  return (
    f"the device's memory is not enough ({first}). Training takes less with "
    "--config.train.accumulation=2 (or more) or --config.model.remat=full, other verbs with a "
    "smaller --batch or --batch_size"
  )


def _no_platform() -> str | None:
  """A line about JAX_PLATFORMS if it names what this machine does not have, else None."""
  named = os.environ.get("JAX_PLATFORMS")
  if not named:
    return None
  try:
    jax.devices()
  except Exception:
    return (
      f"JAX_PLATFORMS={named}: JAX finds no such device here, or has no plugin for it. Unset the "
      "variable, or set JAX_PLATFORMS=cpu"
    )
  return None


def _leave(code: int, message: str, on_error: Callable[[int], None] | None = None) -> NoReturn:
  print(wrap(f"error: {message}", sys.stderr), file=sys.stderr)
  if on_error is not None:
    on_error(code)
  sys.exit(code)
