"""SAPO: GRPO with a smooth gate of the ratio in place of the clip."""

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _grpo, _hparams, _rewards
from xpo_jax.ops import policy_loss
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def sapo(
  tau_pos: float = 1.0,
  tau_neg: float = 1.05,
  beta: float | None = None,
  scale_rewards: str = "group",
) -> Objective:
  """SAPO: GRPO whose clip is a sigmoid gate: tokens far from ratio 1 weigh less.

  L = mean_i 1/|y_i| sum_t -A_i (4 / tau) sigma(tau (rho_t - 1))
  with tau = tau_pos where A_i > 0, else tau_neg; A_i = (r_i - mean r) / std r over the
  completions of a prompt, rho_t = pi(y_t) / pi_old(y_t). A token's gradient is that of
  the unclipped loss times 4 p (1 - p), p = sigma(tau (rho_t - 1)): 1 at ratio 1 for any
  tau, falling on both sides.

  Paper: Gao et al. 2025, arXiv:2511.20347v2, Eq. 5 and 6.
  Departs from the paper: nothing known; the standard deviation is that of `grpo`.
    `beta` is TRL's and not the paper's.
  Reduction: mean over a completion's tokens, mean over a prompt's completions, mean
    over prompts. At ratio 1 the value is -2 A / tau: only the gradient compares with
    that of `grpo`.

  Args:
    tau_pos: steepness of the gate where A > 0; > 0. Paper: 1.0.
    tau_neg: steepness of the gate where A <= 0; > 0. Paper: 1.05, above tau_pos, so
      that the gradients of negative tokens, which raise all other tokens, fall faster.
    beta: tie to ref through k3 as in `grpo`, per nat; > 0, or None. Paper: None.
    scale_rewards: population of the standard deviation: "group"; "batch", all
      completions of the update (Lite PPO, arXiv:2508.08221); "nothing", no division.
      Paper: group.

  Returns:
    Objective; layout SAMPLED; stats LOGP, and REF_LOGP unless beta is None; columns
    reward_BK, old_logp_BKT; reads tokens.
    Terms: `sapo`.
    Metrics: reward, frac_informative_prompts (fraction of prompts whose rewards
    differ), gate (mean of 4 p (1 - p) over tokens, a factor).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> same = [[[-1.0], [-3.0]]]
    >>> s = scored.from_token_logps(
    ...   same, [[[1], [1]]], old_logp_BKT=same, reward_BK=[[1.0, 0.0]]
    ... )
    >>> loss = scored.evaluate(objectives.sapo(1.0, 2.0), s).loss
    >>> round(float(loss), 3)  # A = 0.5 / 0.7071 or its negative: (-2 A + A) / 2
    -0.354
  """
  _hparams.check("sapo", "tau_pos", tau_pos, usual=1, gt=0)
  _hparams.check("sapo", "tau_neg", tau_neg, usual=1.05, gt=0)
  _hparams.check_optional_beta("sapo", beta, usual=None)

  def gate(scored: Scored, advantage_BK: Array) -> tuple[Array, Array]:
    """Temperature `[B, K, 1]`, and sigma(tau (rho - 1)), `[B, K, T]`."""
    rho_BKT = policy_loss.ratio(scored.logp_BKT, scored.old_logp_BKT)
    tau_BK1 = jnp.where(advantage_BK > 0, tau_pos, tau_neg)[..., None]
    return tau_BK1, jax.nn.sigmoid(tau_BK1 * (rho_BKT - 1))

  def loss(scored: Scored, aux: Aux) -> Loss:
    tau_BK1, p_BKT = gate(scored, aux.rows)
    token_BKT = -aux.rows[..., None] * p_BKT * (4 / tau_BK1)
    token_BKT = token_BKT + _grpo.kl_penalty(scored, beta)
    loss_B = _grpo.mean_of_prompt(scored, token_BKT)
    metrics = {"gate": policy_loss.token_mean(scored, 4 * p_BKT * (1 - p_BKT))}
    metrics |= _grpo.reward_metrics(scored)
    return Loss({"sapo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="sapo",
    hparams={
      "tau_pos": tau_pos,
      "tau_neg": tau_neg,
      "beta": beta,
      "scale_rewards": scale_rewards,
    },
    layout=Layout.SAMPLED,
    stats=_rewards.stats(beta),
    loss=loss,
    columns=_grpo.COLUMNS,
    reads_tokens=True,
    prepare=_grpo.standardised("sapo", scale_rewards),
  )
