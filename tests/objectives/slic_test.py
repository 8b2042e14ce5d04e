"""SLiC-HF."""

import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_hand_computed_pairs():
  # Gaps 0.5 and 3: the hinge at 2 is short of 1.5 and satisfied.
  s = scored.from_sequence_logps([[-4.0, -4.5], [-1.0, -4.0]], [[8, 6], [2, 2]])
  out = scored.evaluate(objectives.slic(delta=2.0, weight=0.3), s)
  np.testing.assert_allclose(out.per_example_B, [1.5 + 0.3 * 4, 0.3 * 1], rtol=1e-6)
  assert out.terms["slic"] == pytest.approx(1.5 / 2)
  assert out.terms["nll"] == pytest.approx(0.3 * (4 + 1) / 2)


def test_equal_likelihoods_give_delta():
  s = scored.from_sequence_logps([[-4.0, -4.0]], [[8, 6]])
  out = scored.evaluate(objectives.slic(delta=2.5, weight=0.0), s)
  assert out.loss == pytest.approx(2.5)


def test_it_is_delta_times_hinge_norm_without_a_reference():
  """RSO's hinge at gamma = 1 / delta, reference left out."""
  s = toy.scored(K=2)
  mask = np.asarray(s.mask_BKT, np.float64)
  logp = (np.asarray(s.logp_BKT, np.float64) * mask).sum(-1)
  hinge = np.maximum(0, 1 - (logp[:, 0] - logp[:, 1]) / 4.0)
  out = scored.evaluate(objectives.slic(delta=4.0, weight=0.0), s)
  np.testing.assert_allclose(out.per_example_B, 4.0 * hinge, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hparams", [{"delta": 0.0}, {"weight": -1.0}])
def test_hparam_out_of_range_is_refused(hparams):
  with pytest.raises(ValueError, match=r"slic: .* must be"):
    objectives.slic(**hparams)
