"""Per-token rewards, returns, advantages and whitening.

Public codes agree on the recursions and differ in where the score of a completion is
placed, which tokens count, and how the variance is computed: each is an argument here.
No gradient should flow through these functions; objectives call them in `prepare`.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.ops import masked
from xpo_jax.types import Array, Mean


def one_longer(mask_BKT: Array) -> Array:
  """Extends the mask by one token, the state after the last, where there is room.

  TRL and the work it follows, "The N+ implementation details" (arXiv:2403.17031), place
  the score there and train the value of that state. An empty completion gets its first
  position. For contiguous masks: each run of ones grows by one.
  """
  chex.assert_rank(mask_BKT, 3)
  before_BKT = jnp.pad(mask_BKT[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=1)
  return jnp.maximum(mask_BKT, before_BKT)


def place(score_BK: Array, mask_BKT: Array, max_score: float | Array = np.inf) -> Array:
  """Places the score of a completion on its last token; 0 elsewhere.

  Args:
    score_BK: reward of each completion.
    mask_BKT: 1 on completion tokens; `one_longer` of it places the score one past the
      end.
    max_score: bound on the absolute score. OpenRLHF: 10; ReMax's code: 5, on the
      difference to the greedy completion.

  Returns:
    `[B, K, T]`; all 0 for an empty completion.
  """
  chex.assert_equal_shape_prefix([score_BK, mask_BKT], 2)
  score_BK = jnp.clip(score_BK, -max_score, max_score)
  return jnp.where(masked.last_BKT(mask_BKT) > 0, score_BK[..., None], 0)


def kl_shaped(reward_BKT: Array, kl_BKT: Array, beta: float | Array) -> Array:
  """Subtracts the KL penalty from the reward of each token: r_t - beta kl_t.

  Args:
    reward_BKT: a score placed on one token (`place`), or dense rewards.
    kl_BKT: an estimate per token, nats; the sampled log-ratio in PPO (k1).
    beta: tie to ref, per nat.
  """
  chex.assert_equal_shape([reward_BKT, kl_BKT])
  return reward_BKT - beta * kl_BKT


def rto_credit(
  dpo_logp_BKT: Array,
  ref_logp_BKT: Array,
  mask_BKT: Array,
  scale: float | Array,
  max_credit: float | Array = np.inf,
) -> Array:
  """RTO's dense reward: the credit of a DPO policy, scale log(pi_dpo / pi_ref).

  Paper: Zhong et al. 2024, "DPO Meets PPO", arXiv:2404.18922.

  Args:
    dpo_logp_BKT: log-probs of the frozen DPO policy, nats.
    ref_logp_BKT: of the reference, nats.
    mask_BKT: 1 on completion tokens.
    scale: the paper's beta_1. Authors' script: 0.05.
    max_credit: bound on the absolute credit of a token, after `scale`: from the
      authors' code, 0.05 in their script; not part of the paper's loss.
  """
  chex.assert_equal_shape([dpo_logp_BKT, ref_logp_BKT, mask_BKT])
  credit_BKT = scale * (dpo_logp_BKT - ref_logp_BKT)
  bounded_BKT = jnp.clip(credit_BKT, -max_credit, max_credit)
  return masked.zero_padding(bounded_BKT, mask_BKT)


def rto_reward(
  credit_BKT: Array,
  score_BK: Array,
  kl_BKT: Array,
  mask_BKT: Array,
  beta: float | Array,
  max_score: float | Array = np.inf,
) -> Array:
  """RTO's reward per token: credit, KL penalty, and the score at the last token.

  Args:
    credit_BKT: of `rto_credit`.
    score_BK: a reward model's score of each completion.
    kl_BKT: log pi - log pi_ref of each token, nats.
    mask_BKT: 1 on completion tokens.
    beta: the paper's beta_2, tie to ref, per nat. Authors' script: 0.01.
    max_score: see `place`. Authors' code: 10.
  """
  dense_BKT = credit_BKT + place(score_BK, mask_BKT, max_score)
  return masked.zero_padding(kl_shaped(dense_BKT, kl_BKT, beta), mask_BKT)


def gae(
  reward_BKT: Array,
  value_BKT: Array,
  mask_BKT: Array,
  gamma: float | Array,
  lam: float | Array,
) -> tuple[Array, Array]:
  """Generalised advantage estimates, and returns as targets of the value.

  A_t = delta_t + gamma lam A_{t+1},   delta_t = r_t + gamma V_{t+1} - V_t
  and 0 after the end. Masked tokens are skipped: the next unmasked token follows,
  without a discount for the masked ones.

  Paper: Schulman et al. 2015, arXiv:1506.02438, Eq. 16; in PPO's paper
  (arXiv:1707.06347) Eq. 11.

  Args:
    reward_BKT: reward of each token.
    value_BKT: V of the state before each token.
    mask_BKT: 1 on tokens that count.
    gamma: discount; InstructGPT 1.
    lam: 1 gives the return minus V, 0 the one-step TD error. PPO for language models:
      0.95.

  Returns:
    Advantages and returns (advantage plus V), `[B, K, T]`, 0 where the mask is 0.
  """
  chex.assert_equal_shape([reward_BKT, value_BKT, mask_BKT])
  dtype = jnp.result_type(reward_BKT, value_BKT)

  def back(after: tuple, now: tuple) -> tuple[tuple, Array]:
    next_value_BK, next_advantage_BK = after
    reward_BK, value_BK, real_BK = now
    delta_BK = reward_BK + gamma * next_value_BK - value_BK
    advantage_BK = delta_BK + gamma * lam * next_advantage_BK
    value_BK = jnp.where(real_BK, value_BK, next_value_BK)
    advantage_BK = jnp.where(real_BK, advantage_BK, next_advantage_BK)
    return (value_BK, advantage_BK.astype(dtype)), advantage_BK

  arrays = (reward_BKT.astype(dtype), value_BKT.astype(dtype), mask_BKT > 0)
  after = jnp.zeros(mask_BKT.shape[:-1], dtype)
  in_time = [jnp.moveaxis(x, -1, 0) for x in arrays]
  _, advantage_TBK = jax.lax.scan(back, (after, after), tuple(in_time), reverse=True)
  advantage_BKT = jnp.moveaxis(advantage_TBK, 0, -1)
  return (
    masked.zero_padding(advantage_BKT, mask_BKT),
    masked.zero_padding(advantage_BKT + value_BKT, mask_BKT),
  )


def discounted(reward_BKT: Array, mask_BKT: Array, gamma: float | Array) -> Array:
  """Discounted return, sum over s >= t of gamma^(s-t) r_s; masked as in `gae`."""
  return gae(reward_BKT, jnp.zeros_like(reward_BKT), mask_BKT, gamma, 1.0)[0]


def moments(
  x: Array, population: Array, *, unbiased: bool = False
) -> tuple[Array, Array]:
  """Mean and variance of the entries where `population` is not 0.

  Args:
    x: any array.
    population: 1 on entries that count, same shape.
    unbiased: divide the sum of squares by n - 1 (TRL, verl, trlx) instead of n (OpenAI
      2019, N+, OpenRLHF).
  """
  chex.assert_equal_shape([x, population])
  counts = population > 0
  number = counts.sum(dtype=x.dtype)
  mean = Mean(jnp.where(counts, x, 0).sum(), number).value
  squares = jnp.where(counts, x - mean, 0) ** 2
  return mean, Mean(squares.sum(), number - 1 if unbiased else number).value


def explained(advantage: Array, target: Array, population: Array) -> Array:
  """Fraction of the returns' variance explained by the values, 1 - Var(A) / Var(R).

  1 for exact values, 0 for a constant value, negative for worse ones; 0 where all
  returns are equal.

  Args:
    advantage: return minus value, any shape.
    target: the returns, same shape.
    population: 1 on entries that count, same shape.
  """
  unexplained, variance = (moments(x, population)[1] for x in (advantage, target))
  fraction = unexplained / jnp.where(variance > 0, variance, 1)
  return jnp.where(variance > 0, 1 - fraction, 0)


def whiten(
  x: Array,
  population: Array,
  *,
  shift_mean: bool = True,
  unbiased: bool = False,
  eps: float | Array = 1e-8,
) -> Array:
  """Subtracts the mean and divides by the standard deviation of a population.

  Args:
    x: any array.
    population: 1 on entries that count for mean and variance, same shape; all ones
      where padding counts too (OpenAI 2019, trlx).
    shift_mean: whether to subtract the mean; False only scales around it.
    unbiased: see `moments`.
    eps: added to the variance.

  Returns:
    Array of the shape of `x`; entries outside the population are transformed too.
  """
  mean, variance = moments(x, population, unbiased=unbiased)
  white = (x - mean) * jax.lax.rsqrt(variance + eps)
  return white if shift_mean else white + mean
