"""What is chosen of a prompt's completions."""

import numpy as np
import pytest

from xpo_jax.train import arrange
from xpo_jax.types import Layout

REWARD = np.array([[1.0, 3.0, 2.0], [2.0, 2.0, 2.0], [5.0, 0.0, 1.0]], np.float32)
PRESENT = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1]], np.float32)
LENGTH = np.array([[4, 4, 4], [4, 4, 4], [4, 4, 4]])


@pytest.mark.parametrize(
  ("made", "columns"),
  [
    (arrange.as_sampled(), [[0, 1, 2], [0, 1, 2], [1, 2]]),
    (arrange.best(), [[1], [0], [2]]),
    (arrange.best_worst(), [[1, 0], [], [2, 1]]),
    (arrange.best_second(), [[1, 2], [], [2, 1]]),
    (arrange.first_two(), [[1, 0], [], []]),
  ],
  ids=["as_sampled", "best", "best_worst", "best_second", "first_two"],
)
def test_columns_are_chosen_by_reward_among_those_present(made, columns):
  assert made.choose(np.where(PRESENT > 0, REWARD, 0), PRESENT, LENGTH) == columns


def test_length_penalty_changes_the_choice_and_not_the_winner():
  length_BK = LENGTH + np.array([[0, 40, 0], [0, 0, 0], [0, 0, 0]])
  found = arrange.best_worst(length_penalty=0.1).choose(REWARD, PRESENT, length_BK)
  # Column 1 is so long that it is the worst choice, and still has the greater reward.
  assert found[0] == [1, 2]


@pytest.mark.parametrize("layout", [Layout.PAIR, Layout.SAMPLED, Layout.DEMO])
def test_one_completion_makes_no_pair(layout):
  made = arrange.DEFAULTS[layout]()
  assert made.layout is layout
  columns = made.choose(*(np.ones((2, 1), np.float32) for _ in range(3)))
  assert columns == ([[], []] if layout is Layout.PAIR else [[0], [0]])
  if layout is Layout.PAIR:
    for rule in (arrange.best_first, arrange.first_two):
      ones = (np.ones((2, 1), np.float32) for _ in range(3))
      assert rule().choose(*ones) == [[], []]
