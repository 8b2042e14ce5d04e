"""GSPO-token: GSPO's sequence ratio with an advantage per token."""

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _grpo, _gspo, _rewards
from xpo_jax.ops import masked, policy_loss
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State


def gspo_token(
  clip_low: float = 3e-4,
  clip_high: float = 4e-4,
  beta: float | None = None,
  scale_rewards: str = "group",
) -> Objective:
  """GSPO-token: GSPO's ratio of a completion, for an advantage that differs by token.

  L = mean_i 1/|y_i| sum_t max(-A_t s_t, -A_t clip(s_t, 1 - e_low, 1 + e_high))
  with s_t = sg(s_i) pi(y_t) / sg(pi(y_t)), s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|):
  every token has the value, and the clip, of the completion's ratio, and the gradient
  of its own log-probability.

  Paper: Zheng et al. 2025, arXiv:2507.18071v2, Eq. 13 and 14.
  Departs from the paper: the paper leaves A_t open; this takes GRPO's advantage of the
    completion for each token, and then value and gradient are those of `gspo`. A
    `prepare` that returns another `[B, K, T]` in `Aux.rows` is all that a credit per
    token needs. verl calls this GSPO. The standard deviation is that of `grpo`. `beta`
    is TRL's, as in `gspo`.
  Reduction: mean over a completion's tokens, mean over a prompt's completions, mean
    over prompts. No gradient through s_i and A.

  Args:
    clip_low: clip range of the ratio below 1; 0 <= e <= 1. Paper: 3e-4.
    clip_high: clip range of the ratio above 1; >= 0. Paper: 4e-4.
    beta: tie to ref, per nat; > 0, or None for no tie and no reference. Paper: None.
    scale_rewards: population of the standard deviation: "group"; "batch", all
      completions of the update (Lite PPO, arXiv:2508.08221); "nothing", no division.
      Paper: group.

  Returns:
    Objective; layout SAMPLED; stats LOGP, and REF_LOGP unless beta is None; columns
    reward_BK, old_logp_BKT; reads tokens.
    Terms: `gspo_token`.
    Metrics: reward, frac_informative_prompts (fraction of prompts whose rewards
    differ), clip_fraction (of tokens).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> s = toy.scored(K=3)
    >>> token, whole = objectives.gspo_token(0.1, 0.2), objectives.gspo(0.1, 0.2)
    >>> gap = scored.evaluate(token, s).loss - scored.evaluate(whole, s).loss
    >>> abs(round(float(gap), 6))
    0.0
  """
  usual = (3e-4, 4e-4, None)
  _grpo.check_hparams("gspo_token", clip_low, clip_high, beta, None, usual=usual)
  per_completion = _grpo.standardised("gspo_token", scale_rewards)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    aux, state = per_completion(scored, state, key)
    return Aux(jnp.broadcast_to(aux.rows[..., None], scored.mask_BKT.shape)), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    own_BKT = scored.logp_BKT - jax.lax.stop_gradient(scored.logp_BKT)  # 0, with slope
    whole_BK = jax.lax.stop_gradient(_gspo.avg_log_ratio(scored))
    log_ratio_BKT = whole_BK[..., None] + masked.zero_padding(own_BKT, scored.mask_BKT)
    surrogate_args = (
      log_ratio_BKT,
      jnp.zeros_like(log_ratio_BKT),
      aux.rows,
      clip_low,
      clip_high,
    )
    token_BKT = policy_loss.clipped_surrogate(*surrogate_args)
    token_BKT = token_BKT + _grpo.kl_penalty(scored, beta)
    loss_B = _grpo.mean_of_prompt(scored, token_BKT)
    clipped_BKT = policy_loss.clipped_share(*surrogate_args)
    metrics = {"clip_fraction": policy_loss.token_mean(scored, clipped_BKT)}
    metrics |= _grpo.reward_metrics(scored)
    return Loss({"gspo_token": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="gspo_token",
    hparams={
      "clip_low": clip_low,
      "clip_high": clip_high,
      "beta": beta,
      "scale_rewards": scale_rewards,
    },
    layout=Layout.SAMPLED,
    stats=_rewards.stats(beta),
    loss=loss,
    columns=_grpo.COLUMNS,
    reads_tokens=True,
    prepare=prepare,
  )
