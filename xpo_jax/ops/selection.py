"""Pure rules that select rows, candidates and answers."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from xpo_jax.types import Array


def without_replacement(
  log_weight_B: Array, keep: float | Array, weight_B: Array, row_B: Array, key: Array
) -> Array:
  """Draws a share of the rows, likelier with more weight, none twice (Gumbel top-k).

  Args:
    log_weight_B: log of each row's unnormalised probability of being drawn first.
    keep: share of the real rows to draw, in (0, 1]; rounded down, but one at least.
    weight_B: 0 on filler rows, which are never drawn.
    row_B: global row numbers; folded into the key, so that the draw does not depend on
      how the batch was laid out.
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
  # The 1e-4 keeps 0.7 * 10 = 6.9999995 a seven.
  count = jnp.maximum(jnp.floor(keep * real_B.sum() + 1e-4), 1)
  return jnp.where((rank_B < count) & real_B, 1, 0).astype(weight_B.dtype)


class Accepted(NamedTuple):
  """What a rejection sampler kept.

  Attributes:
    index_J: candidates in the order in which they were accepted.
    draws: scalar, how many uniform numbers were used: candidates looked at, counting
      one again in every sweep.
  """

  index_J: Array
  draws: Array


def rejection_sample(
  reward_K: Array, num: int, beta: float | Array, key: Array
) -> Accepted:
  """RSO's algorithm 1 with its own uniform numbers; see `rejection_sample_from`."""
  uniform_JK = jax.random.uniform(key, (num, *reward_K.shape))
  return rejection_sample_from(reward_K, num, beta, uniform_JK)


def rejection_sample_from(
  reward_K: Array, num: int, beta: float | Array, uniform_JK: Array
) -> Accepted:
  """Statistical rejection sampling of `num` among K candidates, none twice.

  Sweeps over the candidates left, in order, each accepted where
  u < exp((r - r_max) / beta), with r_max the best reward left when the sweep began;
  stops as soon as `num` are accepted. A sweep accepts its best at least, so `num`
  sweeps are enough. With num = 1 and many candidates drawn from pi_sft the accepted one
  follows pi_sft exp(r / beta) / Z; more than one, without replacement, do not.

  Paper: RSO, Liu et al. 2023, arXiv:2309.06657, algorithm 1. There candidates are
  keyed by their text, which merges duplicates (and never ends when fewer distinct ones
  than `num` are left); here by their index.

  Args:
    reward_K: reward of each candidate.
    num: candidates to accept; static.
    beta: temperature of the target, per unit of reward; >= 0. Paper: 0.5. 0 takes the
      `num` best, ties in order; very large takes the first `num`.
    uniform_JK: num * K numbers in [0, 1), used one by one in the algorithm's order.

  Raises:
    ValueError: num < 1, or more than there are candidates.
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
  hot = jnp.where(beta > 0, beta, 1)

  def sweep(carry: tuple, _: None) -> tuple[tuple, None]:
    left_K, taken, draws, index_J = carry
    best = jnp.where(left_K, reward_K, -jnp.inf).max()
    # The best is named, not computed: at beta = 0 all others have no chance.
    gap_K = jnp.minimum(reward_K - best, 0)
    chance_K = jnp.where(beta > 0, jnp.exp(gap_K / hot), 0)
    chance_K = jnp.where(reward_K == best, 1, chance_K)
    seen_K = jnp.cumsum(left_K) - 1
    accept_K = left_K & (uniform_N[draws + seen_K] < chance_K)
    order_K = taken + jnp.cumsum(accept_K)  # how many there are with this one
    looked_K = left_K & (order_K - accept_K < num)
    accept_K = accept_K & looked_K
    slot_K = jnp.where(accept_K, order_K - 1, num)
    index_J = index_J.at[slot_K].set(jnp.arange(K), mode="drop")
    taken, draws = taken + accept_K.sum(), draws + looked_K.sum()
    return (left_K & ~accept_K, taken, draws, index_J), None

  start = (jnp.ones(K, bool), 0, 0, jnp.zeros(num, int))
  (_, _, draws, index_J), _ = jax.lax.scan(sweep, start, None, length=num)
  return Accepted(index_J, draws)


def top_share(reward_B: Array, share: float = 0.2) -> Array:
  """The best share of all answers, over all prompts at once: RAFT's "top".

  Paper: RAFT, Dong et al. 2023, arXiv:2304.06767, keeps the best answer of each prompt
  (`best_of`); its code takes this global share by default, and 0.2 of it.

  Args:
    reward_B: reward of each answer, whatever its prompt.
    share: of the answers to keep, in (0, 1]; rounded down. Static.

  Returns:
    Indices, best first; among ties the later answer comes first, as in that code.

  Raises:
    ValueError: a share out of range, or so small that nothing would be kept.
  """
  chex.assert_rank(reward_B, 1)
  # The 1e-9 keeps 0.29 * 100 = 28.999999999999996 a twenty-nine.
  count = int(share * reward_B.shape[0] + 1e-9)
  if not (0 < share <= 1 and count):
    raise ValueError(
      f"top_share: share={share!r} of {reward_B.shape[0]} answers keeps {count}; share "
      "must be > 0 and <= 1, and keep one at least"
    )
  return jnp.argsort(reward_B)[::-1][:count]


def best_of(reward_BK: Array, present_BK: Array) -> Array:
  """The best answer of each prompt, `[B]`; the first among ties. RAFT's paper."""
  chex.assert_equal_shape([reward_BK, present_BK])
  return jnp.where(present_BK > 0, reward_BK, -jnp.inf).argmax(-1)


class SdpoStage(NamedTuple):
  """One stage of stepwise DPO.

  Attributes:
    rows: its slice of the preference data, in the order in which it is used.
    ref: the stage whose final policy is the frozen reference, and where the policy
      starts; 0 is the model before any stage.
  """

  rows: slice
  ref: int


def sdpo_stage(stage: int, sizes: Sequence[int]) -> SdpoStage:
  """What sDPO trains on at a stage (1, 2, ..), and against which reference.

  Every stage is plain DPO on the next part of the data; its reference, and the policy
  it starts from, is the policy that the stage before ended with. Reference log-probs
  cached for an earlier stage are stale.

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
  """sDPO's order of data sources: by how often the first model ranks them right."""
  chex.assert_rank(accuracy_B, 1)
  return jnp.argsort(-accuracy_B, stable=True)
