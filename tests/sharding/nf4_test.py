"""Weights in 4 bits: the paper's values, the nearest of them, what stays the same."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.sharding import nf4

ROUNDING = 2.0**-8  # of a scale, to bfloat16


def _weight(shape):
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_values_are_quantiles_of_the_normal_distribution():
  """Section 3 of arXiv:2305.14314, with the offset of the authors' code: quantiles
  evenly spaced in probability, seven of one sign and eight of the other, and zero."""
  offset = 0.9677083
  quantile = statistics.NormalDist().inv_cdf
  positive = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
  negative = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
  values = np.sort([*positive, 0.0, *negative]) / max(positive)
  np.testing.assert_allclose(nf4.VALUES, values, atol=1e-6)


@pytest.mark.parametrize(
  ("shape", "axis", "blocks"),
  [((128, 6), 0, 2), ((3, 96, 5), 1, 2), ((4, 7), -1, 1), ((67, 2), 0, 67)],
  ids=str,
)
def test_each_weight_becomes_the_nearest_value_of_its_block(shape, axis, blocks):
  """By brute force over the sixteen; 96 is cut into blocks of 48, a prime into ones."""
  x = _weight(shape)
  small = nf4.quantise(jnp.asarray(x), axis)
  assert small.codes.dtype == jnp.uint4 and small.scale.dtype == jnp.bfloat16
  assert small.shape == shape and small.size == x.size

  def in_blocks(y):
    return np.moveaxis(np.asarray(y, np.float32), axis, -1).reshape(
      *np.delete(shape, axis), blocks, -1
    )

  own, scale = in_blocks(x), in_blocks(small.scale)
  largest = np.abs(own).max(-1, keepdims=True)
  np.testing.assert_allclose(scale, largest, rtol=ROUNDING)
  distance = np.abs(own[..., None] - scale[..., None] * nf4.VALUES)
  error = np.abs(in_blocks(small.astype(jnp.float32)) - own)
  np.testing.assert_allclose(error, distance.min(-1), atol=1e-6)


def test_rounded_weights_are_not_rounded_again():
  once = nf4.quantise(jnp.asarray(_weight((64 * 3, 8))), 0)
  again = nf4.quantise(once.astype(jnp.float32), 0)
  for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_zero_stays_zero():
  x = jnp.zeros((64, 2)).at[0, 0].set(3.0)
  np.testing.assert_array_equal(nf4.quantise(x, 0).astype(jnp.float32), x)


def test_a_tree_is_counted_by_weights_and_its_bytes_by_bits():
  tree = {"kernel": nf4.quantise(jnp.ones((128, 4)), 0), "bias": jnp.ones(4)}
  assert nf4.count(tree) == 128 * 4 + 4
  sizes = [nf4.nbytes(x.shape, x.dtype) for x in jax.tree.leaves(tree["kernel"])]
  assert sizes == [128 * 4 // 2, 2 * 4 * 2]
  assert nf4.nbytes((3,), jnp.bool_) == 3 and nf4.nbytes((3,), jnp.uint4) == 2
  shapes = {"kernel": (128, 4), "bias": (4,)}
  assert jax.tree.map(jnp.shape, nf4.dense(tree)) == shapes
