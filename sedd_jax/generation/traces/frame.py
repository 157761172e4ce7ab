"""The frames of one sample to show. L: tokens."""

import dataclasses

import numpy as np

from sedd_jax.generation.traces.trace import Trace


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
  """One state of one sample.

  Attributes:
    number: the step; 0 is the state before the first step.
    caption: step, time, calls, and remaining masks or changes.
    mask: bool[L].
    new: bool[L], drawn since the previous frame.
    draft: bool[L], neither a mask nor the final token.
  """

  number: int
  caption: str
  mask: np.ndarray
  new: np.ndarray
  draft: np.ndarray


def frames_of(trace: Trace, sample: int, most: int) -> list[Frame]:
  """The first frame, the frames in which the sample changed, and the last frame.

  Args:
    trace: the trace.
    sample: the sample's number.
    most: maximum number of frames; more are thinned evenly, keeping the first and the last.
  """
  tokens = trace.tokens[:, sample]
  last = len(tokens) - 1
  changed = np.any(tokens[1:] != tokens[:-1], axis=-1)
  numbers = np.flatnonzero(np.r_[True, changed])
  # The last frame has the final time and number of calls, even without a change.
  numbers = np.unique(np.r_[numbers, last])
  if len(numbers) > most:
    numbers = numbers[np.linspace(0, len(numbers) - 1, most).round().astype(int)]
  frames = []
  before = tokens[0]
  for number in numbers.tolist():
    now = tokens[number]
    mask = trace.masks(now)
    new = (now != before) & ~mask
    draft = (now != tokens[-1]) & ~mask
    left = f"masks left {mask.sum()}" if trace.has_masks else f"not final {draft.sum()}"
    time, calls = trace.times[number, sample], trace.calls[number]
    caption = f"step {number} of {last}, t {time:.3f}, {left}, new {new.sum()}, calls {calls}"
    frames.append(Frame(number=number, caption=caption, mask=mask, new=new, draft=draft))
    before = now
  return frames
