"""Rewards per token, returns, advantages and their whitening.

Public codes agree on the recursions and differ in where the score of a completion
lands, which tokens count, and how the variance is taken: each is an argument here.
Nothing should be differentiated through what stands here; objectives call it in
`prepare`.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.ops import masked
from xpo_jax.types import Array, Mean


def one_longer(mask_BKT: Array) -> Array:
  """The mask with one more token: the state after the last one, where there is room.

  TRL and its model, "The N+ implementation details" (arXiv:2403.17031), put the score
  there and train the value of that state. An empty completion gets its first position.
  For responses without holes: each run of ones grows by one.
  """
  chex.assert_rank(mask_BKT, 3)
  before_BKT = jnp.pad(mask_BKT[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=1)
  return jnp.maximum(mask_BKT, before_BKT)


def place(score_BK: Array, mask_BKT: Array, max_score: float | Array = np.inf) -> Array:
  """A reward per token that is the score at the last token and 0 elsewhere.

  Args:
    score_BK: reward of each completion.
    mask_BKT: 1 on response tokens; `one_longer` of it puts the score one past the end.
    max_score: bound on the score's size. OpenRLHF: 10; ReMax's code: 5, on the
      difference to the greedy answer.

  Returns:
    `[B, K, T]`; an empty completion gets nothing.
  """
  chex.assert_equal_shape_prefix([score_BK, mask_BKT], 2)
  score_BK = jnp.clip(score_BK, -max_score, max_score)
  return jnp.where(masked.last_BKT(mask_BKT) > 0, score_BK[..., None], 0)


def kl_shaped(reward_BKT: Array, kl_BKT: Array, beta: float | Array) -> Array:
  """Reward of each token less its share of the KL penalty: r_t - beta kl_t.

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

  Paper: Zhong et al. 2024, "DPO Meets PPO", arXiv:2404.18922, Eq. not checked.

  Args:
    dpo_logp_BKT: log-probs of the frozen DPO policy, nats.
    ref_logp_BKT: of the reference, nats.
    mask_BKT: 1 on response tokens.
    scale: the paper's beta_1. Authors' script: 0.05.
    max_credit: bound on a token's credit, applied after `scale`: the authors' code,
      0.05 in their script; not in the loss as the paper writes it.
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
  """RTO's reward of a token: credit, KL penalty, and the score at the last one.

  Args:
    credit_BKT: of `rto_credit`.
    score_BK: a reward model's score of each completion.
    kl_BKT: log pi - log pi_ref of each token, nats.
    mask_BKT: 1 on response tokens.
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
  """Generalised advantage estimates and the returns that train the value.

  A_t = delta_t + gamma lam A_{t+1},   delta_t = r_t + gamma V_{t+1} - V_t
  and 0 after the end. Masked tokens are passed over: the next real token follows, and
  no discount is spent on them.

  Paper: Schulman et al. 2015, arXiv:1506.02438, Eq. not checked.

  Args:
    reward_BKT: reward of each token.
    value_BKT: V of the state before each token.
    mask_BKT: 1 on tokens that count.
    gamma: discount; InstructGPT 1.
    lam: 1 gives the return minus V, 0 the one-step error. PPO for language 0.95.

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
  """Return of each token, sum over s >= t of gamma^(s-t) r_s; masked as in `gae`."""
  return gae(reward_BKT, jnp.zeros_like(reward_BKT), mask_BKT, gamma, 1.0)[0]


def moments(
  x: Array, population: Array, *, unbiased: bool = False
) -> tuple[Array, Array]:
  """Mean and variance of the entries where `population` is not 0.

  Args:
    x: any array.
    population: 1 on entries that count, same shape.
    unbiased: divide the squares by their number less 1 (TRL, verl, trlx) or by their
      number (OpenAI 2019, N+, OpenRLHF).
  """
  chex.assert_equal_shape([x, population])
  counts = population > 0
  number = counts.sum(dtype=x.dtype)
  mean = Mean(jnp.where(counts, x, 0).sum(), number).value
  squares = jnp.where(counts, x - mean, 0) ** 2
  return mean, Mean(squares.sum(), number - 1 if unbiased else number).value


def explained(advantage: Array, target: Array, population: Array) -> Array:
  """Share of the returns' variance that the values explain, 1 - Var(A) / Var(R).

  1 where every value was its return, 0 where they know no more than one number for
  all, below 0 where they know less; 0 where all returns are the same.

  Args:
    advantage: return less value, any shape.
    target: the returns, same shape.
    population: 1 on entries that count, same shape.
  """
  unexplained, variance = (moments(x, population)[1] for x in (advantage, target))
  share = unexplained / jnp.where(variance > 0, variance, 1)
  return jnp.where(variance > 0, 1 - share, 0)


def whiten(
  x: Array,
  population: Array,
  *,
  shift_mean: bool = True,
  unbiased: bool = False,
  eps: float | Array = 1e-8,
) -> Array:
  """Every entry less the mean over the deviation, both taken over a population.

  Args:
    x: any array.
    population: 1 on entries that count for mean and variance, same shape; all ones
      where padding counts too (OpenAI 2019, trlx).
    shift_mean: whether the mean is taken away; False scales about it.
    unbiased: see `moments`.
    eps: added to the variance.

  Returns:
    The shape of `x`, entries outside the population too.
  """
  mean, variance = moments(x, population, unbiased=unbiased)
  white = (x - mean) * jax.lax.rsqrt(variance + eps)
  return white if shift_mean else white + mean
