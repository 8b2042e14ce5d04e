"""Computes means with clustered standard errors and bootstrap intervals.

The unit of resampling is the prompt: completions of one prompt are not independent,
so a prompt's samples stay together. Over several seeds, seeds and prompts are
resampled independently of each other (Owen 2007, "The pigeonhole bootstrap"), because
a training seed moves every prompt and a prompt is shared by every seed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

LEVEL = 0.95
RESAMPLES = 4000
# Resamples in memory at once: bounds memory at a few thousand prompts.
_CHUNK = 200


class Interval(NamedTuple):
  """A mean with its 95 % interval and standard error, all in the unit of the values.

  Attributes:
    mean: the estimate.
    low: lower end of the interval: by bootstrap, or Student's t of `t_interval`.
    high: upper end. Both ends are NaN where there is no interval.
    se: standard error over what is counted in `units`; NaN with a single one.
    units: number of prompts (or other clusters; seeds of `t_interval`).
  """

  mean: float
  low: float
  high: float
  se: float
  units: int

  def __str__(self) -> str:
    if math.isnan(self.low):
      return f"{self.mean:.3f}"
    return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def plain(interval: Interval) -> dict[str, float | int | None]:
  """Converts an interval to plain data for JSON; NaN becomes null."""
  return {
    field: None if math.isnan(value) else value
    for field, value in interval._asdict().items()
  }


def read(content: Mapping[str, float | int | None]) -> Interval:
  """Converts what `plain` returned to an interval.

  Raises:
    TypeError: a field is missing or unknown.
  """
  return Interval(**{k: math.nan if v is None else v for k, v in content.items()})


def clustered_se(x: np.ndarray, cluster: np.ndarray | None = None) -> float:
  """Computes the standard error of the mean of `x`, clustered.

  se^2 = G / (G - 1) sum_g (sum_{i in g} (x_i - mean))^2 / n^2; with one value in
  each cluster this is the usual s / sqrt(n).

  Args:
    x: values, one dimension, finite.
    cluster: cluster id of each value; None makes each its own.

  Returns:
    The standard error in the unit of `x`, NaN with one cluster.

  Raises:
    ValueError: `x` is empty, not finite or not of `cluster`'s shape.
  """
  total_G, size_G = _by_cluster(x, cluster)
  if total_G.size < 2:
    return math.nan
  gap_G = total_G - size_G * (total_G.sum() / size_G.sum())
  scale = total_G.size / (total_G.size - 1)
  return float(np.sqrt(scale * np.square(gap_G).sum()) / size_G.sum())


def bootstrap_mean(
  x: np.ndarray, cluster: np.ndarray | None = None, *, seed: int = 0
) -> Interval:
  """Computes the mean of `x` and its percentile bootstrap interval over clusters.

  Args:
    x: values, one dimension, finite.
    cluster: cluster id (the prompt) of each value; None makes each its own.
    seed: of the resampling.

  Returns:
    Interval; a single cluster has no interval and gives NaN ends.

  Raises:
    ValueError: `x` is empty, not finite or not of `cluster`'s shape.
  """
  total_G, size_G = _by_cluster(x, cluster)
  mean = float(total_G.sum() / size_G.sum())
  se = clustered_se(x, cluster)
  if total_G.size < 2:
    return Interval(mean, math.nan, math.nan, se, total_G.size)

  def ratio(total, size, axis):
    return total.sum(axis) / size.sum(axis)

  low, high = _bootstrap((total_G, size_G), ratio, paired=True, seed=seed)
  return Interval(mean, low, high, se, total_G.size)


def t_interval(x_S: np.ndarray) -> Interval:
  """Computes the mean of independent values and its 95 % Student t interval.

  For values of few seeds, each with data of its own: a percentile bootstrap of ten
  values is too narrow.

  Args:
    x_S: one value a seed, finite.

  Returns:
    Interval in the unit of `x_S`; `units` is the number of seeds.

  Raises:
    ValueError: fewer than 2 values, or one that is not finite.
  """
  x_S = np.asarray(x_S, np.float64)
  if x_S.ndim != 1 or x_S.size < 2 or not np.isfinite(x_S).all():
    raise ValueError(f"x_S must be 2 finite values or more, got {x_S}")
  mean, se = float(x_S.mean()), clustered_se(x_S)
  half = se * float(scipy.stats.t.ppf((1 + LEVEL) / 2, x_S.size - 1))
  return Interval(mean, mean - half, mean + half, se, x_S.size)


def bootstrap_seeds(x_SP: np.ndarray, *, seed: int = 0) -> Interval:
  """Computes the mean over seeds and prompts, both resampled independently.

  With few seeds the interval underestimates the variance between them (by a factor of
  about (S - 1) / S): report the seeds separately as well.

  Args:
    x_SP: one value per seed and prompt, every seed on the same prompts.
    seed: of the resampling.

  Returns:
    Interval; `se` is the bootstrap's, `units` the number of prompts. One seed gives
    `bootstrap_mean` over its prompts.

  Raises:
    ValueError: `x_SP` is not a non-empty matrix of finite values.
  """
  x_SP = np.asarray(x_SP, np.float64)
  if x_SP.ndim != 2 or not x_SP.size or not np.isfinite(x_SP).all():
    raise ValueError(f"x_SP must be finite [seeds, prompts], got shape {x_SP.shape}")
  seeds, prompts = x_SP.shape
  if seeds == 1:
    return bootstrap_mean(x_SP[0], seed=seed)

  def mean(s, p, axis):
    del axis
    return x_SP[s[..., :, None], p[..., None, :]].mean((-2, -1))

  indices = (np.arange(seeds), np.arange(prompts))
  result = _resample(indices, mean, paired=False, seed=seed)
  low, high = result.confidence_interval
  se = float(result.standard_error)
  return Interval(float(x_SP.mean()), float(low), float(high), se, prompts)


class Seeds(NamedTuple):
  """Several seeds of one setting, separately and pooled.

  Attributes:
    each: one Interval a seed, over prompts.
    pooled: over seeds and prompts together.
    sd: standard deviation of the seeds' means (ddof 1), in the unit of the values; NaN
      with one seed.
  """

  each: tuple[Interval, ...]
  pooled: Interval
  sd: float


def by_seed(x_SP: np.ndarray, *, seed: int = 0) -> Seeds:
  """Computes the interval of each seed and the pooled one.

  Args:
    x_SP: one value per seed and prompt; `[P]` is one seed.
    seed: of the resampling.

  Raises:
    ValueError: see `bootstrap_seeds`.
  """
  x_SP = np.atleast_2d(np.asarray(x_SP, np.float64))
  each = tuple(bootstrap_mean(x_P, seed=seed) for x_P in x_SP)
  sd = float(x_SP.mean(1).std(ddof=1)) if len(x_SP) > 1 else math.nan
  return Seeds(each, bootstrap_seeds(x_SP, seed=seed), sd)


def paired_bootstrap(
  a: np.ndarray,
  b: np.ndarray,
  cluster: np.ndarray | None = None,
  *,
  seed: int = 0,
) -> Interval:
  """Computes the mean of the paired differences `a - b` over the same prompts.

  Args:
    a: per-prompt values `[P]`, or `[S, P]` over seeds.
    b: the other policy's on the same prompts; `[P]` serves every seed of `a`.
    cluster: prompt of each value, for `[n]` values with several a prompt.
    seed: of the resampling.

  Returns:
    Interval of the difference; it excludes 0 where the two differ at 95 %.

  Raises:
    ValueError: shapes that are not paired, values that are empty or not finite, or
      `cluster` with several seeds.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape[-1:] != b.shape[-1:] or a.ndim > 2 or b.ndim > a.ndim:
    raise ValueError(
      f"a {a.shape} and b {b.shape} are not paired: the same prompts in the same order"
    )
  gap = a - (b if a.ndim == b.ndim else b[None])
  if gap.ndim == 1:
    return bootstrap_mean(gap, cluster, seed=seed)
  if cluster is not None:
    raise ValueError("cluster: only for values of one dimension; average per prompt")
  return bootstrap_seeds(gap, seed=seed)


