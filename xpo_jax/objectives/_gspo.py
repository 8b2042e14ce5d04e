"""GSPO: GRPO with one importance ratio per completion."""

import jax.numpy as jnp

from xpo_jax.objectives import _grpo, _rewards
from xpo_jax.ops import masked, policy_loss
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def avg_log_ratio(scored: Scored) -> Array:
  """log pi(y|x) - log pi_old(y|x) per token of the completion, nats, `[B, K]`."""
  log_ratio_BK = masked.sum_T(scored.logp_BKT - scored.old_logp_BKT, scored.mask_BKT)
  return masked.per_token(log_ratio_BK, scored.length_BK)


def gspo(
  clip_low: float = 3e-4,
  clip_high: float = 4e-4,
  beta: float | None = None,
  scale_rewards: str = "group",
) -> Objective:
  """GSPO: GRPO with a length-normalised sequence ratio in place of token ratios.

  L = mean_i max(-A_i s_i, -A_i clip(s_i, 1 - e_low, 1 + e_high))
  with s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|), A_i = (r_i - mean r) / std r over the
  completions of a prompt: reward, ratio and clip all refer to the whole completion.

  Paper: Zheng et al. 2025, arXiv:2507.18071, Eq. 5; the ratio is Eq. 7.
  Departs from the paper: nothing known; the standard deviation is that of `grpo`.
    `beta` adds k3 averaged over each completion's tokens: TRL's, and not in the paper's
    experiments.
  Reduction: mean over a prompt's completions, mean over prompts.

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
    Terms: `gspo`.
    Metrics: reward, frac_informative_prompts (fraction of prompts whose rewards
    differ), clip_fraction (of completions).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> s = toy.scored(K=3)
    >>> s = s.replace(old_logp_BKT=s.logp_BKT)  # ratio 1: the advantages sum to 0
    >>> abs(round(float(scored.evaluate(objectives.gspo(), s).loss), 4))
    0.0
  """
  usual = (3e-4, 4e-4, None)
  _grpo.check_hparams("gspo", clip_low, clip_high, beta, None, usual=usual)
  prepare = _grpo.standardised("gspo", scale_rewards)

  def loss(scored: Scored, aux: Aux) -> Loss:
    log_ratio_BK = avg_log_ratio(scored)
    surrogate_args = (
      log_ratio_BK,
      jnp.zeros_like(log_ratio_BK),
      aux.rows,
      clip_low,
      clip_high,
    )
    surrogate_BK = policy_loss.clipped_surrogate(*surrogate_args)
    token_BKT = surrogate_BK[..., None] + _grpo.kl_penalty(scored, beta)
    loss_B = _grpo.mean_of_prompt(scored, token_BKT)
    metrics = {
      "clip_fraction": scored.mean_BK(policy_loss.clipped_share(*surrogate_args))
    }
    metrics |= _grpo.reward_metrics(scored)
    return Loss({"gspo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="gspo",
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
