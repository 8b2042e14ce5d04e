"""What moves between rollouts: the KL coefficient, and the scale of a reward."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from xpo_jax.ops import returns
from xpo_jax.types import Array


class Observation(NamedTuple):
  """What a KL controller sees of one rollout.

  Attributes:
    kl: estimate of KL(policy || ref) of a completion, nats; the mean over completions
      of the log-ratio summed over tokens (k1), which may be negative.
    episodes: completions in the rollout.
  """

  kl: Array
  episodes: Array


class Controller(NamedTuple):
  """A rule for beta; its state is beta itself, a scalar.

  Attributes:
    beta: at the first rollout.
    update: `(beta, observation) -> beta`, pure, once per rollout, after its updates.
  """

  beta: float
  update: Callable[[Array, Observation], Array]


def fixed_kl(beta: float) -> Controller:
  """A beta that stays.

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
  """A beta that follows the KL towards a target.

  beta <- beta (1 + e episodes / horizon),   e = clip(kl / target - 1, +-max_error)

  Paper: Ziegler et al. 2019, arXiv:1909.08593, Eq. not checked. trlx feeds another
  estimate than k1, which over-reacts far from the reference.

  Args:
    beta: at the first rollout, per nat; > 0. Authors' launch file: 0.15.
    target: KL of a completion to aim for, nats; > 0. Authors' launch file: 6.
    horizon: completions over which beta may change by `max_error`; > 0, and greater
      than max_error times the completions of a rollout, or else one rollout of a small
      KL takes beta to 0 and below. Authors: 10,000.
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
  """A reward model's last step: `gain * reward + bias`."""

  gain: Array
  bias: Array

  def of(self, reward: Array) -> Array:
    """The reward in its new units."""
    return self.gain * reward + self.bias


def standardising(
  reward_BK: Array,
  population_BK: Array,
  *,
  mean: float = 0.0,
  std: float = 1.0,
  eps: float = 1e-8,
) -> Affine:
  """Gain and bias that give rewards of reference samples this mean and deviation.

  It keeps the meaning of beta when the reward model changes (Ziegler et al. 2019,
  arXiv:1909.08593: over 256 samples of the reference policy, mean 0, deviation 1).

  Args:
    reward_BK: rewards of the reference policy's own completions.
    population_BK: 1 on those that count.
    mean: wanted mean.
    std: wanted deviation.
    eps: added to the variance, so that equal rewards get a finite gain.
  """
  chex.assert_equal_shape([reward_BK, population_BK])
  found, variance = returns.moments(reward_BK, population_BK)
  gain = std / jnp.sqrt(variance + eps)
  return Affine(gain, mean - gain * found)


def centring(reward_BK: Array, population_BK: Array, *, mean: float = 0.0) -> Affine:
  """The bias alone: InstructGPT's (arXiv:2203.02155), over labellers' demonstrations.

  Args:
    reward_BK: rewards of the completions that should have this mean.
    population_BK: 1 on those that count.
    mean: wanted mean.
  """
  found, _ = returns.moments(reward_BK, population_BK)
  return Affine(jnp.ones_like(found), mean - found)
