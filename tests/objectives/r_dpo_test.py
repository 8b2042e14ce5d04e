"""R-DPO."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_hand_computed_pair():
  # 0.5 * (3 - 1) + 0.1 * (7 - 2) = 1.5
  s = pairs.one(3.0, 1.0, (7, 2))
  out = scored.evaluate(objectives.r_dpo(0.5, alpha=0.1), s)
  assert out.loss == pytest.approx(np.log(1 + np.exp(-1.5)))
  assert out.metrics["reward_margin"] == pytest.approx(1.0)
  assert out.metrics["length_gap"] == 5


def test_free_length_is_dpo():
  s = toy.scored(K=2)
  free = scored.evaluate(objectives.r_dpo(0.3, alpha=0.0), s)
  plain = scored.evaluate(objectives.dpo(0.3), s)
  np.testing.assert_allclose(free.per_example_B, plain.per_example_B, rtol=1e-6)


def test_oracle():
  s = toy.scored(K=2)
  length = np.asarray(s.mask_BKT, np.float64).sum(-1)
  m = 0.7 * pairs.gap(s) + 0.2 * (length[:, 0] - length[:, 1])
  out = scored.evaluate(objectives.r_dpo(0.7, alpha=0.2), s)
  np.testing.assert_allclose(out.per_example_B, np.log1p(np.exp(-m)), rtol=2e-5)


def test_longer_chosen_completion_has_a_smaller_loss():
  short = scored.evaluate(objectives.r_dpo(), pairs.one(0.0, 0.0, (5, 20)))
  long = scored.evaluate(objectives.r_dpo(), pairs.one(0.0, 0.0, (20, 5)))
  assert long.loss < np.log(2) < short.loss
