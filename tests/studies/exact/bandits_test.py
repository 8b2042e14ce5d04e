"""Cells on the exact bandit against closed forms."""

import jax
import numpy as np
import pytest
from scipy import optimize, special

from xpo_jax.studies.exact import bandits
from xpo_jax.testing import bandit


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


def test_optimum_is_the_tilted_reference_of_its_kl():
  """The root of KL(ref exp(strength reward) / Z || ref), found by Brent's method."""
  task = bandits.world(jax.random.split(jax.random.key(0), 3)[0], True)
  reward_XY, ref_XY = (
    np.asarray(x, np.float64) for x in (task.reward_XY, task.ref_logp_XY)
  )

  def measured(strength):
    logp_XY = special.log_softmax(ref_XY + strength * reward_XY, axis=1)
    p_XY = np.exp(logp_XY)
    gain = ((p_XY - np.exp(ref_XY)) * reward_XY).sum(1).mean()
    return (p_XY * (logp_XY - ref_XY)).sum(1).mean(), gain, -(p_XY * logp_XY).sum(1)

  strength = optimize.brentq(lambda x: measured(x)[0] - 0.4, 0.0, 20.0)
  _, gain, entropy_X = measured(strength)
  best = bandits.optimum(0, kl=0.4, tabular=True)
  np.testing.assert_allclose(best["reward"], gain, rtol=1e-4)
  np.testing.assert_allclose(best["entropy"], entropy_X.mean(), rtol=1e-4)
  np.testing.assert_allclose(best["root_kl"], np.sqrt(0.4), rtol=1e-4)


def test_no_policy_has_more_reward_than_the_optimum_of_its_kl():
  trained = bandits.pairs(
    0, objective="dpo", hparams={"beta": 1.0}, count=200, tabular=True, steps=60
  )
  best = bandits.optimum(0, kl=float(trained["kl"]), tabular=True)
  assert best["kl"] == pytest.approx(float(trained["kl"]), rel=1e-3)
  assert 0 < trained["reward"] < best["reward"]


def test_flipping_every_label_turns_the_policy_round():
  """A log-linear margin is odd in the parameters, and so is every pair's order."""
  clean, flipped = (
    bandits.pairs(
      0,
      objective="dpo",
      hparams={"beta": 1.0},
      count=200,
      steps=60,
      data={"flipped": share},
    )
    for share in (0.0, 1.0)
  )
  assert clean["accuracy"] > 0.7
  assert flipped["accuracy"] == pytest.approx(1 - float(clean["accuracy"]), abs=1e-5)


def test_stages_of_squared_margins_are_two_least_squares_fits():
  """IPO's optimum on a stage is the regression of its pairs on margins of 1 / (2 tau),
  added to the stage before."""
  tau, count = 0.5, 200
  found = bandits.stages(
    0,
    objective="ipo",
    hparams={"beta": tau},
    count=count,
    steps=4000,
    learning_rate=0.003,
  )
  keys = jax.random.split(jax.random.key(0), 3)
  task = bandits.world(keys[0], False)
  seen = bandits.PROMPTS // 2
  drawn = bandit.draw(task, count, keys[1], prompts=seen, **bandits.DATA)
  both_B2D = np.asarray(task.feature_XYD)[
    np.asarray(drawn.prompt_B)[:, None], np.asarray(drawn.completion_B2)
  ].astype(np.float64)
  apart_BD = both_B2D[:, 0] - both_B2D[:, 1]
  theta_D = sum(
    np.linalg.lstsq(half_BD, np.full(len(half_BD), 1 / (2 * tau)), rcond=None)[0]
    for half_BD in np.split(apart_BD, 2)
  )
  ref_XY = np.asarray(task.ref_logp_XY, np.float64)[seen:]
  feature_XYD = np.asarray(task.feature_XYD, np.float64)[seen:]
  logp_XY = special.log_softmax(ref_XY + feature_XYD @ theta_D, axis=1)
  kl = (np.exp(logp_XY) * (logp_XY - ref_XY)).sum(1).mean()
  np.testing.assert_allclose(found["kl"], kl, rtol=1e-3)
