"""Listwise ranking over K completions: Plackett-Luce, NDCG, lambda weights, metrics.

A `label` orders the completions (higher is better), a `score` is trained. Columns are
compared pairwise, `x_BKK[b, i, j]` relating completion i to completion j: nothing is
sorted or gathered, and ties need no random draw. Absent columns (`present_BK` = 0) are
not compared; a list of fewer than two completions gives zeros.
"""

import math

import chex
import jax
import jax.numpy as jnp

from xpo_jax.types import Array, Mean, Scored


def better(label_BK: Array, present_BK: Array) -> Array:
  """Whether i has a higher label than j and both are present, bool `[B, K, K]`."""
  chex.assert_rank(label_BK, 2)
  chex.assert_equal_shape([label_BK, present_BK])
  return (label_BK[:, :, None] > label_BK[:, None, :]) & _both(present_BK)


def rank(score_BK: Array, present_BK: Array, tie_BK: Array | None = None) -> Array:
  """Ranks by descending score, 1 the best, `[B, K]` in the type of the score.

  Args:
    score_BK: scores to rank by; no gradient flows through a rank.
    present_BK: absent columns come last.
    tie_BK: breaks ties, the smaller first; default: the column index.
  """
  chex.assert_rank(score_BK, 2)
  chex.assert_equal_shape([score_BK, present_BK])
  score_BK = jnp.where(present_BK > 0, score_BK, -jnp.inf)
  if tie_BK is None:
    tie_BK = jax.lax.broadcasted_iota(jnp.int32, score_BK.shape, 1)
  own_BK1, other_B1K = score_BK[:, :, None], score_BK[:, None, :]
  first_BKK = tie_BK[:, None, :] < tie_BK[:, :, None]
  ahead_BKK = (other_B1K > own_BK1) | ((other_B1K == own_BK1) & first_BKK)
  return 1 + ahead_BKK.sum(-1).astype(score_BK.dtype)


def softmax_nll(margin_BKK: Array, competes_BKK: Array) -> Array:
  """-log softmax probability of each completion among its competitors, `[B, K]`.

  log(1 + sum over competitors j of exp(-margin_ij)); 0 without competitors.

  Args:
    margin_BKK: score of i minus score of j, nats; the diagonal is not read.
    competes_BKK: whether j competes with i, bool; the diagonal is not read.
  """
  chex.assert_equal_shape([margin_BKK, competes_BKK])
  self_BKK = jnp.broadcast_to(
    jnp.eye(margin_BKK.shape[-1], dtype=bool), margin_BKK.shape
  )
  behind_BKK = jnp.where(competes_BKK, -margin_BKK, -jnp.inf)
  return jax.nn.logsumexp(jnp.where(self_BKK, 0, behind_BKK), axis=-1)


def plackett_luce(
  score_BK: Array, label_BK: Array, present_BK: Array, eps: float = 0.0
) -> Array:
  """Log-likelihood of the order of the labels, `[B]`.

  sum_i [s_i - log sum_{j not better than i} exp(s_j)]

  The first place is drawn by a softmax over the scores, each next one by a softmax over
  the remaining ones. Tied completions compete with each other and with the worse ones
  (Breslow's rule for a weak order), so that no column is favoured; with distinct labels
  this is exactly Plackett-Luce.

  Args:
    score_BK: nats.
    label_BK: higher is better; the negative of a rank also works.
    present_BK: absent columns do not compete.
    eps: added to each sum, in units of exp(largest score of the list); static. 0 is
      exact; a public code adds 1e-10, which matters once scores are 20 nats apart.
  """
  chex.assert_equal_shape([score_BK, label_BK, present_BK])
  better_BKK = better(label_BK, present_BK)
  competes_BKK = _both(present_BK) & ~jnp.swapaxes(better_BKK, 1, 2)
  nll_BK = softmax_nll(_gap(score_BK), competes_BKK)
  if eps:
    top_BK = jnp.where(present_BK > 0, score_BK, -jnp.inf).max(-1, keepdims=True)
    nll_BK = jnp.logaddexp(nll_BK, top_BK - score_BK + math.log(eps))
  return -jnp.where(present_BK > 0, nll_BK, 0).sum(-1)


