"""Tiny records with every field filled, for doctests, tests and notebooks."""

import jax.numpy as jnp
import numpy as np

from xpo_jax import masked
from xpo_jax import scored as scored_lib
from xpo_jax.types import Objective, Scored


def scored(
  K: int = 2,
  B: int = 4,
  T: int = 5,
  *,
  seed: int = 0,
  policy_equals_ref: bool = False,
  dtype: np.dtype | type = jnp.float32,
) -> Scored:
  """A record of random numbers in which every field of every layout is filled.

  Lengths run from 1 to T; from K = 3 on the last column of prompt 0 is not present, as
  in a ragged list; every other prompt is `desirable` in column 0.

  Args:
    K: completions per prompt (2: a pair).
    B: prompts.
    T: response tokens, padding included.
    seed: of the numbers.
    policy_equals_ref: the first step of training: every log-ratio is 0.
    dtype: of log-probs, values and rewards, before promotion to float32 at least.
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
    extra={
      "entropy_BKT": cast(rng.gamma(2.0, 0.5, (B, K, T))),
      "policy_kl_BKT": cast(np.zeros((B, K, T)) if policy_equals_ref else shift_BKT**2),
    },
  )


def scored_for(
  objective: Objective, B: int = 4, T: int = 5, *, seed: int = 0
) -> Scored:
  """A record with the K that the objective's layout fixes, or K = 3.

  Statistics of `objective.needs` that `scored` does not fill are computed from random
  logits over 7 tokens.
  """
  record = scored(objective.layout.completions or 3, B, T, seed=seed)
  given = {**vars(record), **record.extra}
  rng = np.random.default_rng(seed)
  extra = dict(record.extra)
  for stat in sorted(objective.needs, key=lambda stat: stat.field):
    logits = {role: rng.normal(size=(*record.mask_BKT.shape, 7)) for role in stat.roles}
    target_BKT = jnp.asarray(rng.integers(7, size=record.mask_BKT.shape))
    if given.get(stat.field) is None:
      roles = {role: jnp.asarray(x, jnp.float32) for role, x in logits.items()}
      found = stat.fn(roles, target_BKT)
      extra[stat.field] = masked.zero_padding(found, record.mask_BKT)
  return record.replace(extra=extra)
