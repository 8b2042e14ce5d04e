"""DRO-V."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_hand_computed_row_and_its_two_gradients():
  # r = 3, V = 0.5, log-ratio = 2 over two tokens; the second value is not read.
  mask = np.ones((1, 1, 2))
  s = scored.from_token_logps(
    -mask, mask, -2 * mask, value_BKT=[[[0.5, 7.0]]], reward_BK=[[3.0]]
  )
  o = objectives.dro(beta=0.5)
  residual = 3 - 0.5 - 0.5 * 2
  out = scored.evaluate(o, s)
  assert out.terms["dro"] == pytest.approx(residual**2 / (2 * 0.5))
  assert out.terms["value"] == pytest.approx(residual**2 / 2)
  assert out.metrics["residual"] == pytest.approx(residual)

  def loss(logp_BKT, value_BKT):
    s_ = s.replace(logp_BKT=logp_BKT, value_BKT=value_BKT)
    return scored.evaluate(o, s_).loss

  policy, value = jax.jit(jax.grad(loss, (0, 1)))(s.logp_BKT, s.value_BKT)
  np.testing.assert_allclose(policy[0, 0], [-residual, -residual], rtol=1e-6)
  np.testing.assert_allclose(value[0, 0], [-residual, 0], rtol=1e-6)


def test_oracle():
  s = toy.scored(K=1, B=5)
  mask = np.asarray(s.mask_BKT)[:, 0]
  gap = np.asarray(s.logp_BKT - s.ref_logp_BKT, np.float64)[:, 0]
  value, reward = np.asarray(s.value_BKT)[:, 0, 0], np.asarray(s.reward_BK)[:, 0]
  square = (reward - value - 0.7 * (gap * mask).sum(-1)) ** 2
  actual = scored.evaluate(objectives.dro(beta=0.7), s).per_example_B
  np.testing.assert_allclose(actual, square / 1.4 + square / 2, rtol=1e-4)