def contrast(
  score_BK: Array, label_BK: Array, present_BK: Array, eps: float = 0.0
) -> Array:
  """Contrasts each completion with all worse ones, at label-based temperatures, `[B]`.

  sum_i log[1 + sum_{j worse than i} exp(T_ij s_j - T_i s_i)]
  with T_ij = label_i - label_j and T_i = max_j T_ij: PRO's ranking loss.

  Args:
    score_BK: nats per token.
    label_BK: rewards; their gaps are inverse temperatures. Ties do not compete.
    present_BK: absent columns do not compete.
    eps: added to each sum of exp(T s); static. 0 is exact; a public code adds 1e-10,
      and its gradients vanish where gaps are large.
  """
  chex.assert_equal_shape([score_BK, label_BK, present_BK])
  better_BKK = better(label_BK, present_BK)
  inverse_BKK = jnp.where(better_BKK, _gap(label_BK), 0)
  own_BK = inverse_BKK.max(-1) * score_BK
  margin_BKK = own_BK[:, :, None] - inverse_BKK * score_BK[:, None, :]
  nll_BK = softmax_nll(margin_BKK, better_BKK)
  if eps:
    nll_BK = jnp.logaddexp(nll_BK, math.log(eps) - own_BK)
  return jnp.where(better_BKK.any(-1), nll_BK, 0).sum(-1)


def softmax(x_BK: Array, present_BK: Array) -> Array:
  """Softmax over present columns, `[B, K]`: ListNet's target."""
  chex.assert_equal_shape([x_BK, present_BK])
  return jnp.exp(_log_softmax(x_BK, present_BK)) * (present_BK > 0)


def shares(x_BK: Array, present_BK: Array) -> Array:
  """Divides x >= 0 by its sum over present columns, `[B, K]`; 0 where all are 0."""
  chex.assert_equal_shape([x_BK, present_BK])
  x_BK = jnp.where(present_BK > 0, x_BK, 0)
  total_B1 = x_BK.sum(-1, keepdims=True)
  return x_BK / jnp.where(total_B1 == 0, 1, total_B1)


def cross_entropy(score_BK: Array, target_BK: Array, present_BK: Array) -> Array:
  """-sum_i target_i log softmax(s)_i over present columns, nats, `[B]`."""
  chex.assert_equal_shape([score_BK, target_BK, present_BK])
  logp_BK = _log_softmax(score_BK, present_BK)
  return -jnp.where(present_BK > 0, target_BK * logp_BK, 0).sum(-1)


def above_worst(label_BK: Array, present_BK: Array) -> Array:
  """Labels minus the worst label of the list, `[B, K]`; 0 on absent columns."""
  chex.assert_equal_shape([label_BK, present_BK])
  worst_B1 = jnp.where(present_BK > 0, label_BK, jnp.inf).min(-1, keepdims=True)
  return jnp.where(present_BK > 0, label_BK - worst_B1, 0)


def gain(label_BK: Array, present_BK: Array) -> Array:
  """2^label - 1, `[B, K]`; 0 on absent columns."""
  chex.assert_equal_shape([label_BK, present_BK])
  return jnp.expm1(jnp.where(present_BK > 0, label_BK, 0) * math.log(2))


def discount(rank_BK: Array, base: float = 2.0) -> Array:
  """log(1 + rank) in the given base, for ranks from 1 on, possibly fractional."""
  return jnp.log1p(rank_BK) / math.log(base)


def ideal_dcg(label_BK: Array, present_BK: Array, base: float = 2.0) -> Array:
  """sum_i gain_i / discount_i with the completions ranked by label, `[B]`."""
  place_BK = rank(label_BK, present_BK)
  return (gain(label_BK, present_BK) / discount(place_BK, base)).sum(-1)


