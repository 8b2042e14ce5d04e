"""AOT."""

import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.objectives import _aot
from xpo_jax.testing import toy


def record(policy, ref):
  policy, ref = np.array(policy), np.array(ref)
  return scored.from_sequence_logps(policy, np.ones_like(policy), ref)


def test_margins_are_matched_by_rank():
  # The policy leads by 5 and 1, the reference by 2 and 3: 5 meets 3, 1 meets 2.
  s = record([[5.0, 0.0], [1.0, 0.0]], [[2.0, 0.0], [3.0, 0.0]])
  out = scored.evaluate(objectives.aot(beta=0.5), s)
  np.testing.assert_allclose(
    out.per_example_B, -special.log_expit([0.5 * 2, 0.5 * -1]), rtol=1e-6
  )


def test_one_pair_or_the_same_order_is_dpo():
  single = toy.scored(K=2, B=1)
  alike = record([[5.0, 0.0], [1.0, 0.0]], [[3.0, 0.0], [2.0, 0.0]])
  dpo = objectives.dpo(beta=0.7)
  for s in (single, alike):
    expected = scored.evaluate(dpo, s).loss
    for name in ("aot", "aot_unpaired"):
      o = objectives.build(name, {"beta": 0.7})
      assert scored.evaluate(o, s).loss == pytest.approx(float(expected), rel=1e-6)


def test_partner_ignores_fillers_and_ranks_ties_by_row():
  own = np.array([3.0, 1.0, 99.0, 1.0])
  other = np.array([10.0, 30.0, -99.0, 20.0])
  weight = np.array([1.0, 1.0, 0.0, 1.0])
  for row, expected in (
    ([0, 1, 2, 3], [30, 10, 0, 20]),
    ([0, 3, 2, 1], [30, 20, 0, 10]),
  ):
    actual = _aot.partner(own, other, weight, np.array(row))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("hparams", [{"beta": 0.0}, {"label_smoothing": 0.5}])
def test_hparam_out_of_range_is_refused(hparams):
  with pytest.raises(ValueError, match=r"aot: .* must be"):
    objectives.aot(**hparams)
