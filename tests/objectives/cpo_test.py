"""CPO."""

import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_oracle():
  s = toy.scored(K=2)
  mask = np.asarray(s.mask_BKT, np.float64)
  logp = (np.asarray(s.logp_BKT, np.float64) * mask).sum(-1)
  m = 0.3 * (logp[:, 0] - logp[:, 1])
  expected = 0.9 * np.log1p(np.exp(-m)) + 0.1 * np.log1p(np.exp(m)) - 0.7 * logp[:, 0]
  o = objectives.cpo(beta=0.3, weight=0.7, label_smoothing=0.1)
  np.testing.assert_allclose(scored.evaluate(o, s).per_example_B, expected, rtol=1e-5)


def test_without_its_nll_it_is_dpo_against_a_uniform_reference():
  s = toy.scored(K=2)
  uniform = s.replace(ref_logp_BKT=0 * s.ref_logp_BKT)
  cpo = scored.evaluate(objectives.cpo(beta=0.2, weight=0.0), s).loss
  dpo = scored.evaluate(objectives.dpo(beta=0.2), uniform).loss
  assert cpo == pytest.approx(float(dpo), rel=1e-6)


def test_reduction_of_the_nll():
  s = scored.from_sequence_logps([[-4.0, -9.0], [-1.0, -2.0]], [[8, 6], [2, 2]])
  for reduction, expected in (("sequence_sum", 5 / 2), ("token_mean", 5 / 10)):
    out = scored.evaluate(objectives.cpo(weight=2.0, reduction=reduction), s)
    assert out.terms["nll"] == pytest.approx(2 * expected)


@pytest.mark.parametrize(
  "hparams", [{"beta": 0.0}, {"weight": -1.0}, {"label_smoothing": 0.5}]
)
def test_hparam_out_of_range_is_refused(hparams):
  with pytest.raises(ValueError, match=r"cpo: .* must be"):
    objectives.cpo(**hparams)


def test_unknown_reduction_is_refused():
  with pytest.raises(ValueError, match="cpo: reduction='mean' is not known"):
    objectives.cpo(reduction="mean")


def test_hinge():
  s = scored.from_sequence_logps([[-4.0, -9.0], [-8.0, -6.0]], [[8, 6], [8, 6]])
  out = scored.evaluate(objectives.cpo(beta=0.1, link="hinge"), s)
  # max(0, 1 - 0.1 * 5) and max(0, 1 + 0.1 * 2), and the NLL as ever
  assert out.terms["cpo"] == pytest.approx((0.5 + 1.2) / 2)
  assert out.terms["nll"] == pytest.approx((4.0 + 8.0) / 2)
