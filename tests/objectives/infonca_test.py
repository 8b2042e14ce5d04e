"""InfoNCA."""

import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_oracle_with_an_absent_column():
  s = toy.scored(K=3, B=3)  # the last column of prompt 0 is absent
  gap = np.asarray(s.logp_BKT, np.float64) - np.asarray(s.ref_logp_BKT, np.float64)
  r = 0.5 * np.where(np.asarray(s.mask_BKT) > 0, gap, 0).sum(-1)
  reward = np.asarray(s.reward_BK, np.float64)
  expected = []
  for b, n in enumerate((2, 3, 3)):
    p = np.exp(reward[b, :n] / 0.7)
    q = np.exp(r[b, :n])
    expected.append(-(p / p.sum() * np.log(q / q.sum())).sum())
  out = scored.evaluate(objectives.infonca(beta=0.5, alpha=0.7), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5)


def test_pair_at_low_temperature_is_dpo():
  s = toy.scored(K=2).replace(reward_BK=np.array([[1.0, 0.0]] * 8, np.float32))
  dpo = scored.evaluate(objectives.dpo(beta=0.3), s).per_example_B
  cold = scored.evaluate(objectives.infonca(beta=0.3, alpha=1e-3), s).per_example_B
  np.testing.assert_allclose(cold, dpo, rtol=1e-6)


def test_lead_is_added_to_the_first_best():
  s = toy.scored(K=3, B=2)
  s = s.replace(reward_BK=np.array([[1.0, 1, 9], [0, 2, 2]], np.float32))
  p = np.asarray(objectives.reward_targets(s, alpha=1.0, lead=np.log(3)))
  np.testing.assert_allclose(p[0], [3 / 4, 1 / 4, 0], rtol=1e-6)  # the 9 is absent
  np.testing.assert_allclose(p[1, 1] / p[1, 2], 3, rtol=1e-6)


@pytest.mark.parametrize("hparams", [{"beta": 0.0}, {"alpha": 0.0}, {"lead": -1.0}])
def test_hparam_out_of_range_is_refused(hparams):
  with pytest.raises(ValueError, match=r"infonca: .* must be"):
    objectives.infonca(**hparams)
