"""What all verbs share: run a main, print errors as errors."""

import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging

_DEBUG = flags.DEFINE_bool("debug", False, "Show Python tracebacks of errors.")

# What bad input raises. Anything else is a bug, and shows its traceback.
_USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)


def run(
  main: Callable[[], int | None], usage: str, on_error: Callable[[int], None] | None = None
) -> None:
  """Parses flags, runs main and exits with what it returns; 2 after an error.

  Args:
    main: the verb.
    usage: shown by --help, examples included.
    on_error: called with the exit code after the message of an error; may end the process.
  """
  logging.set_verbosity(logging.ERROR)  # Libraries' warnings; ours are errors or console lines.
  sys.modules["__main__"].__doc__ = usage

  def guarded(argv: list[str]) -> None:
    if len(argv) > 1:
      _fail(f"unexpected argument {argv[1]!r}: flags start with --")
    try:
      code = main()
    except KeyboardInterrupt:
      _leave(130, "interrupted", on_error)
    except (TimeoutError, ConnectionError) as error:
      # Not the user's doing: another process or a server does not answer. Trying again may help.
      _leave(1, str(error), on_error)
    except _USER_ERRORS as error:
      if _DEBUG.value:
        raise
      _leave(2, str(error), on_error)
    except Exception:
      _leave(1, traceback.format_exc(), on_error)
    sys.exit(code or 0)

  app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  try:
    return app.parse_flags_with_usage(argv)
  except SystemExit as error:
    # absl leaves with 1 after an unknown flag; ours is 2 for all that a user gets wrong.
    sys.exit(2 if error.code == 1 else error.code)
  except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    # ml_collections: an override of a field that is not there, or of the wrong type.
    _fail(str(error).strip("'\""))


def _leave(code: int, message: str, on_error: Callable[[int], None] | None) -> NoReturn:
  _say(message)
  if on_error is not None:
    on_error(code)
  sys.exit(code)


def _fail(message: str) -> NoReturn:
  _say(message)
  sys.exit(2)


def _say(message: str) -> None:
  print(f"error: {message}", file=sys.stderr)
