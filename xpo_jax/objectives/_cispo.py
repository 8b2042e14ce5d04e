"""CISPO: policy gradient on every token with a clipped importance weight."""

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _grpo, _hparams, _rewards
from xpo_jax.ops import policy_loss
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def cispo(
  max_ratio: float = 5.0,
  beta: float | None = None,
  scale_rewards: str = "group",
) -> Objective:
  """CISPO: token-level REINFORCE weighted by a clipped ratio; no token is dropped.

  L = - sum_i sum_t sg(min(rho_t, max_ratio)) A_i log pi(y_t) / sum_i |y_i|
  over the completions of a prompt, A_i = (r_i - mean r) / std r. PPO's clip
  removes the gradient of clipped tokens; here only their weight is bounded.

  Paper: MiniMax 2025 (MiniMax-M1), arXiv:2506.13585, Eq. 4 and 5.
  Departs from the paper: the paper writes the bound as 1 + e_high without a value; the
    default is TRL's recommendation. The paper's lower bound is so low that it never
    applies: left out, as in TRL. `beta` is TRL's and not the paper's.
  Reduction: one mean over all tokens of a prompt's completions, mean over prompts. No
    gradient through the weight. A surrogate: only the gradient of the loss is
    meaningful.

  Args:
    max_ratio: bound on the weight of a token; > 0. Paper: not stated. TRL: 5.
    beta: tie to ref through k3 as in `grpo`, per nat; > 0, or None. Paper: None.
    scale_rewards: population of the standard deviation: "group"; "batch", all
      completions of the update (Lite PPO, arXiv:2508.08221); "nothing", no division.
      Paper: group.

  Returns:
    Objective; layout SAMPLED; stats LOGP, and REF_LOGP unless beta is None; columns
    reward_BK, old_logp_BKT; reads tokens.
    Terms: `cispo`.
    Metrics: reward, frac_informative_prompts (fraction of prompts whose rewards
    differ), clip_fraction (of tokens).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> s = scored.from_token_logps(
    ...   [[[-1.0], [-3.0]]],
    ...   [[[1], [1]]],
    ...   old_logp_BKT=[[[-1.0], [-3.0]]],
    ...   reward_BK=[[1.0, 0.0]],
    ... )
    >>> loss = scored.evaluate(objectives.cispo(), s).loss
    >>> round(float(loss), 3)  # A = 0.5 / 0.7071 or its negative: A (1 - 3) / 2
    -0.707
  """
  _hparams.check("cispo", "max_ratio", max_ratio, usual=5, gt=0)
  _hparams.check_optional_beta("cispo", beta, usual=None)
  prepare = _grpo.standardised("cispo", scale_rewards)

  def loss(scored: Scored, aux: Aux) -> Loss:
    rho_BKT = policy_loss.ratio(scored.logp_BKT, scored.old_logp_BKT)
    weight_BKT = jax.lax.stop_gradient(jnp.minimum(rho_BKT, max_ratio))
    advantage_BKT = weight_BKT * aux.rows[..., None]
    token_BKT = policy_loss.policy_gradient(scored.logp_BKT, advantage_BKT)
    token_BKT = token_BKT + _grpo.kl_penalty(scored, beta)
    loss_B = _grpo.token_mean_of_prompt(scored, token_BKT)
    clipped_BKT = jnp.where(rho_BKT > max_ratio, 1.0, 0.0)
    metrics = {"clip_fraction": policy_loss.token_mean(scored, clipped_BKT)}
    metrics |= _grpo.reward_metrics(scored)
    return Loss({"cispo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="cispo",
    hparams={"max_ratio": max_ratio, "beta": beta, "scale_rewards": scale_rewards},
    layout=Layout.SAMPLED,
    stats=_rewards.stats(beta),
    loss=loss,
    columns=_grpo.COLUMNS,
    reads_tokens=True,
    prepare=prepare,
  )
