"""Computes best-of-n and the tilted reference from reference samples.

Both use one pool of reference samples with known rewards and need no training. They
bound a reward-KL frontier: best-of-n is the reward of sampling alone, the tilted
reference has the largest reward of any policy at its KL.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xpo_jax.evaluation import bootstrap


class Point(NamedTuple):
  """One point of a reference curve.

  Attributes:
    strength: n of best-of-n, or lambda of the tilt.
    reward: mean over prompts.
    kl: nats to the reference; for best-of-n an upper bound, exact.
    reward_P: reward of each prompt.
    kl_P: KL of each prompt.
  """

  strength: float
  reward: bootstrap.Interval
  kl: bootstrap.Interval
  reward_P: np.ndarray
  kl_P: np.ndarray


def best_of_n(reward_PS: np.ndarray, ns: Sequence[int]) -> list[Point]:
  """Computes the expected reward of the best of n, over all subsets of a pool.

  The i-th smallest of S samples is the best of a random subset of n with probability
  C(i - 1, n - 1) / C(S, n): exact and unbiased, no subset is drawn. The KL of
  best-of-n to its base is at most log n - (n - 1) / n (Beirami et al. 2024,
  arXiv:2401.01879).

  Args:
    reward_PS: rewards of S reference samples for each of P prompts.
    ns: values of n, each 1..S.

  Returns:
    One Point for each n.
  """
  reward_PS = np.sort(_pool(reward_PS), axis=1)
  prompts, samples = reward_PS.shape
  points = []
  for n in ns:
    if not 1 <= n <= samples:
      raise ValueError(f"best of n={n}: the pool has {samples} samples, n is 1..that")
    # Exact integers: C(64, 32) needs more than float64's 53 bits.
    weight_S = [
      math.comb(i, n - 1) / math.comb(samples, n) for i in range(samples)
    ]  # i counts from 0: i samples are below
    reward_P = reward_PS @ np.array(weight_S)
    bound = math.log(n) - (n - 1) / n
    kl = bootstrap.Interval(bound, bound, bound, 0.0, prompts)
    kl_P = np.full(prompts, bound)
    points.append(Point(n, bootstrap.bootstrap_mean(reward_P), kl, reward_P, kl_P))
  return points


def best_of_n_kl(reward_S: np.ndarray, n: int) -> float:
  """Computes the exact KL of best-of-n to a base uniform over S completions.

  Ties are broken at random, so that completions of equal reward keep equal
  probabilities. With F(r) the fraction of rewards at most r, the best of n
  has reward r with probability P(r) = F(r)^n - F(r-)^n, and

  KL = sum_r P(r) log(P(r) / (F(r) - F(r-)))

  which is below the bound log n - (n - 1) / n (Beirami et al. 2024, arXiv:2401.01879)
  where there are ties or few completions. A completion that occurs twice in the pool is
  twice as likely. From a pool of samples of a policy the KL is underestimated where n
  is close to S.

  Args:
    reward_S: rewards of the completions.
    n: at least 1; may be larger than S, for draws are with replacement.

  Returns:
    Nats, from 0 to log S.

  Raises:
    ValueError: n < 1, or rewards that are not finite.

  Example:
    >>> round(best_of_n_kl(np.array([0.0, 1.0]), 2), 4)  # 1/4 and 3/4 against 1/2
    0.1308
  """
  if n < 1:
    raise ValueError(f"best_of_n_kl: n={n}; it must be at least 1")
  _, count_R = np.unique(_pool(np.asarray(reward_S)[None]), return_counts=True)
  below_R = np.concatenate([[0], count_R.cumsum()]) / count_R.sum()
  best_R = np.diff(below_R**n)
  # A reward whose probability underflows contributes 0.
  ratio_R = np.where(best_R > 0, best_R / np.diff(below_R), 1)
  return float((best_R * np.log(ratio_R)).sum())


def tilted(reward_PS: np.ndarray, strengths: Sequence[float]) -> list[Point]:
  """Computes the optimal policy: reference samples reweighted by exp(lambda r).

  pi*(y|x) = ref(y|x) exp(lambda r) / Z maximises reward at its KL. Weights are
  normalised within each prompt's pool, and KL = lambda E[r] - log Z. A pool of S
  cannot represent a KL near log S, so points beyond log S - 2 are left out.

  Args:
    reward_PS: rewards of S reference samples for each of P prompts.
    strengths: values of lambda >= 0; a DPO of beta on Bradley-Terry labels of
      temperature tau aims at lambda = 1 / (tau beta).

  Returns:
    A Point for each strength whose KL the pool can represent.
  """
  reward_PS = _pool(reward_PS)
  samples = reward_PS.shape[1]
  points = []
  for strength in strengths:
    if not strength >= 0:
      raise ValueError(f"tilt strength must be >= 0, got {strength}")
    logit_PS = strength * reward_PS
    top_P1 = logit_PS.max(1, keepdims=True)
    weight_PS = np.exp(logit_PS - top_P1)
    log_z_P = np.log(weight_PS.mean(1)) + top_P1[:, 0]
    weight_PS /= weight_PS.sum(1, keepdims=True)
    reward_P = (weight_PS * reward_PS).sum(1)
    kl_P = strength * reward_P - log_z_P
    if kl_P.mean() > math.log(samples) - 2:
      continue
    reward, kl = (bootstrap.bootstrap_mean(x_P) for x_P in (reward_P, kl_P))
    points.append(Point(strength, reward, kl, reward_P, kl_P))
  return points


def _pool(reward_PS) -> np.ndarray:
  reward_PS = np.asarray(reward_PS, np.float64)
  if reward_PS.ndim != 2 or not reward_PS.size or not np.isfinite(reward_PS).all():
    raise ValueError(
      f"reward_PS must be finite [prompts, samples], got shape {reward_PS.shape}"
    )
  return reward_PS
