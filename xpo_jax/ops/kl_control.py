"""Controllers of the KL coefficient, and normalisation of rewards."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from xpo_jax.ops import returns
from xpo_jax.types import Array


class Observation(NamedTuple):
  """Statistics of one rollout, the input of a KL controller.

  Attributes:
    kl: estimate of KL(policy || ref) per completion, nats: the mean over completions of
      the log-ratio summed over tokens (k1), which may be negative.
    episodes: number of completions in the rollout.
  """

  kl: Array
  episodes: Array


class Controller(NamedTuple):
  """Update rule of the KL coefficient beta; its state is beta itself, a scalar.

  Attributes:
    beta: value at the first rollout.
    update: `(beta, observation) -> beta`, pure, called once per rollout, after the
      policy updates.
  """

  beta: float
  update: Callable[[Array, Observation], Array]


def fixed_kl(beta: float) -> Controller:
  """Keeps beta constant.

  Raises:
    ValueError: beta is not > 0.
  """
  _check_positive("fixed_kl", beta=beta)
  return Controller(beta, lambda beta, observation: beta)


def adaptive_kl(
  beta: float,
  target: float = 6.0,
  horizon: float = 10_000.0,
  max_error: float = 0.2,
) -> Controller:
  """Adapts beta towards a target KL, in proportion to the relative error.

  beta <- beta (1 + e episodes / horizon),   e = clip(kl / target - 1, +-max_error)

  Paper: Ziegler et al. 2019, arXiv:1909.08593. trlx uses another estimate than k1,
  which overreacts far from the reference.

  Args:
    beta: value at the first rollout, per nat; > 0. Authors' launch file: 0.15.
    target: target KL per completion, nats; > 0. Authors' launch file: 6.
    horizon: number of completions over which beta may change by `max_error`; > 0, and
      greater than max_error times the completions of a rollout, since otherwise one
      rollout with a small KL takes beta to 0 or below. Authors: 10,000.
    max_error: bound on the relative error; > 0. Authors: 0.2.

  Raises:
    ValueError: an argument is not > 0.
  """
  _check_positive(
    "adaptive_kl", beta=beta, target=target, horizon=horizon, max_error=max_error
  )

  def update(beta: Array, observation: Observation) -> Array:
    error = jnp.clip(observation.kl / target - 1, -max_error, max_error)
    return beta * (1 + error * observation.episodes / horizon)

  return Controller(beta, update)


def _check_positive(rule: str, **values: float) -> None:
  for name, value in values.items():
    if not (np.isfinite(value) and value > 0):
      raise ValueError(f"{rule}: {name} is {value}; allowed: a finite number > 0")


class Affine(NamedTuple):
  """Affine map of a reward: `gain * reward + bias`."""

  gain: Array
  bias: Array

  def of(self, reward: Array) -> Array:
    """Applies the map to a reward."""
    return self.gain * reward + self.bias


def standardising(
  reward_BK: Array,
  population_BK: Array,
  *,
  mean: float = 0.0,
  std: float = 1.0,
  eps: float = 1e-8,
) -> Affine:
  """Affine map that gives rewards of reference samples a given mean and deviation.

  It keeps beta comparable when the reward model changes (Ziegler et al. 2019,
  arXiv:1909.08593: over 256 samples of the reference policy, mean 0, deviation 1).

  Args:
    reward_BK: rewards of completions sampled from the reference policy.
    population_BK: 1 on completions that count.
    mean: target mean.
    std: target standard deviation.
    eps: added to the variance, so that equal rewards get a finite gain.
  """
  chex.assert_equal_shape([reward_BK, population_BK])
  sample_mean, variance = returns.moments(reward_BK, population_BK)
  gain = std / jnp.sqrt(variance + eps)
  return Affine(gain, mean - gain * sample_mean)


def centring(reward_BK: Array, population_BK: Array, *, mean: float = 0.0) -> Affine:
  """Affine map of gain 1 that shifts rewards to a given mean.

  InstructGPT (arXiv:2203.02155) uses it with labellers' demonstrations.

  Args:
    reward_BK: rewards of the completions that should have this mean.
    population_BK: 1 on completions that count.
    mean: target mean.
  """
  sample_mean, _ = returns.moments(reward_BK, population_BK)
  return Affine(jnp.ones_like(sample_mean), mean - sample_mean)