def _by_cluster(x, cluster) -> tuple[np.ndarray, np.ndarray]:
  """Sum and number of values of every cluster."""
  x = np.asarray(x, np.float64)
  if x.ndim != 1 or not x.size or not np.isfinite(x).all():
    raise ValueError(f"x must be one non-empty dimension of finite values, got {x}")
  if cluster is None:
    return x, np.ones_like(x)
  cluster = np.asarray(cluster)
  if cluster.shape != x.shape:
    raise ValueError(f"cluster has shape {cluster.shape}, x has {x.shape}")
  _, index = np.unique(cluster, return_inverse=True)
  return np.bincount(index, weights=x), np.bincount(index).astype(np.float64)


def _resample(data: Sequence[np.ndarray], statistic, *, paired: bool, seed: int):
  # Percentile, not BCa: BCa is NaN where a measure is constant (no repetition at all).
  return scipy.stats.bootstrap(
    data,
    statistic,
    paired=paired,
    vectorized=True,
    method="percentile",
    confidence_level=LEVEL,
    n_resamples=RESAMPLES,
    batch=_CHUNK,
    rng=np.random.default_rng(seed),
  )


def _bootstrap(data, statistic, *, paired: bool, seed: int) -> tuple[float, float]:
  low, high = _resample(data, statistic, paired=paired, seed=seed).confidence_interval
  return float(low), float(high)
