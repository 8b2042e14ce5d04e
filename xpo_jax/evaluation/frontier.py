"""Compares methods by their reward at equal KL to the reference.

Two runs with the same beta are not comparable, two runs at the same KL are. A
frontier is one method's runs over its strengths; its reward at a given KL is linearly
interpolated between neighbouring runs and never extrapolated.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xpo_jax.evaluation import bootstrap

RESAMPLES = 1000


class Run(NamedTuple):
  """One trained policy, evaluated on the same prompts as every other.

  Attributes:
    method: row of the table it belongs to.
    strength: value of the hyperparameter that varies along the frontier.
    seed: seed of its pairs, labels, order and samples.
    reward_P: true reward per prompt, mean over that prompt's samples.
    kl_P: KL(policy || reference) per prompt in nats, mean over its samples.
  """

  method: str
  strength: float
  seed: int
  reward_P: np.ndarray
  kl_P: np.ndarray


def reward_at_kl(
  runs: Sequence[Run], at: float, *, seed: int = 0
) -> bootstrap.Interval | None:
  """Interpolates the reward of one method's frontier at one KL, mean over seeds.

  Args:
    runs: one method's runs, several strengths for each seed, all on the same prompts.
    at: the KL, nats per completion.
    seed: of the resampling; prompts and seeds are resampled together.

  Returns:
    Interval, or None where some seed's runs do not bracket `at` (not reached).
  """
  return _interval(*_drawn(runs, at, seed), runs[0].reward_P.size)


def difference_at_kl(
  runs_a: Sequence[Run], runs_b: Sequence[Run], at: float, *, seed: int = 0
) -> bootstrap.Interval | None:
  """Computes the reward of frontier a minus b at one KL, paired by prompt and seed.

  Raises:
    ValueError: the two were not run with the same seeds.
  """
  seeds = [sorted({run.seed for run in runs}) for runs in (runs_a, runs_b)]
  if seeds[0] != seeds[1]:
    raise ValueError(f"frontiers of seeds {seeds[0]} and {seeds[1]} are not paired")
  value_a, drawn_a = _drawn(runs_a, at, seed)
  value_b, drawn_b = _drawn(runs_b, at, seed)
  return _interval(value_a - value_b, drawn_a - drawn_b, runs_a[0].reward_P.size)


def _drawn(runs, at, seed) -> tuple[float, np.ndarray]:
  """The reward at a KL, and its resamples; NaN where the runs do not bracket it."""
  by_seed: dict[int, list[Run]] = {}
  for run in sorted(runs, key=lambda run: run.seed):
    by_seed.setdefault(run.seed, []).append(run)
  prompts, seeds = runs[0].reward_P.size, len(by_seed)
  rng = np.random.default_rng(seed)
  uniform_P = np.full(prompts, 1 / prompts)
  weight_DP = rng.multinomial(prompts, uniform_P, size=RESAMPLES) / prompts
  pick_DS = rng.integers(seeds, size=(RESAMPLES, seeds))
  values, drawn = [], []
  for group in by_seed.values():
    kl_GP = np.stack([run.kl_P for run in group])
    reward_GP = np.stack([run.reward_P for run in group])
    means = kl_GP.mean(1, keepdims=True).T, reward_GP.mean(1, keepdims=True).T
    values.append(_interpolate(*means, at)[0])
    drawn.append(_interpolate(weight_DP @ kl_GP.T, weight_DP @ reward_GP.T, at))
  drawn_DS = np.take_along_axis(np.array(drawn).T, pick_DS, axis=1)
  return float(np.mean(values)), drawn_DS.mean(1)


def _interpolate(kl_DG: np.ndarray, reward_DG: np.ndarray, at: float) -> np.ndarray:
  """Each row's reward at a KL, between its neighbours there; NaN beyond the ends."""
  order_DG = np.argsort(kl_DG, axis=1)
  kl_DG = np.take_along_axis(kl_DG, order_DG, axis=1)
  reward_DG = np.take_along_axis(reward_DG, order_DG, axis=1)
  after_D = (kl_DG < at).sum(1)  # the first run that is not below
  ends_D2 = np.stack([after_D - 1, after_D], 1).clip(0, kl_DG.shape[1] - 1)
  (low_D, high_D), (first_D, second_D) = (
    np.take_along_axis(x_DG, ends_D2, axis=1).T for x_DG in (kl_DG, reward_DG)
  )
  gap_D = np.where(high_D > low_D, high_D - low_D, 1)
  reward_D = first_D + (at - low_D) / gap_D * (second_D - first_D)
  return np.where((kl_DG[:, 0] <= at) & (at <= kl_DG[:, -1]), reward_D, math.nan)


def _interval(value: float, drawn: np.ndarray, units: int) -> bootstrap.Interval | None:
  # A resample may fall outside the range of the runs and is left out; where more than
  # half do, the KL lies at the edge of the frontier: not reached.
  finite = drawn[np.isfinite(drawn)]
  if not math.isfinite(value) or finite.size < drawn.size / 2:
    return None
  low, high = np.percentile(finite, [2.5, 97.5])
  return bootstrap.Interval(value, float(low), float(high), float(finite.std()), units)
