"""DPO-Positive."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_hand_computed_pair():
  # 0.1 * (-1 + 4 - 2 * 1) = 0.1
  out = scored.evaluate(objectives.dpop(0.1, penalty=2.0), pairs.one(-1.0, -4.0))
  assert out.loss == pytest.approx(np.log(1 + np.exp(-0.1)))
  assert out.metrics["fallen"] == pytest.approx(1.0)
  assert out.metrics["reward_margin"] == pytest.approx(0.3)


def test_chosen_above_the_reference_has_no_penalty():
  s = pairs.one(2.0, 1.0)
  positive = scored.evaluate(objectives.dpop(0.3), s)
  assert positive.loss == scored.evaluate(objectives.dpo(0.3), s).loss
  assert positive.metrics["fallen"] == 0


def test_no_penalty_is_dpo():
  s = toy.scored(K=2)
  positive = scored.evaluate(objectives.dpop(0.3, penalty=0.0), s)
  plain = scored.evaluate(objectives.dpo(0.3), s)
  np.testing.assert_allclose(positive.per_example_B, plain.per_example_B, rtol=1e-6)


def test_oracle():
  s = toy.scored(K=2)
  fallen = np.maximum(0, -pairs.log_ratio(s)[:, 0])
  assert 0 < (fallen > 0).sum() < 6  # both sides of the kink
  expected = np.log1p(np.exp(-0.7 * (pairs.gap(s) - 5 * fallen)))
  out = scored.evaluate(objectives.dpop(0.7, penalty=5.0), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=2e-5)


@pytest.mark.parametrize(("chosen", "factor"), [(-1e-3, 6.0), (0.0, 3.5), (1e-3, 1.0)])
def test_chosen_gradient_against_the_rejected(chosen, factor):
  """1 + lambda below the reference, 1 above, and half way at the first step."""

  def loss(ratio):
    s = scored.from_sequence_logps(ratio[None], [[1, 1]], [[0.0, 0.0]])
    return scored.evaluate(objectives.dpop(1.0, penalty=5.0), s).loss

  slope = jax.jit(jax.grad(loss))(np.array([chosen, 0.0]))
  assert slope[0] / slope[1] == pytest.approx(-factor)


def test_negative_penalty_is_refused():
  with pytest.raises(ValueError, match=r"dpop: penalty=-1.0 .* >= 0"):
    objectives.dpop(penalty=-1.0)


def test_defaults_are_the_papers():
  assert objectives.dpop().hparams == {"beta": 0.3, "penalty": 50.0}
