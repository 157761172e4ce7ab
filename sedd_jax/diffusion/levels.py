"""Noise levels: one number per row, or a small table per row and an index per token.

A block of tokens may have its own noise level while clean tokens have none. Whatever depends on
the level, such as conditioning, is computed once per entry of the table, never per token.

B: rows, L: tokens in a row, N: entries of a row's table.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Levels(NamedTuple):
  """A number or a vector for each token, looked up in its row's table.

  Attributes:
    table: float[B, N, ...].
    index: int[B, L], the entry of each token.
  """

  table: jax.Array
  index: jax.Array


# float[B, ...], one entry per row, or a table.
Level = jax.Array | Levels


def map_level(function: Callable[[jax.Array], jax.Array], level: Level) -> Level:
  """The levels with a function applied to each entry."""
  if isinstance(level, Levels):
    return level._replace(table=function(level.table))
  return function(level)


def at_tokens(level: Level) -> jax.Array:
  """The entry of each token, float[B, L, ...]; float[B, 1, ...] if each row has one entry."""
  if isinstance(level, Levels):
    index = level.index.reshape(*level.index.shape, *(1,) * (level.table.ndim - 2))
    return jnp.take_along_axis(level.table, index, axis=1)
  return level[:, None]


def weighted_sum(weight: Level, values: jax.Array) -> jax.Array:
  """The weighted sum of values float[B, L] over each row, float[B]."""
  if isinstance(weight, Levels):
    return jnp.sum(at_tokens(weight) * values, axis=-1)
  return weight * jnp.sum(values, axis=-1)
