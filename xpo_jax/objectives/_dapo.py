"""DAPO: GRPO with a higher upper clip and one mean over the tokens of a prompt."""

import chex
import jax.numpy as jnp

from xpo_jax.objectives import _grpo, _rewards
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def overlong_penalty(
  length_BK: Array, longest: float | Array, buffer: float | Array
) -> Array:
  """DAPO's soft overlong punishment, added to the reward: from 0 down to -1.

  Paper: Yu et al. 2025, arXiv:2503.14476, Eq. 13.

  Args:
    length_BK: tokens of each completion.
    longest: length at which the penalty reaches -1, in tokens. Paper: 20480.
    buffer: number of tokens over which it decreases; > 0. Paper: 4096.
  """
  chex.assert_rank(length_BK, 2)
  return -jnp.clip((length_BK - longest) / buffer + 1, 0, 1)


def dapo(
  clip_low: float = 0.2,
  clip_high: float = 0.28,
  beta: float | None = None,
  dual_clip: float | None = None,
  scale_rewards: str = "group",
) -> Objective:
  """DAPO: GRPO with a higher upper clip and equal weight for every token.

  L = sum_i sum_t max(-A_i rho_t, -A_i clip(rho_t, 1 - e_low, 1 + e_high)) / sum_i |y_i|
  over the completions of a prompt, A_i = (r_i - mean r) / std r.

  Paper: Yu et al. 2025, arXiv:2503.14476, Eq. 8.
  Departs from the paper: nothing in the loss; the standard deviation is that of `grpo`.
    Its code and TRL take one mean over the tokens of all prompts: that is `bnpo`.
    The paper's other parts are options of a run, for any objective: dynamic sampling,
    `Rollouts.dynamic_sampling`; the soft overlong punishment, `overlong_penalty`, is
    `Feedback.overlong_buffer`; overlong filtering, `Feedback.overlong_filtering`.
    `experiments/dapo.py` uses all. `beta` and `dual_clip` are TRL's and not the
    paper's.
  Reduction: one mean over all tokens of a prompt's completions, mean over prompts.

  Args:
    clip_low: clip range of the ratio below 1; 0 <= e <= 1. Paper: 0.2.
    clip_high: clip range of the ratio above 1; >= 0. Paper: 0.28.
    beta: tie to ref through k3 as in `grpo`, per nat; > 0, or None. Paper: None.
    dual_clip: bound on the ratio where A < 0; > 1, or None. Paper: None.
    scale_rewards: population of the standard deviation: "group"; "batch", all
      completions of the update (Lite PPO, arXiv:2508.08221); "nothing", no division.
      Paper: group.

  Returns:
    Objective; layout SAMPLED; stats LOGP, and REF_LOGP unless beta is None; columns
    reward_BK, old_logp_BKT; reads tokens.
    Terms: `dapo`.
    Metrics: those of `grpo`.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> same = [[[-1.0, -1.0, -1.0], [-2.0, 0.0, 0.0]]]
    >>> s = scored.from_token_logps(
    ...   same, [[[1, 1, 1], [1, 0, 0]]], old_logp_BKT=same, reward_BK=[[1.0, 0.0]]
    ... )
    >>> loss = scored.evaluate(objectives.dapo(), s).loss
    >>> round(float(loss), 3)  # A = 0.5 / 0.7071 or its negative: -(3 A - A) / 4
    -0.354
  """
  usual = (0.2, 0.28, None)
  _grpo.check_hparams("dapo", clip_low, clip_high, beta, dual_clip, usual=usual)
  prepare = _grpo.standardised("dapo", scale_rewards)

  def loss(scored: Scored, aux: Aux) -> Loss:
    token_BKT = _grpo.surrogate(scored, aux.rows, clip_low, clip_high, dual_clip)
    token_BKT = token_BKT + _grpo.kl_penalty(scored, beta)
    loss_B = _grpo.token_mean_of_prompt(scored, token_BKT)
    metrics = _grpo.clip_metrics(scored, aux.rows, clip_low, clip_high)
    return Loss({"dapo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="dapo",
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
