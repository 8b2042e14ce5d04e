"""RRHF."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import ragged
from xpo_jax import objectives


@pytest.mark.parametrize("length_penalty", [0.5, 1.0])
def test_oracle_on_ragged_lists(length_penalty):
  def oracle(reward, logp, length):
    p = logp / length**length_penalty
    lead = p - p[:, None]
    hinge = np.maximum(lead, 0)[reward[:, None] > reward].sum()
    best = np.argmax(reward)
    return 3.0 * hinge - logp[best] / length[best]

  s = ragged.several()
  out = scored.evaluate(objectives.rrhf(3.0, length_penalty), s)
  length_BK = np.asarray(s.length_BK, np.float64)
  length_BK = np.maximum(length_BK, 1)
  expected = ragged.rows(s, oracle, ragged.seq_logp(s), length_BK)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5)


def test_padding_does_not_count_as_length():
  """The authors' code divides by the padded width."""
  narrow = scored.from_token_logps([[[-1.0], [-2.0]]], [[[1], [1]]], reward_BK=[[0, 1]])
  wide = scored.from_token_logps(
    [[[-1.0, 9.0], [-2.0, 9.0]]], [[[1, 0], [1, 0]]], reward_BK=[[0, 1]]
  )
  o = objectives.rrhf()
  assert float(scored.evaluate(o, wide).loss) == scored.evaluate(o, narrow).loss == 3


@pytest.mark.parametrize("hparam", ["weight", "length_penalty"])
def test_hparam_out_of_range_is_refused(hparam):
  with pytest.raises(ValueError, match=f"rrhf: {hparam}=-1"):
    objectives.rrhf(**{hparam: -1})
