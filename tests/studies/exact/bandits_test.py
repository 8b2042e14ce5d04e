"""Cells on the exact bandit against closed forms."""

import numpy as np
import pytest

from xpo_jax.studies.exact import bandits


def test_ipo_on_three_ordered_actions_has_its_closed_form():
  """Full batch: logits (2c / 3, 0, -2c / 3) with c = 1 / (2 tau)."""
  found = bandits.minibatches(
    0,
    objective="ipo",
    hparams={"beta": 1.0},
    pairs=[[0, 1], [1, 2], [0, 2]],
    batch=300,
    steps=1500,
  )
  weights = np.exp(np.array([1, 0, -1]) / 3)
  expected = weights / weights.sum()
  np.testing.assert_allclose([found[f"p{i}"] for i in range(3)], expected, atol=0.01)


def test_no_policy_has_more_reward_than_the_optimum_of_its_kl():
  trained = bandits.pairs(
    0, objective="dpo", hparams={"beta": 1.0}, count=200, tabular=True, steps=60
  )
  best = bandits.optimum(0, kl=float(trained["kl"]), tabular=True)
  assert best["kl"] == pytest.approx(float(trained["kl"]), rel=1e-3)
  assert 0 < trained["reward"] < best["reward"]
  assert trained["root_kl"] ** 2 == pytest.approx(float(trained["kl"]), rel=1e-5)


def test_two_stages_go_further_than_one_from_the_same_task():
  one, two = (
    run(0, objective="dpo", hparams={"beta": 3.0}, count=200, steps=60)
    for run in (bandits.pairs, bandits.stages)
  )
  assert two["kl"] > one["kl"]
