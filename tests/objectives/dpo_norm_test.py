"""Length-normalised DPO."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_hand_computed_pair():
  # 5 * (6/2 - 10/4) = 2.5
  out = scored.evaluate(objectives.dpo_norm(5.0), pairs.one(6.0, 10.0, (2, 4)))
  assert out.loss == pytest.approx(np.log(1 + np.exp(-2.5)))
  assert out.metrics["reward_chosen"] == pytest.approx(15.0)


def test_one_token_each_is_dpo():
  s = pairs.one(3.0, 1.0)
  norm = scored.evaluate(objectives.dpo_norm(0.3), s).loss
  assert norm == pytest.approx(float(scored.evaluate(objectives.dpo(0.3), s).loss))


def test_oracle():
  s = toy.scored(K=2)
  average = pairs.log_ratio(s) / np.asarray(s.mask_BKT, np.float64).sum(-1)
  expected = np.log1p(np.exp(-2.0 * (average[:, 0] - average[:, 1])))
  out = scored.evaluate(objectives.dpo_norm(2.0), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=2e-5)
