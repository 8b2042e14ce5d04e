"""Selects rows, candidates and completions: sampling rules and data schedules."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from xpo_jax.types import Array


def without_replacement(
  log_weight_B: Array, keep: float | Array, weight_B: Array, row_B: Array, key: Array
) -> Array:
  """Samples a fraction of the rows by weight, without replacement (Gumbel top-k).

  Args:
    log_weight_B: log of each row's unnormalised probability of being drawn first.
    keep: fraction of the real rows to draw, in (0, 1]; rounded down, at least one row.
    weight_B: 0 on filler rows, which are never drawn.
    row_B: global row numbers, folded into the key so that the draw does not depend on
      the layout of the batch.
    key: PRNG key.

  Returns:
    `[B]`, 1 where drawn, in the type of `weight_B`.
  """
  chex.assert_equal_shape([log_weight_B, weight_B, row_B])
  gumbel_B = jax.vmap(lambda row: jax.random.gumbel(jax.random.fold_in(key, row)))(
    row_B
  )
  real_B = weight_B > 0
  score_B = jnp.where(real_B, log_weight_B + gumbel_B, -jnp.inf)
  rank_B = jnp.argsort(jnp.argsort(-score_B))
  # 0.84 * 75 is 62.999996 in float32: with 1e-4 it counts as 63.
  count = jnp.maximum(jnp.floor(keep * real_B.sum() + 1e-4), 1)
  return jnp.where((rank_B < count) & real_B, 1, 0).astype(weight_B.dtype)


class Accepted(NamedTuple):
  """Result of rejection sampling.

  Attributes:
    index_J: accepted candidates, in the order of acceptance.
    draws: scalar, number of uniform variates used: candidates examined, each counted
      again in every sweep.
  """

  index_J: Array
  draws: Array


def rejection_sample(
  reward_K: Array, num: int, beta: float | Array, key: Array
) -> Accepted:
  """RSO's algorithm 1, drawing its uniform variates; see `rejection_sample_from`."""
  uniform_JK = jax.random.uniform(key, (num, *reward_K.shape))
  return rejection_sample_from(reward_K, num, beta, uniform_JK)


def rejection_sample_from(
  reward_K: Array, num: int, beta: float | Array, uniform_JK: Array
) -> Accepted:
  """Statistical rejection sampling of `num` of K candidates, without replacement.

  Sweeps over the remaining candidates in order, accepting each where
  u < exp((r - r_max) / beta), with r_max the best remaining reward at the start of the
  sweep; stops as soon as `num` are accepted. Every sweep accepts at least its best
  candidate, so `num` sweeps are enough. With num = 1 and many candidates drawn from
  pi_sft the accepted one follows pi_sft exp(r / beta) / Z; several of them, accepted
  without replacement, do not.

  Paper: RSO, Liu et al. 2023, arXiv:2309.06657, algorithm 1. There candidates are
  keyed by their text, which merges duplicates (and never ends when fewer distinct ones
  than `num` remain); here by their index.

  Args:
    reward_K: reward of each candidate.
    num: number of candidates to accept; static.
    beta: temperature of the target, per unit of reward; >= 0. Paper: 0.5. At 0 the
      `num` best are accepted, ties in order; for very large values the first `num`.
    uniform_JK: num * K uniform variates in [0, 1), used in the algorithm's order.

  Raises:
    ValueError: num < 1, or num > K.
  """
  chex.assert_rank(reward_K, 1)
  K = reward_K.shape[0]
  if not 1 <= num <= K:
    raise ValueError(
      f"rejection_sample: num={num} of {K} candidates; num must be between 1 and {K}: "
      "draw more candidates or accept fewer"
    )
  chex.assert_shape(uniform_JK, (num, K))
  uniform_N = uniform_JK.reshape(-1)
  temperature = jnp.where(beta > 0, beta, 1)

  def sweep(carry: tuple, _: None) -> tuple[tuple, None]:
    remaining_K, taken, draws, index_J = carry
    best = jnp.where(remaining_K, reward_K, -jnp.inf).max()
    # The best has probability 1 by definition; at beta = 0 all others have 0.
    gap_K = jnp.minimum(reward_K - best, 0)
    accept_prob_K = jnp.where(beta > 0, jnp.exp(gap_K / temperature), 0)
    accept_prob_K = jnp.where(reward_K == best, 1, accept_prob_K)
    seen_K = jnp.cumsum(remaining_K) - 1
    accept_K = remaining_K & (uniform_N[draws + seen_K] < accept_prob_K)
    order_K = taken + jnp.cumsum(accept_K)  # number accepted, this one included
    examined_K = remaining_K & (order_K - accept_K < num)
    accept_K = accept_K & examined_K
    slot_K = jnp.where(accept_K, order_K - 1, num)
    index_J = index_J.at[slot_K].set(jnp.arange(K), mode="drop")
    taken, draws = taken + accept_K.sum(), draws + examined_K.sum()
    return (remaining_K & ~accept_K, taken, draws, index_J), None

  start: Any = (jnp.ones(K, bool), 0, 0, jnp.zeros(num, int))
  (_, _, draws, index_J), _ = jax.lax.scan(sweep, start, None, length=num)
  return Accepted(index_J, draws)


