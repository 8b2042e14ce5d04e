"""Plackett-Luce DPO."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs, ragged
from xpo_jax import objectives


def test_hand_computed_list():
  # Scores 0.5 * (2, 0, 4) = (1, 0, 2), ranked first, second, third.
  s = ragged.one([2.0, 0.0, 4.0], [3.0, 2.0, 1.0])
  out = scored.evaluate(objectives.plackett_luce(beta=0.5), s)
  first = np.log(np.exp(1) + np.exp(0) + np.exp(2)) - 1
  second = np.log(np.exp(0) + np.exp(2)) - 0
  assert out.loss == pytest.approx(first + second)
  assert out.metrics["reward_margin"] == pytest.approx(1.0 - 2.0)
  assert out.metrics["reward_accuracy"] == pytest.approx(1 / 3)


def test_oracle_with_ties_and_absent_columns():
  def oracle(reward, score):
    below = [np.exp(score[reward <= own]).sum() for own in reward]
    return -(score - np.log(below)).sum()

  s = ragged.several()
  out = scored.evaluate(objectives.plackett_luce(beta=0.7), s)
  expected = ragged.rows(s, oracle, 0.7 * pairs.log_ratio(s))
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5, atol=1e-6)
  assert out.per_example_B[3] == 0


def test_beta_out_of_range_is_refused():
  with pytest.raises(ValueError, match="plackett_luce: beta=-1"):
    objectives.plackett_luce(beta=-1)
