"""Faults of the input: files, documents and records that cannot be read, and what is done then."""

from collections.abc import Sequence

POLICIES = ("fail", "skip")
_REMEMBERED = 20


class InputFault(ValueError):
  """Input that cannot be read; the message says where and what."""


class Faults:
  """Counts what is left out, or refuses to leave anything out. What is read again counts once.

  Attributes:
    policy: what to do.
    first: the first faults, in words.

  Args:
    policy: `fail` raises at the first fault, `skip` goes on without what is at fault.
  """

  def __init__(self, policy: str = "fail"):
    self.policy = policy
    self.first: list[str] = []
    self._known: set[int] = set()

  def report(self, where: str, what: object) -> None:
    """Notes a fault.

    Args:
      where: the file, and the line or record in it.
      what: is wrong with it.

    Raises:
      InputFault: the policy is `fail`.
    """
    if self.policy == "fail":
      raise InputFault(f"{where}: {what} (on_fault=skip goes on without it)")
    self._known.add(hash((where, str(what))))
    if len(self.first) < min(self.count, _REMEMBERED):
      self.first.append(f"{where}: {what}")

  @property
  def count(self) -> int:
    """Faults so far; always 0 under `fail`."""
    return len(self._known)


def describe(count: int, first: Sequence[str]) -> str:
  """What was left out, a line for each of the first faults; empty if nothing was."""
  if not count:
    return ""
  lines = [f"left out of the input, as data.on_fault=skip says: {count:,}"]
  more = [f"  and {count - len(first):,} more"] if count > len(first) else []
  return "\n".join([*lines, *(f"  {fault}" for fault in first), *more])
