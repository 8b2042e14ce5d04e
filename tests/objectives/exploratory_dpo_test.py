"""XPO."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def check():
  # The policy's sample (column 1) wins; log-ratios 0.5 and -1.
  s = scored.from_sequence_logps(
    [[-3.0, -2.0]], [[1, 1]], [[-2.0, -2.5]], reward_BK=[[0.0, 1.0]]
  )
  out = scored.evaluate(objectives.exploratory_dpo(beta=2.0, alpha=0.1), s)
  dpo = np.log1p(np.exp(-2.0 * (0.5 + 1.0)))
  assert out.loss == pytest.approx(dpo + 0.1 * -3.0)
  assert out.metrics["logp_of_ref_sample"] == pytest.approx(-3)


def test_hand_computed_pair():
  check()


def test_without_bonus_it_is_online_dpo():
  s = toy.scored(K=3)
  plain = scored.evaluate(objectives.online_dpo(), s).loss
  actual = scored.evaluate(objectives.exploratory_dpo(alpha=0.0), s).loss
  assert actual == pytest.approx(float(plain))


def test_descent_lowers_the_sample_of_the_reference():
  """Optimism: with nothing to choose between the two, only that sample moves."""
  s = scored.from_sequence_logps(
    [[-3.0, -2.0]], [[1, 1]], [[-2.0, -2.5]], reward_BK=[[1.0, 1.0]]
  )
  o = objectives.exploratory_dpo(alpha=0.1)
  slope = jax.grad(lambda x: scored.evaluate(o, s.replace(logp_BKT=x)).loss)(s.logp_BKT)
  np.testing.assert_allclose(slope[0, :, 0], [0.1, 0])


def test_bonus_is_the_mean_over_samples_of_the_reference_that_are_there():
  s = scored.from_sequence_logps(
    [[-3.0, -2.0], [-5.0, -1.0], [-7.0, -4.0], [-11.0, -6.0]],
    [[2, 3], [4, 1], [2, 2], [3, 3]],
    present_BK=[[1, 1], [1, 0], [0, 1], [1, 1]],
    weight_B=[1, 1, 1, 0],
  )
  loss = scored.evaluate(objectives.exploration(0.5), s).loss
  assert loss == pytest.approx(0.5 * (-3 - 5) / 2)


def test_hparam_out_of_range_is_refused():
  with pytest.raises(ValueError, match="exploratory_dpo: alpha=-1"):
    objectives.exploratory_dpo(alpha=-1.0)
