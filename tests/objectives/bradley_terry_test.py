"""The Bradley-Terry reward model."""

import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_hand_computed_pair_reads_the_last_token():
  head_BKT = np.array([[[9.0, 1.0, 77.0], [5.0, 6.0, -0.5]]])
  mask_BKT = np.array([[[1, 1, 0], [1, 1, 1]]])
  s = scored.from_token_logps(None, mask_BKT, reward_head_BKT=head_BKT)
  out = scored.evaluate(objectives.bradley_terry(margin=0.5, centring=0.1), s)
  assert out.terms["bradley_terry"] == pytest.approx(np.log(1 + np.exp(-(1.5 - 0.5))))
  assert out.terms["centring"] == pytest.approx(0.1 * (1.0 - 0.5) ** 2)
  assert out.metrics["reward_margin"] == pytest.approx(1.5)


def test_oracle():
  s = toy.scored(K=2)
  last = np.asarray(s.length_BK, int)[..., None] - 1
  reward = np.take_along_axis(np.asarray(s.reward_head_BKT, np.float64), last, -1)[
    ..., 0
  ]
  expected = np.log1p(np.exp(reward[:, 1] - reward[:, 0]))
  out = scored.evaluate(objectives.bradley_terry(), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5)


def test_shifting_both_rewards_changes_nothing_without_centring():
  s = toy.scored(K=2)
  shifted = s.replace(reward_head_BKT=s.reward_head_BKT + 3.0)
  o = objectives.bradley_terry(margin=0.2)
  expected = float(scored.evaluate(o, s).loss)
  assert scored.evaluate(o, shifted).loss == pytest.approx(expected, rel=1e-5)


def test_margin_of_each_pair_is_subtracted_from_the_difference():
  s = toy.scored(K=2)
  last = np.asarray(s.length_BK, int)[..., None] - 1
  reward = np.take_along_axis(np.asarray(s.reward_head_BKT, np.float64), last, -1)
  lead, total = reward[:, 0, 0] - reward[:, 1, 0], reward.sum((1, 2))
  margin = np.asarray(s.margin_BK, np.float64)[:, 0]
  expected = np.log1p(np.exp(margin - lead)) + 0.1 * total**2
  out = scored.evaluate(objectives.margin_bradley_terry(centring=0.1), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5)
  np.testing.assert_allclose(out.loss, expected.mean(), rtol=1e-5)


def test_equal_margins_are_the_constant():
  s = toy.scored(K=2)
  s = s.replace(margin_BK=np.tile([0.7, 0.0], (8, 1)))
  out = scored.evaluate(objectives.margin_bradley_terry(), s)
  constant = scored.evaluate(objectives.bradley_terry(margin=0.7), s)
  np.testing.assert_allclose(out.per_example_B, constant.per_example_B, rtol=1e-6)


def test_margins_are_a_required_column():
  s = toy.scored(K=2).replace(margin_BK=None)
  with pytest.raises(ValueError, match="requires the column margin_BK"):
    scored.evaluate(objectives.margin_bradley_terry(), s)
  with pytest.raises(ValueError, match="centring"):
    objectives.margin_bradley_terry(centring=-1)


def test_soft_label_is_the_cross_entropy_to_the_fraction_of_votes():
  head_BKT = np.array([[[2.0], [0.5]], [[-1.0], [1.0]]])
  votes = np.array([[0.7, 0.3], [0.2, 0.8]])
  one = np.ones((2, 2, 1))
  s = scored.from_token_logps(None, one, reward_head_BKT=head_BKT, reward_BK=votes)
  out = scored.evaluate(objectives.soft_bradley_terry(), s)
  p = 1 / (1 + np.exp(-np.array([1.5, -2.0])))
  expected = -votes[:, 0] * np.log(p) - votes[:, 1] * np.log(1 - p)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5)
