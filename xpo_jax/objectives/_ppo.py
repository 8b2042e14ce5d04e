"""PPO for language models: clipped policy and value losses per token."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import divergences, masked, policy_loss, returns, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State


def ppo(
  beta: float = 0.02,
  clip: float = 0.2,
  value_clip: float = 0.2,
  value_weight: float = 0.1,
  gamma: float = 1.0,
  lam: float = 0.95,
  whiten_reward: bool = True,
) -> Objective:
  """PPO: clipped policy gradient per token, with the KL penalty in the reward.

  L = mean_t max(-A rho, -A clip(rho, 1 - c, 1 + c))
      + value_weight mean_t max((V - R)^2, (clip(V, V_old - c', V_old + c') - R)^2) / 2
  with rho = pi / pi_old; A (whitened) and R = A + V_old by GAE from r_t = -beta
  log(pi_old / pi_ref), plus the score at the last token. As an `AuxLoss`
  beside `sft` on pretraining text it is PPO-ptx: weights 1 and 27.8 (InstructGPT).

  Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, after Ziegler et al. 2019,
    arXiv:1909.08593, and Schulman et al. 2017, arXiv:1707.06347. InstructGPT's
    objective is Eq. 2; PPO's clipped loss is Eq. 7. Survey 3.1.1.
  Departs from the paper: nothing known; what the papers leave open follows Ziegler et
    al.'s code (rewards scaled by their deviation, biased variances, no entropy bonus),
    except that padding is never counted. TRL puts the score one past the end and
    divides variances by n - 1, verl bounds the loss where A < 0: arguments of `returns`
    and `policy_loss`. Whitening is over the whole batch, independent of microbatches.
  Reduction: one mean over all completion tokens for each term. No gradient through
    advantages and returns.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.02 (Ziegler et al.: 0.15, adaptive; see
      `kl_control`).
    clip: clip range of the ratio; > 0. Paper: 0.2.
    value_clip: clip range of the value, in units of the reward; > 0. Paper: 0.2.
    value_weight: weight of the value term; >= 0. Ziegler et al.'s code: 0.1.
    gamma: discount; 0 <= gamma <= 1. Paper: 1.
    lam: GAE's; 0 <= lam <= 1. Ziegler et al.'s code: 0.95.
    whiten_reward: divide the shaped rewards by their deviation over the batch. Ziegler
      et al.'s code: True; TRL: False.

  Returns:
    Objective; layout SAMPLED; stats LOGP, REF_LOGP, VALUE; columns old_logp_BKT,
    old_value_BKT, reward_BK; reads tokens.
    Terms: `policy`, `value`.
    Metrics: reward (mean score), seq_kl (k1 of the rollout, nats per completion: what a
    controller observes), clip_fraction, value_clip_fraction (of tokens); of the whole
    batch's tokens advantage_mean, advantage_std (before whitening) and
    explained_variance, 1 - var(R - V_old) / var(R).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> import numpy as np
    >>> from xpo_jax import objectives, scored
    >>> one, zero = np.ones((1, 1, 1)), np.zeros((1, 1, 1))  # one token, score 2
    >>> columns = {"old_logp_BKT": -one, "old_value_BKT": zero, "reward_BK": 2 * one[0]}
    >>> s = scored.from_token_logps(-one, one, -one, value_BKT=zero, **columns)
    >>> round(float(scored.evaluate(objectives.ppo(), s).loss), 4)  # 0.1 (0 - 2)^2 / 2
    0.2
  """
  _hparams.check("ppo", "beta", beta, usual=0.02, gt=0)
  _hparams.check("ppo", "clip", clip, usual=0.2, gt=0)
  _hparams.check("ppo", "value_clip", value_clip, usual=0.2, gt=0)
  _hparams.check("ppo", "value_weight", value_weight, usual=0.1, ge=0)
  _hparams.check("ppo", "gamma", gamma, usual=1, ge=0, le=1)
  _hparams.check("ppo", "lam", lam, usual=0.95, ge=0, le=1)

  def old_kl(scored: Scored) -> Array:
    rollout = scored.replace(logp_BKT=scored.old_logp_BKT)
    return divergences.k1(_rewards.token_rewards(rollout))

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    mask_BKT = scored.mask_BKT
    real_BK = scored.present_BK * scored.weight_B[:, None]
    population_BKT = mask_BKT * real_BK[..., None]
    score_BKT = returns.place(scored.reward_BK, mask_BKT)
    reward_BKT = returns.kl_shaped(score_BKT, old_kl(scored), beta)
    if whiten_reward:
      reward_BKT = returns.whiten(reward_BKT, population_BKT, shift_mean=False)
    advantage_BKT, return_BKT = returns.gae(
      reward_BKT, scored.old_value_BKT, mask_BKT, gamma, lam
    )
    white_BKT = returns.whiten(advantage_BKT, population_BKT)
    mean, variance = returns.moments(advantage_BKT, population_BKT)
    explained = returns.explained(advantage_BKT, return_BKT, population_BKT)
    statistics = {
      "advantage_mean": mean,
      "advantage_std": jnp.sqrt(variance),
      "explained_variance": explained,
    }
    return Aux((white_BKT, return_BKT), statistics), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    advantage_BKT, return_BKT = aux.rows
    policy = (scored.logp_BKT, scored.old_logp_BKT, advantage_BKT, clip, clip)
    value = (scored.value_BKT, scored.old_value_BKT, return_BKT, value_clip)
    tokens_BKT = {
      "policy": policy_loss.clipped_surrogate(*policy),
      "value": value_weight * policy_loss.clipped_value(*value),
      "clip_fraction": policy_loss.clipped_share(*policy),
      "value_clip_fraction": policy_loss.value_clipped_share(*value),
    }
    tokens_BKT |= {n: jnp.full_like(scored.logp_BKT, x) for n, x in aux.shared.items()}
    means = {n: policy_loss.token_mean(scored, x) for n, x in tokens_BKT.items()}
    terms = {name: means.pop(name) for name in ("policy", "value")}
    metrics = means | {
      "reward": scored.mean_BK(scored.reward_BK),
      "seq_kl": scored.mean_BK(masked.sum_T(old_kl(scored), scored.mask_BKT)),
    }
    return Loss(terms, metrics)

  return Objective(
    name="ppo",
    hparams={
      "beta": beta,
      "clip": clip,
      "value_clip": value_clip,
      "value_weight": value_weight,
      "gamma": gamma,
      "lam": lam,
      "whiten_reward": whiten_reward,
    },
    layout=Layout.SAMPLED,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP, token_stats.VALUE}),
    loss=loss,
    columns=frozenset({"old_logp_BKT", "old_value_BKT", "reward_BK"}),
    reads_tokens=True,
    prepare=prepare,
  )
