"""APO-zero: raises the chosen completion and lowers the rejected one."""

import jax

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def apo_zero(beta: float = 0.1) -> Objective:
  """APO-zero: raises the chosen completion and lowers the rejected one, both bounded.

  L = (1 - sigma(beta u_w)) + sigma(beta u_l),   u = log-ratio of a completion

  For chosen completions that are better than the model's own; else see `apo_down`.

  Paper: D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7.
  Departs from the paper: nothing up to a constant; TRL's 1 is kept, so that the loss
    lies in (0, 2). The gradient nearly vanishes for |beta u| beyond about 6.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `apo_zero`.
    Metrics: reward_* (nats), reward_accuracy (fraction), logp_chosen, logp_rejected
    (nats per completion).

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> float(scored.evaluate(objectives.apo_zero(), first_step).loss)  # 1/2 + 1/2
    1.0
  """
  _hparams.check("apo_zero", "beta", beta, usual=0.1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = _rewards.rewards(scored, beta)
    # sigma(-x) instead of 1 - sigma(x): no cancellation.
    loss_B = jax.nn.sigmoid(-reward_BK[:, 0]) + jax.nn.sigmoid(reward_BK[:, 1])
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"apo_zero": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="apo_zero",
    hparams={"beta": beta},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
  )
