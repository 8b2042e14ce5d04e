"""GMPO: GRPO with the geometric mean of the token ratios of a completion."""

import jax.numpy as jnp

from xpo_jax.objectives import _grpo, _hparams, _rewards
from xpo_jax.ops import masked, policy_loss
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def _clipped_log_ratio(
  scored: Scored,
  advantage_BK: Array,
  clip_low: float | Array,
  clip_high: float | Array,
) -> tuple[Array, Array]:
  """Log-ratio of each token, clipped on the side that its advantage moves it to, and 1
  where it is clipped."""
  log_ratio_BKT = scored.logp_BKT - scored.old_logp_BKT
  sign_BK1 = jnp.sign(advantage_BK)[..., None]
  within_BKT = jnp.clip(log_ratio_BKT, -clip_low, clip_high)
  is_clipped_BKT = sign_BK1 * within_BKT < sign_BK1 * log_ratio_BKT
  clipped_BKT = jnp.where(is_clipped_BKT, within_BKT, log_ratio_BKT)
  return clipped_BKT, is_clipped_BKT.astype(log_ratio_BKT.dtype)


def gmpo(
  clip_low: float = 0.4,
  clip_high: float = 0.4,
  beta: float | None = None,
  scale_rewards: str = "group",
) -> Objective:
  """GMPO: GRPO with the geometric mean of the token ratios, each clipped by itself.

  L = mean_i -A_i exp(1/|y_i| sum_t l_t),
  l_t = sgn(A_i) min(sgn(A_i) u_t, sgn(A_i) clip(u_t, -c_low, c_high))
  with u_t = log(pi(y_t) / pi_old(y_t)), A_i = (r_i - mean r) / std r over the
  completions of a prompt. The geometric mean is at most the arithmetic one, and one
  token of an extreme ratio moves it less.

  Paper: Zhao et al. 2025, arXiv:2507.20673v3, Eq. 4.
  Departs from the paper: nothing in the loss; it is computed in log space, as the paper
    says and its code does. Its clip thresholds (e^-0.4, e^0.4) are c_low = c_high =
    0.4 here. The standard deviation is that of `grpo`. `beta` adds k3 averaged over
    each completion's tokens, as in `gspo`: TRL's, not the paper's. `gspo` clips the
    mean of the log-ratios, this each log-ratio.
  Reduction: mean over a completion's tokens inside the exponential; mean over a
    prompt's completions, mean over prompts.

  Args:
    clip_low: clip range of the log-ratio below 0, nats; >= 0. Paper: 0.4.
    clip_high: clip range of the log-ratio above 0, nats; >= 0. Paper: 0.4.
    beta: tie to ref, per nat; > 0, or None for no tie and no reference. Paper: None.
    scale_rewards: population of the standard deviation: "group"; "batch", all
      completions of the update (Lite PPO, arXiv:2508.08221); "nothing", no division.
      Paper: group.

  Returns:
    Objective; layout SAMPLED; stats LOGP, and REF_LOGP unless beta is None; columns
    reward_BK, old_logp_BKT; reads tokens.
    Terms: `gmpo`.
    Metrics: reward, frac_informative_prompts (fraction of prompts whose rewards
    differ), clip_fraction (of tokens).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> logp = [[[-1.0, -1.2], [-2.0, -2.0]]]  # ratios e^0.3 and e^-0.1, and 1
    >>> old = [[[-1.3, -1.1], [-2.0, -2.0]]]
    >>> s = scored.from_token_logps(
    ...   logp, [[[1, 1], [1, 1]]], old_logp_BKT=old, reward_BK=[[1.0, 0.0]]
    ... )
    >>> loss = scored.evaluate(objectives.gmpo(), s).loss
    >>> round(float(loss), 4)  # A = 0.5 / 0.7071: -A (e^0.1 - 1) / 2
    -0.0372
  """
  _hparams.check("gmpo", "clip_low", clip_low, usual=0.4, ge=0)
  _hparams.check("gmpo", "clip_high", clip_high, usual=0.4, ge=0)
  _hparams.check_optional_beta("gmpo", beta, usual=None)

  def loss(scored: Scored, aux: Aux) -> Loss:
    log_ratio_BKT, clipped_BKT = _clipped_log_ratio(
      scored, aux.rows, clip_low, clip_high
    )
    mean_BK = masked.mean_T(log_ratio_BKT, scored.mask_BKT)
    ratio_BK = policy_loss.ratio(mean_BK, jnp.zeros_like(mean_BK))
    token_BKT = -(aux.rows * ratio_BK)[..., None] + _grpo.kl_penalty(scored, beta)
    loss_B = _grpo.mean_of_prompt(scored, token_BKT)
    metrics = {"clip_fraction": policy_loss.token_mean(scored, clipped_BKT)}
    metrics |= _grpo.reward_metrics(scored)
    return Loss({"gmpo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="gmpo",
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
    prepare=_grpo.standardised("gmpo", scale_rewards),
  )
