"""ApproxNDCG."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs, ragged
from xpo_jax import objectives


def test_oracle_on_ragged_lists():
  def oracle(reward, score):
    gain = 2.0 ** (reward - reward.min()) - 1
    lead = score[:, None] - score
    place = 0.5 + (1 / (1 + np.exp(lead))).sum(1)  # the completion itself adds 1/2
    ideal = (-np.sort(-gain) / np.log2(np.arange(len(gain)) + 2)).sum()
    return -(gain / np.log2(1 + place)).sum() / ideal if ideal else 0.0

  s = ragged.several()
  out = scored.evaluate(objectives.approx_ndcg(beta=0.7), s)
  expected = ragged.rows(s, oracle, 0.7 * pairs.log_ratio(s))
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5, atol=1e-6)


def test_large_beta_is_the_exact_ndcg():
  s = ragged.several()
  out = scored.evaluate(objectives.approx_ndcg(beta=1e4), s)
  row_B = np.asarray(out.per_example_B)
  assert -row_B[:3].mean() == pytest.approx(float(out.metrics["ndcg"]), rel=1e-5)


def test_shift_of_the_rewards_changes_nothing():
  s = ragged.several()
  shifted = s.replace(reward_BK=s.reward_BK - 7)
  o = objectives.approx_ndcg()
  expected = float(scored.evaluate(o, s).loss)
  assert scored.evaluate(o, shifted).loss == pytest.approx(expected, rel=1e-5)


def test_beta_out_of_range_is_refused():
  with pytest.raises(ValueError, match="approx_ndcg: beta=0"):
    objectives.approx_ndcg(beta=0)
