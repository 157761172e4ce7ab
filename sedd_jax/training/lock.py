"""One process at a time: locks that end with the process that holds them."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

FILE = "lock"

_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


def take(file: IO[Any]) -> bool:
  """Takes an open file for this process, until it is closed or the process ends.

  Returns:
    False where the file system has no locks, and nothing was taken.

  Raises:
    BlockingIOError: another process has taken it.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in _UNSUPPORTED:
      return False
    raise
  return True


class RunLock:
  """A run directory for this process alone; a context manager. It is made if it is not there.

  Args:
    workdir: the run directory.
    say: told where the file system has no locks.

  Raises:
    BlockingIOError: another process trains there; the message names it.
    OSError: the directory cannot be made or written to.
  """

  def __init__(self, workdir: Path, say: Callable[[str], None]):
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      self._file = (workdir / FILE).open("a+b", buffering=0)
      if not take(self._file):
        say(f"{workdir} is on a file system without locks: start no second run there")
      since = time.strftime("%Y-%m-%d %H:%M:%S")
      self._file.truncate(0)
      self._file.write(f"process {os.getpid()} on {socket.gethostname()} (since {since})".encode())
    except BlockingIOError:
      self._file.seek(0)
      holder = self._file.read().decode() or "another process"
      self._file.close()
      raise BlockingIOError(
        f"--workdir={workdir} is in use: {holder} trains there. Stop it first, or choose another "
        "--workdir"
      ) from None
    except OSError as error:
      raise OSError(f"--workdir={workdir} cannot be written to: {error.strerror}") from error

  def __enter__(self) -> "RunLock":
    return self

  def __exit__(self, *exception) -> None:
    self._file.close()
