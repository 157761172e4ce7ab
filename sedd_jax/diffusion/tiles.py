"""Sums over the columns of an output layer, tile by tile: [R, S] is never materialized.

A row of raw outputs enters the score entropy through four sums. They are computed over tiles of
rows and columns, and the backward pass recomputes each tile. Rows that need no sums are skipped:
needed rows are moved to the front, and the loop over row tiles ends after the last of them.

`parameterizations.py` makes `ScoreStats` from the sums, so the formulas don't depend on tiles.
`map_rows` calls any function of whole rows on tiles of needed rows; samplers use it.

R: rows (positions of all sequences), T: rows of a tile, D: width, C: local columns (states) of the
output layer, W: columns of a tile.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# The shape of a tile. Rows: a sixteenth of all, within the range where a product is efficient; a
# quarter if there are few. On average half a tile after the last needed row is wasted. Columns: a
# tile has at most a sixteenth of [R, C], and its [D, W] part of the kernel's gradient stays in
# cache; 12 such tiles are 1% more than GPT-2's 50,304 columns.
_ROWS = (128, 1024)
_COLUMNS = 4224
_LANES = 128
# Rows of a tile that is as wide as the vocabulary.
_WHOLE_ROWS = (128, 512)
# The maximum of no entries; not -inf, whose difference with itself is NaN.
_NOTHING = -1e30


class RowSums(NamedTuple):
  """Sums over the columns y != x of each row of raw outputs, float[R]; 0 in rows not needed.

  Attributes:
    largest: the largest entry, without gradient.
    sum_exp: sum of exp(raw_y - largest).
    sum_raw: sum of raw_y.
    at_x0: raw[x0] if x0 is a column other than x, else 0.
  """

  largest: jax.Array
  sum_exp: jax.Array
  sum_raw: jax.Array
  at_x0: jax.Array


class Columns(NamedTuple):
  """The output layer, or one device's columns of it.

  Attributes:
    kernel: float[D, C], in the dtype of the products.
    bias: float[C].
    first: int32[], state of the first column.
  """

  kernel: jax.Array
  bias: jax.Array
  first: jax.typing.ArrayLike


class Rows(NamedTuple):
  """The sums to compute in each row.

  Attributes:
    x: int[R], the state that the sums exclude.
    x0: int[R], the state whose entry is returned.
    needed: bool[R], which rows are computed.
  """

  x: jax.Array
  x0: jax.Array
  needed: jax.Array


def tile_shape(rows: int, columns: int) -> tuple[int, int]:
  """Rows and columns of a tile, (T, W), for R rows and C columns."""
  fewest, most = _ROWS
  height = min(max(rows / 16, min(rows / 4, fewest)), most)
  height = max(8, -(-int(height) // 8) * 8)
  width = max(1, rows * columns // (16 * height))
  width = min(1 << (width.bit_length() - 1), _COLUMNS, columns)
  # The same number of tiles, of equal width in whole registers: the last tile overlaps the one
  # before it.
  equal = -(-columns // (-(-columns // width) * _LANES)) * _LANES
  return min(height, rows), min(width, equal)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def row_sums(hidden: jax.Array, columns: Columns, rows: Rows, num_states: int) -> RowSums:
  """RowSums over the local columns, of at least float32.

  Args:
    hidden: float[R, D], in the dtype of the products, which accumulate in at least float32.
    columns: the output layer; columns beyond the last state are ignored.
    rows: the sums to compute in each row.
    num_states: S.
  """
  tiles = _Tiles(hidden, columns, rows, num_states)

  def column_tile(i, sums):
    def row_tile(j, sums):
      raw, valid, at_x0 = tiles.outputs(i, j)
      before = tiles.take(sums, j)
      largest = jnp.maximum(before.largest, jnp.max(raw, axis=-1, where=valid, initial=_NOTHING))
      weight = jnp.where(valid, jnp.exp(raw - largest[:, None]), 0.0)
      after = RowSums(
        largest,
        before.sum_exp * jnp.exp(before.largest - largest) + jnp.sum(weight, axis=-1),
        before.sum_raw + jnp.sum(raw, axis=-1, where=valid),
        before.at_x0 + jnp.sum(raw, axis=-1, where=at_x0),
      )
      return tiles.put(sums, after, j)

    return jax.lax.fori_loop(0, tiles.tiles, row_tile, sums)

  zero = jnp.zeros(tiles.padded, tiles.dtype)
  sums = jax.lax.fori_loop(0, tiles.across, column_tile, RowSums(zero + _NOTHING, zero, zero, zero))
  return jax.tree.map(lambda x: jnp.where(rows.needed, x[tiles.place], 0.0), sums)


def _forward(hidden, columns, rows, num_states):
  sums: RowSums = row_sums(hidden, columns, rows, num_states)
  return sums, (hidden, columns, rows, sums.largest)


def _backward(num_states, residuals, cotangent: RowSums):
  hidden, columns, rows, largest = residuals
  tiles = _Tiles(hidden, columns, rows, num_states)
  per_row = jax.tree.map(lambda x: x[tiles.order], cotangent._replace(largest=largest))

  def column_tile(i, grads):
    d_kernel, d_bias, d_hidden = grads

    def row_tile(j, grads):
      d_kernel, d_bias, d_hidden = grads
      raw, valid, at_x0 = tiles.outputs(i, j)
      d_sum = jax.tree.map(lambda x: x[:, None], tiles.take(per_row, j))
      d_raw = d_sum.sum_exp * jnp.exp(raw - d_sum.largest) + d_sum.sum_raw
      d_raw += jnp.where(at_x0, d_sum.at_x0, 0.0)
      d_raw = jnp.where(valid, d_raw, 0.0)
      rounded = d_raw.astype(hidden.dtype)
      d_kernel += _product(tiles.hidden(j), rounded, 0, 0)
      d_bias += jnp.sum(d_raw, axis=0)
      d_tile = tiles.take(d_hidden, j) + _product(rounded, tiles.kernel(i), 1, 1)
      return d_kernel, d_bias, tiles.put(d_hidden, d_tile, j)

    zero = (
      jnp.zeros((hidden.shape[1], tiles.width), tiles.dtype),
      jnp.zeros(tiles.width, tiles.dtype),
      d_hidden,
    )
    kernel_tile, bias_tile, d_hidden = jax.lax.fori_loop(0, tiles.tiles, row_tile, zero)
    start = tiles.start(i)
    return (
      _add_slice(d_kernel, kernel_tile.astype(d_kernel.dtype), start, axis=1),
      _add_slice(d_bias, bias_tile.astype(d_bias.dtype), start, axis=0),
      d_hidden,
    )

  grads = (
    jnp.zeros_like(columns.kernel),
    jnp.zeros_like(columns.bias),
    jnp.zeros((tiles.padded, hidden.shape[1]), tiles.dtype),
  )
  d_kernel, d_bias, d_hidden = jax.lax.fori_loop(0, tiles.across, column_tile, grads)
  d_hidden = jnp.where(rows.needed[:, None], d_hidden[tiles.place], 0.0).astype(hidden.dtype)
  # The first column's state and the rows are integers, without gradient.
  return d_hidden, columns._replace(kernel=d_kernel, bias=d_bias, first=None), None


row_sums.defvjp(_forward, _backward)


def whole_tile_height(rows: int) -> int:
  """Rows of a tile of `map_rows`, for R rows."""
  fewest, most = _WHOLE_ROWS
  return min(max(rows // 16, fewest), most, rows)


def map_rows(function: Callable[..., Any], rows: Any, needed: jax.Array, otherwise: Any) -> Any:
  """A tree like otherwise: a function of each needed row, called on tiles. Has no gradient.

  Args:
    function: maps a tree like rows, arrays [T, ...], to a tree like otherwise, arrays [T, ...].
    rows: tree of arrays [R, ...].
    needed: bool[R].
    otherwise: tree of arrays [R, ...], the result for rows that are not needed.
  """
  if not len(needed):
    return otherwise
  front = _Front(needed, whole_tile_height(len(needed)))
  ordered = jax.tree.map(lambda x: x[front.order], rows)

  def tile(j, out):
    result = function(front.take(ordered, j))
    return front.put(out, jax.tree.map(lambda x, like: x.astype(like.dtype), result, out), j)

  def empty(x):
    return jnp.zeros((front.padded, *x.shape[1:]), x.dtype)

  def put_back(x, instead):
    return jnp.where(needed.reshape(-1, *[1] * (x.ndim - 1)), x[front.place], instead)

  out = jax.lax.fori_loop(0, front.tiles, tile, jax.tree.map(empty, otherwise))
  return jax.tree.map(put_back, out, otherwise)


class _Front:
  """Rows sorted stably with needed rows first, in tiles of `height` rows.

  Attributes:
    order: int[R'], the row at each place; R' is a multiple of height.
    place: int[R], the place of each row.
    size: int32[], number of needed rows.
    tiles: int32[], number of tiles that hold needed rows.
  """

  def __init__(self, needed: jax.Array, height: int):
    self.height, count = height, len(needed)
    self.padded = -(-count // height) * height
    before = jnp.cumsum(needed)
    self.size = before[-1]
    self.place = jnp.where(needed, before - 1, self.size + jnp.cumsum(~needed) - 1)
    self.order = jnp.pad(jnp.argsort(~needed, stable=True), (0, self.padded - count))
    self.tiles = -(-self.size // height)

  def take(self, tree: Any, j: jax.Array) -> Any:
    """Tile j of arrays [R', ...]."""

    def leaf(x):
      return jax.lax.dynamic_slice_in_dim(x, j * self.height, self.height)

    return jax.tree.map(leaf, tree)

  def put(self, tree: Any, tile: Any, j: jax.Array) -> Any:
    """Arrays [R', ...] with tile j replaced."""

    def leaf(x, y):
      return jax.lax.dynamic_update_slice_in_dim(x, y, j * self.height, 0)

    return jax.tree.map(leaf, tree, tile)


class _Tiles(_Front):
  """Tiles of rows and columns; the last column tile is shifted to end at the last column."""

  def __init__(self, hidden: jax.Array, columns: Columns, rows: Rows, num_states: int):
    self._stop = columns.kernel.shape[1]
    height, self.width = tile_shape(hidden.shape[0], self._stop)
    super().__init__(rows.needed, height)
    self.across = -(-self._stop // self.width)
    self.dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    self._hidden, self._columns, self._num_states = hidden[self.order], columns, num_states
    self._rows = Rows(rows.x[self.order], rows.x0[self.order], jnp.arange(self.padded) < self.size)

  def outputs(self, i, j) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A tile of raw outputs [T, W], and masks of the entries that count and of those at x0."""
    start, rows = self.start(i), self.take(self._rows, j)
    bias = jax.lax.dynamic_slice_in_dim(self._columns.bias, start, self.width)
    raw = _product(self.hidden(j), self.kernel(i), 1, 0) + bias.astype(self.dtype)[None, :]
    column = start + jax.lax.broadcasted_iota(jnp.int32, (1, self.width), 1)
    state = column + self._columns.first
    counted = (state < self._num_states) & (column >= i * self.width)
    valid = counted & (state != rows.x[:, None]) & rows.needed[:, None]
    return raw, valid, valid & (state == rows.x0[:, None])

  def start(self, i) -> jax.Array:
    """First column of a column tile."""
    return jnp.minimum(i * self.width, self._stop - self.width)

  def kernel(self, i) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(self._columns.kernel, self.start(i), self.width, axis=1)

  def hidden(self, j) -> jax.Array:
    return self.take(self._hidden, j)


def _product(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
  return jax.lax.dot_general(
    a,
    b,
    (((axis_a,), (axis_b,)), ((), ())),
    preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
  )


def _add_slice(x: jax.Array, part: jax.Array, start: jax.Array, axis: int) -> jax.Array:
  old = jax.lax.dynamic_slice_in_dim(x, start, part.shape[axis], axis)
  return jax.lax.dynamic_update_slice_in_dim(x, old + part, start, axis)
