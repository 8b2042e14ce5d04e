"""How the K judged completions of a prompt become what an objective trains on.

A pair construction is a layout and a choice of rows, each some columns of one prompt:
all of them, the best and the worst, every pair. Everything recorded with a completion
goes with it.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xpo_jax.ops import pairing
from xpo_jax.types import Layout


class ChosenColumns(NamedTuple):
  """One row of a batch.

  Attributes:
    prompt: number b of its prompt.
    columns: which of that prompt's completions, in the order of the layout.
    desirable: the label of a row that is rated; None in other layouts.
  """

  prompt: int
  columns: list[int]
  desirable: bool | None = None


Choose = Callable[[np.ndarray, np.ndarray, np.ndarray], list[ChosenColumns]]
"""`(reward_BK, present_BK, length_BK) -> rows`, prompt by prompt; one may have none."""


def _one(completions: int) -> int:
  del completions
  return 1


class PairConstruction(NamedTuple):
  """A choice of completions.

  Attributes:
    layout: what the chosen columns mean.
    choose: see `Choose`; rewards of absent columns are 0.
    completions: how many of K go into a row at most, or None for all.
    rows: K -> rows that a prompt becomes at most. An optimiser step takes as many rows
      of each of its prompts; all rows weigh the same.
    brings: fields of `Scored` that the choice adds to what rollouts bring.
  """

  layout: Layout
  choose: Choose
  completions: int | None = None
  rows: Callable[[int], int] = _one
  brings: frozenset[str] = frozenset()


def as_sampled() -> PairConstruction:
  """All completions that were judged, in their order."""

  def choose(reward_BK, present_BK, length_BK):
    del reward_BK, length_BK
    return _whole([np.flatnonzero(present).tolist() for present in present_BK])

  return PairConstruction(Layout.SAMPLED, choose)


def best() -> PairConstruction:
  """The best completion of each prompt, the first of several, as a demonstration."""

  def choose(reward_BK, present_BK, length_BK):
    del length_BK
    score_BK = np.where(present_BK > 0, reward_BK, -np.inf)
    picks = zip(score_BK.argmax(1), present_BK.any(1), strict=True)
    return _whole([[int(column)] if any_there else [] for column, any_there in picks])

  return PairConstruction(Layout.DEMO, choose, 1)


def best_worst(length_penalty: float = 0.0) -> PairConstruction:
  """A pair of the best and the worst; a tie is left out. See `pairing.best_worst`.

  Args:
    length_penalty: reward taken per token, for the choice of the two only.
  """

  def choose(reward_BK, present_BK, length_BK):
    return _kept(pairing.best_worst(reward_BK, present_BK, length_BK, length_penalty))

  return PairConstruction(Layout.PAIR, choose, 2)


def best_first() -> PairConstruction:
  """A pair of the best and a random one. See `pairing.best_first`."""
  return _pairs(pairing.best_first)


def best_second() -> PairConstruction:
  """A pair of the best and the next best. See `pairing.best_second`."""
  return _pairs(pairing.best_second)


def first_two() -> PairConstruction:
  """A pair of two random ones, the better one chosen. See `pairing.first_two`."""
  return _pairs(pairing.first_two)


def all_pairs(gap: float = 0.0) -> PairConstruction:
  """Every two completions of a prompt, the better one first: K (K - 1) / 2 pairs.

  DNO (Rosset et al. 2024, arXiv:2404.03715) regresses on win rates of all pairs; its
  practical form keeps those that are far apart.

  Args:
    gap: pairs whose rewards differ by less are left out, >= 0. At 0 ties stay, in the
      order of sampling: where the label is all that an objective reads, as in DPO, ask
      for more.
  """
  if gap < 0:
    raise ValueError(f"all_pairs: gap is {gap}; allowed: gap >= 0")

  def choose(reward_BK, present_BK, length_BK):
    del length_BK
    rows = []
    for b, (reward, present) in enumerate(zip(reward_BK, present_BK, strict=True)):
      for i, j in itertools.combinations(np.flatnonzero(present).tolist(), 2):
        if abs(reward[i] - reward[j]) >= gap:
          rows.append(ChosenColumns(b, [i, j] if reward[i] >= reward[j] else [j, i]))
    return rows

  return PairConstruction(Layout.PAIR, choose, 2, lambda K: K * (K - 1) // 2)


def rated_by_threshold(threshold: float = 0.0) -> PairConstruction:
  """Every completion by itself, desirable where its reward is above a threshold.

  Iterative CRINGE (Xu et al. 2023, arXiv:2312.16682) labels a policy's own samples so.
  """

  def choose(reward_BK, present_BK, length_BK):
    del length_BK
    return [
      ChosenColumns(int(b), [int(k)], bool(reward_BK[b, k] > threshold))
      for b, k in np.argwhere(present_BK > 0)
    ]

  return _rated(choose, lambda K: K)


def rated_best_worst() -> PairConstruction:
  """The best completion as desirable, the worst as undesirable; a tie is left out."""

  def choose(reward_BK, present_BK, length_BK):
    del length_BK
    pairs = _kept(pairing.best_worst(reward_BK, present_BK))
    labels = (True, False)
    return [
      ChosenColumns(pair.prompt, [column], label)
      for pair in pairs
      for column, label in zip(pair.columns, labels, strict=True)
    ]

  return _rated(choose, lambda K: 2)


DEFAULTS: Mapping[Layout, Callable[[], PairConstruction]] = {
  Layout.SAMPLED: as_sampled,
  Layout.PAIR: best_worst,
  Layout.DEMO: best,
}


def _rated(choose: Choose, rows: Callable[[int], int]) -> PairConstruction:
  return PairConstruction(Layout.RATED, choose, 1, rows, frozenset({"desirable_BK"}))


def _pairs(rule: Callable[..., pairing.PairIndices]) -> PairConstruction:
  def choose(reward_BK, present_BK, length_BK):
    del length_BK
    if reward_BK.shape[1] < 2:  # no column 1 to be rejected
      return []
    return _kept(rule(reward_BK, present_BK))

  return PairConstruction(Layout.PAIR, choose, 2)


def _kept(pairs: pairing.PairIndices) -> list[ChosenColumns]:
  chosen, rejected, _, keep = (np.asarray(x) for x in pairs)
  both = np.stack([chosen, rejected], 1).astype(int).tolist()
  return _whole([two if kept > 0 else [] for two, kept in zip(both, keep, strict=True)])


def _whole(columns: Sequence[list[int]]) -> list[ChosenColumns]:
  """One row for each prompt that has any column."""
  return [ChosenColumns(b, chosen) for b, chosen in enumerate(columns) if chosen]
