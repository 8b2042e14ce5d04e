"""Finds the learning rates that put an objective's runs where they are compared.

KL to the start grows with the learning rate, over decades about as a power of it. So
the search works on logarithms: it reads the rate of a wanted KL off the runs there are,
runs it, and reads again.
"""

import math
from collections.abc import Mapping, Sequence

LEAST, MOST = 1e-7, 1e-1  # no rate outside is tried
_SLOWEST, _FASTEST = 0.75, 4.0  # slopes that are believed beyond all runs
_SLOPE = 2.0  # of log KL over log rate, where one run says nothing of it: small steps
_REACH = 30.0  # a rate is at most so many times another, where nothing brackets the KL
_NO_KL = 1e-9  # of a policy that did not move


def next_rates(
  kl_by_rate: Mapping[float, float], targets: Sequence[float], count: int
) -> list[float]:
  """Where to run next: at the targets that are farthest from any run.

  Args:
    kl_by_rate: rate -> KL of the runs so far, nats; infinite where one diverged.
    targets: wanted KLs.
    count: how many rates; at most as many as targets.

  Returns:
    Rates, the farthest target's first.
  """
  far = sorted(targets, key=lambda kl: -_distance(kl_by_rate, kl))
  rates = [rate_at(kl_by_rate, kl) for kl in far]
  apart = list(dict.fromkeys(rates))  # targets out of reach all have the farthest rate
  return (apart + rates)[:count]


def rate_at(kl_by_rate: Mapping[float, float], target: float) -> float:
  """The rate at which KL first reaches a target, on logarithmic axes.

  Between two runs it is read off the line through them, or is the middle where the
  stronger one diverged. Beyond all runs the line of the two nearest goes on, to at most
  30 times the nearest.

  Args:
    kl_by_rate: rate -> KL of runs, nats; infinite where one diverged.
    target: the KL.

  Returns:
    The rate, within LEAST and MOST.
  """
  runs = [(math.log(rate), _log(kl)) for rate, kl in sorted(kl_by_rate.items())]
  wanted = math.log(target)
  above = next((i for i, (_, kl) in enumerate(runs) if kl >= wanted), len(runs))
  if 0 < above < len(runs):
    (a, kl_a), (b, kl_b) = runs[above - 1 : above + 1]
    share = 0.5 if math.isinf(kl_b) else (wanted - kl_a) / (kl_b - kl_a)
    return math.exp(a + share * (b - a))
  near, *other = runs[:2] if above == 0 else runs[:-3:-1]
  slope = _SLOPE
  if other and all(math.isfinite(kl) for _, kl in (near, *other)):
    (rate, kl), ((other_rate, other_kl),) = near, other
    slope = min(max((kl - other_kl) / (rate - other_rate), _SLOWEST), _FASTEST)
  reach = math.log(_REACH)
  step = min(max((wanted - near[1]) / slope, -reach), reach)
  return min(max(math.exp(near[0] + step), LEAST), MOST)


def _distance(kl_by_rate: Mapping[float, float], target: float) -> float:
  """Of the nearest run to a target, in log KL."""
  return min(abs(_log(kl) - math.log(target)) for kl in kl_by_rate.values())


def _log(kl: float) -> float:
  return math.log(max(kl, _NO_KL))
