"""GRPO's family in NumPy float64, one completion at a time, from the papers."""

import numpy as np

from xpo_jax.testing import toy
from xpo_jax.types import Scored


def record() -> Scored:
  """Ragged groups with ratios far enough from 1 for the clips to be active."""
  s = toy.scored(K=4, B=3)
  return s.replace(old_logp_BKT=s.logp_BKT + 4 * (s.old_logp_BKT - s.logp_BKT))


def rewards(s: Scored) -> list[np.ndarray]:
  """The rewards of each prompt's completions that are present."""
  r = np.asarray(s.reward_BK, np.float64)
  return [x[here > 0] for x, here in zip(r, np.asarray(s.present_BK), strict=True)]


def standardised(r: np.ndarray) -> np.ndarray:
  return (r - r.mean()) / (r.std(ddof=1) + 1e-4)


def completions(s: Scored, *fields: str) -> list[list[list[np.ndarray]]]:
  """For each prompt and completion present: its tokens of these fields."""
  length, present = np.asarray(s.length_BK, int), np.asarray(s.present_BK)
  arrays = [np.asarray(vars(s)[field], np.float64) for field in fields]
  return [
    [[x[b, k, : length[b, k]] for x in arrays] for k in np.flatnonzero(present[b])]
    for b in range(len(present))
  ]


def k3(logp: np.ndarray, ref: np.ndarray) -> np.ndarray:
  return np.exp(ref - logp) - (ref - logp) - 1


def clipped(rho, a, low, high, max_ratio=np.inf):
  """-min(rho A, clip(rho) A), at A < 0 with rho no more than `max_ratio`."""
  gain = np.minimum(rho * a, np.clip(rho, 1 - low, 1 + high) * a)
  return -np.maximum(gain, max_ratio * a) if a < 0 else -gain


def tokens(
  s: Scored, advantage, low, high, beta, max_ratio=np.inf
) -> list[list[np.ndarray]]:
  """The loss of each token: clipped surrogate plus beta k3."""
  fields = completions(s, "logp_BKT", "old_logp_BKT", "ref_logp_BKT")
  return [
    [
      clipped(np.exp(logp - old), a, low, high, max_ratio) + beta * k3(logp, ref)
      for (logp, old, ref), a in zip(group, advantage(r), strict=True)
    ]
    for group, r in zip(fields, rewards(s), strict=True)
  ]
