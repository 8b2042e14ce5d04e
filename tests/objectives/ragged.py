"""Lists for tests of listwise objectives, and their log-ratios by hand."""

import numpy as np

from xpo_jax import scored
from xpo_jax.testing import toy
from xpo_jax.types import Scored


def one(log_ratio: list[float], reward: list[float], length: int = 1) -> Scored:
  """A list with these log-ratios (the reference's log-probs are 0)."""
  lengths = [length] * len(reward)
  return scored.from_sequence_logps(
    [log_ratio], [lengths], [[0.0] * len(reward)], reward_BK=[reward]
  )


def several() -> Scored:
  """Lists of four, three (with a tie) and one completion; tokens, rewards >= 0."""
  s = toy.scored(K=4, B=4)
  reward_BK = np.array([[3, 1, 9, 9], [0, 2, 1, 3], [1, 2, 1, 0], [2, 9, 9, 9.0]])
  present_BK = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0.0]])
  return s.replace(reward_BK=reward_BK, present_BK=present_BK)


def seq_logp(s: Scored) -> np.ndarray:
  """log policy of each completion in float64, `[B, K]`."""
  logp_BKT = np.asarray(s.logp_BKT, np.float64)
  return np.where(np.asarray(s.mask_BKT) > 0, logp_BKT, 0).sum(-1)


def rows(s: Scored, oracle, *arrays: np.ndarray) -> np.ndarray:
  """`oracle(reward, *arrays)` on the present completions of each list."""
  here_BK = np.asarray(s.present_BK) > 0
  given = (np.asarray(s.reward_BK, np.float64), *arrays)
  return np.array(
    [oracle(*(x[b][here_BK[b]] for x in given)) for b in range(len(here_BK))]
  )
