"""ListNet on implicit rewards."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import ranking, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def list_net(beta: float = 0.05, temperature: float = 1.0) -> Objective:
  """ListNet: cross-entropy from a softmax of the rewards to one of implicit rewards.

  L = - sum_i softmax(r / T)_i log softmax(s)_i,   s = beta log-ratio

  The policy that is optimal for the reward T^-1 r at this beta is its minimum.

  Paper: the loss is Cao et al. 2007, "Learning to rank: from pairwise approach to
    listwise approach" (not on arXiv), its top-one form; on implicit rewards as in Liu
    et al. 2024 (LiPO), arXiv:2402.01878. Survey 3.9.
  Departs from the paper: the temperature is ours (1 in the paper), because rewards have
    no natural scale. LiPO's softmax loss normalises the rewards by their sum:
    `lipo_softmax`.
  Reduction: log-ratio summed over tokens, cross-entropy over the list; loss averaged
    over prompts. Ties have equal probability.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.05 (LiPO).
    temperature: units of reward; > 0. Towards 0 only the best completion counts,
      towards infinity all equally. Paper: 1.

  Returns:
    Objective; layout RANKED; stats LOGP, REF_LOGP; columns reward_BK.
    Terms: `list_net`.
    Metrics: reward_chosen, reward_rejected (best and worst completion), reward_margin
    (nats), reward_accuracy (fraction of pairs), ndcg.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> same = [[-5.0, -7.0, -6.0, -9.0]]
    >>> s = scored.from_sequence_logps(same, same, same, reward_BK=[[2, 0, 1, 1]])
    >>> round(float(scored.evaluate(objectives.list_net(), s).loss), 4)  # log 4
    1.3863
  """
  _hparams.check("list_net", "beta", beta, usual=0.05, gt=0)
  _hparams.check("list_net", "temperature", temperature, usual=1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    score_BK = _rewards.rewards(scored, beta)
    target_BK = ranking.softmax(scored.reward_BK / temperature, scored.present_BK)
    loss_B = ranking.cross_entropy(score_BK, target_BK, scored.present_BK)
    metrics = ranking.metrics(scored, score_BK)
    return Loss({"list_net": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="list_net",
    hparams={"beta": beta, "temperature": temperature},
    layout=Layout.RANKED,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    columns=frozenset({"reward_BK"}),
  )
