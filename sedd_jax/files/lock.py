"""Locks that end with the process that holds them."""

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


class FolderLock:
  """A folder for this process alone; a context manager. The folder is made if it is not there.

  Args:
    folder: a run directory, or what is being prepared.
    say: is told if the file system has no locks.
    flag: the option that named the folder, for messages.

  Raises:
    BlockingIOError: another process works there; the message names it.
    OSError: the directory cannot be made or written to.
  """

  def __init__(self, folder: Path, say: Callable[[str], None], flag: str = "--workdir"):
    try:
      folder.mkdir(parents=True, exist_ok=True)
      self._file = (folder / FILE).open("a+b", buffering=0)
      if not take(self._file):
        say(f"{folder} is on a file system without locks: start no second process there")
      since = time.strftime("%Y-%m-%d %H:%M:%S")
      self._file.truncate(0)
      self._file.write(f"process {os.getpid()} on {socket.gethostname()} (since {since})".encode())
    except BlockingIOError:
      self._file.seek(0)
      holder = self._file.read().decode() or "another process"
      self._file.close()
      raise BlockingIOError(
        f"{flag}={folder} is in use: {holder} works there. Stop it first, or choose another {flag}"
      ) from None
    except OSError as error:
      raise OSError(f"{flag}={folder} cannot be written to: {error.strerror}") from error

  def __enter__(self) -> "FolderLock":
    return self

  def __exit__(self, *exception) -> None:
    self._file.close()
