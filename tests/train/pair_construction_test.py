"""What is chosen of a prompt's completions."""

import numpy as np
import pytest

from xpo_jax.train import pair_construction
from xpo_jax.types import Layout

REWARD = np.array([[1.0, 3.0, 2.0], [2.0, 2.0, 2.0], [5.0, 0.0, 1.0]], np.float32)
PRESENT = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1]], np.float32)
LENGTH = np.array([[4, 4, 4], [4, 4, 4], [4, 4, 4]])
ROWS = {  # (prompt, columns)
  "as_sampled": [(0, [0, 1, 2]), (1, [0, 1, 2]), (2, [1, 2])],
  "best": [(0, [1]), (1, [0]), (2, [2])],
  "best_worst": [(0, [1, 0]), (2, [2, 1])],
  "best_second": [(0, [1, 2]), (2, [2, 1])],
  "first_two": [(0, [1, 0])],
  "all_pairs": [
    (0, [1, 0]),
    (0, [2, 0]),
    (0, [1, 2]),
    (1, [0, 1]),
    (1, [0, 2]),
    (1, [1, 2]),
    (2, [2, 1]),
  ],
}


def _chosen(
  made: pair_construction.PairConstruction,
) -> list[pair_construction.ChosenColumns]:
  return made.choose(np.where(PRESENT > 0, REWARD, 0), PRESENT, LENGTH)


@pytest.mark.parametrize("name", ROWS)
def test_columns_are_chosen_by_reward_among_those_present(name):
  made = vars(pair_construction)[name]()
  rows = _chosen(made)
  assert rows == [(*row, None) for row in ROWS[name]]
  # What a step makes room for holds what is chosen.
  assert np.bincount([row.prompt for row in rows]).max() <= made.rows(3)
  assert max(len(row.columns) for row in rows) <= (made.completions or 3)


def test_pairs_that_are_too_close_are_left_out():
  rows = _chosen(pair_construction.all_pairs(gap=1.5))
  assert [row[:2] for row in rows] == [(0, [1, 0])]  # 3 against 1
  with pytest.raises(ValueError, match=r"gap is -1"):
    pair_construction.all_pairs(gap=-1.0)


def test_completions_are_rated_by_themselves():
  made = pair_construction.rated_by_threshold(threshold=1.0)
  labels = [(0, 0, False), (0, 1, True), (0, 2, True)]
  labels += [(1, 0, True), (1, 1, True), (1, 2, True), (2, 1, False), (2, 2, False)]
  assert _chosen(made) == [(b, [k], good) for b, k, good in labels]
  assert made.layout is Layout.RATED and made.rows(3) == 3
  extremes = pair_construction.rated_best_worst()
  assert _chosen(extremes) == [
    (0, [1], True),
    (0, [0], False),
    (2, [2], True),
    (2, [1], False),
  ]
  assert extremes.rows(3) == 2


def test_length_penalty_changes_the_choice_and_not_the_winner():
  length_BK = LENGTH + np.array([[0, 40, 0], [0, 0, 0], [0, 0, 0]])
  found = pair_construction.best_worst(length_penalty=0.1).choose(
    REWARD, PRESENT, length_BK
  )
  # Column 1 is so long that it is the worst choice, and still has the greater reward.
  assert found[0].columns == [1, 2]


@pytest.mark.parametrize("layout", [Layout.PAIR, Layout.SAMPLED, Layout.DEMO])
def test_one_completion_makes_no_pair(layout):
  made = pair_construction.DEFAULTS[layout]()
  assert made.layout is layout
  ones = [np.ones((2, 1), np.float32)] * 3
  alone = [] if layout is Layout.PAIR else [(0, [0], None), (1, [0], None)]
  assert made.choose(*ones) == alone
  for rule in (
    pair_construction.best_first,
    pair_construction.first_two,
    pair_construction.all_pairs,
  ):
    assert rule().choose(*ones) == []
