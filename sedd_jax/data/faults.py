"""Unreadable input: files, documents and records, and the policy for them."""

from collections.abc import Sequence

POLICIES = ("fail", "skip")
_REMEMBERED = 20


class InputFault(ValueError):
  """Input that cannot be read; the message says where and what."""


class Faults:
  """Counts unreadable input that is skipped, or raises. Input that is read again counts once.

  Attributes:
    policy: what to do.
    first: the first faults, in words.

  Args:
    policy: `fail` raises at the first fault, `skip` continues without the faulty input.
  """

  def __init__(self, policy: str = "fail"):
    self.policy = policy
    self.first: list[str] = []
    self._known: set[int] = set()
    self._notes: dict[str, tuple[str, set[int]]] = {}  # The first place, and hashes of all.

  def report(self, where: str, what: object) -> None:
    """Counts a fault, or raises.

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

  def note(self, what: str, where: str) -> None:
    """Counts what is no fault and should be known, whatever the policy; each place once."""
    self._notes.setdefault(what, (where, set()))[1].add(hash(where))

  @property
  def notes(self) -> list[str]:
    """What was noted, a sentence for each kind."""
    return [
      f"{len(places):,} {what} (the first: {where})"
      for what, (where, places) in self._notes.items()
    ]

  @property
  def count(self) -> int:
    """Faults so far; always 0 under `fail`."""
    return len(self._known)


def describe(count: int, first: Sequence[str]) -> str:
  """A message with the first faults, one per line; empty if there were none."""
  if not count:
    return ""
  lines = [f"left out of the input, as data.on_fault=skip says: {count:,}"]
  more = [f"  and {count - len(first):,} more"] if count > len(first) else []
  return "\n".join([*lines, *(f"  {fault}" for fault in first), *more])
