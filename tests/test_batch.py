"""Batches: rows of tokens and what is known of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.batch import Batch, gathered

TOKENS = np.arange(12, dtype=np.int32).reshape(4, 3)
FULL = Batch(TOKENS, TOKENS % 2 == 0, np.arange(4, dtype=np.int32), TOKENS // 5)


def assert_same(got, want):
  for one, other in zip(got, want, strict=True):
    np.testing.assert_array_equal(one, other)


def test_every_token_counts_unless_it_is_said():
  for tokens in (TOKENS, jnp.asarray(TOKENS)):
    batch = Batch.of(tokens)
    assert batch.tokens is tokens
    assert batch.loss_mask.dtype == bool
    np.testing.assert_array_equal(batch.loss_mask, np.ones((4, 3), bool))
    assert batch.labels is None
    assert batch.segments is None


def test_a_function_is_applied_to_each_array_that_is_there():
  assert_same(FULL.map(lambda x: x[1:3]), [x[1:3] for x in FULL])
  mapped = Batch.of(TOKENS).map(lambda x: x[::2])
  assert isinstance(mapped, Batch)
  assert_same(mapped, [TOKENS[::2], np.ones((2, 3), bool), None, None])


@pytest.mark.parametrize("batch", [FULL, Batch.of(TOKENS)], ids=["full", "tokens"])
def test_a_batch_goes_through_compiled_functions_with_what_it_has(batch):
  turned = jax.jit(lambda batch: batch.map(lambda x: x[::-1]))(batch)
  assert isinstance(turned, Batch)
  assert_same(turned, [None if x is None else x[::-1] for x in batch])
  assert len(jax.tree.leaves(batch)) == sum(x is not None for x in batch)


@pytest.mark.parametrize("batch", [FULL, Batch.of(TOKENS)], ids=["full", "tokens"])
def test_parts_are_put_where_they_belong(batch):
  last, rest = np.array([3, 0]), np.array([False, True, True, False])
  parts = ((places, batch.map(lambda x, at=places: x[at])) for places in (last, rest))
  whole = gathered(4, parts)
  assert_same(whole, batch)
  for got, want in zip(whole, batch, strict=True):
    assert (got is None) == (want is None)
    assert got is None or got.dtype == want.dtype