def normalised_gain(label_BK: Array, present_BK: Array, base: float = 2.0) -> Array:
  """Gains divided by the ideal DCG, `[B, K]`; 0 where the ideal DCG is 0."""
  ideal_B1 = ideal_dcg(label_BK, present_BK, base)[:, None]
  return gain(label_BK, present_BK) / jnp.where(ideal_B1 == 0, 1, ideal_B1)


def ndcg(rank_BK: Array, label_BK: Array, present_BK: Array) -> Array:
  """Normalised discounted cumulative gain of a ranking, `[B]`, at most 1.

  Args:
    rank_BK: rank of each completion, or a smooth approximation.
    label_BK: grades >= 0.
    present_BK: absent columns have gain 0.
  """
  chex.assert_equal_shape([rank_BK, label_BK, present_BK])
  return (normalised_gain(label_BK, present_BK) / discount(rank_BK)).sum(-1)


def approximate_rank(
  score_BK: Array, present_BK: Array, temperature: float | Array = 1.0
) -> Array:
  """1 + sum_{j != i} sigma((s_j - s_i) / temperature), `[B, K]`: a smooth rank.

  Source: Qin, Liu and Li 2010, "A general approximation framework for direct
  optimization of information retrieval measures" (not on arXiv).
  """
  chex.assert_equal_shape([score_BK, present_BK])
  other_BKK = _both(present_BK) & ~jnp.eye(score_BK.shape[-1], dtype=bool)[None]
  ahead_BKK = jax.nn.sigmoid(-_gap(score_BK) / temperature)
  return 1 + jnp.where(other_BKK, ahead_BKK, 0).sum(-1)


def pair_logistic(score_BK: Array, weight_BKK: Array, floor: float = 0.0) -> Array:
  """sum_ij weight_ij (-log sigma(s_i - s_j)), `[B]`.

  Args:
    score_BK: nats.
    weight_BKK: weight of i being ranked above j; 0 leaves the pair out.
    floor: lower bound on each probability, before and after it is raised to its weight;
      static. 0 is exact; a public code has 1e-10, below which its gradient vanishes.
  """
  chex.assert_shape(weight_BKK, (*score_BK.shape, score_BK.shape[1]))
  nll_BKK = -jax.nn.log_sigmoid(_gap(score_BK))
  if floor:
    max_nll = -math.log(floor)
    nll_BKK = jnp.minimum(weight_BKK * jnp.minimum(nll_BKK, max_nll), max_nll)
  else:
    nll_BKK = weight_BKK * nll_BKK
  return nll_BKK.sum((1, 2))


def lambda_rank(gain_BK: Array, rank_BK: Array, base: float = 2.0) -> Array:
  """|G_i - G_j| |1/D_i - 1/D_j|, `[B, K, K]`: change of the DCG if i and j swap.

  Source of this and the next schemes: Wang et al. 2018, "The LambdaLoss framework for
  ranking metric optimization" (not on arXiv); LiPO (arXiv:2402.01878) uses this one.
  Multiply by `better`.

  Args:
    gain_BK: `gain` or `normalised_gain`.
    rank_BK: ranks by the current scores.
    base: of the logarithm in the discount; LiPO's is e.
  """
  chex.assert_equal_shape([gain_BK, rank_BK])
  return jnp.abs(_gap(gain_BK)) * jnp.abs(_gap(1 / discount(rank_BK, base)))


def ndcg_loss_1(gain_BK: Array, rank_BK: Array, base: float = 2.0) -> Array:
  """G_i / D_i, `[B, K, K]`, for every j (NDCG-Loss1)."""
  chex.assert_equal_shape([gain_BK, rank_BK])
  lost_BK1 = (gain_BK / discount(rank_BK, base))[:, :, None]
  return jnp.broadcast_to(lost_BK1, (*gain_BK.shape, gain_BK.shape[1]))


