"""IPO, with log-ratios summed as in the paper."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_hand_computed_pair():
  # rho = 3 - 1, the target 1 / (2 * 0.1) = 5
  out = scored.evaluate(objectives.ipo(0.1), pairs.one(3.0, 1.0))
  assert out.loss == pytest.approx((2 - 5) ** 2)
  assert out.metrics["reward_margin"] == pytest.approx(0.2)


def test_oracle():
  s = toy.scored(K=2)
  out = scored.evaluate(objectives.ipo(0.4), s)
  expected = (pairs.gap(s) - 1 / 0.8) ** 2
  np.testing.assert_allclose(out.per_example_B, expected, rtol=2e-5)


def test_lengths_do_not_matter():
  a = scored.evaluate(objectives.ipo(), pairs.one(3.0, 1.0, (1, 1)))
  b = scored.evaluate(objectives.ipo(), pairs.one(3.0, 1.0, (7, 2)))
  assert a.loss == b.loss


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_gradient_vanishes_at_the_target(beta):
  def loss(chosen):
    s = scored.from_sequence_logps([[chosen, 0.0]], [[1, 1]], [[0.0, 0.0]])
    return scored.evaluate(objectives.ipo(beta), s).loss

  slope = jax.jit(jax.grad(loss))
  assert slope(1 / (2 * beta)) == pytest.approx(0, abs=1e-6)
  assert slope(1 / (2 * beta) + 1) > 1  # and pulls back beyond it
