"""Best-of-n and the tilted reference against enumeration and closed forms."""

import itertools
import math

import numpy as np
import pytest

from xpo_jax.evaluation import optimal_policy


def test_best_of_n_equals_the_mean_over_every_subset():
  pool = np.random.default_rng(0).normal(size=(3, 6))
  for n in range(1, 7):
    want = [np.mean([max(s) for s in itertools.combinations(row, n)]) for row in pool]
    (point,) = optimal_policy.best_of_n(pool, [n])
    np.testing.assert_allclose(point.reward_P, want, rtol=1e-12)


def test_best_of_uniform_draws_has_mean_n_over_n_plus_1():
  pool = np.random.default_rng(1).uniform(size=(2000, 16))
  for point in optimal_policy.best_of_n(pool, [1, 2, 4, 8]):
    n = point.strength
    np.testing.assert_allclose(point.reward.mean, n / (n + 1), atol=4 * point.reward.se)
    assert point.reward.low < n / (n + 1) + 2 * point.reward.se


def test_best_of_n_weights_stay_exact_in_a_large_pool():
  pool = np.ones((1, 400))
  for point in optimal_policy.best_of_n(pool, [200, 399]):
    np.testing.assert_allclose(point.reward_P, 1, rtol=1e-12)


def test_best_of_n_bound_holds_for_a_known_distribution():
  # Without ties best-of-n has density n u^(n-1): KL = log n - (n - 1) / n exactly.
  n = 4
  u = (np.arange(200_000) + 0.5) / 200_000
  density = n * u ** (n - 1)
  exact = np.mean(density * np.log(density))
  (point,) = optimal_policy.best_of_n(np.arange(8.0)[None], [n])
  np.testing.assert_allclose(point.kl.mean, exact, atol=1e-4)


def test_tilted_equals_the_exact_tilt_where_the_pool_is_the_distribution():
  reward = np.array([-1.0, 0.0, 0.5, 2.0])
  pool = np.tile(np.repeat(reward, 8), (5, 1))
  for strength in (0.0, 0.3, 1.0):
    p = np.exp(strength * reward)
    p /= p.sum()
    (point,) = optimal_policy.tilted(pool, [strength])
    np.testing.assert_allclose(point.reward.mean, p @ reward, rtol=1e-12)
    np.testing.assert_allclose(point.kl.mean, p @ np.log(p / 0.25), atol=1e-12)


def test_tilted_normal_rewards_follow_the_closed_form():
  # r ~ N(0, s^2): reward lambda s^2, KL lambda^2 s^2 / 2.
  s = 0.5
  pool = s * np.random.default_rng(2).normal(size=(200, 4096))
  for point in optimal_policy.tilted(pool, [1.0, 2.0]):
    lam = point.strength
    np.testing.assert_allclose(point.reward.mean, lam * s**2, rtol=0.02)
    np.testing.assert_allclose(point.kl.mean, lam**2 * s**2 / 2, rtol=0.03)


def test_tilted_leaves_out_what_the_pool_cannot_show():
  pool = np.random.default_rng(3).normal(size=(50, 64))
  points = optimal_policy.tilted(pool, [0.5, 1.0, 50.0])
  assert [point.strength for point in points] == [0.5, 1.0]
  assert all(point.kl.mean <= math.log(64) - 2 for point in points)


def test_tilted_lies_above_best_of_n_at_equal_kl():
  pool = np.random.default_rng(4).normal(size=(400, 256))
  curve = optimal_policy.tilted(pool, np.linspace(0.1, 2.0, 20))
  kl = [point.kl.mean for point in curve]
  reward = [point.reward.mean for point in curve]
  for best in optimal_policy.best_of_n(pool, [2, 4, 8]):
    assert np.interp(best.kl.mean, kl, reward) > best.reward.mean


def test_bad_pools_and_strengths_are_refused():
  with pytest.raises(ValueError, match="n is 1"):
    optimal_policy.best_of_n(np.ones((2, 4)), [5])
  with pytest.raises(ValueError, match=">= 0"):
    optimal_policy.tilted(np.ones((2, 4)), [-1.0])
  with pytest.raises(ValueError, match="prompts, samples"):
    optimal_policy.tilted(np.ones(4), [1.0])


@pytest.mark.parametrize("reward", [[0, 1, 2], [1, 1, 3, 0, 3], [2, 2]])
def test_exact_kl_of_best_of_n_is_that_of_every_outcome(reward):
  S, n = len(reward), 3
  law = np.zeros(S)
  for drawn in itertools.product(range(S), repeat=n):
    best = max(reward[i] for i in drawn)
    at = [i for i in drawn if reward[i] == best]
    for i in at:
      law[i] += 1 / len(at) / S**n
  want = sum(p * math.log(p * S) for p in law if p > 0)
  assert optimal_policy.best_of_n_kl(np.array(reward), n) == pytest.approx(
    want, abs=1e-12
  )


def test_exact_kl_of_best_of_n_comes_near_the_bound_from_below():
  bound = math.log(4) - 3 / 4
  gaps = [bound - optimal_policy.best_of_n_kl(np.arange(S), 4) for S in (16, 256, 4096)]
  assert gaps[0] > gaps[1] > gaps[2] > 0
  assert gaps[2] == pytest.approx(0, abs=1e-4)
  assert optimal_policy.best_of_n_kl(np.arange(9), 1) == pytest.approx(0, abs=1e-15)
  assert optimal_policy.best_of_n_kl(np.arange(9), 10**4) == pytest.approx(math.log(9))


def test_best_of_none_is_refused():
  with pytest.raises(ValueError, match="n=0; it must be at least 1"):
    optimal_policy.best_of_n_kl(np.arange(3), 0)
