"""DPO and conservative DPO."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def margin(s, beta):
  """The paper's margin, by hand in float64."""
  gap = np.asarray(s.logp_BKT, np.float64) - np.asarray(s.ref_logp_BKT, np.float64)
  ratio = np.where(np.asarray(s.mask_BKT) > 0, gap, 0).sum(-1)
  return beta * (ratio[:, 0] - ratio[:, 1])


def one_pair(chosen, rejected):
  """A pair with these log-ratios."""
  return scored.from_sequence_logps([[chosen, rejected]], [[1, 1]], [[0.0, 0.0]])


def test_hand_computed_pair():
  # Margin 0.5 * (3 - 1) = 1.
  out = scored.evaluate(objectives.dpo(beta=0.5), one_pair(3.0, 1.0))
  assert out.loss == pytest.approx(np.log(1 + np.exp(-1)))
  assert out.metrics["reward_margin"] == pytest.approx(1.0)
  assert out.metrics["reward_chosen"] == pytest.approx(1.5)
  assert out.metrics["reward_rejected"] == pytest.approx(0.5)
  assert out.metrics["reward_accuracy"] == 1
  assert out.metrics["logp_chosen"] == pytest.approx(3.0)
  assert out.metrics["logp_rejected"] == pytest.approx(1.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_policy_equal_to_ref_gives_log_2(smoothing):
  s = toy.scored(K=2, policy_equals_ref=True)
  out = scored.evaluate(objectives.dpo(label_smoothing=smoothing), s)
  assert out.loss == pytest.approx(np.log(2))
  assert out.metrics["reward_accuracy"] == 0.5  # a tie is a coin toss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_oracle(smoothing):
  s = toy.scored(K=2)
  m = margin(s, 0.7)
  label, flipped = np.log1p(np.exp(-m)), np.log1p(np.exp(m))
  expected = (1 - smoothing) * label + smoothing * flipped
  o = objectives.dpo(beta=0.7, label_smoothing=smoothing)
  out = scored.evaluate(o, s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=2e-5)
  assert out.loss == pytest.approx(expected.mean(), rel=1e-5)
  assert out.metrics["reward_accuracy"] == pytest.approx((m > 0).mean())


def test_smoothed_gradient_vanishes_where_the_odds_are_the_noise():
  best = np.log(0.8 / 0.2)  # of the margin

  def loss(chosen):
    s = scored.from_sequence_logps(chosen[None], [[1, 1]], [[0.0, 0.0]])
    return scored.evaluate(objectives.dpo(beta=1.0, label_smoothing=0.2), s).loss

  np.testing.assert_allclose(
    jax.jit(jax.grad(loss))(np.array([best, 0.0])), 0, atol=1e-7
  )


def test_token_rewards_sum_to_rewards_and_skip_padding():
  s = toy.scored(K=2)
  credit_BKT = np.asarray(objectives.token_rewards(s, 0.3))
  np.testing.assert_allclose(credit_BKT.sum(-1), objectives.rewards(s, 0.3), rtol=1e-5)
  assert not credit_BKT[np.asarray(s.mask_BKT) == 0].any()


def test_token_rewards_refuse_a_record_of_sums():
  with pytest.raises(ValueError, match="from_token_logps"):
    objectives.token_rewards(one_pair(3.0, 1.0), 0.1)
