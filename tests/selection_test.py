"""Rules that select rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax import selection

ROWS = jnp.arange(3)


@jax.jit
def many(log_weight, keep, weight):
  keys = jax.random.split(jax.random.key(0), 2000)

  def one(key):
    return selection.without_replacement(log_weight, keep, weight, ROWS, key)

  return jax.vmap(one)(keys)


def draws(log_weight, keep, weight=(1.0, 1.0, 1.0)):
  return np.asarray(many(jnp.asarray(log_weight), keep, jnp.asarray(weight)))


def test_first_draw_follows_the_weights():
  p = np.array([0.5, 0.3, 0.2])
  share = draws(np.log(p), 1 / 3).mean(0)
  np.testing.assert_allclose(share, p, atol=4 * np.sqrt(0.25 / 2000))


def test_two_draws_without_replacement_follow_the_weights():
  p = np.array([0.5, 0.3, 0.2])
  # P(row 2 among two draws) = p2 + sum over the other first draws.
  expected = p[2] + p[0] * p[2] / (1 - p[0]) + p[1] * p[2] / (1 - p[1])
  share = draws(np.log(p), 2 / 3).mean(0)
  assert share.sum() == pytest.approx(2)
  assert share[2] == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 2000))


def test_filler_is_never_drawn_nor_counted():
  picked = draws(np.zeros(3), 0.5, (1.0, 0.0, 1.0))
  assert not picked[:, 1].any()
  assert (picked.sum(1) == 1).all()  # half of two rows, not of three


def test_underflowing_weights_still_fill_the_count():
  picked = draws(np.array([0.0, -5000.0, -9000.0]), 0.7)
  np.testing.assert_array_equal(picked, np.tile([1, 1, 0], (2000, 1)))
