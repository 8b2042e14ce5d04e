"""Frontiers: interpolation, pairing and what was not reached, against closed forms."""

import numpy as np
import pytest

from xpo_jax.evaluation import frontier


def _run(strength, seed, kl, reward, prompts=64):
  full = np.full(prompts, 1.0)
  return frontier.Run("m", strength, seed, reward * full, kl * full)


def test_reward_between_two_runs_is_linear():
  runs = [_run(s, seed, kl=s, reward=2 * s) for s in (1, 3) for seed in (0, 1)]
  found = frontier.reward_at_kl(runs, 1.5)
  assert found.mean == pytest.approx(3.0)
  assert (found.low, found.high) == pytest.approx((3.0, 3.0))


@pytest.mark.parametrize("at", [0.5, 3.5])
def test_reward_outside_the_runs_is_not_reached(at):
  runs = [_run(s, 0, kl=s, reward=s) for s in (1, 3)]
  assert frontier.reward_at_kl(runs, at) is None


def test_one_seed_that_stops_short_is_not_reached():
  runs = [_run(1, 0, 1, 1), _run(3, 0, 3, 3), _run(1, 1, 1, 1), _run(3, 1, 1.2, 3)]
  assert frontier.reward_at_kl(runs, 2.0) is None


def test_interval_at_a_run_has_the_width_of_its_standard_error():
  reward = np.random.default_rng(0).normal(scale=0.5, size=400)
  runs = [
    frontier.Run("m", s, 0, reward, np.full(400, kl)) for s, kl in ((1, 1.0), (2, 2.0))
  ]
  found = frontier.reward_at_kl(runs, 1.5)
  half = 1.96 * reward.std() / np.sqrt(reward.size)
  assert found.mean == pytest.approx(reward.mean())
  assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_difference_is_paired_over_prompts():
  # The same prompt effect in both methods cancels; unpaired it would swamp the gap.
  effect = np.random.default_rng(1).normal(scale=5.0, size=64)
  a = [frontier.Run("a", s, 0, effect + s + 0.1, np.full(64, s)) for s in (1.0, 2.0)]
  b = [frontier.Run("b", s, 0, effect + s, np.full(64, s)) for s in (1.0, 2.0)]
  found = frontier.difference_at_kl(a, b, 1.5)
  assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_difference_of_other_seeds_is_refused():
  a, b = [_run(1, 0, 1, 1)], [_run(1, 1, 1, 1)]
  with pytest.raises(ValueError, match="not paired"):
    frontier.difference_at_kl(a, b, 1.0)


def test_seeds_widen_the_interval():
  runs = [_run(s, seed, s, seed) for s in (1, 2) for seed in range(3)]
  found = frontier.reward_at_kl(runs, 1.5)
  assert found.mean == pytest.approx(1.0)
  assert (found.low, found.high) == pytest.approx((0.0, 2.0))
