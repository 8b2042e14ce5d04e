"""R-DPO: DPO with a length penalty in the reward."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def r_dpo(beta: float = 0.1, alpha: float = 0.01) -> Objective:
  """R-DPO: DPO with the length-penalised reward r - alpha |y|.

  L = -log sigma(beta (log-ratio_w - log-ratio_l) + alpha (|y_w| - |y_l|))
  with |y| in tokens: a longer chosen completion explains part of the preference.

  Paper: Park et al. 2024, arXiv:2403.19159, Eq. 9. Survey 3.8.1.
  Departs from the paper: nothing known; no authors' code was found. The sign is that of
    the derivation and of SamPO's code; texts that subtract the term mean alpha < 0.
    alpha is not multiplied by beta.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1.
    alpha: penalty per token, nats; > 0 for shorter completions, < 0 for longer. Paper:
      value not found; SamPO's script: 0.01. 0 gives DPO.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `r_dpo`.
    Metrics: reward_* (nats, without length), reward_accuracy (fraction), logp_chosen,
    logp_rejected (nats per completion), length_gap (tokens, chosen minus rejected).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> s = scored.from_sequence_logps([[-3.0, -2.0]], [[110, 100]], [[0.0, 0.0]])
    >>> o = objectives.r_dpo(beta=0.1, alpha=0.01)
    >>> round(float(scored.evaluate(o, s).loss), 4)  # 0.1 (-3 + 2) + 0.01 * 10 = 0
    0.6931
  """
  _hparams.check("r_dpo", "beta", beta, usual=0.1, gt=0)
  _hparams.check("r_dpo", "alpha", alpha, usual=0.01)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = _rewards.rewards(scored, beta)
    length_gap_B = scored.length_BK[:, 0] - scored.length_BK[:, 1]
    margin_B = reward_BK[:, 0] - reward_BK[:, 1]
    loss_B = links.logistic(margin_B + alpha * length_gap_B)
    metrics = _rewards.reward_metrics(scored, reward_BK)
    metrics |= _rewards.logp_metrics(scored) | {
      "length_gap": scored.mean_B(length_gap_B)
    }
    return Loss({"r_dpo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="r_dpo",
    hparams={"beta": beta, "alpha": alpha},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
  )
