"""A preference model that reads both completions."""

import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives

VALUE = np.array([[[9.0, 1.0], [0.5, 8.0]], [[-2.0, 7.0], [9.0, -1.0]]])
MASK = np.array([[[1, 1], [1, 0]], [[1, 0], [1, 1]]])
LOGIT = np.array([[1.0, 0.5], [-2.0, -1.0]])  # VALUE at the last token


def record():
  return scored.from_token_logps(None, MASK, reward_head_BKT=VALUE)


def check():
  """AssertionError where the objective is not the cross-entropy of both orders."""
  out = scored.evaluate(objectives.preference_model(), record())
  p = 1 / (1 + np.exp(-LOGIT))
  expected = -(np.log(p[:, 0]) + np.log(1 - p[:, 1])) / 2
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5)
  symmetric = (p[:, 0] + 1 - p[:, 1]) / 2
  np.testing.assert_allclose(objectives.preference(record()), symmetric, rtol=1e-5)


def test_oracle():
  check()


def test_metrics():
  metrics = scored.evaluate(objectives.preference_model(), record()).metrics
  p = 1 / (1 + np.exp(-LOGIT))
  symmetric = (p[:, 0] + 1 - p[:, 1]) / 2
  assert metrics["win_rate"] == pytest.approx(symmetric.mean())
  assert metrics["reward_accuracy"] == pytest.approx((symmetric > 0.5).mean())
  assert metrics["first_rate"] == pytest.approx(p.mean())


def test_swapped_completions_give_the_complementary_probability():
  s = record()
  swapped = s.replace(
    reward_head_BKT=s.reward_head_BKT[:, ::-1], mask_BKT=s.mask_BKT[:, ::-1]
  )
  both = objectives.preference(s) + objectives.preference(swapped)
  np.testing.assert_allclose(both, np.ones(2), rtol=1e-6)
