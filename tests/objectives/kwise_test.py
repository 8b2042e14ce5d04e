"""InstructGPT's K-wise reward model."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import ragged
from xpo_jax import objectives


def test_hand_computed_list_reads_the_last_token():
  head_BKT = np.array([[[9.0, 1.0, 7.0], [5.0, 6.0, 0.0], [2.0, 7.0, 7.0]]])
  mask_BKT = np.array([[[1, 1, 0], [1, 1, 1], [1, 0, 0]]])  # rewards 1, 0, 2
  order = [[2.0, 1.0, 1.0]]  # the tie makes no pair
  s = scored.from_token_logps(None, mask_BKT, reward_head_BKT=head_BKT, reward_BK=order)
  out = scored.evaluate(objectives.kwise(), s)
  assert out.loss == pytest.approx((np.log(1 + np.exp(-1)) + np.log(1 + np.exp(1))) / 2)
  assert out.metrics["reward_accuracy"] == pytest.approx(1 / 2)


def test_oracle_on_ragged_lists():
  def oracle(order, reward):
    pairs = [
      np.log1p(np.exp(reward[j] - reward[i]))
      for i in range(len(order))
      for j in range(len(order))
      if order[i] > order[j]
    ]
    return np.mean(pairs) if pairs else 0.0

  s = ragged.several()
  last = np.maximum(np.asarray(s.length_BK, int)[..., None] - 1, 0)
  head_BKT = np.asarray(s.reward_head_BKT, np.float64)
  reward_BK = np.take_along_axis(head_BKT, last, -1)[..., 0]
  out = scored.evaluate(objectives.kwise(), s)
  expected = ragged.rows(s, oracle, reward_BK)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5, atol=1e-6)


def test_prompts_weigh_the_same_for_any_number_of_pairs():
  s = ragged.several()
  out = scored.evaluate(objectives.kwise(), s)
  assert out.loss == pytest.approx(float(np.mean(out.per_example_B)))


def test_pointwise_is_the_squared_error_of_the_last_value():
  head_BKT = np.array([[[9.0, 1.0, 7.0]], [[5.0, 6.0, 2.5]]])
  mask_BKT = np.array([[[1, 1, 0]], [[1, 1, 1]]])
  rated = {"reward_head_BKT": head_BKT, "reward_BK": [[3.0], [2.0]]}
  s = scored.from_token_logps(None, mask_BKT, **rated)
  out = scored.evaluate(objectives.pointwise(), s)
  np.testing.assert_allclose(out.per_example_B, [(1 - 3) ** 2, (2.5 - 2) ** 2])