def ndcg_loss_2(gain_BK: Array, rank_BK: Array, base: float = 2.0) -> Array:
  """|G_i - G_j| |1/D(d) - 1/D(d + 1)| with d = |rank_i - rank_j|, `[B, K, K]`."""
  chex.assert_equal_shape([gain_BK, rank_BK])
  # On the diagonal, where d = 0, the difference of the gains is 0.
  distance_BKK = jnp.maximum(jnp.abs(_gap(rank_BK)), 1)
  step_BKK = 1 / discount(distance_BKK, base) - 1 / discount(distance_BKK + 1, base)
  return jnp.abs(_gap(gain_BK)) * step_BKK


def ndcg_loss_2pp(
  gain_BK: Array, rank_BK: Array, base: float = 2.0, mu: float | Array = 10.0
) -> Array:
  """mu times `ndcg_loss_2` plus `lambda_rank`, `[B, K, K]` (NDCG-Loss2++)."""
  second_BKK = ndcg_loss_2(gain_BK, rank_BK, base)
  return mu * second_BKK + lambda_rank(gain_BK, rank_BK, base)


def rank_net(label_BK: Array, power: float = 0.0) -> Array:
  """|label_i^power - label_j^power|, `[B, K, K]`; 1 for every pair at power 0.

  RankNet (Burges et al. 2005, not on arXiv) weighs all pairs equally; public codes
  offer powers 1 and 2 of grades >= 0.
  """
  chex.assert_rank(label_BK, 2)
  if not power:
    return jnp.ones_like(_gap(label_BK))
  return jnp.abs(_gap(label_BK**power))


def metrics(scored: Scored, score_BK: Array) -> dict[str, Mean]:
  """Metrics of a list objective, under the names of the pairwise metrics.

  reward_chosen and reward_rejected are the scores of the best and the worst completion
  by `reward_BK` (ties: the first of the best, the last of the worst), reward_margin
  their difference, reward_accuracy the fraction of ordered pairs that the scores order
  the same way (a tie counts one half), ndcg the mean NDCG with grades relative to the
  worst completion. Lists in which no completion is better than another are excluded.
  """
  label_BK, present_BK = scored.reward_BK, scored.present_BK
  better_BKK = better(label_BK, present_BK).astype(score_BK.dtype)
  pairs_B = better_BKK.sum((1, 2))
  place_BK = rank(label_BK, present_BK)
  last_BK = place_BK == (present_BK > 0).sum(-1, keepdims=True)
  best_B = jnp.where(place_BK == 1, score_BK, 0).sum(-1)
  worst_B = jnp.where(last_BK, score_BK, 0).sum(-1)
  correct_B = (better_BKK * (1 + jnp.sign(_gap(score_BK))) / 2).sum((1, 2))
  grade_BK = above_worst(label_BK, present_BK)
  ndcg_B = ndcg(rank(score_BK, present_BK), grade_BK, present_BK)
  ordered = scored.replace(weight_B=jnp.where(pairs_B > 0, scored.weight_B, 0))
  accuracy = Mean(
    (correct_B * scored.weight_B).sum(), (pairs_B * scored.weight_B).sum()
  )
  return {
    "reward_chosen": ordered.mean_B(best_B),
    "reward_rejected": ordered.mean_B(worst_B),
    "reward_margin": ordered.mean_B(best_B - worst_B),
    "reward_accuracy": accuracy,
    "ndcg": ordered.mean_B(ndcg_B),
  }


def _both(present_BK: Array) -> Array:
  return (present_BK[:, :, None] > 0) & (present_BK[:, None, :] > 0)


def _gap(x_BK: Array) -> Array:
  return x_BK[:, :, None] - x_BK[:, None, :]


def _log_softmax(x_BK: Array, present_BK: Array) -> Array:
  """Log-softmax over present columns; 0 on absent ones and for an empty list."""
  here_BK = present_BK > 0
  # An absent column may hold the largest number: select before the maximum is taken.
  empty_B1 = ~here_BK.any(-1, keepdims=True)
  masked_BK = jnp.where(here_BK | empty_B1, x_BK, -jnp.inf)
  return jnp.where(here_BK, jax.nn.log_softmax(masked_BK, axis=-1), 0)
