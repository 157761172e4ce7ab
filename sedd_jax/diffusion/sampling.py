"""The sampling loop, and the interface it gives to samplers (`samplers.py`).

It joins three independent parts: a sampler moves tokens from one time to an earlier one, a schedule
(`schedules.py`) sets the times, and `Scores` is the interface to the network. Only the `Scores`
decide whether [B, L, S] is materialized. A step calls the network only if some row needs it, and
calls are counted.

B: sequences, L: positions, T: rows (positions of sequences) of a tile, S: states.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from sedd_jax.diffusion.categorical import Truncation, sample_categorical
from sedd_jax.diffusion.losses import LogScoreFn
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.process import Process
from sedd_jax.diffusion.schedules import END_TIME, Schedule

NO_LIMIT = 2**31 - 1
# Folded into a sample's key: for the initial tokens, and for the denoising step.
_PRIOR = NO_LIMIT
_DENOISE = NO_LIMIT - 1


class Row(NamedTuple):
  """Rows of log scores and the network's inputs there.

  Attributes:
    log_score: float[T, S].
    x: int[T].
    total: float[T].
  """

  log_score: jax.Array
  x: jax.Array
  total: jax.Array


class NetworkOutput(NamedTuple):
  """The result of a network call, from which any row of log scores can be computed.

  Attributes:
    features: float[B, L, ...].
    x: int[B, L], the network's input tokens.
    total: float[B, L].
  """

  features: jax.Array
  x: jax.Array
  total: jax.Array


class Scores(Protocol):
  """The network's interface for sampling."""

  def call(self, x: jax.Array, total: jax.Array) -> jax.Array:
    """Features float[B, L, ...] of tokens int[B, L] at total noise float[B]: one network call."""
    ...

  def each_row(
    self,
    function: Callable[..., Any],
    needed: jax.Array,
    otherwise: Any,
    outputs: tuple[NetworkOutput, ...],
    args: Any,
  ) -> Any:
    """A tree of arrays [B, L]: a function of each needed row, run tile by tile.

    Args:
      function: maps the rows' args and one `Row` per entry of outputs to a tree of arrays [T].
      needed: bool[B, L].
      otherwise: tree of arrays [B, L], the result elsewhere.
      outputs: results of one call, or of several that the function compares.
      args: tree of arrays [B, L].
    """
    ...


@dataclasses.dataclass(frozen=True)
class DenseScores:
  """`Scores` made from a function that returns dense log scores.

  Attributes:
    log_score_fn: maps tokens int[B, L] and total noise float[B] to log scores float[B, L, S].
  """

  log_score_fn: LogScoreFn

  def call(self, x, total):
    return self.log_score_fn(x, total)

  def each_row(self, function, needed, otherwise, outputs, args):
    def flat(x):
      return x.reshape(-1, *x.shape[2:])

    args, rows = jax.tree.map(flat, (args, [Row(*output) for output in outputs]))
    return jax.tree.map(
      lambda y, instead: jnp.where(needed, y.reshape(needed.shape), instead).astype(instead.dtype),
      function(args, *rows),
      otherwise,
    )


class Move(NamedTuple):
  """One step of the loop.

  Attributes:
    keys: PRNG keys [B]: the only randomness of this step.
    t: float[B], current time.
    t_next: float[B], the schedule's next, earlier time.
    free: bool[B, L], tokens that may change; the sampler's results for others are ignored.
  """

  keys: jax.Array
  t: jax.Array
  t_next: jax.Array
  free: jax.Array

  def keys_of_tokens(self, purpose: int = 0) -> jax.Array:
    """PRNG keys [B, L], different for each purpose."""
    positions = jnp.arange(self.free.shape[1])
    keys = self.keys_for(purpose)
    return jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(positions))(keys)

  def keys_for(self, purpose: int) -> jax.Array:
    """PRNG keys [B], different for each purpose."""
    return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(self.keys)


class StepResult(NamedTuple):
  """The result of one sampler step.

  Attributes:
    x: int32[B, L].
    t: float[B], the time reached; for most samplers the requested t_next.
    error: float[B], the sampler's estimate of this step's error, or None.
  """

  x: jax.Array
  t: jax.Array
  error: jax.Array | None = None


# Maps (row, t, t_next, process=, noise=) to probabilities of the next state, float[T, S]; times are
# float[T].
Law = Callable[..., jax.Array]


