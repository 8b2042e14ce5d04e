import itertools

import numpy as np
import pytest

from xpo_jax.data import bin_packing


@pytest.mark.parametrize("groups_per_row", [None, 3])
def test_rows_partition_the_groups_within_capacity(groups_per_row):
  length = np.random.default_rng(0).integers(1, 51, 500)
  rows = bin_packing.best_fit(
    length, 50, groups_per_row=groups_per_row, rng=np.random.default_rng(1)
  )
  assert sorted(itertools.chain(*rows)) == list(range(500))
  assert max(length[row].sum() for row in rows) <= 50
  assert max(map(len, rows)) <= (groups_per_row or 50)


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_is_near_a_known_optimum(seed):
  # The optimum is 60 rows: each of 60 rows of 100 tokens was split in three.
  rng = np.random.default_rng(seed)
  cuts = np.sort(rng.choice(np.arange(1, 100), (60, 2)), axis=1)
  length = np.diff(cuts, axis=1, prepend=0, append=100).ravel()
  length = length[length > 0]
  rows = bin_packing.best_fit(length, 100, groups_per_row=None, rng=rng)
  assert 60 <= len(rows) <= 11 / 9 * 60 + 4


def test_rng_none_orders_rows_by_their_first_group():
  rows = bin_packing.best_fit(np.array([5, 9, 5, 1]), 10, groups_per_row=None, rng=None)
  assert [row.tolist() for row in rows] == [[0, 2], [1, 3]]


def test_one_group_per_row_keeps_the_input_order():
  rows = bin_packing.best_fit(np.array([5, 1, 5]), 10, groups_per_row=1, rng=None)
  assert [row.tolist() for row in rows] == [[0], [1], [2]]
