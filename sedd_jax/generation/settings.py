"""Samplers and schedules parsed from text such as `remdm:cap=0.05`, `adaptive` and `1,0.5`."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from sedd_jax.diffusion import (
  SAMPLERS,
  Adaptive,
  Noise,
  Process,
  Sampler,
  Sampling,
  Schedule,
  Times,
  Truncation,
  even_times,
)
from sedd_jax.diffusion.schedules import MOST_STEPS
from sedd_jax.ranges import check

_EVEN = ("time", "noise", "tokens")
_DEFAULT_STEPS = 64
_NUMBERS = re.compile(r"[\d.eE+-]+(,[\d.eE+-]+)+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerSettings:
  """How to sample, as the user writes it.

  Attributes:
    sampler: a name of `SAMPLERS`, with options after a colon: `remdm:cap=0.05,rescale=0.5`.
    steps: sampling steps, 64 by default; None if the sampler or the schedule sets the times.
    schedule: `time`, `noise` or `tokens` (steps are even in this), `adaptive` (with options:
      `adaptive:tolerance=0.05`), or times that fall from 1: `1,0.7,0.3,0.05`.
    temperature: temperature of each new token's law; values below 1 sharpen.
    top_k: draws new tokens from this many most likely tokens; 0 for all.
    top_p: draws new tokens from the most likely tokens with this total probability.

  Raises:
    ValueError: a field is out of range.
  """

  sampler: str = "tweedie"
  steps: int | None = None
  schedule: str = "time"
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if self.steps is not None:
      check("steps", self.steps, 1, MOST_STEPS)
    self.make_truncation()
    self.make_sampler()

  def sampling(self, process: Process, noise: Noise) -> Sampling:
    """The `Sampling` for a process and its noise.

    Raises:
      ValueError: the sampler needs another process, the schedule needs another sampler, or steps
        are given although the sampler or the schedule sets the times.
    """
    sampler = self.make_sampler()
    return Sampling(
      process=process,
      noise=noise,
      sampler=sampler,
      schedule=self._make_schedule(sampler, noise),
      truncation=self.make_truncation(),
    )

  def make_sampler(self) -> Sampler:
    return _parsed("sampler", self.sampler, SAMPLERS)

  def make_truncation(self) -> Truncation:
    return Truncation(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

  def _make_schedule(self, sampler: Sampler, noise: Noise) -> Schedule:
    name = self.schedule.partition(":")[0]
    if sampler.sets_times:
      self._refuse_steps(f"sampler={self.sampler!r}")
      if self.schedule != "time":
        raise ValueError(f"schedule={self.schedule!r}: sampler={self.sampler!r} sets its own times")
      return even_times(1, noise)
    if name == "adaptive":
      self._refuse_steps(f"schedule={self.schedule!r}")
      if not sampler.estimates_error:
        raise ValueError(
          f"schedule={self.schedule!r} needs a sampler that estimates its error, 'trapezoidal', "
          f"not {self.sampler!r}"
        )
      return _parsed("schedule", self.schedule, {"adaptive": Adaptive})
    if _NUMBERS.fullmatch(self.schedule):
      self._refuse_steps(f"schedule={self.schedule!r}")
      return _times(self.schedule)
    if self.schedule not in _EVEN:
      names = (*_EVEN, "adaptive")
      raise ValueError(
        f"schedule={self.schedule!r} must be {', '.join(map(repr, names))}, or falling times such "
        f"as '1,0.5,0.1'{_near(name, names)}"
      )
    return even_times(self.steps or _DEFAULT_STEPS, noise, by=self.schedule)

  def _refuse_steps(self, setting: str) -> None:
    if self.steps is not None:
      raise ValueError(f"steps={self.steps}: {setting} sets its own times; leave steps out")


def _times(text: str) -> Times:
  try:
    return Times(tuple(float(t) for t in text.split(",")))
  except ValueError as error:
    raise ValueError(f"schedule={text!r}: {error}") from None


def _parsed(setting: str, text: str, table: Mapping[str, Callable[..., Any]]) -> Any:
  """The dataclass instance that `name:field=value,field=value` describes."""
  name, _, options = text.partition(":")
  if name not in table:
    raise ValueError(f"{setting}={name!r} must be one of {', '.join(table)}{_near(name, table)}")
  kind = table[name]
  defaults = {field.name: field.default for field in dataclasses.fields(kind)}  # pyright: ignore
  values = {}
  for option in filter(None, options.split(",")):
    field, equals, value = option.partition("=")
    if not equals or field not in defaults:
      known = ", ".join(f"{k}={v}" for k, v in defaults.items()) or "none"
      raise ValueError(f"{setting}={text!r}: option {option!r} is unknown; {name} has {known}")
    try:
      values[field] = type(defaults[field])(value)
    except ValueError:
      wanted = type(defaults[field]).__name__
      raise ValueError(f"{setting}={text!r}: {field}={value!r} must be of type {wanted}") from None
  return kind(**values)


def _near(name: str, names) -> str:
  near = difflib.get_close_matches(name, names, n=1)
  return f"; did you mean {near[0]!r}?" if near else ""