class Sampler:
  """Moves tokens to an earlier time.

  A simple sampler defines `law`; others override `advance` to choose which tokens move or to call
  the network more than once. Samplers are frozen dataclasses, hence static arguments of `jit`.

  Attributes:
    needs_masks: whether it needs the absorbing process.
    sets_times: whether it chooses its own times.
    estimates_error: whether it returns `StepResult.error`.
  """

  needs_masks: ClassVar[bool] = False
  sets_times: ClassVar[bool] = False
  estimates_error: ClassVar[bool] = False

  def law(
    self, row: Row, t: jax.Array, t_next: jax.Array, *, process: Process, noise: Noise
  ) -> jax.Array:
    """Probabilities of each token's state at t_next, float[T, S]."""
    raise NotImplementedError

  def advance(self, denoiser: "Denoiser", x: jax.Array, move: Move) -> StepResult:
    """The result of one step. By default every free token is drawn from `law`.

    Args:
      denoiser: may be called any number of times.
      x: int32[B, L], tokens at move.t.
      move: times, random keys and free tokens.
    """
    needed = denoiser.process.needs_score(x) & move.free
    return StepResult(denoiser.draw(self.law, x, move, needed), move.t_next)


class Denoiser:
  """The process, its noise and its scores, as a sampler sees them in one step.

  Attributes:
    process: the noising process.
    noise: its schedule.
    calls: int32[], network calls so far.
  """

  def __init__(self, scores: Scores, sampling: "Sampling"):
    self.process, self.noise = sampling.process, sampling.noise
    self.calls = jnp.zeros((), jnp.int32)
    self._scores, self._truncation = scores, sampling.truncation

  def call(self, x: jax.Array, total: jax.Array, needed: jax.Array) -> NetworkOutput:
    """The network's output; zeros, without a call, if no row is needed.

    Args:
      x: int[B, L].
      total: float[B].
      needed: bool[B, L], the rows that will be read.
    """
    any_needed = jnp.any(needed)
    shape = jax.eval_shape(self._scores.call, x, total)
    features = jax.lax.cond(
      any_needed, self._scores.call, lambda *_: jnp.zeros(shape.shape, shape.dtype), x, total
    )
    self.calls += any_needed
    return NetworkOutput(features, x, jnp.broadcast_to(total[:, None], x.shape))

  def each_row(
    self,
    function: Callable[..., Any],
    needed: jax.Array,
    otherwise: Any,
    *outputs: NetworkOutput,
    args: Any,
  ) -> Any:
    """`Scores.each_row`, with truncated laws of the tokens."""

    def truncated(row: Row) -> Row:
      if self._truncation.is_identity:
        return row
      return row._replace(log_score=self.process.with_posterior(*row, self._truncation))

    def truncating(args, *rows):
      return function(args, *map(truncated, rows))

    return self._scores.each_row(truncating, needed, otherwise, outputs, args)

  def draw(self, law: Law, x: jax.Array, move: Move, needed: jax.Array) -> jax.Array:
    """Tokens int32[B, L]: one call at move.t, a draw from law in needed rows, x elsewhere."""

    def draws(args, row):
      keys, t, t_next = args
      return draw_each(keys, law(row, t, t_next, process=self.process, noise=self.noise))

    output = self.call(x, self.noise.total(move.t), needed)
    t, t_next = (jnp.broadcast_to(t[:, None], x.shape) for t in (move.t, move.t_next))
    return self.each_row(draws, needed, x, output, args=(move.keys_of_tokens(), t, t_next))


def draw_each(keys: jax.Array, probs: jax.Array) -> jax.Array:
  """States int32[T] drawn with PRNG keys [T] from probabilities float[T, S]."""
  return jax.vmap(sample_categorical)(keys, jnp.log(probs))


class Given(NamedTuple):
  """Tokens that sampling must keep: int[B, L] tokens, and bool[B, L], true where they are given."""

  tokens: jax.Array
  where: jax.Array


