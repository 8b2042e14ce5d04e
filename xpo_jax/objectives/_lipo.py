"""LiPO-lambda, and LiPO's softmax loss."""

import math

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import ranking, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored

_STATS = frozenset({token_stats.LOGP, token_stats.REF_LOGP})
_COLUMNS = frozenset({"reward_BK"})


def lipo_softmax(beta: float = 0.05) -> Objective:
  """LiPO's softmax loss: cross-entropy to the target r_i / sum_j r_j, rewards >= 0.

  Whether LiPO divides by the sum is not known; otherwise each list is weighted by
  its sum. Layout RANKED; stats LOGP, REF_LOGP; columns reward_BK. Terms:
  `lipo_softmax`.
  """
  _hparams.check("lipo_softmax", "beta", beta, usual=0.05, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    score_BK = _rewards.rewards(scored, beta)
    target_BK = ranking.shares(scored.reward_BK, scored.present_BK)
    loss_B = ranking.cross_entropy(score_BK, target_BK, scored.present_BK)
    metrics = ranking.metrics(scored, score_BK)
    return Loss({"lipo_softmax": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="lipo_softmax",
    hparams={"beta": beta},
    layout=Layout.RANKED,
    stats=_STATS,
    loss=loss,
    columns=_COLUMNS,
  )


def lipo(beta: float = 0.05) -> Objective:
  """LiPO-lambda: DPO on all pairs of a list, weighted by the DCG change of a swap.

  L = sum_{r_i > r_j} D_ij (-log sigma(s_i - s_j)),   s = beta log-ratio,
  D_ij = |2^r_i - 2^r_j| |1/ln(1 + rank_i) - 1/ln(1 + rank_j)|, ranks by descending s.

  Paper: Liu et al. 2024, arXiv:2402.01878. Survey 3.9.
  Departs from the paper: nothing known; no authors' code is public. Normalised gains
    and log2 in the discount (allRank) multiply it by ln 2 / ideal DCG. For pairs it is
    DPO times |2^r_w - 2^r_l| (1/ln 2 - 1/ln 3), not DPO.
  Reduction: log-ratio summed over tokens, a sum over pairs; loss averaged over prompts.
    No gradient through D. Equal rewards form no pair; equal s rank by column, which
    decides all ranks at the first step, where policy = ref.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.05.

  Returns:
    Objective; layout RANKED; stats LOGP, REF_LOGP; columns reward_BK (the paper's psi,
    a win rate in [0, 1]; 2^r grows fast beyond).
    Terms: `lipo`.
    Metrics: reward_chosen, reward_rejected (best and worst completion), reward_margin
    (nats), reward_accuracy (fraction of pairs), ndcg.

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example: a pair has the weight (2 - 1) (1/ln 2 - 1/ln 3) = 0.5325.
    >>> from xpo_jax import objectives, scored
    >>> s = scored.from_sequence_logps(
    ...   [[-5, -7]], [[5, 5]], [[-5, -7]], reward_BK=[[1, 0]]
    ... )
    >>> round(float(scored.evaluate(objectives.lipo(), s).loss / 0.5325), 3)
    0.693
  """
  _hparams.check("lipo", "beta", beta, usual=0.05, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    score_BK = _rewards.rewards(scored, beta)
    gain_BK = ranking.gain(scored.reward_BK, scored.present_BK)
    rank_BK = ranking.rank(score_BK, scored.present_BK)
    weight_BKK = ranking.lambda_rank(gain_BK, rank_BK, base=math.e)
    better_BKK = ranking.better(scored.reward_BK, scored.present_BK)
    loss_B = ranking.pair_logistic(score_BK, jnp.where(better_BKK, weight_BKK, 0))
    metrics = ranking.metrics(scored, score_BK)
    return Loss({"lipo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="lipo",
    hparams={"beta": beta},
    layout=Layout.RANKED,
    stats=_STATS,
    loss=loss,
    columns=_COLUMNS,
  )
