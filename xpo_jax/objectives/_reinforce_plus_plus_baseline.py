"""REINFORCE++ with a baseline: the group's mean reward, the batch's deviation."""

import jax.numpy as jnp

from xpo_jax.objectives import _grpo, _reinforce_plus_plus, _rewards
from xpo_jax.ops import divergences, groups, policy_loss
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State


def reinforce_plus_plus_baseline(
  clip_low: float = 0.2, clip_high: float = 0.2, beta: float | None = 0.01
) -> Objective:
  """REINFORCE++ with a baseline: group-mean rewards, normalised over the whole batch.

  L = mean_i 1/|y_i| sum_t [max(-A_i rho_t, -A_i clip(rho_t, 1 - e, 1 + e)) + beta k2_t]
  with A_i = r_i - mean r over the completions of a prompt, then minus its mean and
  divided by its deviation over all tokens of the batch; k2 = (log pi/ref)^2 / 2, whose
  gradient on samples of the policy is that of KL(policy || ref).

  Paper: Hu et al. 2025, arXiv:2501.03262v9, Eq. 1, 6, 7 and 8.
  Departs from the paper: eps and variance as `reinforce_plus_plus`. The paper ties by
    a separate k2 loss (its lambda is our beta); the authors' code (OpenRLHF:
    `reinforce_baseline`) and verl's script take the penalty into the reward by default,
    after the group mean is subtracted: the paper's form is this one. The batch is that
    of an update. `grpo(scale_rewards="batch")` divides by the deviation of the rewards
    themselves, not of the centred ones.
  Reduction: mean over a completion's tokens, mean over a prompt's completions, mean
    over prompts. No gradient through A.

  Args:
    clip_low: clip range of the ratio below 1; 0 <= e <= 1. Paper: not stated; 0.2.
    clip_high: clip range of the ratio above 1; >= 0. Paper: not stated; 0.2.
    beta: tie to ref, per nat; > 0, or None for no tie and no reference. Paper: not
      stated. Authors' code: 0.01, in the reward.

  Returns:
    Objective; layout SAMPLED; stats LOGP, and REF_LOGP unless beta is None; columns
    reward_BK, old_logp_BKT; reads tokens.
    Terms: `reinforce_plus_plus_baseline`.
    Metrics: reward, frac_informative_prompts (fraction of prompts whose rewards
    differ), clip_fraction (of tokens).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> same = [[[-1.0], [-3.0]]]
    >>> s = scored.from_token_logps(
    ...   same, [[[1], [1]]], old_logp_BKT=same, reward_BK=[[1.0, 0.0]]
    ... )
    >>> o = objectives.reinforce_plus_plus_baseline(beta=None)
    >>> abs(round(float(scored.evaluate(o, s).loss), 4))  # A = 1 and -1, ratios 1
    0.0
  """
  name = "reinforce_plus_plus_baseline"
  usual = (0.2, 0.2, 0.01)
  _grpo.check_hparams(name, clip_low, clip_high, beta, None, usual=usual)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    centred_BK = groups.centre(scored.reward_BK, scored.present_BK)
    centred_BKT = jnp.broadcast_to(centred_BK[..., None], scored.mask_BKT.shape)
    return Aux(_reinforce_plus_plus.normalised(scored, centred_BKT)), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    token_BKT, clipped_BKT = _reinforce_plus_plus.token_surrogate(
      scored, aux.rows, clip_low, clip_high
    )
    if beta is not None:
      kl_BKT = divergences.k2(scored.logp_BKT - scored.ref_logp_BKT)
      token_BKT = token_BKT + beta * kl_BKT
    loss_B = _grpo.mean_of_prompt(scored, token_BKT)
    metrics = _grpo.reward_metrics(scored)
    metrics |= {"clip_fraction": policy_loss.token_mean(scored, clipped_BKT)}
    return Loss({name: scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name=name,
    hparams={"clip_low": clip_low, "clip_high": clip_high, "beta": beta},
    layout=Layout.SAMPLED,
    stats=_rewards.stats(beta),
    loss=loss,
    columns=_grpo.COLUMNS,
    reads_tokens=True,
    prepare=prepare,
  )
