"""Pairs for tests of pairwise objectives, and their log-ratios by hand."""

import numpy as np

from xpo_jax import scored
from xpo_jax.types import Scored


def one(chosen: float, rejected: float, length: tuple[int, int] = (1, 1)) -> Scored:
  """A pair with these log-ratios (the reference's log-probs are 0)."""
  return scored.from_sequence_logps([[chosen, rejected]], [length], [[0.0, 0.0]])


def log_ratio(s: Scored) -> np.ndarray:
  """log policy - log ref of each completion in float64, `[B, K]`."""
  gap = np.asarray(s.logp_BKT, np.float64) - np.asarray(s.ref_logp_BKT, np.float64)
  return np.where(np.asarray(s.mask_BKT) > 0, gap, 0).sum(-1)


def gap(s: Scored) -> np.ndarray:
  """Log-ratio of the chosen minus that of the rejected, `[B]`."""
  ratio = log_ratio(s)
  return ratio[:, 0] - ratio[:, 1]
