"""BNPO (TRL): GRPO with one mean over the tokens of the batch."""

from xpo_jax.objectives import _grpo, _rewards
from xpo_jax.ops import policy_loss
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def bnpo(
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  beta: float | None = None,
  dual_clip: float | None = None,
  scale_rewards: str = "group",
) -> Objective:
  """BNPO as in TRL: GRPO averaged over all tokens of the batch at once.

  L = sum_{prompts, i, t} max(-A_i rho_t, -A_i clip(rho_t, 1 - e, 1 + e)) / all tokens
  with A_i = (r_i - mean r) / std r over the completions of a prompt.

  Paper: none of its own: a `loss_type` of TRL's GRPOTrainer, and how verl and TRL run
    DAPO (Yu et al. 2025, arXiv:2503.14476), whose formula averages prompt by prompt:
    `dapo`. The BNPO of Xiao et al. 2025, which divides rewards by a Beta density, is
    another method.
  Departs from the paper: TRL's mean is over one microbatch (its `dapo`: over all of
    them); a mean here is always over the whole batch, so that the two coincide.
  Reduction: one mean over all completion tokens of the batch.

  Args:
    clip_low: clip range of the ratio below 1; 0 <= e <= 1. TRL: 0.2.
    clip_high: clip range of the ratio above 1; >= 0. TRL: 0.2.
    beta: tie to ref through k3 as in `grpo`, per nat; > 0, or None. TRL: None.
    dual_clip: bound on the ratio where A < 0; > 1, or None. TRL: None.
    scale_rewards: population of the standard deviation: "group"; "batch", all
      completions of the update (Lite PPO, arXiv:2508.08221); "nothing", no division.
      TRL: group.

  Returns:
    Objective; layout SAMPLED; stats LOGP, and REF_LOGP unless beta is None; columns
    reward_BK, old_logp_BKT; reads tokens.
    Terms: `bnpo`.
    Metrics: those of `grpo`.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> same = [[[-1.0, -1.0, -1.0], [-2.0, 0.0, 0.0]]]
    >>> s = scored.from_token_logps(
    ...   same, [[[1, 1, 1], [1, 0, 0]]], old_logp_BKT=same, reward_BK=[[1.0, 0.0]]
    ... )
    >>> loss = scored.evaluate(objectives.bnpo(), s).loss
    >>> round(float(loss), 3)  # A = 0.5 / 0.7071 or its negative: -(3 A - A) / 4
    -0.354
  """
  _grpo.check_hparams("bnpo", clip_low, clip_high, beta, dual_clip)
  prepare = _grpo.standardised("bnpo", scale_rewards)

  def loss(scored: Scored, aux: Aux) -> Loss:
    token_BKT = _grpo.surrogate(scored, aux.rows, clip_low, clip_high, dual_clip)
    token_BKT = token_BKT + _grpo.kl_penalty(scored, beta)
    metrics = _grpo.clip_metrics(scored, aux.rows, clip_low, clip_high)
    return Loss({"bnpo": policy_loss.token_mean(scored, token_BKT)}, metrics)

  return Objective(
    name="bnpo",
    hparams={
      "clip_low": clip_low,
      "clip_high": clip_high,
      "beta": beta,
      "dual_clip": dual_clip,
      "scale_rewards": scale_rewards,
    },
    layout=Layout.SAMPLED,
    stats=_rewards.stats(beta),
    loss=loss,
    columns=_grpo.COLUMNS,
    reads_tokens=True,
    prepare=prepare,
  )
