"""DPO-Shift: DPO with the reward of the rejected completion scaled down."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def dpo_shift(beta: float = 0.01, shift: float = 0.95) -> Objective:
  """DPO-Shift: DPO that pushes the rejected completion less, against displacement.

  L = -log sigma(beta log-ratio_w - lambda beta log-ratio_l)
  with 0 < lambda <= 1. The gradient of the rejected completion is lambda times DPO's
  at the same sigmoid: where the gradients of the two completions agree, the chosen one
  falls less and the margin grows less. lambda = 1 is `dpo`.

  Paper: Yang et al. 2025, arXiv:2502.07599v2, Eq. 3.
  Departs from the paper: lambda is constant, its `fixed` strategy, f(lambda) = lambda;
    of its two schedules, linear in the step to and from 1, there is none. lambda above
    1, which collapsed in the paper, is refused. The authors' trainer is not public;
    their configuration has beta 0.01.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to ref, per nat; > 0. Authors' configuration: 0.01.
    shift: lambda, the factor of the rejected reward; 0 < lambda <= 1. Paper: 0.5 to
      0.95; released models 0.95.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `dpo_shift`.
    Metrics: reward_* (nats, without lambda), reward_accuracy (fraction), logp_chosen,
    logp_rejected (nats per completion), as `dpo`.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> fell = scored.from_sequence_logps([[-2.0, -4.0]], [[1, 1]], [[0.0, 0.0]])
    >>> o = objectives.dpo_shift(beta=1.0, shift=0.5)
    >>> round(float(scored.evaluate(o, fell).loss), 4)  # -2 + 0.5 * 4 = 0: log 2
    0.6931
  """
  _hparams.check("dpo_shift", "beta", beta, usual=0.01, gt=0)
  _hparams.check("dpo_shift", "shift", shift, usual=0.95, gt=0, le=1)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = _rewards.rewards(scored, beta)
    loss_B = links.logistic(reward_BK[:, 0] - shift * reward_BK[:, 1])
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"dpo_shift": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="dpo_shift",
    hparams={"beta": beta, "shift": shift},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
  )
