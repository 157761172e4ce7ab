"""The device: one request is drawn at a time, the rest wait in order."""

import collections
import dataclasses
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from sedd_jax.demo.film import Film
from sedd_jax.demo.infill import Infill
from sedd_jax.generation.generator import Snapshot
from sedd_jax.generation.model import LanguageModel

MOST_WAITING = 32
# Compiled programs are dropped when there are more: each combination of sampler, length and kind
# of truncation has its own.
_MOST_PROGRAMS = 32
_STOPPING = "the server is stopping"
# Seconds until a client is told to try again where no request has been drawn yet.
_FIRST_GUESS = 1.0

# Called with the kind of an event and its data, from any thread. Kinds: waiting, compiling, start,
# step, and one of the last kinds done, refused and failed.
Emit = Callable[[str, Mapping[str, Any]], None]
LAST_KINDS = ("done", "refused", "failed")


class Busy(Exception):
  """The line is full or closed.

  Attributes:
    seconds: after which a place may be free.
  """

  def __init__(self, message: str, seconds: int):
    super().__init__(message)
    self.seconds = seconds


class _Withdrawn(Exception):
  """Raised between two steps when nobody waits for the result."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
  """A request in the line or on the device."""

  request: Infill
  emit: Emit
  withdrawn: threading.Event = dataclasses.field(default_factory=threading.Event)


class Device:
  """The line of requests, and the thread that draws them.

  Args:
    model: draws; it needs a tokenizer.
    most_waiting: requests in the line, without the one on the device.

  Attributes:
    closed: whether requests are refused because the server stops.
  """

  def __init__(self, model: LanguageModel, *, most_waiting: int = MOST_WAITING):
    self._model, self._most_waiting = model, most_waiting
    self._line: collections.deque[Drawing] = collections.deque()
    self._changed = threading.Condition()
    self._current: Drawing | None = None
    self.closed = False
    self._seconds = _FIRST_GUESS
    self._programs: set[Any] = set()
    # A daemon: nothing interrupts a compilation, and the process ends without waiting for one.
    self._thread = threading.Thread(target=self._run, name="device", daemon=True)
    self._thread.start()

  def submit(self, request: Infill, emit: Emit) -> Drawing:
    """Puts a request at the end of the line.

    Raises:
      Busy: the line is full or closed.
    """
    drawing = Drawing(request=request, emit=emit)
    with self._changed:
      if self.closed:
        raise Busy(_STOPPING, 1)
      if len(self._line) >= self._most_waiting:
        message = f"{self._most_waiting} requests wait already, and no more can: try again later"
        raise Busy(message, max(1, round(self._seconds * len(self._line))))
      self._line.append(drawing)
      self._tell_places(first=len(self._line) - 1)
      self._changed.notify()
    return drawing

  def withdraw(self, drawing: Drawing) -> None:
    """Frees the place of a request, or ends its drawing after the step under way."""
    drawing.withdrawn.set()
    with self._changed:
      if drawing in self._line:
        place = self._line.index(drawing)
        del self._line[place]
        self._tell_places(first=place)

  def close(self) -> None:
    """Refuses all that waits and all that comes, and ends the drawing under way."""
    with self._changed:
      if self.closed:
        return
      self.closed = True
      under_way = [] if self._current is None else [self._current]
      for drawing in (*under_way, *self._line):
        drawing.withdrawn.set()
        drawing.emit("failed", {"error": _STOPPING})
      self._line.clear()
      self._changed.notify()

  def ended(self, seconds: float) -> bool:
    """Whether the thread has ended, after at most so many seconds."""
    self._thread.join(seconds)
    return not self._thread.is_alive()

  @property
  def waiting(self) -> int:
    """Requests in the line, without the one on the device."""
    return len(self._line)

  def _tell_places(self, *, first: int) -> None:
    """Tells each request from this place on how many come before it."""
    busy = self._current is not None
    for place in range(first, len(self._line)):
      if place or busy:
        self._line[place].emit("waiting", {"ahead": place + busy})

  def _run(self) -> None:
    while (drawing := self._next()) is not None:
      started = time.monotonic()
      try:
        self._draw(drawing)
      except _Withdrawn:
        continue
      except ValueError as error:
        drawing.emit("refused", {"error": str(error)})
      except Exception as error:
        traceback.print_exc()
        drawing.emit("failed", {"error": f"{type(error).__name__}: {error}"})
      # A moving average.
      self._seconds += 0.2 * (time.monotonic() - started - self._seconds)

  def _next(self) -> Drawing | None:
    with self._changed:
      self._current = None
      self._changed.wait_for(lambda: self._line or self.closed)
      if self.closed:
        return None
      self._current = self._line.popleft()
      self._tell_places(first=0)
      return self._current

  def _draw(self, drawing: Drawing) -> None:
    request, model, emit = drawing.request, self._model, drawing.emit
    template = request.template
    self._note_program(drawing)
    given = np.flatnonzero(template.given).tolist()
    emit("start", {"length": len(template.tokens), "given": given, "seed": request.seed})
    film = Film(model.tokenizer, model.mask_id)
    count = 0

    def on_snapshot(snapshot: Snapshot) -> None:
      nonlocal count
      if drawing.withdrawn.is_set():
        raise _Withdrawn
      if request.stream:
        emit("step", _step(count, snapshot, film))
      count += 1

    made = model.generate(
      template.tokens[None],
      template.given[None],
      settings=request.settings,
      seed=request.seed,
      on_snapshot=on_snapshot,
    )
    (tokens,) = made.tokens
    text = model.text(tokens, template.given)
    result = {"text": text, "tokens": tokens.tolist(), "calls": made.calls, "seed": request.seed}
    emit("done", result)

  def _note_program(self, drawing: Drawing) -> None:
    """Says so where a program must be compiled first, and drops all before there are too many."""
    settings, length = drawing.request.settings, len(drawing.request.template.tokens)
    program = (settings.sampler, jax.tree.structure(settings.make_truncation()), length)
    if program in self._programs:
      return
    if len(self._programs) >= _MOST_PROGRAMS:
      jax.clear_caches()
      self._programs.clear()
    self._programs.add(program)
    drawing.emit("compiling", {"length": length, "sampler": settings.sampler})


def _step(number: int, snapshot: Snapshot, film: Film) -> dict[str, Any]:
  return {
    "step": number,
    "time": round(float(snapshot.times[0]), 4),
    "calls": snapshot.calls,
    "changes": film.changes(snapshot),
  }
