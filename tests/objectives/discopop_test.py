"""DiscoPOP."""

import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_oracle():
  s = toy.scored(K=2)
  gap = np.asarray(s.logp_BKT, np.float64) - np.asarray(s.ref_logp_BKT, np.float64)
  u = np.where(np.asarray(s.mask_BKT) > 0, gap, 0).sum(-1)
  m = 0.3 * (u[:, 0] - u[:, 1])
  blend = 1 / (1 + np.exp(-m / 0.2))
  expected = (1 - blend) * np.log1p(np.exp(-m)) + blend * np.exp(-m)
  out = scored.evaluate(objectives.discopop(beta=0.3, tau=0.2), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5)


@pytest.mark.parametrize("hparams", [{"beta": 0.0}, {"tau": 0.0}, {"tau": 1.1}])
def test_hparam_out_of_range_is_refused(hparams):
  with pytest.raises(ValueError, match=r"discopop: .* must be"):
    objectives.discopop(**hparams)


@pytest.mark.parametrize("tau", [0.05, 0.1, 1.0])
def test_slope_at_the_start_is_uphill_for_a_small_tau(tau):
  curve = toy.curve(objectives.discopop(beta=1.0, tau=tau), np.array([0.0]))
  expected = (1 - np.log(2)) / (4 * tau) - 0.75
  np.testing.assert_allclose(curve.slope, expected, rtol=1e-5)
  assert (curve.slope > 0).all() == (tau < (1 - np.log(2)) / 3)
