"""The record of a run of the sampler. Dimensions: K frames, B samples, L tokens."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from sedd_jax.generation.generator import Generation
from sedd_jax.generation.model import LanguageModel
from sedd_jax.generation.samples import SampleRequest


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
  """The states of samples after each step.

  Attributes:
    tokens: int32[K, B, L], the state before the first step and after each; the last frame is the
      sample, without masks.
    given: bool[B, L], given tokens, which never change.
    times: float64[K, B], the time of each frame: 1 is pure noise, 0 the final sample.
    calls: int64[K], network calls up to each frame.
    seconds: wall time of the run.
    mask_id: the mask's id, or None for the uniform process, whose tokens start random.
    settings: settings to show: sampler, steps, seed, checkpoint.

  Raises:
    ValueError: a field has another shape or type, or contradicts another field.
  """

  tokens: np.ndarray
  given: np.ndarray
  times: np.ndarray
  calls: np.ndarray
  seconds: float
  mask_id: int | None
  settings: Mapping[str, str | int | float] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(cls, generation: Generation, model: LanguageModel, request: SampleRequest) -> "Trace":
    """The trace of a batch whose frames were recorded."""
    return cls(
      tokens=generation.frames,
      given=generation.given,
      times=generation.times,
      calls=generation.calls_by_frame,
      seconds=generation.seconds,
      mask_id=model.mask_id,
      settings={
        "checkpoint": str(model.info["source"]),
        "sampler": request.settings.sampler,
        "schedule": request.settings.schedule,
        "steps": generation.steps,
        "seed": request.seed,
      },
    )

  def __post_init__(self):
    tokens = self._array("tokens", np.integer, np.int32, "KBL")
    if 0 in tokens.shape:
      raise ValueError(f"Trace.tokens is empty: shape {tokens.shape}")
    given = self._array("given", np.bool_, np.bool_, "BL")
    times = self._array("times", np.floating, np.float64, "KB")
    calls = self._array("calls", np.integer, np.int64, "K")
    if not np.all((times >= 0) & (times <= 1)):
      raise ValueError("Trace.times must lie in [0, 1]")
    if calls[0] < 0 or np.any(np.diff(calls) < 0):
      raise ValueError("Trace.calls must not be negative nor fall")
    if not 0 <= self.seconds < float("inf"):
      raise ValueError(f"Trace.seconds={self.seconds} must be a number from 0 on")
    if tokens.min() < 0:
      raise ValueError(f"Trace.tokens must not be negative: {tokens.min()}")
    if np.any(self.masks(tokens[-1])):
      raise ValueError("Trace.tokens: the last frame still has masks")
    if np.any((tokens != tokens[0]) & given):
      raise ValueError("Trace.given: a token that was given changes")

  @property
  def has_masks(self) -> bool:
    """Whether the process has a mask."""
    return self.mask_id is not None

  def masks(self, tokens: np.ndarray) -> np.ndarray:
    """bool, shape of tokens, true at masks."""
    return masks_of(tokens, self.mask_id)

  def _array(self, name: str, kind: type, dtype: type, dims: str) -> np.ndarray:
    """The field in its dtype, which replaces it, checked against the shape of tokens."""
    array = np.asarray(getattr(self, name))
    sizes = dict(zip("KBL", np.shape(self.tokens), strict=False))
    expected = tuple(sizes.get(d) for d in dims)
    if array.shape != expected or not np.issubdtype(array.dtype, kind):
      raise ValueError(
        f"Trace.{name} must be {np.dtype(dtype).name}[{', '.join(dims)}], and not "
        f"{array.dtype}{list(array.shape)} where tokens has shape {np.shape(self.tokens)}"
      )
    array = array.astype(dtype)
    object.__setattr__(self, name, array)
    return array


def masks_of(tokens: np.ndarray, mask_id: int | None) -> np.ndarray:
  """bool, shape of tokens, true at masks; there are none where the process has no mask."""
  return np.equal(tokens, -1 if mask_id is None else mask_id)
