"""Traces over bytes, and what each of their frames shows."""

import numpy as np

from sedd_jax.data import Bytes
from sedd_jax.generation.traces import Trace
from sedd_jax.generation.traces.cells import visible

# Characters of one to four bytes, wide ones, controls, and all that could end a script early.
NASTY = "a</script><!-- <script>é\n\n東🙂 \x1b\t{{data}}]]>&amp;\u202eb"
PLAIN = "It is a truth universally acknowledged,\nthat a single man.\n"


def revealed(texts, *, steps=12, given=3, seed=0, remask=False, uniform=False):
  """A trace over bytes in which each token is decided at some step, and some change again."""
  rng = np.random.default_rng(seed)
  final = np.stack([Bytes().encode(one) for one in texts])
  is_given = np.zeros(final.shape, bool)
  is_given[:, :given] = True
  noise = rng.integers(0, 256, (steps + 1, *final.shape)) if uniform else 256
  when = rng.integers(1, steps + 1, final.shape)
  number = np.arange(steps + 1)[:, None, None]
  tokens = np.where(number >= when, final, noise)
  if remask:  # Decided wrongly, then a mask again.
    hit = (number == when - 3) & (rng.random(final.shape) < 0.4)
    tokens = np.where(hit, ord("x"), tokens)
  tokens = np.where(is_given, final, tokens)
  return Trace(
    tokens=tokens,
    given=is_given,
    times=np.repeat(np.linspace(1.0, 0.0, steps + 1)[:, None], len(texts), axis=1),
    calls=2 * np.arange(steps + 1),
    seconds=1.5,
    mask_id=None if uniform else 256,
    settings={"sampler": "tweedie", "steps": steps, "seed": seed, "checkpoint": "</title>{{data}}"},
  )


TRACES = {
  "absorbing": revealed([NASTY, NASTY[::-1]]),
  "remasked": revealed([NASTY], remask=True, seed=1),
  "uniform": revealed([NASTY, NASTY[::-1]], uniform=True, given=0, seed=2),
}


def expected(trace, k, b):
  """(text, kinds) of each token of a frame, straight from the definitions."""
  row, before, final = trace.tokens[k, b], trace.tokens[max(k - 1, 0), b], trace.tokens[-1, b]
  texts, run = [], []
  for token in [*row.tolist(), trace.mask_id]:
    if token != trace.mask_id:
      run.append(token)
      continue
    texts += [*map(visible, Bytes().pieces(run)), ""]
    run = []
  masked = row == trace.mask_id if trace.mask_id is not None else np.zeros(len(row), bool)
  kinds = []
  for i, one in enumerate(texts[: len(row)]):
    new = row[i] != before[i] and not masked[i]
    flags = {
      "token": True,
      "mask": masked[i],
      "empty": not masked[i] and one == "",
      "given": trace.given[b, i],
      "new": new,
      "draft": not masked[i] and row[i] != final[i],
    }
    kinds.append({name for name, flag in flags.items() if flag})
  return texts[: len(row)], kinds
