"""SimPO."""

import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_hand_computed_pair():
  # 2 * (-4/8 - -9/6) - 0.5 = 1.5
  s = scored.from_sequence_logps([[-4.0, -9.0]], [[8, 6]])
  out = scored.evaluate(objectives.simpo(beta=2.0, gamma=0.5), s)
  assert out.loss == pytest.approx(np.log(1 + np.exp(-1.5)))
  assert out.metrics["reward_margin"] == pytest.approx(2.0)  # before gamma


def test_oracle():
  s = toy.scored(K=2)
  mask = np.asarray(s.mask_BKT, np.float64)
  average = (np.asarray(s.logp_BKT, np.float64) * mask).sum(-1) / mask.sum(-1)
  z = 2.5 * (average[:, 0] - average[:, 1]) - 1.2
  expected = 0.9 * np.log1p(np.exp(-z)) + 0.1 * np.log1p(np.exp(z))
  o = objectives.simpo(beta=2.5, gamma=1.2, label_smoothing=0.1)
  np.testing.assert_allclose(scored.evaluate(o, s).per_example_B, expected, rtol=2e-5)


def test_same_rate_at_any_length_is_a_tie():
  s = scored.from_sequence_logps([[-1.0, -8.0]], [[2, 16]])
  loss = scored.evaluate(objectives.simpo(gamma=0.0), s).loss
  assert loss == pytest.approx(np.log(2))


def test_gamma_is_the_margin_at_which_the_loss_is_log_2():
  s = scored.from_sequence_logps([[-1.0, -2.0]], [[1, 1]])
  gamma = objectives.gamma_from_ratio(2.0, 1.0)
  assert objectives.gamma_from_ratio(2.0, 0.25) == 0.5
  loss = scored.evaluate(objectives.simpo(beta=2.0, gamma=gamma), s).loss
  assert loss == pytest.approx(np.log(2))


def test_hinge():
  # 2 * (-4/8 - -9/6) - 1.5 = 0.5 and 2 * (-1 - -1) - 1.5 = -1.5
  s = scored.from_sequence_logps([[-4.0, -9.0], [-8.0, -6.0]], [[8, 6], [8, 6]])
  out = scored.evaluate(objectives.simpo(2.0, 1.5, link="hinge"), s)
  np.testing.assert_allclose(out.per_example_B, [0.5, 2.5], rtol=1e-6)
  smooth = objectives.simpo(2.0, 1.5, 0.1, link="hinge")
  expected = 0.9 * np.array([0.5, 2.5]) + 0.1 * np.array([1.5, 0.0])
  np.testing.assert_allclose(
    scored.evaluate(smooth, s).per_example_B, expected, rtol=1e-6
  )
