"""Tiled score statistics against the dense ones: values, gradients, memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import (
  Absorbing,
  Columns,
  Rows,
  Uniform,
  map_rows,
)
from sedd_jax.diffusion.tiles import row_sums, tile_shape

CASES = [
  (Absorbing, "score"),
  (Absorbing, "scaled"),
  (Absorbing, "conditional"),
  (Uniform, "score"),
  (Uniform, "conditional"),
]


def problem(make, vocab, *, batch=3, length=50, width=16, dtype=jnp.float32, share=0.5, pad=7):
  """Hidden states, an output layer with padding that must not matter, and corrupted tokens."""
  process = make(vocab)
  keys = jax.random.split(jax.random.key(0), 7)
  columns = process.num_states + pad
  hidden = jax.random.normal(keys[0], (batch, length, width), dtype)
  kernel = 0.5 * jax.random.normal(keys[1], (width, columns), dtype)
  bias = jax.random.normal(keys[2], (columns,), dtype)
  x0 = jax.random.randint(keys[3], (batch, length), 0, vocab)
  moved = jax.random.uniform(keys[4], x0.shape) < share
  other = jax.random.randint(keys[5], x0.shape, 0, vocab)
  x = jnp.where(moved, other if process.mask_id is None else process.mask_id, x0)
  total = jax.random.uniform(keys[6], (batch, 1), dtype, 0.05, 4.0)
  return process, (hidden, kernel, bias), x, x0, total


def losses(process, parameterization, x, x0, total):
  """The score entropy of each position by tiles and by dense rows, as functions of the arrays."""
  outputs = process.parameterization(parameterization)

  def tiled(hidden, kernel, bias):
    rows = Rows(x, x0, process.needs_score(x))
    stats = outputs.stats(hidden, Columns(kernel, bias, 0), rows, total)
    return process.score_entropy_from_stats(stats, x, x0, total)

  def dense(hidden, kernel, bias):
    raw = (hidden @ kernel + bias[None, None, :])[..., : process.num_states]
    return process.score_entropy(outputs.log_score(raw, x, total), x, x0, total)

  return tiled, dense


def with_gradients(function, weight=1.0):
  return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(weight * function(*a)), (0, 1, 2)))


def relative(got, want):
  return np.linalg.norm(np.asarray(got) - want) / max(np.linalg.norm(np.asarray(want)), 1e-30)


@pytest.mark.parametrize(("make", "parameterization"), CASES)
@pytest.mark.parametrize(
  ("dtype", "tolerance", "vocab"),
  [
    ("float32", 1e-5, 9001),
    ("float64", 1e-10, 300),
    *(
      pytest.param(*more, marks=pytest.mark.slow)
      for more in (
        ("float32", 1e-5, 3), ("float32", 1e-5, 300),
        ("float64", 1e-10, 3), ("float64", 1e-10, 9001),
      )
    ),
  ],
)  # fmt: skip
def test_tiles_equal_dense_rows(x64, make, parameterization, dtype, tolerance, vocab):
  process, arrays, x, x0, total = problem(make, vocab, dtype=jnp.dtype(dtype))
  height, width = tile_shape(x.size, arrays[1].shape[1])
  assert x.size % height, "the last tile of rows is partial"
  assert vocab == 3 or (width < vocab and arrays[1].shape[1] % width), "columns overlap at the end"
  tiled, dense = losses(process, parameterization, x, x0, total)
  want = dense(*arrays)
  got = jax.jit(tiled)(*arrays)
  assert got.dtype == dtype
  assert relative(got, want) < tolerance
  weight = jax.random.normal(jax.random.key(9), x.shape, dtype)
  _, grads = with_gradients(tiled, weight)(*arrays)
  _, wanted = with_gradients(dense, weight)(*arrays)
  for name, g, w in zip(("hidden", "kernel", "bias"), grads, wanted, strict=True):
    assert g.dtype == dtype
    assert relative(g, w) < tolerance, name


@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("parameterization", ["score", "scaled", "conditional"])
def test_any_number_of_masked_rows(share, parameterization):
  process, arrays, x, x0, total = problem(Absorbing, 300, share=share)
  assert (x == process.mask_id).mean() == pytest.approx(share, abs=0.05)
  tiled, dense = losses(process, parameterization, x, x0, total)
  got, grads = with_gradients(tiled)(*arrays)
  want, wanted = with_gradients(dense)(*arrays)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for g, w in zip(grads, wanted, strict=True):
    assert relative(g, w) < 1e-5
  assert not np.any(np.asarray(grads[0])[np.asarray(x != process.mask_id)])


def test_rows_that_are_not_needed_are_zero_and_move_nothing():
  _, (hidden, kernel, bias), x, x0, _ = problem(Absorbing, 300)
  hidden, x, x0 = hidden.reshape(-1, 16), x.reshape(-1), x0.reshape(-1)
  needed = jnp.arange(x.size) % 3 == 1

  def sums(hidden, kernel):
    return row_sums(hidden, Columns(kernel, bias, 0), Rows(x, x0, needed), 301)

  got, pull = jax.vjp(sums, hidden, kernel)
  for z in got:
    assert not np.any(np.asarray(z)[~np.asarray(needed)])
  d_hidden, d_kernel = pull(jax.tree.map(lambda z: jnp.where(needed, 0.0, 1.0), got))
  assert not np.any(d_hidden)
  assert not np.any(d_kernel)


def test_row_sums_by_hand():
  raw = jnp.asarray([[0.0, 1.0, 2.0, 9.0], [3.0, -1.0, 0.5, 9.0]])  # The last column is padding.
  hidden, kernel = jnp.eye(2), raw
  rows = Rows(jnp.asarray([0, 2]), jnp.asarray([2, 2]), jnp.asarray([True, True]))
  got = row_sums(hidden, Columns(kernel, jnp.zeros(4), 0), rows, 3)
  np.testing.assert_allclose(got.largest, [2.0, 3.0])
  np.testing.assert_allclose(got.sum_exp, [1 + np.exp(-1), 1 + np.exp(-4)], rtol=1e-6)
  np.testing.assert_allclose(got.sum_raw, [3.0, 2.0])
  np.testing.assert_allclose(got.at_x0, [2.0, 0.0])  # x0 = x in the second row.


@pytest.mark.parametrize("size", [80.0, 1e4])
@pytest.mark.parametrize("parameterization", ["scaled", "conditional"])
def test_large_outputs_give_what_dense_rows_give_and_no_nan(parameterization, size):
  """Unmasked rows may overflow in the dense path too; their gradient is 0, not NaN."""
  process, (hidden, kernel, bias), x, x0, total = problem(Absorbing, 300)
  hidden = jnp.where((x == process.mask_id)[..., None], hidden, size * hidden)
  tiled, dense = losses(process, parameterization, x, x0, total)
  got, grads = with_gradients(tiled)(hidden, kernel, bias)
  want, _ = with_gradients(dense)(hidden, kernel, bias)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert all(np.all(np.isfinite(g)) for g in grads)


@pytest.mark.slow
def test_products_of_bfloat16_are_summed_in_float32():
  process, arrays, x, x0, total = problem(Absorbing, 9001, width=256)
  rounded = tuple(z.astype(jnp.bfloat16) for z in arrays[:2])
  tiled, _ = losses(process, "scaled", x, x0, total)
  got = tiled(*rounded, arrays[2])
  assert got.dtype == jnp.float32
  want = tiled(*(z.astype(jnp.float32) for z in rounded), arrays[2])
  assert relative(got, want) < 1e-5  # bfloat16 sums would be off by 1e-3 and more.
  grad = jax.grad(lambda *a: jnp.sum(tiled(*a, arrays[2])), (0, 1))(*rounded)
  assert [g.dtype for g in grad] == [jnp.bfloat16, jnp.bfloat16]


@pytest.mark.parametrize("rows", [1, 5, 24, 64, 512, 4096, 8192, 65_536])
@pytest.mark.parametrize("columns", [1, 28, 128, 1024, 12_576, 50_304, 128_256])
def test_the_rule_for_tiles(rows, columns):
  height, width = tile_shape(rows, columns)
  assert 1 <= height <= min(rows, 1024)
  assert 1 <= width <= min(columns, 4224)
  if rows >= 4096 and columns > 4224:
    assert -(-columns // width) * width < 1.03 * columns, "too much is computed twice"
  if rows >= 64 and columns >= 128:
    assert height * width <= rows * columns / 8


def compiled_gradient(vocab, *, batch=8, length=128, width=32, make=Absorbing):
  process, arrays, x, x0, total = problem(
    make, vocab, batch=batch, length=length, width=width, pad=0
  )
  tiled, dense = losses(process, "conditional" if make is Absorbing else "score", x, x0, total)
  return [with_gradients(function).lower(*arrays).compile() for function in (tiled, dense)]


def largest(text):
  shapes = re.findall(r"\b(?:f|bf|s|u|pred)\d*\[([\d,]+)\]", text)
  return max(np.prod([int(n) for n in dims.split(",")]) for dims in shapes)


@pytest.mark.parametrize("make", [Absorbing, Uniform])
@pytest.mark.parametrize(("batch", "length", "width"), [(8, 128, 32), (4, 64, 16)])
def test_no_buffer_is_as_large_as_the_scores(make, batch, length, width):
  vocab = 5000
  limit = max(batch * length * vocab / 8, 2 * vocab * width)
  assert batch * length >= 16 * width
  tiled, dense = compiled_gradient(vocab, batch=batch, length=length, width=width, make=make)
  assert largest(dense.as_text()) >= batch * length * vocab
  assert largest(tiled.as_text()) <= limit


def test_memory_beyond_the_tables_does_not_grow_with_the_vocabulary():
  once, twice = (
    compiled_gradient(v)[0].memory_analysis().temp_size_in_bytes for v in (20_000, 40_000)
  )
  table = 4 * 32 * 20_000
  assert twice - once <= 2.5 * table  # The kernel's gradient, and a copy of it in the loop.
  assert once <= 5 * table


def test_the_loop_over_rows_ends_with_the_masked_ones():
  """Rows beyond the last tile are never read: NaN there reaches nothing."""
  process, (hidden, kernel, bias), x, x0, total = problem(Absorbing, 300, batch=8, length=256)
  masked = np.asarray(x == process.mask_id).reshape(-1)
  height, _ = tile_shape(x.size, kernel.shape[1])
  tiles = -(-masked.sum() // height)
  behind = np.flatnonzero(~masked)[tiles * height - masked.sum() :]
  assert len(behind) > x.size / 4
  poisoned = hidden.reshape(-1, 16).at[behind].set(jnp.nan).reshape(hidden.shape)
  tiled, _ = losses(process, "scaled", x, x0, total)
  got, grads = with_gradients(tiled)(poisoned, kernel, bias)
  want, wanted = with_gradients(tiled)(hidden, kernel, bias)
  assert got == want
  jax.tree.map(np.testing.assert_array_equal, grads, wanted)


@pytest.mark.parametrize("count", [0, 1, 128, 200, 700])
def test_map_rows_calls_a_function_of_the_needed_rows(count):
  rng = np.random.default_rng(count)
  needed = np.zeros(700, bool)
  needed[rng.permutation(700)[:count]] = True
  values, seen = rng.normal(size=(700, 3)).astype(np.float32), []

  def function(rows):
    value, index = rows
    jax.debug.callback(lambda i: seen.append(np.asarray(i)), index)
    return index + jnp.sum(value, axis=-1)

  rows = (jnp.asarray(values), jnp.arange(700.0))
  got = jax.jit(lambda *a: map_rows(function, *a))(rows, jnp.asarray(needed), -jnp.ones(700))
  jax.effects_barrier()
  want = np.where(needed, np.arange(700) + values.sum(-1), -1.0)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert len(seen) == -(-count // 128), "tiles of 128 rows, as many as hold the needed ones"
  assert set(np.flatnonzero(needed)) <= set(np.concatenate([*seen, []]).astype(int))


def test_nothing_at_all_gives_nothing():
  process, (hidden, kernel, bias), x, x0, total = problem(Absorbing, 30)
  tiled, _ = losses(process, "scaled", x[:0], x0[:0], total[:0])
  assert tiled(hidden[:0], kernel, bias).shape == (0, x.shape[1])
  got = map_rows(lambda rows: rows, jnp.zeros(0), jnp.zeros(0, bool), jnp.zeros(0))
  assert got.shape == (0,)
