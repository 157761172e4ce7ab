"""The one loop that samples, and what it lends to samplers (`samplers.py`).

Three parts that know nothing of each other: a sampler moves tokens from one time to an earlier one,
a schedule (`schedules.py`) says which times, and `Scores` is all that connects them with a network.
Whoever builds the `Scores` decides whether [B, L, S] ever exists. The network is called only where
some row needs it, and the calls are counted.

B: sequences, L: positions, T: some rows (positions of sequences), S: states.
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
_PRIOR = NO_LIMIT  # Folded into a sample's key for its start, and after the last step.
_DENOISE = NO_LIMIT - 1


class Row(NamedTuple):
  """Some rows of log scores and what the network was given there.

  Attributes:
    log_score: float[T, S].
    x: int[T].
    total: float[T].
  """

  log_score: jax.Array
  x: jax.Array
  total: jax.Array


class NetworkOutput(NamedTuple):
  """The result of a call of the network: enough for any row of log scores.

  Attributes:
    features: float[B, L, ...].
    x: int[B, L], what the network was given.
    total: float[B, L].
  """

  features: jax.Array
  x: jax.Array
  total: jax.Array


class Scores(Protocol):
  """A network as sampling needs it."""

  def call(self, x: jax.Array, total: jax.Array) -> jax.Array:
    """A call of the network: int[B, L] and float[B] to features float[B, L, ...]."""
    ...

  def each_row(
    self,
    function: Callable[..., Any],
    needed: jax.Array,
    otherwise: Any,
    outputs: tuple[NetworkOutput, ...],
    args: Any,
  ) -> Any:
    """A function of each row that is needed, run on tiles of them.

    Args:
      function: (args of these rows, one `Row` for each of outputs) to a tree of arrays [T].
      needed: bool[B, L].
      otherwise: tree of arrays [B, L], the result elsewhere.
      outputs: of one call, or of several that the function compares.
      args: tree of arrays [B, L].
    """
    ...


@dataclasses.dataclass(frozen=True)
class DenseScores:
  """The `Scores` of a function that returns dense log scores.

  Attributes:
    log_score_fn: tokens int[B, L] and total noise float[B] to log scores float[B, L, S].
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
    t: float[B], time now.
    t_next: float[B], the earlier time that the schedule wants.
    free: bool[B, L], tokens that may change; what becomes of the others is not looked at.
  """

  keys: jax.Array
  t: jax.Array
  t_next: jax.Array
  free: jax.Array

  def keys_of_tokens(self, purpose: int = 0) -> jax.Array:
    """PRNG keys [B, L], others for each purpose."""
    positions = jnp.arange(self.free.shape[1])
    keys = self.keys_for(purpose)
    return jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(positions))(keys)

  def keys_for(self, purpose: int) -> jax.Array:
    """PRNG keys [B], others for each purpose."""
    return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(self.keys)


class StepResult(NamedTuple):
  """The result of a step of a sampler.

  Attributes:
    x: int32[B, L].
    t: float[B], the time that the tokens are at; most samplers stop where they were asked to.
    error: float[B], the sampler's own estimate of the error of this step, or None.
  """

  x: jax.Array
  t: jax.Array
  error: jax.Array | None = None


# (row, t, t_next, process=, noise=) to the probabilities of its next state, float[T, S]; times are
# float[T].
Law = Callable[..., jax.Array]


class Sampler:
  """Moves tokens to an earlier time. The simplest is the law of a token's next state; others say
  which tokens move, or call the network more than once.

  Samplers are frozen dataclasses, so that compiled functions can be told apart by them.

  Attributes:
    needs_masks: whether it is for the absorbing process alone.
    sets_times: whether it stops at times of its own choice.
    estimates_error: whether `StepResult.error` is there.
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
    """One step; draws every free token from `law` unless a sampler does otherwise.

    Args:
      denoiser: called as often as the sampler likes.
      x: int32[B, L], tokens at move.t.
      move: where to, and the random words.
    """
    needed = denoiser.process.needs_score(x) & move.free
    return StepResult(denoiser.draw(self.law, x, move, needed), move.t_next)


