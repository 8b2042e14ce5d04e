"""PRO."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import ragged
from xpo_jax import objectives


def test_pair_is_a_softmax_of_tempered_scores():
  # p = (-1, -2) per token, gap 2: exp(-2) against exp(-4); SFT 0.5 * 1^2 * 4 nats.
  s = ragged.one([-4.0, -8.0], [3.0, 1.0], length=4)
  out = scored.evaluate(objectives.pro(sft_weight=0.5), s)
  assert out.terms["pro"] == pytest.approx(np.log(1 + np.exp(-2)))
  assert out.terms["sft"] == pytest.approx(0.5 * 4)


def test_oracle_on_ragged_lists():
  def oracle(reward, logp, length):
    p, total = logp / length, 0.0
    for i in range(len(p)):
      worse = reward < reward[i]
      if worse.any():
        gap = reward[i] - reward[worse]
        own = np.exp(gap.max() * p[i])
        total -= np.log(own / (own + np.exp(gap * p[worse]).sum()))
    return total - 0.2 * (len(p) - 1) ** 2 * logp[np.argmax(reward)]

  s = ragged.several()
  out = scored.evaluate(objectives.pro(sft_weight=0.2), s)
  length_BK = np.maximum(np.asarray(s.length_BK, np.float64), 1)
  expected = ragged.rows(s, oracle, ragged.seq_logp(s), length_BK)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5, atol=1e-6)


def test_weight_out_of_range_is_refused():
  with pytest.raises(ValueError, match="pro: sft_weight=-1"):
    objectives.pro(sft_weight=-1)
