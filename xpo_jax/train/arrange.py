"""How the K judged completions of a prompt become what an objective trains on.

An arrangement is a layout and a choice of columns: all of them, the best and the worst,
the best alone. Everything recorded with a completion goes with it.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from xpo_jax import pairing
from xpo_jax.types import Layout

Choose = Callable[[np.ndarray, np.ndarray, np.ndarray], list[list[int]]]
"""`(reward_BK, present_BK, length_BK) -> columns of each prompt`; none: left out."""


class Arrangement(NamedTuple):
  """A choice of completions.

  Attributes:
    layout: what the chosen columns mean.
    choose: see `Choose`; rewards of absent columns are 0.
    completions: how many of K go into a row at most, or None for all.
  """

  layout: Layout
  choose: Choose
  completions: int | None = None


def as_sampled() -> Arrangement:
  """All completions that were judged, in their order."""

  def choose(reward_BK, present_BK, length_BK):
    del reward_BK, length_BK
    return [np.flatnonzero(present).tolist() for present in present_BK]

  return Arrangement(Layout.SAMPLED, choose)


def best() -> Arrangement:
  """The best completion of each prompt, the first of several, as a demonstration."""

  def choose(reward_BK, present_BK, length_BK):
    del length_BK
    score_BK = np.where(present_BK > 0, reward_BK, -np.inf)
    picks = zip(score_BK.argmax(1), present_BK.any(1), strict=True)
    return [[int(column)] if any_there else [] for column, any_there in picks]

  return Arrangement(Layout.DEMO, choose, 1)


def best_worst(length_penalty: float = 0.0) -> Arrangement:
  """A pair of the best and the worst; a tie is left out. See `pairing.best_worst`.

  Args:
    length_penalty: reward taken per token, for the choice of the two only.
  """

  def choose(reward_BK, present_BK, length_BK):
    return _columns(
      pairing.best_worst(reward_BK, present_BK, length_BK, length_penalty)
    )

  return Arrangement(Layout.PAIR, choose, 2)


def best_first() -> Arrangement:
  """A pair of the best and a random one. See `pairing.best_first`."""
  return _pairs(pairing.best_first)


def best_second() -> Arrangement:
  """A pair of the best and the next best. See `pairing.best_second`."""
  return _pairs(pairing.best_second)


def first_two() -> Arrangement:
  """A pair of two random ones, the better one chosen. See `pairing.first_two`."""
  return _pairs(pairing.first_two)


DEFAULTS: Mapping[Layout, Callable[[], Arrangement]] = {
  Layout.SAMPLED: as_sampled,
  Layout.PAIR: best_worst,
  Layout.DEMO: best,
}


def _pairs(rule: Callable[..., pairing.Pairs]) -> Arrangement:
  def choose(reward_BK, present_BK, length_BK):
    del length_BK
    if reward_BK.shape[1] < 2:  # no column 1 to be rejected
      return [[] for _ in reward_BK]
    return _columns(rule(reward_BK, present_BK))

  return Arrangement(Layout.PAIR, choose, 2)


def _columns(pairs: pairing.Pairs) -> list[list[int]]:
  chosen, rejected, _, keep = (np.asarray(x) for x in pairs)
  both = np.stack([chosen, rejected], 1).astype(int).tolist()
  return [two if kept > 0 else [] for two, kept in zip(both, keep, strict=True)]
