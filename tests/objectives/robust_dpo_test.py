"""Robust DPO."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_hand_computed_pair():
  # Margin 0.5 * (3 - 1) = 1.
  out = scored.evaluate(objectives.robust_dpo(0.5, 0.2), pairs.one(3.0, 1.0))
  label, flipped = np.log(1 + np.exp(-1)), np.log(1 + np.exp(1))
  assert out.loss == pytest.approx((0.8 * label - 0.2 * flipped) / 0.6)
  assert out.metrics["reward_margin"] == pytest.approx(1.0)


def test_noisy_labels_give_the_clean_loss_in_expectation():
  """The paper's claim: flipped with probability e, the expectation is DPO's loss."""
  o, e = objectives.robust_dpo(0.5, 0.2), 0.2
  label = scored.evaluate(o, pairs.one(3.0, 1.0)).loss
  flipped = scored.evaluate(o, pairs.one(1.0, 3.0)).loss
  clean = scored.evaluate(objectives.dpo(0.5), pairs.one(3.0, 1.0)).loss
  assert (1 - e) * label + e * flipped == pytest.approx(float(clean), rel=1e-5)


def test_oracle():
  s = toy.scored(K=2)
  m = 0.7 * pairs.gap(s)
  expected = 0.9 * np.log1p(np.exp(-m)) - 0.1 * np.log1p(np.exp(m))
  out = scored.evaluate(objectives.robust_dpo(0.7, 0.1), s)
  np.testing.assert_allclose(out.per_example_B, expected / 0.8, rtol=2e-5)


def test_no_flips_is_dpo():
  s = toy.scored(K=2)
  robust = scored.evaluate(objectives.robust_dpo(0.3, 0.0), s)
  plain = scored.evaluate(objectives.dpo(0.3), s)
  np.testing.assert_array_equal(robust.per_example_B, plain.per_example_B)


@pytest.mark.parametrize("flip_rate", [-0.1, 0.5, 0.7])
def test_flip_rate_is_below_one_half(flip_rate):
  with pytest.raises(ValueError, match=r"robust_dpo: flip_rate=.* >= 0 and < 0.5"):
    objectives.robust_dpo(flip_rate=flip_rate)
