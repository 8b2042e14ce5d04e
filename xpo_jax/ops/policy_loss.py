"""PPO's clipped policy and value losses, and reductions of losses over a batch.

The losses are elementwise: pass `[B, K, T]` for a ratio per token, `[B, K]` sums or
means over tokens for a ratio per sequence. The reductions return a `Mean`; filler rows,
absent columns and padding never count.

PPO: Schulman et al. 2017, arXiv:1707.06347, Eq. 7.
"""

import chex
import jax.numpy as jnp

from xpo_jax.ops import masked
from xpo_jax.types import Array, Mean, Scored

# exp(60) and its products stay finite in float32. A larger log-ratio means that
# `old_logp` is not of the policy that sampled; no objective is meant to act there.
MAX_LOG_RATIO = 60.0


def ratio(
  logp: Array, old_logp: Array, max_log_ratio: float | Array = MAX_LOG_RATIO
) -> Array:
  """Importance ratio pi / pi_old, elementwise.

  Args:
    logp: of the policy, nats; the gradient enters here.
    old_logp: of the policy that sampled, nats.
    max_log_ratio: bound on the absolute log-ratio, beyond which the gradient is 0. The
      default only keeps float32 finite; OpenRLHF and verl use 20.
  """
  chex.assert_equal_shape([logp, old_logp])
  return jnp.exp(jnp.clip(logp - old_logp, -max_log_ratio, max_log_ratio))


def clipped_surrogate(
  logp: Array,
  old_logp: Array,
  advantage: Array,
  low: float | Array,
  high: float | Array,
  max_log_ratio: float | Array = MAX_LOG_RATIO,
) -> Array:
  """PPO's policy loss, elementwise: max(-A rho, -A clip(rho, 1 - low, 1 + high)).

  Args:
    logp: of the policy, nats.
    old_logp: of the policy that sampled, nats; the denominator of the ratio.
    advantage: of each action; no gradient should flow into it.
    low: clip range of the ratio below 1; >= 0.
    high: clip range of the ratio above 1; >= 0. PPO: low = high = 0.2.
    max_log_ratio: see `ratio`.

  Returns:
    The loss, to be minimised, with the shape of `logp`.
  """
  chex.assert_equal_shape([logp, advantage])
  rho = ratio(logp, old_logp, max_log_ratio)
  clipped = jnp.clip(rho, 1 - low, 1 + high)
  return jnp.maximum(-advantage * rho, -advantage * clipped)


def clipped_share(
  logp: Array,
  old_logp: Array,
  advantage: Array,
  low: float | Array,
  high: float | Array,
) -> Array:
  """1 where `clipped_surrogate` is clipped, else 0: a metric."""
  rho = ratio(logp, old_logp)
  clipped = jnp.clip(rho, 1 - low, 1 + high)
  return (-advantage * clipped > -advantage * rho).astype(logp.dtype)


def dual_clipped(loss: Array, advantage: Array, max_ratio: float | Array) -> Array:
  """Bounds a policy loss where the advantage is negative: min(loss, -A max_ratio).

  Dual-clip PPO: Ye et al. 2019, arXiv:1912.09729, Eq. 5. Not part of PPO itself; verl
  applies it by default, with `max_ratio` 3.

  Args:
    loss: of `clipped_surrogate`.
    advantage: as in `clipped_surrogate`.
    max_ratio: bound on the ratio where the advantage is negative; > 1.
  """
  chex.assert_equal_shape([loss, advantage])
  return jnp.where(advantage < 0, jnp.minimum(loss, -advantage * max_ratio), loss)


def clipped_value(
  value: Array, old_value: Array, target: Array, clip: float | Array
) -> Array:
  """PPO's value loss, elementwise: max((V - R)^2, (V' - R)^2) / 2.

  Args:
    value: V, of the policy's value head.
    old_value: recorded with the rollout; V' = clip(V, old - clip, old + clip).
    target: R, the return.
    clip: clip range of the value around `old_value`; > 0, in units of the reward.
  """
  chex.assert_equal_shape([value, old_value, target])
  clipped = jnp.clip(value, old_value - clip, old_value + clip)
  return jnp.maximum((value - target) ** 2, (clipped - target) ** 2) / 2


def value_clipped_share(
  value: Array, old_value: Array, target: Array, clip: float | Array
) -> Array:
  """1 where `clipped_value` is clipped, else 0: a metric."""
  clipped = jnp.clip(value, old_value - clip, old_value + clip)
  return ((clipped - target) ** 2 > (value - target) ** 2).astype(value.dtype)


def policy_gradient(logp: Array, advantage: Array) -> Array:
  """REINFORCE's loss, elementwise: -A log pi.

  Args:
    logp: of the policy, nats.
    advantage: of each action; no gradient should flow into it.
  """
  chex.assert_equal_shape([logp, advantage])
  return -advantage * logp


def token_mean(scored: Scored, x_BKT: Array) -> Mean:
  """Mean over all tokens of the batch: a longer completion weighs more."""
  weight_BK = scored.present_BK * scored.weight_B[:, None]
  total = (masked.sum_T(x_BKT, scored.mask_BKT) * weight_BK).sum()
  return Mean(total, (masked.length(scored.mask_BKT) * weight_BK).sum())


def mean_of_means(
  scored: Scored,
  x_BKT: Array,
  *,
  count_empty: bool = False,
  eps: float | Array = 0.0,
) -> Mean:
  """Mean over completions of the mean over tokens: each completion weighs the same.

  Args:
    scored: provides the mask, present columns and row weights.
    x_BKT: any quantity per token.
    count_empty: whether an empty completion, which adds 0, counts in the denominator.
      verl and OpenRLHF exclude it, TRL counts it.
    eps: added to the number of tokens of each completion; verl: 1e-8.
  """
  x_BK = masked.sum_T(x_BKT, scored.mask_BKT)
  length_BK = masked.length(scored.mask_BKT).astype(x_BK.dtype) + eps
  return _mean_BK(scored, masked.per_token(x_BK, length_BK), count_empty)


def mean_of_sums(
  scored: Scored,
  x_BKT: Array,
  *,
  count_empty: bool = False,
  length: float | Array = 1.0,
) -> Mean:
  """Mean over completions of the sum over tokens, divided by a constant length.

  Args:
    scored: provides the mask, present columns and row weights.
    x_BKT: any quantity per token.
    count_empty: see `mean_of_means`.
    length: the constant, such as the longest allowed completion (Dr. GRPO), in tokens.
  """
  x_BK = masked.sum_T(x_BKT, scored.mask_BKT) / length
  return _mean_BK(scored, x_BK, count_empty)


def _mean_BK(scored: Scored, x_BK: Array, count_empty: bool) -> Mean:
  if count_empty:
    return scored.mean_BK(x_BK)
  has_tokens_BK = jnp.where(masked.length(scored.mask_BKT) > 0, 1.0, 0.0)
  return scored.replace(present_BK=scored.present_BK * has_tokens_BK).mean_BK(x_BK)
