"""Packs groups of given lengths into as few rows as possible (bin packing)."""

import numpy as np


def best_fit(
  length: np.ndarray,
  row_length: int,
  *,
  groups_per_row: int | None,
  rng: np.random.Generator | None,
) -> list[np.ndarray]:
  """Packs in decreasing order of length, each group into the fullest row with room.

  Best fit decreasing; like first fit decreasing it needs at most 11/9 of the fewest
  rows up to a constant (Johnson et al. 1974). A bit set over free lengths finds the row
  in one lookup.

  Args:
    length: tokens of each group, each at most row_length.
    row_length: capacity of a row in tokens.
    groups_per_row: maximum number of groups in a row, or None. 1: one group per row, in
      the order given by rng.
    rng: permutes groups of equal length, the groups of a row, and the rows; None keeps
      rows in the order of their first group.

  Returns:
    The group indices of each row; every group once.
  """
  order = np.arange(len(length)) if rng is None else rng.permutation(len(length))
  if groups_per_row == 1:
    return list(order[:, None])
  order = order[np.argsort(-length[order], kind="stable")]
  rows: list[list[int]] = []
  open_rows: list[list[int]] = [[] for _ in range(row_length + 1)]  # by free tokens
  has_room = 0  # bit f is set where open_rows[f] is not empty
  for group, size in zip(order.tolist(), length[order].tolist(), strict=True):
    fitting = has_room >> size
    if fitting:
      free = size + (fitting & -fitting).bit_length() - 1
      row = open_rows[free].pop()
      if not open_rows[free]:
        has_room ^= 1 << free
    else:
      free = row_length
      row = len(rows)
      rows.append([])
    rows[row].append(group)
    free -= size
    if free and len(rows[row]) != groups_per_row:
      open_rows[free].append(row)
      has_room |= 1 << free
  if rng is None:
    return sorted((np.sort(row) for row in rows), key=lambda row: row[0])
  return [rng.permutation(rows[row]) for row in rng.permutation(len(rows))]
