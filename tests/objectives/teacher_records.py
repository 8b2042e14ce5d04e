"""Ragged records of a policy and a teacher, and their numbers in NumPy float64."""

from typing import NamedTuple

import numpy as np
from scipy import special

from xpo_jax import scored
from xpo_jax.types import Objective, Scored

B, K, T, V = 3, 2, 4, 5
LENGTH = np.array([[4, 1], [2, 0], [3, 2]])
PRESENT = np.array([[1, 1], [1, 1], [1, 0]])


class Completion(NamedTuple):
  """One completion, without padding: a row for each of its tokens."""

  policy: np.ndarray  # [T, V] probabilities
  teacher: np.ndarray  # [T, V]
  logp: np.ndarray  # [T], nats
  old_logp: np.ndarray
  teacher_logp: np.ndarray


def record(objective: Objective, columns: int = K) -> tuple[Scored, list[list]]:
  """A record of random logits, and its present completions of each prompt."""
  rng = np.random.default_rng(5)
  policy, teacher = 2 * rng.normal(size=(2, B, K, T, V))
  tokens = rng.integers(V, size=(B, K, T))
  mask = np.arange(T) < LENGTH[..., None]
  p, q = special.softmax(policy, -1), special.softmax(teacher, -1)
  logp, teacher_logp = (
    np.take_along_axis(np.log(x), tokens[..., None], -1)[..., 0] for x in (p, q)
  )
  old_logp = logp + 0.2 * rng.normal(size=logp.shape)
  cut = np.index_exp[:, :columns]
  s = scored.from_logits(
    np.float32(policy)[cut],
    tokens[cut],
    mask[cut],
    teacher_logits_BKTV=np.float32(teacher)[cut],
    stats=objective.stats,
    present_BK=PRESENT[cut],
  )
  s = s.replace(old_logp_BKT=np.float32(np.where(mask, old_logp, 0))[cut])
  fields = (p, q, logp, old_logp, teacher_logp)
  groups = [
    [
      Completion(*(x[b, k, : LENGTH[b, k]] for x in fields))
      for k in range(columns)
      if PRESENT[b, k]
    ]
    for b in range(B)
  ]
  return s, groups


def jsd(teacher: np.ndarray, policy: np.ndarray, b: float) -> np.ndarray:
  """D_JSD(b)(teacher || policy) of GKD at each position; the KLs at the ends."""
  mixture = b * teacher + (1 - b) * policy
  if b == 0:
    return special.rel_entr(teacher, policy).sum(-1)
  if b == 1:
    return special.rel_entr(policy, teacher).sum(-1)
  forward = special.rel_entr(teacher, mixture).sum(-1)
  return b * forward + (1 - b) * special.rel_entr(policy, mixture).sum(-1)
