"""Noise levels: one number for each row, or a table of a few for each row and an index of tokens.

A block of tokens may have noise of its own, and clean tokens beside it have none. What depends on
the level (conditioning, say) is computed once for each entry of the table, never for each token.

B: rows, L: tokens in a row, N: entries of a row's table.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Levels(NamedTuple):
  """A number or a vector for each token, of the few that its row has.

  Attributes:
    table: float[B, N, ...].
    index: int[B, L], the entry of each token.
  """

  table: jax.Array
  index: jax.Array


# float[B, ...], one entry for each row, or a table of them.
Level = jax.Array | Levels


def map_level(function: Callable[[jax.Array], jax.Array], level: Level) -> Level:
  """A function of each number, as levels of the same tokens."""
  if isinstance(level, Levels):
    return level._replace(table=function(level.table))
  return function(level)


def at_tokens(level: Level) -> jax.Array:
  """The entry of each token, float[B, L, ...]; float[B, 1, ...] where a row has one."""
  if isinstance(level, Levels):
    index = level.index.reshape(*level.index.shape, *(1,) * (level.table.ndim - 2))
    return jnp.take_along_axis(level.table, index, axis=1)
  return level[:, None]


def weighted_sum(weight: Level, values: jax.Array) -> jax.Array:
  """Sums values float[B, L] over each row, weighted; float[B]."""
  if isinstance(weight, Levels):
    return jnp.sum(at_tokens(weight) * values, axis=-1)
  return weight * jnp.sum(values, axis=-1)
