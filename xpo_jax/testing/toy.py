"""Small random records with every field filled, and loss curves of objectives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax import scored as scored_lib
from xpo_jax.ops import masked
from xpo_jax.types import Array, Layout, Objective, Scored


def scored(
  K: int = 2,
  B: int = 8,
  T: int = 5,
  *,
  seed: int = 0,
  policy_equals_ref: bool = False,
  dtype: np.dtype | type = jnp.float32,
) -> Scored:
  """Makes a random record in which every field of every layout is filled.

  Lengths run from 1 to T; from K = 3 on the last column of prompt 0 is not present, as
  in a ragged list; every other prompt is `desirable` in column 0.

  Args:
    K: completions per prompt (2: a pair).
    B: prompts.
    T: completion tokens, padding included.
    seed: of the random numbers.
    policy_equals_ref: whether every log-ratio is 0, as at the first step of training.
    dtype: of log-probs, values and rewards, before promotion to at least float32.
  """
  rng = np.random.default_rng(seed)
  present_BK = np.ones((B, K))
  if K > 2:
    present_BK[0, -1] = 0
  length_BK = (1 + np.arange(B * K).reshape(B, K) % T) * present_BK
  mask_BKT = np.arange(T) < length_BK[..., None]

  def cast(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, dtype)

  logp_BKT = -rng.gamma(2.0, 0.8, (B, K, T))
  shift_BKT = 0.3 * rng.normal(size=(B, K, T))
  ref_logp_BKT = logp_BKT if policy_equals_ref else logp_BKT + shift_BKT
  return scored_lib.from_token_logps(
    cast(logp_BKT),
    mask_BKT,
    cast(ref_logp_BKT),
    old_logp_BKT=cast(logp_BKT + 0.1 * rng.normal(size=(B, K, T))),
    value_BKT=cast(rng.normal(size=(B, K, T))),
    old_value_BKT=cast(rng.normal(size=(B, K, T))),
    ref_kl_BKT=cast(np.zeros((B, K, T)) if policy_equals_ref else shift_BKT**2),
    reward_BK=cast(rng.normal(size=(B, K))),
    reward_BKT=cast(rng.normal(size=(B, K, T))),
    desirable_BK=(np.arange(B)[:, None] + np.arange(K)) % 2 == 0,
    present_BK=present_BK,
    prompt_weight_BK=cast(0.5 + np.arange(B * K).reshape(B, K) % 3),
    extra={
      "entropy_BKT": cast(rng.gamma(2.0, 0.5, (B, K, T))),
      "policy_kl_BKT": cast(np.zeros((B, K, T)) if policy_equals_ref else shift_BKT**2),
    },
    reward_head_BKT=cast(rng.normal(size=(B, K, T))),
    margin_BK=cast(rng.gamma(2.0, 0.5, (B, K))),
    # Last, so that the other fields' random numbers do not depend on it.
    sampler_logp_BKT=cast(logp_BKT + 0.1 * rng.normal(size=(B, K, T))),
  )


def scored_for(
  objective: Objective,
  B: int = 8,
  T: int = 5,
  *,
  seed: int = 0,
  policy_equals_ref: bool = False,
) -> Scored:
  """Makes a record with the K of the objective's layout, or K = 3.

  Statistics of `objective.stats` that `scored` does not fill are computed from random
  logits over 7 tokens, the same for every role if `policy_equals_ref`.
  """
  K = objective.layout.completions or 3
  record = scored(K, B, T, seed=seed, policy_equals_ref=policy_equals_ref)
  given = {**vars(record), **record.extra}
  rng = np.random.default_rng(seed)
  extra = dict(record.extra)
  shape = record.mask_BKT.shape
  for stat in sorted(objective.stats, key=lambda stat: stat.field):
    shared = rng.normal(size=(*shape, 7))
    own = {role: rng.normal(size=(*shape, 7)) for role in stat.roles}
    logits = dict.fromkeys(stat.roles, shared) if policy_equals_ref else own
    target_BKT = jnp.asarray(rng.integers(7, size=shape))
    if given.get(stat.field) is None:
      roles = {role: jnp.asarray(x, jnp.float32) for role, x in logits.items()}
      value = stat.fn(roles, target_BKT)
      extra[stat.field] = masked.zero_padding(value, record.mask_BKT)
  return record.replace(extra=extra)


class Curve(NamedTuple):
  """Loss and gradient of an objective along one direction.

  Attributes:
    gap: increase of the first completion's log-probability, nats (reward models: of its
      reward).
    loss: at each gap.
    slope: d loss / d gap.
  """

  gap: np.ndarray
  loss: np.ndarray
  slope: np.ndarray


def curve(objective: Objective, gap: np.ndarray, *, desirable: bool = True) -> Curve:
  """Evaluates loss and gradient as the first completion of every prompt gets likelier.

  Policy and reference start equal; completions have 4 tokens of 8 nats each; the first
  has reward 1, the others less; an increase is spread evenly over its tokens. For a
  pair the gap is the margin before beta.

  Args:
    objective: any; random draws are the same at every gap.
    gap: increases to evaluate at, nats per completion.
    desirable: the thumbs-up bit of every row, for objectives that read one.
  """
  tokens = 4
  s = scored_for(objective, 4, tokens, policy_equals_ref=True)
  one_BKT = jnp.ones_like(s.mask_BKT)
  shape = s.reward_BK.shape
  level_BKT = -8 * one_BKT
  # In a list the first completion is the desirable one; else all rows are alike.
  first_BK = jnp.arange(shape[1])[None] == 0
  listed = objective.layout is Layout.RANKED
  label_BK = jnp.broadcast_to(first_BK == desirable if listed else desirable, shape)
  s = s.replace(
    mask_BKT=one_BKT,
    length_BK=masked.length(one_BKT),
    present_BK=jnp.ones(shape),
    reward_BK=jnp.broadcast_to(1 - jnp.arange(shape[1], dtype=jnp.float32), shape),
    desirable_BK=label_BK.astype(jnp.float32),
    ref_logp_BKT=level_BKT,
    old_logp_BKT=level_BKT,
    value_BKT=jnp.zeros_like(one_BKT),
    old_value_BKT=jnp.zeros_like(one_BKT),
    reward_head_BKT=jnp.zeros_like(one_BKT),
  )
  first_BKT = jnp.zeros_like(one_BKT).at[:, 0].set(1)

  def loss(gap: Array) -> Array:
    moved = s.replace(
      logp_BKT=level_BKT + first_BKT * gap / tokens,
      reward_head_BKT=first_BKT * gap,
    )
    return scored_lib.evaluate(
      objective, moved, objective.init(), jax.random.key(0)
    ).loss

  losses, slope = jax.jit(jax.vmap(jax.value_and_grad(loss)))(jnp.asarray(gap))
  return Curve(np.asarray(gap), np.asarray(losses), np.asarray(slope))
