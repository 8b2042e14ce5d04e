"""Clipped losses against PPO's cases, and reductions against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from xpo_jax import scored
from xpo_jax.ops import policy_loss
from xpo_jax.testing import toy

policy_loss = compiled.module(policy_loss)


def surrogate(rho, advantage, low=0.2, high=0.3):
  old = jnp.array([-1.5])
  logp = old + jnp.log(jnp.array([rho]))
  args = (old, jnp.array([advantage]), low, high)
  loss, slope = jax.value_and_grad(
    lambda logp: policy_loss.clipped_surrogate(logp, *args).sum()
  )(logp)
  return float(loss), float(slope[0]), float(policy_loss.clipped_share(logp, *args)[0])


@pytest.mark.parametrize(
  ("rho", "advantage", "loss", "slope", "clipped"),
  [
    (1.1, 2.0, -2.2, -2.2, 0),  # inside: the slope of -A rho in log rho is -A rho
    (1.5, 2.0, -2 * 1.3, 0.0, 1),  # a gain beyond the bound is clipped
    (0.5, 2.0, -1.0, -1.0, 0),  # losses are never clipped, on either side
    (0.5, -2.0, 2 * 0.8, 0.0, 1),
    (1.5, -2.0, 3.0, 3.0, 0),
    (0.9, -2.0, 1.8, 1.8, 0),
    (1.0, 2.0, -2.0, -2.0, 0),  # at ratio 1 both branches agree: the policy gradient
  ],
)
def test_clip_bounds_gains_and_never_losses(rho, advantage, loss, slope, clipped):
  expected = pytest.approx((loss, slope, clipped), rel=1e-5)
  assert surrogate(rho, advantage) == expected


def test_dual_clip_bounds_the_loss_at_negative_advantage():
  advantage = jnp.array([-2.0, -2.0, 2.0])
  loss = -advantage * jnp.array([5.0, 1.5, 0.1])
  actual = policy_loss.dual_clipped(loss, advantage, 3.0)
  np.testing.assert_allclose(actual, [2 * 3.0, 2 * 1.5, -2 * 0.1], rtol=1e-6)


def test_ratio_of_policies_far_apart_is_finite():
  gap = jnp.array([1000.0, -1000.0, 21.0])
  for advantage in (jnp.ones(3), -jnp.ones(3), jnp.zeros(3)):
    args = (jnp.zeros(3), advantage, 0.2, 0.2)
    loss, slope = jax.value_and_grad(
      lambda logp, args=args: policy_loss.clipped_surrogate(logp, *args).sum()
    )(gap)
    assert np.isfinite(loss)
    assert np.isfinite(slope).all()
  np.testing.assert_allclose(
    policy_loss.ratio(gap, 0 * gap, 20.0), np.exp([20.0, -20.0, 20.0]), rtol=1e-5
  )


def test_value_loss_is_clipped_around_the_old_value():
  value, old = jnp.array([2.0, 1.1, 4.0, 0.0]), jnp.ones(4)
  target = jnp.array([3.0, 3.0, 3.0, -2.0])
  loss, slope = jax.vmap(
    jax.value_and_grad(policy_loss.clipped_value), (0, 0, 0, None)
  )(value, old, target, 0.2)
  # Near the target but far from the old value: clipped to 1.2; else unchanged.
  residual = [1.2 - 3, 1.1 - 3, 1.2 - 3, 0.8 + 2]
  np.testing.assert_allclose(loss, np.square(residual) / 2, rtol=1e-6)
  np.testing.assert_allclose(slope, [0.0, 1.1 - 3, 0.0, 0.0], rtol=1e-5)
  share = policy_loss.value_clipped_share(value, old, target, 0.2)
  np.testing.assert_array_equal(share, [1, 0, 1, 1])
  # Away from the target nothing is clipped, below the old value as above it.
  value = jnp.array([0.0, -1.0, 0.9])
  np.testing.assert_array_equal(
    policy_loss.value_clipped_share(value, old[:3], jnp.array([3.0, -2.0, -2.0]), 0.2),
    [0, 1, 0],
  )


def test_policy_gradient_is_minus_advantage_times_logp():
  logp, advantage = jnp.array([-2.0, -3.0]), jnp.array([0.5, -4.0])
  loss = policy_loss.policy_gradient(logp, advantage)
  np.testing.assert_array_equal(loss, [0.5 * 2, -4 * 3])


def test_reductions_match_their_definitions():
  s = toy.scored(K=3, B=4)  # ragged: one column absent, lengths from 1 to 5
  s = s.replace(weight_B=s.weight_B.at[1].set(0), mask_BKT=s.mask_BKT.at[2, 0].set(0))
  x, mask = np.asarray(s.reward_BKT, np.float64), np.asarray(s.mask_BKT)
  real = [(b, k) for b in (0, 2, 3) for k in range(3) if (b, k) != (0, 2)]
  rows = [x[b, k][mask[b, k] > 0] for b, k in real]
  some = [row for row in rows if len(row)]
  assert len(some) == len(rows) - 1

  def close(mean, expected):
    np.testing.assert_allclose(mean.value, expected, rtol=1e-5)

  close(policy_loss.token_mean(s, s.reward_BKT), np.concatenate(rows).mean())
  means, sums = [row.mean() for row in some], [row.sum() for row in some]
  close(policy_loss.mean_of_means(s, s.reward_BKT), np.mean(means))
  close(
    policy_loss.mean_of_means(s, s.reward_BKT, count_empty=True),
    np.sum(means) / len(rows),
  )
  close(
    policy_loss.mean_of_means(s, s.reward_BKT, eps=0.5),
    np.mean([row.sum() / (len(row) + 0.5) for row in some]),
  )
  close(policy_loss.mean_of_sums(s, s.reward_BKT), np.mean(sums))
  close(
    policy_loss.mean_of_sums(s, s.reward_BKT, count_empty=True, length=5.0),
    np.sum(sums) / 5 / len(rows),
  )


def test_reductions_of_an_empty_batch_are_0():
  nothing = scored.from_token_logps(jnp.ones((1, 1, 2)), jnp.zeros((1, 1, 2)))
  for average in (
    policy_loss.token_mean,
    policy_loss.mean_of_means,
    policy_loss.mean_of_sums,
  ):
    assert average(nothing, nothing.logp_BKT).value == 0