def top_share(reward_B: Array, share: float = 0.2) -> Array:
  """Selects the best fraction of the completions of all prompts: RAFT's "top".

  Paper: RAFT, Dong et al. 2023, arXiv:2304.06767, selects the best completion of each
  prompt (`best_of`); its code selects this global fraction, 0.2 by default.

  Args:
    reward_B: reward of each completion, of any prompt.
    share: fraction of the completions to select, in (0, 1]; rounded down. Static.

  Returns:
    Indices, best first; among ties the later completion comes first, as in that code.

  Raises:
    ValueError: a share out of range, or so small that it selects nothing.
  """
  chex.assert_rank(reward_B, 1)
  # With 1e-9, 0.29 * 100 = 28.999999999999996 counts as 29.
  count = int(share * reward_B.shape[0] + 1e-9)
  if not (0 < share <= 1 and count):
    raise ValueError(
      f"top_share: share={share!r} of {reward_B.shape[0]} completions selects {count}; "
      "share must be > 0 and <= 1, and select at least one"
    )
  return jnp.argsort(reward_B)[::-1][:count]


def best_of(reward_BK: Array, present_BK: Array) -> Array:
  """Index of each prompt's best completion, `[B]`; the first on ties. RAFT's paper."""
  chex.assert_equal_shape([reward_BK, present_BK])
  return jnp.where(present_BK > 0, reward_BK, -jnp.inf).argmax(-1)


class SdpoStage(NamedTuple):
  """One stage of stepwise DPO (sDPO).

  Attributes:
    rows: slice of the preference data that the stage trains on.
    ref: stage whose final policy is both the frozen reference and the initial policy; 0
      is the model before any stage.
  """

  rows: slice
  ref: int


def sdpo_stage(stage: int, sizes: Sequence[int]) -> SdpoStage:
  """Data and reference of an sDPO stage (1, 2, ..).

  Every stage is DPO on the next part of the data; its reference and its initial policy
  are the final policy of the previous stage. Reference log-probs cached for an earlier
  stage are stale.

  Paper: Kim et al. 2024, arXiv:2403.19270, section 3.2. The parts are sources of data,
  easiest first (`easiest_first`).

  Args:
    stage: from 1.
    sizes: rows in each part, in order.

  Raises:
    ValueError: no such stage.
  """
  if not 1 <= stage <= len(sizes):
    raise ValueError(f"sdpo_stage: stage={stage!r}; stages run from 1 to {len(sizes)}")
  before = sum(sizes[: stage - 1])
  return SdpoStage(slice(before, before + sizes[stage - 1]), stage - 1)


def easiest_first(accuracy_B: Array) -> Array:
  """Orders sDPO's data sources by descending accuracy of the first model."""
  chex.assert_rank(accuracy_B, 1)
  return jnp.argsort(-accuracy_B, stable=True)
