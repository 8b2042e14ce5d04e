"""Masked sums and means."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from xpo_jax.ops import masked

masked = compiled.module(masked)

MASK = np.array([[[1.0, 1, 0], [0, 1, 0]], [[1, 1, 1], [0, 0, 0]]], np.float32)
X = np.array([[[1.0, 2, 9], [9, 4, 9]], [[5, 6, 7], [9, 9, 9]]], np.float32)
FUNCTIONS = {
  "sum_T": (masked.sum_T, [[3, 4], [18, 0]]),
  "mean_T": (masked.mean_T, [[1.5, 4], [6, 0]]),
  "first": (masked.first, [[1, 4], [5, 0]]),
  "last": (masked.last, [[2, 4], [7, 0]]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_matches_hand_count_and_empty_is_0(name):
  function, expected = FUNCTIONS[name]
  np.testing.assert_array_equal(function(X, MASK), expected)


def test_length_counts_tokens():
  np.testing.assert_array_equal(masked.length(MASK), [[2, 1], [3, 0]])


@pytest.mark.nonfinite
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_in_padding_reaches_neither_value_nor_gradient(name):
  function, expected = FUNCTIONS[name]
  poisoned = jnp.where(MASK > 0, X, jnp.nan)
  np.testing.assert_array_equal(function(poisoned, MASK), expected)
  gradient = jax.grad(lambda x: function(x, MASK).sum())(poisoned)
  assert np.isfinite(gradient).all()
  assert not gradient[MASK == 0].any()


def test_zero_padding_keeps_trailing_axes():
  x_BKTJ = jnp.ones((2, 2, 3, 4))
  np.testing.assert_array_equal(masked.zero_padding(x_BKTJ, MASK).sum(-1), 4 * MASK)


def test_record_of_sums_is_passed_through_only_with_one_column():
  np.testing.assert_array_equal(masked.sum_T(X[..., :1], None), X[..., 0])
  with pytest.raises(AssertionError):
    masked.sum_T(X, None)


def test_unequal_shapes_are_refused():
  with pytest.raises(AssertionError):
    masked.sum_T(X, MASK[:1])
  with pytest.raises(AssertionError):
    masked.per_token(X[..., 0], MASK)


def test_works_under_vmap():
  stacked = jax.vmap(masked.last)(jnp.stack([X, 2 * X]), jnp.stack([MASK, MASK]))
  chex.assert_trees_all_close(stacked[1], 2 * stacked[0])
