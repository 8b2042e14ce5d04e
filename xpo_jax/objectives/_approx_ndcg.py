"""ApproxNDCG on implicit rewards."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import ranking, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def approx_ndcg(beta: float = 0.1) -> Objective:
  """ApproxNDCG: the NDCG of the list with smoothed ranks.

  L = - sum_i (2^g_i - 1) / log2(1 + rank_i) / ideal,   s = beta log-ratio,
  rank_i = 1 + sum_{j != i} sigma(s_j - s_i), g the rewards minus the worst one.

  Paper: the loss is Qin, Liu and Li 2010 (not on arXiv; see `ranking`); on implicit
    rewards as in Zhao et al. 2024 (OPO), arXiv:2410.04346, which prefers another smooth
    NDCG.
  Departs from the paper: grades are relative to the worst completion of the list, so
    that any real reward has gains >= 0; the same where the worst grade is 0. The
    temperature of the smooth rank is 1 / beta.
  Reduction: log-ratio summed over tokens; loss averaged over prompts; -1 is perfect. A
    list in which no completion is better than another gives 0.

  Args:
    beta: tie to ref, and sharpness of the ranks, per nat; > 0. Paper: value not
      found; 0.1 is DPO's. Large values rank exactly and have no gradient.

  Returns:
    Objective; layout RANKED; stats LOGP, REF_LOGP; columns reward_BK (grades; 2^g grows
    fast beyond 10).
    Terms: `approx_ndcg`.
    Metrics: reward_chosen, reward_rejected (best and worst completion), reward_margin
    (nats), reward_accuracy (fraction of pairs), ndcg (the exact one).

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example: two completions, no margin: both ranks are 1.5.
    >>> import math
    >>> from xpo_jax import objectives, scored
    >>> s = scored.from_sequence_logps(
    ...   [[-5, -7]], [[5, 5]], [[-5, -7]], reward_BK=[[1, 0]]
    ... )
    >>> loss = scored.evaluate(objectives.approx_ndcg(), s).loss
    >>> round(float(loss) + 1 / math.log2(1 + 1.5), 6)
    0.0
  """
  _hparams.check("approx_ndcg", "beta", beta, usual=0.1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    score_BK = _rewards.rewards(scored, beta)
    present_BK = scored.present_BK
    grade_BK = ranking.above_worst(scored.reward_BK, present_BK)
    rank_BK = ranking.approximate_rank(score_BK, present_BK)
    loss_B = -ranking.ndcg(rank_BK, grade_BK, present_BK)
    metrics = ranking.metrics(scored, score_BK)
    return Loss({"approx_ndcg": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="approx_ndcg",
    hparams={"beta": beta},
    layout=Layout.RANKED,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    columns=frozenset({"reward_BK"}),
  )
