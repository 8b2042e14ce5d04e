"""KTO."""

import jax
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.testing import toy
from xpo_jax.types import Aux


def record(ratio, other, desirable):
  """Rows with these log-ratios for the completion and for the mismatched one."""
  logp = np.stack([ratio, other], 1)
  label = np.stack([desirable, desirable], 1)
  length = np.ones_like(logp)
  return scored.from_sequence_logps(logp, length, 0 * logp, desirable_BK=label)


def test_hand_computed_rows():
  # z0 = (2 + 4) / 2 = 3; a thumbs-up at 5 and a thumbs-down at 2.
  s = record([5.0, 2.0], [2.0, 4.0], [1, 0])
  o = objectives.kto(beta=0.5, desirable_weight=1.5, undesirable_weight=0.7)
  out = scored.evaluate(o, s)
  up = 1.5 * (1 - special.expit(0.5 * (5 - 3)))
  down = 0.7 * (1 - special.expit(0.5 * (3 - 2)))
  np.testing.assert_allclose(out.per_example_B, [up, down], rtol=1e-6)
  assert out.loss == pytest.approx((up + down) / 2)
  assert out.metrics["z0"] == pytest.approx(3.0)
  assert out.metrics["reward_chosen"] == pytest.approx(0.5 * 5)
  assert out.metrics["reward_rejected"] == pytest.approx(0.5 * 2)
  assert out.metrics["reward_accuracy"] == 1


def test_negative_reference_point_is_0():
  s = record([1.0, 1.0], [-2.0, 1.0], [1, 1])  # mean -0.5
  out = scored.evaluate(objectives.kto(beta=1.0), s)
  assert out.metrics["z0"] == 0
  assert out.loss == pytest.approx(1 - special.expit(1.0))


def test_oracle():
  s = toy.scored(K=2)
  rho, other = pairs.log_ratio(s).T
  z0 = max(0, other.mean())
  up = np.asarray(s.desirable_BK)[:, 0] > 0
  value = np.where(
    up, special.expit(0.3 * (rho - z0)), 2 * special.expit(0.3 * (z0 - rho))
  )
  expected = np.where(up, 1, 2) - value  # lambda_y - v(x, y), the paper's form
  out = scored.evaluate(objectives.kto(beta=0.3, undesirable_weight=2.0), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5)


def test_policy_equal_to_ref_gives_one_half():
  s = toy.scored(K=2, policy_equals_ref=True)
  assert scored.evaluate(objectives.kto(), s).loss == pytest.approx(0.5)


def test_no_gradient_through_the_reference_point():
  o, s = objectives.kto(), toy.scored(K=2)

  def loss(logp_BKT):
    return scored.evaluate(o, s.replace(logp_BKT=logp_BKT)).loss

  gradient = jax.jit(jax.grad(loss))(s.logp_BKT)
  assert not gradient[:, 1].any()
  assert gradient[:, 0].any()


def test_reference_point_excludes_filler_and_absent_columns():
  s = record([0.0, 0.0, 0.0], [2.0, 50.0, 70.0], [1, 1, 1])
  s = s.replace(
    weight_B=np.array([1.0, 0.0, 1.0]),
    present_BK=np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]),
  )
  aux, _ = objectives.kto().prepare(s, (), None)
  assert isinstance(aux, Aux)
  assert aux.shared == pytest.approx(2.0)
