"""Learning from samples against exact gradients and the optimum."""

import jax
import numpy as np
import pytest

from xpo_jax.studies.exact import bandits, online

RATE = 0.03


def _task():
  """The task of seed 0, as `online.train` and `bandits.pairs` draw it."""
  task = bandits.world(jax.random.split(jax.random.key(0), 3)[0], True)
  return (np.asarray(x, np.float64) for x in (task.reward_XY, task.ref_logp_XY))


def _gain(tilt_XY):
  """Reward of ref exp(tilt) / Z above the reference's, and its KL."""
  reward_XY, ref_XY = _task()
  p_XY = np.exp(ref_XY + tilt_XY)
  p_XY /= p_XY.sum(1, keepdims=True)
  kl = (p_XY * (np.log(p_XY) - ref_XY)).sum(1).mean()
  return ((p_XY - np.exp(ref_XY)) * reward_XY).sum(1).mean(), kl


def test_first_update_on_many_samples_is_adams_on_the_exact_gradient():
  """Adam's first update is the sign of the gradient of the expected reward."""
  found = online.train(
    0,
    objective="rloo",
    hparams={"beta": None},
    iterations=online.POINTS,
    samples=2000,
    learning_rate=RATE,
  )
  reward_XY, ref_XY = _task()
  value_X1 = (np.exp(ref_XY) * reward_XY).sum(1, keepdims=True)
  reward, kl = _gain(RATE * np.sign(reward_XY - value_X1))
  assert found["step"][0] == 1 and found["step"][-1] == online.POINTS
  np.testing.assert_allclose(found["reward"][0], reward, rtol=0.01)
  np.testing.assert_allclose(found["kl"][0], kl, rtol=0.01)


@pytest.mark.parametrize("sampler", ["policy", "reference"])
def test_pairs_of_either_writer_end_at_the_optimum(sampler):
  """With labels by Bradley-Terry DPO's minimum is ref exp(reward / beta) / Z, whoever
  writes the pairs."""
  found = online.train(
    0,
    objective="online_dpo",
    hparams={"beta": 2.0},
    samples=2,
    iterations=3600,
    learning_rate=0.003,
    labels="comparisons",
    sampler=sampler,
  )
  reward, kl = _gain(next(iter(_task())) / 2.0)
  np.testing.assert_allclose(found["reward"][-1], reward, rtol=0.1)
  np.testing.assert_allclose(found["kl"][-1], kl, rtol=0.2)


def test_noise_that_swamps_rewards_leaves_no_gain():
  """The updates are then random signs, whose gains average out."""
  quiet, loud = (
    online.train(
      0, objective="rloo", hparams={"beta": None}, iterations=12, noise=noise
    )
    for noise in (0.0, 1e4)
  )
  assert abs(loud["reward"][-1]) < 0.3 * quiet["reward"][-1]
