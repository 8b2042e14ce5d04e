import itertools

import numpy as np
import pytest

from xpo_jax.data import bin_packing


@pytest.mark.parametrize("most", [None, 3])
def test_every_group_is_in_one_row_and_no_row_is_too_full(most):
  length = np.random.default_rng(0).integers(1, 51, 500)
  rows = bin_packing.best_fit(length, 50, most, np.random.default_rng(1))
  assert sorted(itertools.chain(*rows)) == list(range(500))
  assert max(length[row].sum() for row in rows) <= 50
  assert max(map(len, rows)) <= (most or 50)


@pytest.mark.parametrize("seed", range(5))
def test_lengths_cut_from_full_rows_need_few_more_rows(seed):
  # The fewest rows are known: each of 60 rows of 100 tokens was cut in three.
  rng = np.random.default_rng(seed)
  cuts = np.sort(rng.choice(np.arange(1, 100), (60, 2)), axis=1)
  length = np.diff(cuts, axis=1, prepend=0, append=100).ravel()
  length = length[length > 0]
  rows = bin_packing.best_fit(length, 100, None, rng)
  assert 60 <= len(rows) <= 11 / 9 * 60 + 4


def test_without_a_generator_rows_come_in_order_of_their_first_group():
  rows = bin_packing.best_fit(np.array([5, 9, 5, 1]), 10, None, None)
  assert [row.tolist() for row in rows] == [[0, 2], [1, 3]]


def test_one_group_a_row_keeps_the_order_given():
  rows = bin_packing.best_fit(np.array([5, 1, 5]), 10, 1, None)
  assert [row.tolist() for row in rows] == [[0], [1], [2]]
