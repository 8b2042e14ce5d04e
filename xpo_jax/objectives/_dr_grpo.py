"""Dr. GRPO: GRPO without the length and standard-deviation normalisations."""

from xpo_jax.objectives import _grpo, _hparams, _rewards
from xpo_jax.ops import groups, masked
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State


def dr_grpo(
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  length: float = 1.0,
  beta: float | None = None,
  dual_clip: float | None = None,
) -> Objective:
  """Dr. GRPO: GRPO without division by the standard deviation and the length.

  L = mean_i 1/length sum_t max(-A_i rho_t, -A_i clip(rho_t, 1 - e, 1 + e))
  with A_i = r_i - mean r over the completions of a prompt: at ratio 1 the gradient is
  (K - 1) / K of the policy gradient's, in expectation, for any lengths.

  Paper: Liu et al. 2025, arXiv:2503.20783, Eq. 2.
  Departs from the paper: nothing known. `length` is that of the paper's code, which
    divides by the longest allowed completion; the formula has none (1). `beta` and
    `dual_clip` are TRL's and not the paper's.
  Reduction: sum over tokens divided by `length`, mean over a prompt's completions, mean
    over prompts. Every token weighs the same.

  Args:
    clip_low: clip range of the ratio below 1; 0 <= e <= 1. Paper: not stated; 0.2.
    clip_high: clip range of the ratio above 1; >= 0. Paper: not stated; 0.2.
    length: constant divisor of the sum over tokens, in tokens; > 0. Paper: 1 in the
      formula, the generation budget in the code.
    beta: tie to ref through k3 as in `grpo`, per nat; > 0, or None. Paper: None.
    dual_clip: bound on the ratio where A < 0; > 1, or None. Paper: None.

  Returns:
    Objective; layout SAMPLED; stats LOGP, and REF_LOGP unless beta is None; columns
    reward_BK, old_logp_BKT; reads tokens.
    Terms: `dr_grpo`.
    Metrics: those of `grpo`.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> s = scored.from_token_logps(
    ...   [[[-1.0, -1.0], [-2.0, 0.0]]],
    ...   [[[1, 1], [1, 0]]],
    ...   old_logp_BKT=[[[-1.0, -1.0], [-2.0, 0.0]]],
    ...   reward_BK=[[1.0, 0.0]],
    ... )
    >>> float(scored.evaluate(objectives.dr_grpo(), s).loss)  # (-0.5 * 2 + 0.5 * 1) / 2
    -0.25
  """
  _grpo.check_hparams("dr_grpo", clip_low, clip_high, beta, dual_clip)
  _hparams.check("dr_grpo", "length", length, usual=1, gt=0)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    return Aux(groups.centre(scored.reward_BK, scored.present_BK)), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    token_BKT = _grpo.surrogate(scored, aux.rows, clip_low, clip_high, dual_clip)
    token_BKT = token_BKT + _grpo.kl_penalty(scored, beta)
    loss_BK = masked.sum_T(token_BKT, scored.mask_BKT) / length
    loss_B = groups.mean(loss_BK, scored.present_BK)
    metrics = _grpo.clip_metrics(scored, aux.rows, clip_low, clip_high)
    return Loss({"dr_grpo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="dr_grpo",
    hparams={
      "clip_low": clip_low,
      "clip_high": clip_high,
      "length": length,
      "beta": beta,
      "dual_clip": dual_clip,
    },
    layout=Layout.SAMPLED,
    stats=_rewards.stats(beta),
    loss=loss,
    columns=_grpo.COLUMNS,
    reads_tokens=True,
    prepare=prepare,
  )
