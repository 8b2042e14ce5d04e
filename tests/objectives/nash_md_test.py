"""Nash-MD's policy gradient; see also theory/games_test.py."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_hand_computed_value_and_gradient():
  def loss(logp):
    s = scored.from_token_logps(
      logp, np.ones((1, 1, 2)), [[[-2.0, -1.0]]], reward_BK=[[0.9]]
    )
    return scored.evaluate(objectives.nash_md(beta=0.1), s).loss

  value, grad = jax.jit(jax.value_and_grad(loss))(
    np.array([[[-1.0, -0.5]]], np.float32)
  )
  gain = 0.9 - 0.5 - 0.1 * (1 + 0.5)
  assert value == pytest.approx(gain * 1.5)
  # Both tokens are charged the whole log-ratio, and none flows through it.
  np.testing.assert_allclose(grad, [[[-gain, -gain]]], rtol=1e-6)


def test_oracle_with_absent_columns():
  s = toy.scored(K=3)
  mask, present = (np.asarray(x) > 0 for x in (s.mask_BKT, s.present_BK))
  logp = np.where(mask, np.asarray(s.logp_BKT, np.float64), 0).sum(-1)
  ref = np.where(mask, np.asarray(s.ref_logp_BKT, np.float64), 0).sum(-1)
  gain = np.asarray(s.reward_BK, np.float64) - 0.5 - 0.3 * (logp - ref)
  expected = -np.where(present, gain * logp, 0).sum(1) / present.sum(1)
  out = scored.evaluate(objectives.nash_md(beta=0.3), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5)
  kl = np.where(present, logp - ref, 0).sum() / present.sum()
  assert out.metrics["kl"] == pytest.approx(kl, rel=1e-4)


def test_local_estimator_charges_each_token_its_own_log_ratio():
  logp, ref = np.array([[[-1.0, -0.5]]]), np.array([[[-2.0, -0.8]]])

  def estimate(logp):
    s = scored.from_token_logps(logp, np.ones((1, 1, 2)), ref, reward_BK=[[0.9]])
    return objectives.nash_md_token_local(s, 0.1)[0, 0]

  value, slope = jax.jit(jax.value_and_grad(estimate))(np.asarray(logp, np.float32))
  cost = 0.1 * (logp - ref) - 0.4
  assert value == pytest.approx((cost * logp).sum(), rel=1e-6)
  np.testing.assert_allclose(slope, cost, rtol=1e-5)


def test_local_estimator_is_the_objective_where_completions_are_one_token():
  s = toy.scored(K=2, T=1)
  local = objectives.nash_md_token_local(s, 0.3).mean(1)
  out = scored.evaluate(objectives.nash_md(beta=0.3), s)
  np.testing.assert_allclose(out.per_example_B, local, rtol=1e-6)
