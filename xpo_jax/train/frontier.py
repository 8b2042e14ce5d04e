"""Reward against KL: methods compared where they are equally far from the reference.

Two runs with the same beta are not comparable, two runs at the same KL are. A
frontier is one method's runs over its strengths; its reward at a given KL is read by
linear interpolation between its own neighbouring runs, never beyond them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Run(NamedTuple):
  """One trained policy, evaluated on the same prompts as every other.

  Attributes:
    method: row of the table it belongs to.
    strength: value of the knob that moves it along its frontier.
    seed: seed of its pairs, labels, order and samples.
    reward_P: true reward per prompt, mean over that prompt's samples.
    kl_P: KL(policy || reference) per prompt in nats, mean over its samples.
  """

  method: str
  strength: float
  seed: int
  reward_P: np.ndarray
  kl_P: np.ndarray


class Interval(NamedTuple):
  """An estimate with its 95 % bootstrap interval; NaN where a KL was not reached."""

  value: float
  low: float
  high: float

  @property
  def reached(self) -> bool:
    return bool(np.isfinite(self.value))


def _interpolate(kl_S: np.ndarray, reward_S: np.ndarray, at: float) -> float:
  """Reward at KL `at` between neighbouring strengths; NaN outside their range."""
  order = np.argsort(kl_S)
  return float(np.interp(at, kl_S[order], reward_S[order], left=np.nan, right=np.nan))


def _by_seed(runs: Sequence[Run]) -> dict[int, list[Run]]:
  seeds: dict[int, list[Run]] = {}
  for run in runs:
    seeds.setdefault(run.seed, []).append(run)
  return seeds


def _resamples(prompts: int, seeds: int, draws: int, rng: np.random.Generator):
  """Prompt weights `[draws, P]` (they sum to 1) and seed indices `[draws, seeds]`."""
  counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=draws)
  return counts / prompts, rng.integers(seeds, size=(draws, seeds))


def reward_at_kl(
  runs: Sequence[Run], at: float, draws: int = 1000, seed: int = 0
) -> Interval:
  """Reward of one method's frontier at one KL, mean over seeds.

  Args:
    runs: one method's runs, several strengths for each seed, all on the same prompts.
    at: the KL, nats per completion.
    draws: bootstrap resamples; prompts and seeds are resampled together.
    seed: of the resampling.

  Returns:
    Interval; NaN where some seed's runs do not bracket `at`.
  """
  value, draws_ = _frontier_draws(runs, at, draws, seed)
  return _interval(value, draws_)


def difference_at_kl(
  runs_a: Sequence[Run], runs_b: Sequence[Run], at: float, draws=1000, seed=0
) -> Interval:
  """Reward of frontier a minus frontier b at one KL, paired over prompts and seeds."""
  value_a, draws_a = _frontier_draws(runs_a, at, draws, seed)
  value_b, draws_b = _frontier_draws(runs_b, at, draws, seed)
  return _interval(value_a - value_b, draws_a - draws_b)


def mean_difference(
  runs_a: Sequence[Run], reward_b_P: np.ndarray, draws: int = 1000, seed: int = 0
) -> Interval:
  """Mean reward of runs (one a seed) minus a fixed policy's, paired over prompts."""
  gap_SP = np.stack([run.reward_P - reward_b_P for run in runs_a])
  rng = np.random.default_rng(seed)
  weight, pick = _resamples(gap_SP.shape[1], len(runs_a), draws, rng)
  drawn = np.take_along_axis(weight @ gap_SP.T, pick, axis=1).mean(1)
  return _interval(float(gap_SP.mean()), drawn)


def _frontier_draws(runs, at, draws, seed):
  groups = list(_by_seed(runs).values())
  rng = np.random.default_rng(seed)
  weight, pick = _resamples(runs[0].reward_P.size, len(groups), draws, rng)
  values, per_seed = [], []
  for group in groups:
    kl_SP = np.stack([run.kl_P for run in group])
    reward_SP = np.stack([run.reward_P for run in group])
    values.append(_interpolate(kl_SP.mean(1), reward_SP.mean(1), at))
    drawn = zip(weight @ kl_SP.T, weight @ reward_SP.T, strict=True)
    per_seed.append([_interpolate(kl_S, reward_S, at) for kl_S, reward_S in drawn])
  per_seed = np.take_along_axis(np.array(per_seed).T, pick, axis=1)
  return float(np.mean(values)), per_seed.mean(1)


def _interval(value: float, drawn: np.ndarray) -> Interval:
  # A resample may leave the range of the runs; it is left out, and where more than
  # half do, the edge of the frontier is too close for an interval.
  kept = drawn[np.isfinite(drawn)]
  if not np.isfinite(value) or kept.size < drawn.size / 2:
    return Interval(float("nan"), float("nan"), float("nan"))
  low, high = np.percentile(kept, [2.5, 97.5])
  return Interval(value, float(low), float(high))