class State(NamedTuple):
  """The state of the sampling loop.

  Attributes:
    x: int32[B, L].
    t: float[B].
    steps: int32[], number of steps so far.
    calls: int32[], number of network calls so far.
    pace: the schedule's state.
  """

  x: jax.Array
  t: jax.Array
  steps: jax.Array
  calls: jax.Array
  pace: Any


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How to sample: all but the network, the random keys and the given tokens.

  As a pytree its leaves are the numbers of the schedule and the truncation. A jitted function that
  takes it as an argument is compiled once for all numbers of steps and temperatures.

  Attributes:
    process: the noising process.
    noise: its schedule.
    sampler: how tokens move.
    schedule: at which times.
    truncation: truncation of the law of each new token; none by default.

  Raises:
    ValueError: the sampler does not support the process or the schedule.
  """

  process: Process
  noise: Noise
  sampler: Sampler
  schedule: Schedule
  truncation: Truncation = Truncation()

  def __post_init__(self):
    if self.sampler.needs_masks and self.process.mask_id is None:
      raise ValueError(
        f"sampler {self.sampler} lifts masks and needs the absorbing process, not {self.process}"
      )
    if self.schedule.needs_error and not self.sampler.estimates_error:
      raise ValueError(
        f"schedule {self.schedule} needs a sampler that estimates its error, trapezoidal, not "
        f"{self.sampler}"
      )
    if self.sampler.sets_times and self.schedule.end != END_TIME:
      raise ValueError(f"sampler {self.sampler} sets its own times and ends at {END_TIME}")

  def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return (self.schedule, self.truncation), (self.process, self.noise, self.sampler)

  @classmethod
  def tree_unflatten(cls, choices: tuple[Any, ...], numbers: tuple[Any, ...]) -> "Sampling":
    sampling = object.__new__(cls)  # Checked before; its leaves may be tracers now.
    names = ("process", "noise", "sampler", "schedule", "truncation")
    sampling.__dict__.update(zip(names, (*choices, *numbers), strict=True))
    return sampling

  def start(self, keys: jax.Array, given: Given) -> State:
    """Pure noise at t = 1, from PRNG keys [B]."""
    batch, length = given.where.shape
    x = jax.vmap(lambda key: self.process.prior(key, (length,)))(_fold_in(keys, _PRIOR))
    t = jnp.ones(batch, jnp.result_type(float))
    zero = jnp.zeros((), jnp.int32)
    x = jnp.where(given.where, given.tokens.astype(jnp.int32), x)
    return State(x, t, zero, zero, self.schedule.start(batch))

  def advance(
    self, scores: Scores, keys: jax.Array, state: State, given: Given, until: jax.typing.ArrayLike
  ) -> State:
    """The state after `until` steps in all, or earlier at the schedule's last time."""

    def unfinished(state: State):
      return (state.steps < until) & jnp.any(state.t > self.schedule.end)

    return jax.lax.while_loop(
      unfinished, lambda state: self.step(scores, keys, state, given), state
    )

  def step(self, scores: Scores, keys: jax.Array, state: State, given: Given) -> State:
    """The state after one step. Sequences already at the last time don't change."""
    denoiser, going = Denoiser(scores, self), state.t > self.schedule.end
    t_next = self.schedule.next(state.t, state.steps, state.pace, self.noise)
    free = ~given.where & going[:, None]
    result = self.sampler.advance(
      denoiser, state.x, Move(_fold_in(keys, state.steps), state.t, t_next, free)
    )
    return State(
      jnp.where(free, result.x, state.x),
      jnp.where(going, result.t, state.t),
      state.steps + 1,
      state.calls + denoiser.calls,
      self.schedule.update(state.pace, result.error),
    )

  def finish(self, scores: Scores, keys: jax.Array, state: State, given: Given) -> State:
    """The state after the denoising step, which removes the remaining noise and every mask."""
    denoiser = Denoiser(scores, self)
    move = Move(_fold_in(keys, _DENOISE), state.t, jnp.zeros_like(state.t), ~given.where)

    def law(row, t, t_next, *, process, noise):
      del t, t_next, noise
      return process.denoise_probs(*row)

    needed = self.process.needs_score(state.x) & move.free
    x = denoiser.draw(law, state.x, move, needed)
    return state._replace(x=x, t=move.t_next, calls=state.calls + denoiser.calls)


def sample(
  scores: Scores,
  keys: jax.Array,
  sampling: Sampling,
  *,
  length: int | None = None,
  given: Given | None = None,
) -> State:
  """The final state of sampling: x is int32[B, L], without masks.

  Given tokens are in place from the start and never change. For the absorbing process this samples
  the conditional law; at the exact score the only error is that of the steps. For the uniform
  process it is the original's heuristic, not the posterior (docs/math.md, section 7).

  Args:
    scores: the network.
    keys: PRNG keys [B]: the randomness of a sample depends on its own key alone.
    sampling: how to sample.
    length: L, if no tokens are given.
    given: tokens to keep, for infilling.

  Raises:
    ValueError: neither length nor given is set.
  """
  if given is None:
    if length is None:
      raise ValueError("sample: give either the length of the samples or tokens to keep")
    given = nothing_given(len(keys), length)
  state = sampling.start(keys, given)
  state = sampling.advance(scores, keys, state, given, NO_LIMIT)
  return sampling.finish(scores, keys, state, given)


def nothing_given(batch: int, length: int) -> Given:
  """A `Given` without given tokens."""
  return Given(jnp.zeros((batch, length), jnp.int32), jnp.zeros((batch, length), bool))


def _fold_in(keys: jax.Array, data: jax.typing.ArrayLike) -> jax.Array:
  return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)
