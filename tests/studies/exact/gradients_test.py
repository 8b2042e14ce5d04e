"""The estimators' moments against enumeration of a prompt's actions."""

import jax
import numpy as np
import pytest

from xpo_jax import objectives
from xpo_jax.studies.exact import gradients, programs

DRAWS = 400


def found(objective, samples, offset=2.0, spread=0.0):
  return gradients.estimator(
    0,
    objective=objective,
    hparams={"beta": None},
    samples=samples,
    offset=offset,
    spread=spread,
    draws=DRAWS,
  )


def enumerated(offset=2.0, spread=0.0):
  """Probabilities [X, Y], rewards [X, Y], scores d log p / d logits [Y', X, Y], and the
  exact gradient of the mean reward [X, Y]."""
  of_world, _ = jax.random.split(jax.random.key(0))
  logits_XY, reward_XY = (
    np.asarray(x, np.float64) for x in gradients.world(of_world, offset, spread)
  )
  p_XY = np.exp(logits_XY)
  p_XY /= p_XY.sum(1, keepdims=True)
  score_AXY = np.eye(gradients.ACTIONS)[:, None] - p_XY
  value_X1 = (p_XY * reward_XY).sum(1, keepdims=True)
  exact_XY = p_XY * (reward_XY - value_X1) / gradients.PROMPTS
  return p_XY, reward_XY, score_AXY, exact_XY


def total_variance(p_NX, g_NXY):
  """Of the mean over prompts of independent vectors g with probabilities p."""
  mean_XY = np.einsum("nx,nxy->xy", p_NX, g_NXY)
  second = np.einsum("nx,nxy->", p_NX, g_NXY**2)
  return (second - (mean_XY**2).sum()) / gradients.PROMPTS**2


def test_running_mean_has_the_variance_of_the_mean_reward_as_baseline():
  p_XY, reward_XY, score_AXY, exact_XY = enumerated()
  baseline = (p_XY * reward_XY).sum(1).mean()
  one = total_variance(p_XY.T, (reward_XY.T - baseline)[..., None] * score_AXY)
  expected = one / 4 / (exact_XY**2).sum()
  np.testing.assert_allclose(found("reinforce", 4)["variance"], expected, rtol=0.06)


def test_remax_has_the_variance_of_the_greedy_reward_as_baseline():
  p_XY, reward_XY, score_AXY, exact_XY = enumerated()
  greedy_X = np.take_along_axis(reward_XY, p_XY.argmax(1)[:, None], 1)[:, 0]
  one = total_variance(p_XY.T, (reward_XY.T - greedy_X)[..., None] * score_AXY)
  expected = one / (exact_XY**2).sum()
  np.testing.assert_allclose(found("remax", 2)["variance"], expected, rtol=0.06)


def test_leave_one_out_has_the_variance_of_a_u_statistic():
  """Its kernel is (r - r') (s - s') / 2 of two samples (Hoeffding)."""
  K = 4
  p_XY, reward_XY, score_AXY, exact_XY = enumerated()
  difference_AAX = reward_XY.T[:, None] - reward_XY.T[None]
  kernel = difference_AAX[..., None] * (score_AXY[:, None] - score_AXY[None]) / 2
  given_first_AXY = np.einsum("bx,abxy->axy", p_XY.T, kernel)
  first = total_variance(p_XY.T, given_first_AXY)
  pair_AAX = p_XY.T[:, None] * p_XY.T[None]
  both = total_variance(
    pair_AAX.reshape(-1, gradients.PROMPTS), kernel.reshape(-1, *p_XY.shape)
  )
  expected = 2 / (K * (K - 1)) * (2 * (K - 2) * first + both) / (exact_XY**2).sum()
  np.testing.assert_allclose(found("rloo", K)["variance"], expected, rtol=0.06)


@pytest.mark.parametrize(("objective", "samples"), [("rloo", 4), ("remax", 2)])
def test_baselines_of_a_prompt_leave_no_bias_and_the_exact_direction(
  objective, samples
):
  """Within less than what noise adds to them if it is not taken off."""
  one = found(objective, samples)
  chance = one["variance"] / (0.9 * DRAWS)
  assert abs(one["bias"]) < 0.4 * chance and abs(one["cosine"] - 1) < 0.4 * chance / 2
  assert abs(one["along"] - 1) < np.sqrt(chance)


def test_group_spread_turns_the_gradient_of_grpo_as_enumerated():
  """With two samples, advantages are half the sign of the difference, up to a factor
  that all prompts share."""
  p_XY, reward_XY, score_AXY, exact_XY = enumerated(0.0, 1.0)
  sign_AAX = np.sign(reward_XY.T[:, None] - reward_XY.T[None])
  weight_AAX = p_XY.T[:, None] * p_XY.T[None] * sign_AAX
  expected_XY = np.einsum("abx,axy->xy", weight_AAX, score_AXY)
  cosine = (expected_XY * exact_XY).sum() / np.sqrt(
    (expected_XY**2).sum() * (exact_XY**2).sum()
  )
  np.testing.assert_allclose(found("grpo", 2, 0.0, 1.0)["cosine"], cosine, atol=0.04)


def test_column_zero_is_greedy_where_the_objective_asks_for_it():
  logp_XY = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (5, 4)))
  greedy, free = (
    programs.sample(objectives.get(name)(beta=None), logp_XY, 4001, jax.random.key(2))
    for name in ("remax", "rloo")
  )
  np.testing.assert_array_equal(greedy[:, 0], logp_XY.argmax(1))
  np.testing.assert_array_equal(greedy[:, 1:], free[:, 1:])
  share_XY = (np.asarray(free)[:, 1:, None] == np.arange(4)).mean(1)
  np.testing.assert_allclose(share_XY, np.exp(logp_XY), atol=0.03)
