"""APO-down."""

import jax
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives


def test_hand_computed_pair():
  s = scored.from_sequence_logps([[3.0, 2.0]], [[1, 1]], [[1.0, 5.0]])  # u: 2, -3
  out = scored.evaluate(objectives.apo_down(beta=0.5), s)
  expected = special.expit(0.5 * 2) + (1 - special.expit(0.5 * 5))
  assert out.loss == pytest.approx(expected, rel=1e-6)


def test_first_gradient_is_on_the_rejected_completion_only():
  """d/du_w = beta/4 - beta/4 and d/du_l = beta/4 where both log-ratios are 0."""

  def loss(logp_BK):
    s = scored.from_sequence_logps(logp_BK, np.ones((1, 2)), np.zeros((1, 2)))
    return scored.evaluate(objectives.apo_down(beta=0.8), s).loss

  slope = jax.jit(jax.grad(loss))
  np.testing.assert_allclose(
    slope(np.zeros((1, 2), np.float32)), [[0, 0.8 / 4]], atol=1e-7
  )
  # Once the pair is apart both fall.
  assert (slope(np.array([[0.0, -4.0]], np.float32)) > 0).all()
