"""Exact answers on toys small enough to enumerate.

A toy is a law p0 over V^L sequences. Everything else follows from the definitions (section 2 of
docs/math.md): the generator over whole sequences, its matrix exponential, the concrete scores, the
law of the reverse process under any score, and the likelihood bound, each by enumeration or by
quadrature in float64. The three score entropies are those of any enumerated chain. Nothing here
calls the formulas of `sedd_jax.diffusion`: a process is only asked for its sizes.

B: batch, L: positions, S: states of a token, V: real tokens, N = S^L sequences with masks,
M = V^L sequences without.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.linalg
import scipy.special

from sedd_jax.diffusion import Absorbing, Process, Uniform


@dataclasses.dataclass(frozen=True, eq=False)
class Toy:
  """A noising process, a data law, and a score that is exact or wrong by a known amount.

  Attributes:
    process: Absorbing or Uniform.
    p0: float[V, ..., V], one axis per position; positive, sums to 1.
    wrong: size of a smooth error of the log score that depends on the sequence, the position, the
      new token and, mildly, on the total noise; 0 for the exact score.
  """

  process: Process
  p0: np.ndarray
  wrong: float = 0.0

  @property
  def length(self) -> int:
    return self.p0.ndim

  @functools.cached_property
  def states(self) -> np.ndarray:
    """int32[N, L]: every sequence, masks included."""
    every = itertools.product(range(self.process.num_states), repeat=self.length)
    return np.array(list(every), np.int32)

  @functools.cached_property
  def clean(self) -> np.ndarray:
    """int[M]: the rows of `states` without masks."""
    return np.flatnonzero((self.states < self.process.vocab_size).all(axis=-1))

  @functools.cached_property
  def p_start(self) -> np.ndarray:
    """float64[N]: p0 over all sequences, 0 where there is a mask."""
    p = np.zeros(len(self.states))
    p[self.clean] = self.p0.reshape(-1)
    return p

  @functools.cached_property
  def neighbours(self) -> np.ndarray:
    """int[N, L, S]: the index of each sequence with one token changed."""
    scale = self._scale[None, :, None]
    own = self.states[:, :, None]
    return self.index(self.states)[:, None, None] + scale * (
      np.arange(self.process.num_states)[None, None, :] - own
    )

  @property
  def _scale(self) -> np.ndarray:
    return self.process.num_states ** np.arange(self.length - 1, -1, -1)

  def index(self, x):
    """int[...]: the row of `states` that holds x, int[..., L]."""
    return (x * self._scale.reshape((1,) * (x.ndim - 1) + (-1,))).sum(-1)

  # The forward process.

  @functools.cached_property
  def token_generator(self) -> np.ndarray:
    """float64[S, S]: rates of one token, entry [x, y] from x to y."""
    size, vocab = self.process.num_states, self.process.vocab_size
    off = (
      np.full((size, size), 1.0 / vocab)
      if isinstance(self.process, Uniform)
      else np.zeros((size, size))
    )
    if isinstance(self.process, Absorbing):
      off[:, vocab] = 1.0
    np.fill_diagonal(off, 0.0)
    return off - np.diag(off.sum(axis=-1))

  @functools.cached_property
  def generator(self) -> np.ndarray:
    """float64[N, N]: rates of whole sequences; each token jumps on its own."""
    size, eye = self.process.num_states, np.eye
    return sum(
      np.kron(np.kron(eye(size**i), self.token_generator), eye(size ** (self.length - 1 - i)))
      for i in range(self.length)
    )

  def law(self, total: float) -> np.ndarray:
    """float64[N]: p_t = p0 expm(total Q)."""
    return self.p_start @ scipy.linalg.expm(total * self.generator)

  def token_transition(self, total):
    """float[..., S, S]: the closed form of expm(total Q) for one token, in jax."""
    total = jnp.asarray(total)[..., None, None]
    size, vocab = self.process.num_states, self.process.vocab_size
    stay, move = jnp.exp(-total), -jnp.expm1(-total)
    eye = jnp.eye(size).reshape((1,) * (total.ndim - 2) + (size, size))
    if isinstance(self.process, Uniform):
      return stay * eye + move / vocab
    to_mask = jnp.zeros((size, size)).at[:, vocab].set(1.0).reshape(eye.shape)
    return stay * eye + move * to_mask

  def forward(self, total: float) -> np.ndarray:
    """float64[M, N]: P(x_t | x_0) for every clean x_0."""
    token = np.asarray(_token_transition(self, total))
    return functools.reduce(np.kron, [token] * self.length)[self.clean]

  # The score.

  def log_score_fn(self, x_BL: jax.Array, total_B: jax.Array) -> jax.Array:
    """Log concrete scores float[B, L, S], for `DenseNetwork`; any total > 0."""
    size, batch = self.process.num_states, x_BL.shape[0]
    token_BSS = self.token_transition(total_B)
    p = jnp.broadcast_to(self.p_start.astype(token_BSS.dtype), (batch, len(self.states)))
    for _ in range(self.length):  # Each turn transforms the first axis and puts it last.
      p = p.reshape(batch, size, -1).mT @ token_BSS
    log_p = jnp.log(p.reshape(batch, -1))
    near = jnp.asarray(self.neighbours)[self.index(x_BL)]
    own = jnp.take_along_axis(log_p, self.index(x_BL)[:, None], axis=1)
    z = jnp.take_along_axis(log_p, near.reshape(batch, -1), axis=1).reshape(near.shape)
    return z - own[:, :, None] + self._error(self.index(x_BL), total_B)

  def _error(self, index_B, total_B):
    i = jnp.arange(self.length)[None, :, None]
    y = jnp.arange(self.process.num_states)[None, None, :]
    phase = 1.0 + 2.3 * index_B[:, None, None] + 1.7 * i + 2.9 * y
    return self.wrong * jnp.sin(phase) * (1.0 + 0.5 * jnp.exp(-total_B))[:, None, None]

  def log_score(self, total: float) -> np.ndarray:
    """float64[N, L, S]: the score at every sequence."""
    return np.asarray(_log_score(self, jnp.asarray(total)))

  def carried_on(self, total: float, last: float) -> np.ndarray:
    """`log_score`; the absorbing model beyond `last` is that at `last` times its noise factor."""
    if total <= last or isinstance(self.process, Uniform):
      return self.log_score(total)
    # log(expm1(last) / expm1(total)), with neither overflowing.
    shift = last - total + np.log(np.expm1(-last) / np.expm1(-total))
    return self.log_score(last) + shift

  # The reverse process.

  def reverse_generator(self, log_score: np.ndarray) -> np.ndarray:
    """float64[N, N]: rates from x to y, the forward rate from y to x times exp(log score)."""
    own = np.arange(self.process.num_states)[None, None, :] == self.states[:, :, None]
    into = np.where(own, 0.0, self.token_generator.T[self.states])
    rates = np.zeros((len(self.states),) * 2)
    start = np.broadcast_to(np.arange(len(self.states))[:, None, None], into.shape)
    with np.errstate(over="ignore", invalid="ignore"):
      np.add.at(rates, (start, self.neighbours), np.where(into > 0, into * np.exp(log_score), 0.0))
    return rates - np.diag(rates.sum(axis=-1))

  @functools.cache  # noqa: B019 - toys live as long as the tests.
  def model_law(self, last: float) -> np.ndarray:
    """float64[M]: the law of x_0 under the reverse process in continuous time.

    The master equation from the prior down to no noise. Absorbing: from all masks at infinite total
    noise, in w = -log(1 - e^-total), in which a mask leaves at a rate of about 1. Uniform: from the
    uniform law at `last`.
    """
    size = len(self.states)
    if isinstance(self.process, Uniform):
      start, end = np.full(size, 1.0 / size), last

      def slope(w, p):
        return p @ self.reverse_generator(self.log_score(last - w))
    else:
      start, end = np.eye(size)[-1], 50.0  # Masks left at the end: less than e^-30.
      w_last = -np.log(-np.expm1(-last))

      def slope(w, p):
        w = max(w, w_last)
        total = -np.log(-np.expm1(-w)) if w < 0.7 else -np.log1p(-np.exp(-w))
        return p @ self.reverse_generator(self.log_score(total)) * np.expm1(total)

    solved = scipy.integrate.solve_ivp(
      slope, (0.0, end), start, method="DOP853", rtol=1e-11, atol=1e-14
    )
    assert solved.success, solved.message
    return solved.y[self.clean, -1]

  # The bound.

  def score_entropy(self, total: float, last: float = np.inf) -> np.ndarray:
    """float64[M]: the denoising score entropy of x_t, its mean over x_t given each clean x_0."""
    states, vocab = self.states, self.process.vocab_size
    token = np.asarray(_token_transition(self, total))[:vocab]
    z = self.carried_on(total, last)
    weighted = np.zeros((len(self.clean), len(states)))
    for i in range(self.length):
      x = states[:, i]
      into = np.where(np.arange(len(self.token_generator)) == x[:, None], 0.0,
                      self.token_generator.T[x])  # fmt: skip
      with np.errstate(divide="ignore", invalid="ignore"):
        r = token[:, None, :] / token[:, x][:, :, None]  # [x0_i, x, y]
        inner = np.exp(z[:, i])[None] - r * z[:, i][None] + scipy.special.xlogy(r, r) - r
      terms = np.where(into[None] > 0, into[None] * inner, 0.0).sum(-1)
      weighted += terms[states[self.clean, i]]
    forward = self.forward(total)
    return np.where(forward > 0, forward * weighted, 0.0).sum(-1)

  def bound(self, first: float, last: float, nodes: int = 48) -> dict[str, np.ndarray]:
    """The pieces of the bound for each clean sequence, float64[M] each: low, main and high.

    Gauss-Legendre quadrature in log total up to `last`, and in e^-total beyond.
    """
    log_first, log_last = np.log(first), np.log(last)

    def in_log(a, b):
      return self._integral(lambda v: self.score_entropy(np.exp(v), last) * np.exp(v), a, b, nodes)

    if isinstance(self.process, Uniform):
      token = np.asarray(_token_transition(self, last))
      kl = scipy.special.rel_entr(token, 1.0 / self.process.vocab_size).sum(-1)
      high = kl[self.states[self.clean]].sum(-1)
    else:
      high = self._integral(
        lambda v: self.score_entropy(-np.log(v), last) / v, 0.0, np.exp(-last), 16
      )
    low = in_log(log_first - 12.0, log_first) + in_log(log_first - 36.0, log_first - 12.0)
    middle = (log_first + log_last) / 2
    return {
      "low": low,
      "main": in_log(log_first, middle) + in_log(middle, log_last),
      "high": high,
    }

  def strict(self, first: float, last: float) -> np.ndarray:
    """float64[M]: the sum of the pieces."""
    return sum(self.bound(first, last).values())

  @staticmethod
  def _integral(f, a, b, nodes):
    u, w = np.polynomial.legendre.leggauss(nodes)
    half = (b - a) / 2
    return sum(wi * half * f(a + half * (1.0 + ui)) for ui, wi in zip(u, w, strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _log_score(toy: Toy, total):
  batch = len(toy.states)
  return toy.log_score_fn(jnp.asarray(toy.states), jnp.broadcast_to(total, (batch,)))


@functools.partial(jax.jit, static_argnums=0)
def _token_transition(toy: Toy, total):
  return toy.token_transition(total)


def random_toy(process: Process, length: int = 2, wrong: float = 0.0) -> Toy:
  """A toy with a random, correlated data law; the same object for the same arguments."""
  return _random_toy(process, length, wrong)


@functools.cache
def _random_toy(process, length, wrong):
  shape = (process.vocab_size,) * length
  p0 = np.random.default_rng(0).dirichlet(np.ones(np.prod(shape))) + 0.01
  return Toy(process, (p0 / p0.sum()).reshape(shape), wrong)


# The three score entropies of any chain. Training uses none of them: they show that what it
# minimises has the gradient of what one would like to minimise (docs/math.md, section 3).


def explicit_score_entropy(log_score: jax.Array, p: jax.Array, rates: jax.Array) -> jax.Array:
  """Score entropy against the known ratios p_y / p_x (definition 3.1 of arXiv:2310.16834; eq. 6).

  Args:
    log_score: float[N, N], entry [x, y] for changing x to y; the diagonal is ignored.
    p: float[N], positive, sums to 1.
    rates: float[N, N], entry [y, x] the rate from y to x; the diagonal is ignored.

  Returns:
    float[], nats per unit of total noise; 0 at the true ratios.
  """
  ratio = p[None, :] / p[:, None]
  z = jnp.where(_diagonal(p), 0.0, log_score)
  terms = jnp.exp(z) - ratio * z + ratio * (jnp.log(ratio) - 1.0)
  return jnp.sum(p[:, None] * _into(rates) * terms)


def implicit_score_entropy(log_score: jax.Array, p: jax.Array, rates: jax.Array) -> jax.Array:
  """The explicit one without its constant and without any ratio (proposition 3.3; eq. 7).

  Arguments as in `explicit_score_entropy`; p only weights an average over x. float[].
  """
  z = jnp.where(_diagonal(p), 0.0, log_score)
  weight = _into(rates)
  return jnp.sum(p[:, None] * (weight * jnp.exp(z) - weight.T * z.T))


def enumerated_denoising_score_entropy(
  log_score: jax.Array, p0: jax.Array, transition: jax.Array, rates: jax.Array
) -> jax.Array:
  """The form that training uses, with the known ratios of P(. given x0) (theorem 3.4; eq. 8).

  Args:
    log_score: as in `explicit_score_entropy`.
    p0: float[M], the law of the clean states.
    transition: float[M, N], P(x given x0), positive.
    rates: as in `explicit_score_entropy`.

  Returns:
    float[].
  """
  each = jax.vmap(lambda row: explicit_score_entropy(log_score, row, rates))
  return jnp.sum(p0 * each(transition))


def _diagonal(p: jax.Array) -> jax.Array:
  return jnp.eye(p.shape[0], dtype=bool)


def _into(rates: jax.Array) -> jax.Array:
  """w[x, y]: rate from y into x, 0 on the diagonal."""
  return jnp.where(jnp.eye(rates.shape[0], dtype=bool), 0.0, rates.T)
