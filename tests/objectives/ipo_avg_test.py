"""IPO per token."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_hand_computed_pair():
  # 6/2 - 4/4 against 1 / (2 * 0.1)
  out = scored.evaluate(objectives.ipo_avg(0.1), pairs.one(6.0, 4.0, (2, 4)))
  assert out.loss == pytest.approx((3 - 1 - 5) ** 2)


def test_one_token_each_is_ipo():
  s = pairs.one(3.0, 1.0)
  average = scored.evaluate(objectives.ipo_avg(0.3), s).loss
  assert average == pytest.approx(float(scored.evaluate(objectives.ipo(0.3), s).loss))


def test_oracle():
  s = toy.scored(K=2)
  average = pairs.log_ratio(s) / np.asarray(s.mask_BKT, np.float64).sum(-1)
  expected = (average[:, 0] - average[:, 1] - 1 / 0.8) ** 2
  out = scored.evaluate(objectives.ipo_avg(0.4), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=2e-5)


def test_policy_equal_to_ref_is_finite():
  """Where one public code divides 0 by 0."""
  s = toy.scored(K=2, policy_equals_ref=True)
  assert scored.evaluate(objectives.ipo_avg(0.25), s).loss == pytest.approx(4.0)
