"""LiPO-lambda, and LiPO's softmax loss."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs, ragged
from xpo_jax import objectives


def test_hand_computed_list():
  # Scores 0.5 * (2, 0, 4) = (1, 0, 2) rank 2, 3, 1; rewards (2, 1, 1) gain 3, 1, 1.
  s = ragged.one([2.0, 0.0, 4.0], [2.0, 1.0, 1.0])
  out = scored.evaluate(objectives.lipo(beta=0.5), s)
  second = 2 * (1 / np.log(3) - 1 / np.log(4)) * np.log(1 + np.exp(-1))
  third = 2 * (1 / np.log(2) - 1 / np.log(3)) * np.log(1 + np.exp(1))
  assert out.loss == pytest.approx(second + third)


def test_oracle_on_ragged_lists():
  def oracle(reward, score):
    place, total = 1 + np.argsort(np.argsort(-score)), 0.0
    for i in range(len(score)):
      for j in range(len(score)):
        if reward[i] > reward[j]:
          swap = abs(1 / np.log(1 + place[i]) - 1 / np.log(1 + place[j]))
          weight = abs(2 ** reward[i] - 2 ** reward[j]) * swap
          total += weight * np.log1p(np.exp(score[j] - score[i]))
    return total

  s = ragged.several()
  out = scored.evaluate(objectives.lipo(beta=0.3), s)
  expected = ragged.rows(s, oracle, 0.3 * pairs.log_ratio(s))
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5, atol=1e-6)


def test_softmax_loss_normalises_the_rewards():
  s = ragged.one([2.0, 0.0], [3.0, 1.0])
  out = scored.evaluate(objectives.lipo_softmax(beta=0.5), s)
  expected = 0.75 * np.log(1 + np.exp(-1)) + 0.25 * np.log(1 + np.exp(1))
  assert out.loss == pytest.approx(expected)


def test_beta_out_of_range_is_refused():
  with pytest.raises(ValueError, match="lipo: beta=0"):
    objectives.lipo(beta=0)
  with pytest.raises(ValueError, match="lipo_softmax: beta=0"):
    objectives.lipo_softmax(beta=0)
