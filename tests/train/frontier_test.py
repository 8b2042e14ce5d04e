"""Frontiers: interpolation, pairing and coverage against closed forms."""

import numpy as np
import pytest

from xpo_jax.train import frontier


def _run(strength, seed, kl, reward, prompts=64, noise=0.0):
  rng = np.random.default_rng([seed, int(10 * strength)])
  jitter = rng.normal(size=prompts)
  jitter -= jitter.mean()
  reward_P = reward + noise * jitter
  return frontier.Run("m", strength, seed, reward_P, np.full(prompts, kl))


def test_reward_between_two_runs_is_linear():
  runs = [_run(s, seed, kl=s, reward=2 * s) for s in (1, 3) for seed in (0, 1)]
  found = frontier.reward_at_kl(runs, 1.5, draws=50)
  assert found.value == pytest.approx(3.0)
  assert found.low == pytest.approx(3.0) and found.high == pytest.approx(3.0)


@pytest.mark.parametrize("at", [0.5, 3.5])
def test_reward_outside_the_runs_is_not_reached(at):
  runs = [_run(s, 0, kl=s, reward=s) for s in (1, 3)]
  assert not frontier.reward_at_kl(runs, at, draws=50).reached


def test_one_seed_that_stops_short_is_not_reached():
  runs = [_run(1, 0, 1, 1), _run(3, 0, 3, 3), _run(1, 1, 1, 1), _run(3, 1, 1.2, 3)]
  assert not frontier.reward_at_kl(runs, 2.0, draws=50).reached


def test_interval_of_a_mean_has_the_width_of_its_standard_error():
  rng = np.random.default_rng(0)
  gap = rng.normal(scale=0.5, size=400)
  run = frontier.Run("m", 1.0, 0, gap, gap)
  found = frontier.mean_difference([run], np.zeros(400), draws=4000)
  half = 1.96 * gap.std() / np.sqrt(gap.size)
  assert found.value == pytest.approx(gap.mean())
  assert found.high - found.low == pytest.approx(2 * half, rel=0.08)


def test_difference_is_paired_over_prompts():
  # The same prompt effect in both methods cancels; unpaired it would swamp the gap.
  effect = np.random.default_rng(1).normal(scale=5.0, size=64)
  a = [frontier.Run("a", s, 0, effect + s + 0.1, np.full(64, s)) for s in (1.0, 2.0)]
  b = [frontier.Run("b", s, 0, effect + s, np.full(64, s)) for s in (1.0, 2.0)]
  found = frontier.difference_at_kl(a, b, 1.5, draws=200)
  assert found.value == pytest.approx(0.1)
  assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)


def test_seeds_widen_the_interval():
  same = [_run(1, seed, 1, 1.0) for seed in range(3)]
  apart = [_run(1, seed, 1, reward) for seed, reward in enumerate((0.0, 1.0, 2.0))]
  narrow = frontier.mean_difference(same, np.zeros(64), draws=500)
  wide = frontier.mean_difference(apart, np.zeros(64), draws=500)
  assert narrow.high - narrow.low == pytest.approx(0.0)
  assert wide.low == pytest.approx(0.0) and wide.high == pytest.approx(2.0)
