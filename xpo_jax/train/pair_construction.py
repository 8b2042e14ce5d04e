"""Constructs pairs, or other layouts, from the K rewarded completions of a prompt.

A pair construction is a layout and a selection of examples, each some columns of one
prompt: all of them, the best and the worst, every pair. The statistics recorded with a
completion are selected with it.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xpo_jax.ops import pairing
from xpo_jax.types import Layout


class ChosenColumns(NamedTuple):
  """The selected columns of one example.

  Attributes:
    prompt: index b of its prompt.
    columns: indices of that prompt's completions, in the order of the layout.
    desirable: the label of a rated completion; None in other layouts.
  """

  prompt: int
  columns: list[int]
  desirable: bool | None = None


Choose = Callable[[np.ndarray, np.ndarray, np.ndarray], list[ChosenColumns]]
"""`(reward_BK, present_BK, length_BK) -> rows`, in the order of the prompts."""


def _one(completions: int) -> int:
  del completions
  return 1


class PairConstruction(NamedTuple):
  """A layout and a selection of completions.

  Attributes:
    layout: layout of the selected columns.
    choose: see `Choose`; rewards of absent columns are 0.
    completions: largest number of completions of a row, or None for K.
    rows: K -> largest number of rows of a prompt, by which the rows of an optimiser
      step are multiplied. All rows have equal weight.
    brings: fields of `Scored` that the selection adds to those of rollouts.
  """

  layout: Layout
  choose: Choose
  completions: int | None = None
  rows: Callable[[int], int] = _one
  brings: frozenset[str] = frozenset()


def as_sampled() -> PairConstruction:
  """Selects all completions with a reward, in their order."""

  def choose(reward_BK, present_BK, length_BK):
    del reward_BK, length_BK
    return _whole([np.flatnonzero(present).tolist() for present in present_BK])

  return PairConstruction(Layout.SAMPLED, choose)


def best() -> PairConstruction:
  """Selects the best completion of each prompt as a demonstration; ties: the first."""

  def choose(reward_BK, present_BK, length_BK):
    del length_BK
    score_BK = np.where(present_BK > 0, reward_BK, -np.inf)
    picks = zip(score_BK.argmax(1), present_BK.any(1), strict=True)
    return _whole([[int(column)] if any_there else [] for column, any_there in picks])

  return PairConstruction(Layout.DEMO, choose, 1)


def best_worst(length_penalty: float = 0.0) -> PairConstruction:
  """Selects the best and the worst; a tie is left out. See `pairing.best_worst`.

  Args:
    length_penalty: penalty per token, for the selection only.
  """

  def choose(reward_BK, present_BK, length_BK):
    return _kept(pairing.best_worst(reward_BK, present_BK, length_BK, length_penalty))

  return PairConstruction(Layout.PAIR, choose, 2)


def best_first() -> PairConstruction:
  """Selects the best and a random one. See `pairing.best_first`."""
  return _pairs(pairing.best_first)


def best_second() -> PairConstruction:
  """Selects the best and the second best. See `pairing.best_second`."""
  return _pairs(pairing.best_second)


def first_two() -> PairConstruction:
  """Selects two random ones, the better one as chosen. See `pairing.first_two`."""
  return _pairs(pairing.first_two)


def all_pairs(gap: float = 0.0) -> PairConstruction:
  """Selects all pairs of a prompt, the better one first: K (K - 1) / 2.

  DNO (Rosset et al. 2024, arXiv:2404.03715) regresses on win rates of all pairs; its
  practical form uses those of a large gap.

  Args:
    gap: smallest difference of rewards of a pair, >= 0. At 0 ties are included, in the
      order of sampling: for an objective that reads the labels alone, such as DPO, use
      a gap > 0.
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
  """Labels every completion, desirable where its reward is above a threshold.

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
  """Labels the best completion desirable, the worst undesirable; ties are left out."""

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
  return _whole([pair if k > 0 else [] for pair, k in zip(both, keep, strict=True)])


def _whole(columns: Sequence[list[int]]) -> list[ChosenColumns]:
  """One row for each prompt that has any column."""
  return [ChosenColumns(b, chosen) for b, chosen in enumerate(columns) if chosen]
