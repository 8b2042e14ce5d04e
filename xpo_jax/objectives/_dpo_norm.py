"""Length-normalised DPO, as Tulu 3 trains with it."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, masked, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def dpo_norm(beta: float = 5.0) -> Objective:
  """Length-normalised DPO: DPO on log-ratios averaged per token.

  L = -log sigma(beta (a_w - a_l)),   a = log-ratio / tokens of the completion

  Paper: Lambert et al. 2024 (Tulu 3), arXiv:2411.15124, Eq. 6. Not in the survey.
  Departs from the paper: nothing known. TRL's "sigmoid_norm" agrees.
  Reduction: log-ratio averaged over tokens on each side; loss averaged over pairs.

  Args:
    beta: tie to ref, per nat per token; > 0. Paper: 5, some 10 to 100 times DPO's.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `dpo_norm`.
    Metrics: reward_* (beta times nats per token), reward_accuracy (fraction),
    logp_chosen, logp_rejected (nats per completion).

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> same = scored.from_sequence_logps([[-4.0, -2.0]], [[8, 4]], [[0.0, 0.0]])
    >>> round(float(scored.evaluate(objectives.dpo_norm(), same).loss), 4)
    0.6931
  """
  _hparams.check("dpo_norm", "beta", beta, usual=5, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    ratio_BK = _rewards.log_ratio(scored)
    reward_BK = beta * masked.per_token(ratio_BK, scored.length_BK)
    loss_B = links.logistic(reward_BK[:, 0] - reward_BK[:, 1])
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"dpo_norm": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="dpo_norm",
    hparams={"beta": beta},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
  )