class Denoiser:
  """What a sampler sees during one step: the process, its noise, and scores where they are needed.

  Attributes:
    process: the noising process.
    noise: its schedule.
    calls: int32[], calls of the network so far.
  """

  def __init__(self, scores: Scores, sampling: "Sampling"):
    self.process, self.noise = sampling.process, sampling.noise
    self.calls = jnp.zeros((), jnp.int32)
    self._scores, self._truncation = scores, sampling.truncation

  def call(self, x: jax.Array, total: jax.Array, needed: jax.Array) -> NetworkOutput:
    """Calls the network, if any row is needed.

    Args:
      x: int[B, L].
      total: float[B].
      needed: bool[B, L], the rows that will be asked for.
    """
    wanted = jnp.any(needed)
    nothing = jax.eval_shape(self._scores.call, x, total)
    features = jax.lax.cond(
      wanted, self._scores.call, lambda *_: jnp.zeros(nothing.shape, nothing.dtype), x, total
    )
    self.calls += wanted
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
      if self._truncation == Truncation():
        return row
      return row._replace(log_score=self.process.with_posterior(*row, self._truncation))

    def of_rows(args, *rows):
      return function(args, *map(truncated, rows))

    return self._scores.each_row(of_rows, needed, otherwise, outputs, args)

  def draw(self, law: Law, x: jax.Array, move: Move, needed: jax.Array) -> jax.Array:
    """One call at move.t, and a draw for each row that is needed; int32[B, L], x elsewhere."""

    def draws(args, row):
      keys, t, t_next = args
      return draw_each(keys, law(row, t, t_next, process=self.process, noise=self.noise))

    output = self.call(x, self.noise.total(move.t), needed)
    t, t_next = (jnp.broadcast_to(t[:, None], x.shape) for t in (move.t, move.t_next))
    return self.each_row(draws, needed, x, output, args=(move.keys_of_tokens(), t, t_next))


def draw_each(keys: jax.Array, probs: jax.Array) -> jax.Array:
  """int32[T] from PRNG keys [T] and probabilities float[T, S]."""
  return jax.vmap(sample_categorical)(keys, jnp.log(probs))


class Given(NamedTuple):
  """Tokens that sampling must keep: int[B, L] tokens, and bool[B, L], true where they are given."""

  tokens: jax.Array
  where: jax.Array


class State(NamedTuple):
  """Where sampling is.

  Attributes:
    x: int32[B, L].
    t: float[B].
    steps: int32[], steps made.
    calls: int32[], calls of the network.
    pace: what the schedule remembers.
  """

  x: jax.Array
  t: jax.Array
  steps: jax.Array
  calls: jax.Array
  pace: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How to sample; everything but the network, the random keys and the given tokens.

  Attributes:
    process: the noising process.
    noise: its schedule.
    sampler: how tokens move.
    schedule: at which times.
    truncation: of the law of each new token; by default none.

  Raises:
    ValueError: the sampler needs masks and the process has none, or it and the schedule do not fit.
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
    """Steps until their number is `until`, or the last time of the schedule is reached."""

    def go_on(state: State):
      return (state.steps < until) & jnp.any(state.t > self.schedule.end)

    return jax.lax.while_loop(go_on, lambda state: self.step(scores, keys, state, given), state)

  def step(self, scores: Scores, keys: jax.Array, state: State, given: Given) -> State:
    """One step. Sequences that are at the last time already wait for the others."""
    denoiser, going = Denoiser(scores, self), state.t > self.schedule.end
    t_next = self.schedule.next(state.t, state.steps, state.pace, self.noise)
    free = ~given.where & going[:, None]
    moved = self.sampler.advance(
      denoiser, state.x, Move(_fold_in(keys, state.steps), state.t, t_next, free)
    )
    return State(
      jnp.where(free, moved.x, state.x),
      jnp.where(going, moved.t, state.t),
      state.steps + 1,
      state.calls + denoiser.calls,
      self.schedule.update(state.pace, moved.error),
    )

  def finish(self, scores: Scores, keys: jax.Array, state: State, given: Given) -> State:
    """The denoising step: removes what noise is left, and every mask."""
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
  """Samples sequences.

  Given tokens stand there from the start and never move. For the absorbing process this is the same
  sampler run on the conditional law, exact at the exact score but for the error of its steps; for
  the uniform one it is the original's heuristic and not the posterior (docs/math.md, section 7).

  Args:
    scores: the network.
    keys: PRNG keys [B]: the random words of a sample depend on its own key alone.
    sampling: how.
    length: L, where nothing is given.
    given: tokens to keep, for infilling.

  Returns:
    The final state: x is int32[B, L], without masks.

  Raises:
    ValueError: neither length nor given says how long the samples are.
  """
  if given is None:
    if length is None:
      raise ValueError("sample: give either the length of the samples or tokens to keep")
    given = nothing_given(len(keys), length)
  state = sampling.start(keys, given)
  state = sampling.advance(scores, keys, state, given, NO_LIMIT)
  return sampling.finish(scores, keys, state, given)


def nothing_given(batch: int, length: int) -> Given:
  """A `Given` of no tokens."""
  return Given(jnp.zeros((batch, length), jnp.int32), jnp.zeros((batch, length), bool))


def _fold_in(keys: jax.Array, data: jax.typing.ArrayLike) -> jax.Array:
  return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)
