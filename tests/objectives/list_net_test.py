"""ListNet."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs, ragged
from xpo_jax import objectives


def softmax(x):
  return np.exp(x) / np.exp(x).sum()


def test_hand_computed_pair():
  # Target softmax(2 log 3 / 2) = (3/4, 1/4); scores 0.5 * (2, 0) = (1, 0).
  s = ragged.one([2.0, 0.0], [2 * np.log(3), 0.0])
  out = scored.evaluate(objectives.list_net(beta=0.5, temperature=2.0), s)
  expected = 0.75 * np.log(1 + np.exp(-1)) + 0.25 * np.log(1 + np.exp(1))
  assert out.loss == pytest.approx(expected)


def test_oracle_on_ragged_lists():
  s = ragged.several()
  out = scored.evaluate(objectives.list_net(beta=0.3, temperature=1.5), s)

  def oracle(reward, ratio):
    return -(softmax(reward / 1.5) * np.log(softmax(0.3 * ratio))).sum()

  expected = ragged.rows(s, oracle, pairs.log_ratio(s))
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hparam", ["beta", "temperature"])
def test_hparam_out_of_range_is_refused(hparam):
  with pytest.raises(ValueError, match=f"list_net: {hparam}=0"):
    objectives.list_net(**{hparam: 0})
