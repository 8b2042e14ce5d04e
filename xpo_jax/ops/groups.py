"""Statistics over the K completions of a prompt, with a mask of present columns.

Every function takes `present_BK`: 1 where a completion counts, 0 where it does not
(a padded column of a ragged group, a filler row, a completion without a reward).
Values in absent columns, NaN included, are never read; a NaN in a present column stays
a NaN, so that the caller masks a missing reward or the run stops.

Sums are taken over differences to the largest value of the group: equal values then
give exactly 0, not a rounding error that division by a small `eps` would amplify.
"""

import enum

import chex
import jax.numpy as jnp

from xpo_jax.types import Array


class Over(enum.Enum):
  """Population of a standard deviation."""

  GROUP = "group"  # the completions of one prompt
  BATCH = "batch"  # all completions of the batch
  NOTHING = "nothing"  # no scaling


def count(present_BK: Array) -> Array:
  """Number of present completions, `[B]`."""
  return present_BK.sum(-1)


def zero_absent(x_BK: Array, present_BK: Array) -> Array:
  """`x_BK` with exact zeros on absent columns."""
  chex.assert_equal_shape([x_BK, present_BK])
  return jnp.where(present_BK > 0, x_BK, 0)


def total(x_BK: Array, present_BK: Array) -> Array:
  """Sum over the present completions, `[B]`."""
  return zero_absent(x_BK, present_BK).sum(-1)


def mean(x_BK: Array, present_BK: Array) -> Array:
  """Mean over the present completions, `[B]`; 0 for an empty group."""
  largest_B1, gap_BK = _gap(x_BK, present_BK)
  return largest_B1[:, 0] + gap_BK.sum(-1) / _at_least_1(count(present_BK))


def centre(x_BK: Array, present_BK: Array) -> Array:
  """Subtracts the group mean, `[B, K]`; 0 on absent columns and for equal values."""
  _, gap_BK = _gap(x_BK, present_BK)
  mean_B = gap_BK.sum(-1) / _at_least_1(count(present_BK))
  return zero_absent(gap_BK - mean_B[:, None], present_BK)


def leave_one_out(x_BK: Array, present_BK: Array) -> Array:
  """Mean of the other completions of the group, `[B, K]`: a baseline for each one.

  Independent of the completion it is subtracted from, unlike the group mean.

  Returns:
    0 on absent columns and for the only completion of a group; see
    `leave_one_out_advantage`.
  """
  largest_B1, gap_BK = _gap(x_BK, present_BK)
  others_B1 = count(present_BK)[:, None] - 1
  rest_BK = (gap_BK.sum(-1, keepdims=True) - gap_BK) / _at_least_1(others_B1)
  return jnp.where((present_BK > 0) & (others_B1 > 0), largest_B1 + rest_BK, 0)


def leave_one_out_advantage(x_BK: Array, present_BK: Array) -> Array:
  """Subtracts the mean of the other completions, `[B, K]`: K / (K - 1) times `centre`.

  The only completion of a group gets 0.
  """
  K_B1 = count(present_BK)[:, None]
  advantage_BK = K_B1 * centre(x_BK, present_BK) / _at_least_1(K_B1 - 1)
  return jnp.where(K_B1 > 1, advantage_BK, 0)


def std(x_BK: Array, present_BK: Array, *, ddof: int = 1) -> Array:
  """Standard deviation within each group, `[B]`; 0 for a group of `ddof` or fewer.

  Args:
    x_BK: any quantity per completion.
    present_BK: 1 where it counts.
    ddof: 1 for the unbiased variance (divided by K - 1), 0 for the biased one (by K).
  """
  square_B = (centre(x_BK, present_BK) ** 2).sum(-1)
  return jnp.sqrt(square_B / _at_least_1(count(present_BK) - ddof))


def standardise(
  x_BK: Array,
  present_BK: Array,
  *,
  over: Over = Over.GROUP,
  ddof: int = 1,
  eps: float | Array = 1e-4,
) -> Array:
  """`(x - group mean) / (std + eps)`, `[B, K]`: GRPO's advantages of rewards.

  Args:
    x_BK: the rewards.
    present_BK: 1 where a completion counts.
    over: population of the standard deviation; the mean is always the group's.
    ddof: see `std`. TRL and verl: 1.
    eps: added to the standard deviation. TRL: 1e-4, verl: 1e-6.

  Returns:
    0 on absent columns and for groups of equal values.
  """
  centred_BK = centre(x_BK, present_BK)
  if over is Over.NOTHING:
    return centred_BK
  if over is Over.BATCH:
    deviation = std(x_BK.reshape(1, -1), present_BK.reshape(1, -1), ddof=ddof)
  else:
    deviation = std(x_BK, present_BK, ddof=ddof)
  return centred_BK / (deviation[:, None] + eps)


def differ(x_BK: Array, present_BK: Array) -> Array:
  """1 where the values of a group are not all equal, else 0, `[B]`.

  Group-relative methods get no gradient from a group of equal rewards: DAPO resamples
  such prompts (dynamic sampling).
  """
  _, gap_BK = _gap(x_BK, present_BK)
  return jnp.where((gap_BK < 0).any(-1), 1, 0).astype(present_BK.dtype)


def weighted_sum(
  reward_BKF: Array, weight_F: Array, scored_BKF: Array
) -> tuple[Array, Array]:
  """Combines several rewards into one, and marks the completions that have any.

  Args:
    reward_BKF: the last axis holds the rewards of F reward functions.
    weight_F: weight of each reward function.
    scored_BKF: 1 where a reward function returned a reward; the others add 0.

  Returns:
    `(reward_BK, present_BK)`: the weighted sum, and 1 where at least one reward
    function returned a reward.
  """
  chex.assert_equal_shape([reward_BKF, scored_BKF])
  chex.assert_shape(weight_F, reward_BKF.shape[-1:])
  reward_BK = jnp.where(scored_BKF > 0, reward_BKF, 0) @ weight_F
  return reward_BK, jnp.where((scored_BKF > 0).any(-1), 1.0, 0.0)


def _gap(x_BK: Array, present_BK: Array) -> tuple[Array, Array]:
  """Largest value of each group, and the difference of each value to it."""
  chex.assert_equal_shape([x_BK, present_BK])
  here_BK = present_BK > 0
  largest_B1 = jnp.where(here_BK, x_BK, -jnp.inf).max(-1, keepdims=True)
  largest_B1 = jnp.where(here_BK.any(-1, keepdims=True), largest_B1, 0)
  return largest_B1, jnp.where(here_BK, x_BK - largest_B1, 0)


def _at_least_1(n: Array) -> Array:
  return jnp.maximum(n, 1)
