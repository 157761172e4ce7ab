"""Calls of the `tokenizers` library. Its errors are of any type, and some are panics of Rust."""

import contextlib
from collections.abc import Iterator

# Rust's panics arrive as a type that no module exports, and that is no `Exception`.
_PANIC = "PanicException"


@contextlib.contextmanager
def library_call(
  message: str, errors: tuple[type[Exception], ...] = (Exception,)
) -> Iterator[None]:
  """Turns what the library raises inside into a ValueError.

  The library prints a panic on the error stream itself, beside this message.

  Args:
    message: names the tokenizer's file and what fails; the library's own words come after it.
    errors: that are turned, beside panics. () where others come from outside the library.

  Raises:
    ValueError: the library has failed.
  """
  try:
    yield
  except MemoryError:
    raise
  except BaseException as error:
    if isinstance(error, errors) or type(error).__name__ == _PANIC:
      raise ValueError(f"{message}: {error}") from error
    raise
