"""Builds preference pairs from scored completions: by reward, win rate or tournament.

`present_BK` marks the columns of ragged groups: an absent completion is never chosen or
rejected.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from xpo_jax.ops import selection
from xpo_jax.types import Array


class PairIndices(NamedTuple):
  """The pair selected for each prompt.

  Attributes:
    chosen_B: index of the completion with the greater reward.
    rejected_B: index of the other.
    margin_B: difference of their rewards, >= 0.
    keep_B: 1 for a valid pair; 0 where the two rewards tie, or where fewer than two
      completions are present.
  """

  chosen_B: Array
  rejected_B: Array
  margin_B: Array
  keep_B: Array


def best_worst(
  reward_BK: Array,
  present_BK: Array,
  length_BK: Array | None = None,
  length_penalty: float | Array = 0.0,
) -> PairIndices:
  """Pairs the best completion with the worst; on ties, the first of each.

  RLHF Workflow (Dong et al. 2024, arXiv:2405.07863): "max_min"; with a penalty
  "max_min_p". SPPO (Wu et al. 2024, arXiv:2405.00675) does this with win rates as
  rewards (`preference_games.win_rate`), and keeps ties.

  Args:
    reward_BK: reward or win rate of each completion.
    present_BK: 0 on padded columns.
    length_BK: length of each completion, in the unit of the penalty (in RLHF Workflow's
      code: characters).
    length_penalty: reward subtracted per unit of length when the two completions are
      selected; which one is chosen, the margin and ties depend on `reward_BK` alone.

  Raises:
    ValueError: a penalty without lengths.
  """
  if length_BK is None:
    if isinstance(length_penalty, jax.Array) or length_penalty != 0:
      raise ValueError(f"best_worst: length_penalty={length_penalty}, no length_BK")
    length_BK = jnp.zeros_like(reward_BK)
  chex.assert_equal_shape([reward_BK, present_BK, length_BK])
  score_BK = reward_BK - length_penalty * length_BK
  best_B = selection.best_of(score_BK, present_BK)
  worst_B = jnp.where(present_BK > 0, score_BK, jnp.inf).argmin(-1)
  return _pairs(reward_BK, present_BK, best_B, worst_B)


def best_first(reward_BK: Array, present_BK: Array) -> PairIndices:
  """Pairs the best completion with the first, or the second where the first is best.

  Samples are in random order, so the rejected one is random: RLHF Workflow's
  "max_random".
  """
  chex.assert_equal_shape([reward_BK, present_BK])
  best_B = selection.best_of(reward_BK, present_BK)
  return _pairs(reward_BK, present_BK, best_B, jnp.where(best_B == 0, 1, 0))


def best_second(reward_BK: Array, present_BK: Array) -> PairIndices:
  """Pairs the best completion with the second best: RLHF Workflow's "max_max"."""
  chex.assert_equal_shape([reward_BK, present_BK])
  _, two_BJ = jax.lax.top_k(jnp.where(present_BK > 0, reward_BK, -jnp.inf), 2)
  return _pairs(reward_BK, present_BK, two_BJ[:, 0], two_BJ[:, 1])


def first_two(reward_BK: Array, present_BK: Array) -> PairIndices:
  """Pairs the first two completions, the better one chosen: two random samples."""
  chex.assert_equal_shape([reward_BK, present_BK])
  first_B = jnp.zeros(len(reward_BK), int)
  return _pairs(reward_BK, present_BK, first_B, first_B + 1)


def _pairs(
  reward_BK: Array, present_BK: Array, left_B: Array, right_B: Array
) -> PairIndices:
  def at(x_BK: Array, index_B: Array) -> Array:
    return jnp.take_along_axis(x_BK, index_B[:, None], axis=1)[:, 0]

  gap_B = at(reward_BK, left_B) - at(reward_BK, right_B)
  two_B = at(present_BK, left_B) * at(present_BK, right_B) > 0
  return PairIndices(
    jnp.where(gap_B >= 0, left_B, right_B),
    jnp.where(gap_B >= 0, right_B, left_B),
    jnp.where(two_B, jnp.abs(gap_B), 0),
    (two_B & (gap_B != 0)).astype(present_BK.dtype),
  )


class Comparisons(NamedTuple):
  """Pairwise comparisons among the completions of each prompt.

  Attributes:
    winner_BJ: index of the preferred completion.
    loser_BJ: index of the other.
    keep_BJ: 0 where one of the two is absent.
  """

  winner_BJ: Array
  loser_BJ: Array
  keep_BJ: Array


def first_round(win_BKK: Array, present_BK: Array) -> Comparisons:
  """Compares neighbouring completions: K // 2 disjoint pairs; an odd last is unused.

  RSO, Liu et al. 2023, arXiv:2309.06657: "first-round".

  Args:
    win_BKK: probability that the row's completion beats the column's; at 1/2 the
      earlier completion wins.
    present_BK: 0 on padded columns, which lose.
  """
  round_one = jax.vmap(
    lambda win_KK, K: _round(_absent_lose(win_KK, K), K, jnp.arange(len(K)))
  )
  return round_one(win_BKK, present_BK)[0]


def tournament(win_BKK: Array, present_BK: Array) -> Comparisons:
  """Compares completions in a single-elimination tournament: K - 1 pairs.

  SLiC-HF, Zhao et al. 2023, arXiv:2305.10425: the ranking of sample-rank. If an odd
  number of completions remains, the last one has a bye (the paper has K = 8). The
  winner of the last comparison is the best completion. For arguments see `first_round`.
  """

  def one(win_KK: Array, present_K: Array) -> Comparisons:
    win_KK = _absent_lose(win_KK, present_K)
    remaining_M = jnp.arange(len(win_KK))
    rounds = []
    while len(remaining_M) > 1:  # log2(K) rounds of different sizes
      comparisons, remaining_M = _round(win_KK, present_K, remaining_M)
      rounds.append(comparisons)
    return jax.tree.map(lambda *x: jnp.concatenate(x), *rounds)

  chex.assert_shape(win_BKK, (*present_BK.shape, present_BK.shape[1]))
  return jax.vmap(one)(win_BKK, present_BK)


def _absent_lose(win_KK: Array, present_K: Array) -> Array:
  """Makes an absent completion lose every comparison."""
  win_KK = jnp.where(present_K[:, None] > 0, win_KK, 0)
  return jnp.where(present_K[None] > 0, win_KK, 1)


def _round(
  win_KK: Array, present_K: Array, remaining_M: Array
) -> tuple[Comparisons, Array]:
  even = len(remaining_M) // 2 * 2
  a_J, b_J = remaining_M[:even:2], remaining_M[1:even:2]
  a_wins_J = win_KK[a_J, b_J] >= 0.5
  winner_J = jnp.where(a_wins_J, a_J, b_J)
  keep_J = present_K[a_J] * present_K[b_J]
  comparisons = Comparisons(winner_J, jnp.where(a_wins_J, b_J, a_J), keep_J)
  return comparisons, jnp.concatenate([winner_J, remaining_M[even:]])
