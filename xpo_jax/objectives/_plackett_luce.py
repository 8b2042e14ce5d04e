"""Plackett-Luce DPO: DPO on whole rankings."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import ranking, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def plackett_luce(beta: float = 0.1) -> Objective:
  """Plackett-Luce DPO: the likelihood of a whole ranking under implicit rewards.

  L = - sum_i log [exp(s_i) / sum_{j not better than i} exp(s_j)],  s = beta log-ratio

  Paper: Rafailov et al. 2023 (DPO), arXiv:2305.18290, Appendix; called DPO_PL by LiPO.
  Departs from the paper: the paper has no ties. Here tied completions compete with each
    other and with the worse ones (Breslow's rule): a tie draws their scores together,
    and no column is favoured. `list_mle` breaks ties at random instead.
  Reduction: log-ratio summed over tokens, likelihood over the ranks of the list; loss
    averaged over prompts, so that a long list weighs more. A list of one gives 0.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1 (for pairs).

  Returns:
    Objective; layout RANKED; stats LOGP, REF_LOGP; columns reward_BK (higher is better,
    only its order counts).
    Terms: `plackett_luce`.
    Metrics: reward_chosen, reward_rejected (best and worst completion), reward_margin
    (nats), reward_accuracy (fraction of pairs), ndcg.

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> same = [[-5.0, -7.0, -6.0]]
    >>> s = scored.from_sequence_logps(same, same, same, reward_BK=[[2, 0, 1]])
    >>> loss = scored.evaluate(objectives.plackett_luce(), s).loss
    >>> round(float(loss), 4)  # one order of 3!, so log 6
    1.7918
  """
  _hparams.check("plackett_luce", "beta", beta, usual=0.1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    score_BK = _rewards.rewards(scored, beta)
    loss_B = -ranking.plackett_luce(score_BK, scored.reward_BK, scored.present_BK)
    metrics = ranking.metrics(scored, score_BK)
    return Loss({"plackett_luce": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="plackett_luce",
    hparams={"beta": beta},
    layout=Layout.RANKED,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    columns=frozenset({"reward_BK"}),
  )
