"""Splits by prompt: no prompt in two of them, whatever the order of the rows."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from xpo_jax.data import records

Row = TypeVar("Row")
PORTIONS = {"train": 0.8, "tune": 0.1, "test": 0.1}  # of the prompts


def prompt_of(row: records.Record) -> str:
  """The text that a record is split by."""
  return records.text_of(row.prompt)


def by_prompt(
  rows: Sequence[Row],
  fractions: Mapping[str, float],
  seed: int = 0,
  prompt: Callable[[Row], str] = prompt_of,
) -> dict[str, list[Row]]:
  """Sends each row to a split by a hash of the seed and its prompt.

  A row's split does not change when other rows come or go.

  Args:
    rows: records, or anything that `prompt` can read.
    fractions: expected share of the *prompts* in each split, in order; sum 1.
    seed: another seed, other splits.
    prompt: what to split by.

  Returns:
    The rows of each split, in their order.

  Raises:
    ValueError: a fraction outside (0, 1], fractions that do not sum to 1, or a split
      that stays empty.
  """
  if any(not 0 < share <= 1 for share in fractions.values()):
    raise ValueError(f"fractions: {dict(fractions)}; each must lie in (0, 1]")
  if abs(sum(fractions.values()) - 1) > 1e-9:
    raise ValueError(f"fractions: {dict(fractions)} sum to {sum(fractions.values())}")
  splits: dict[str, list[Row]] = {name: [] for name in fractions}
  names = list(fractions)
  for row in rows:
    u = _uniform(prompt(row), seed)
    edge, name = 0.0, names[-1]
    for candidate in names[:-1]:
      edge += fractions[candidate]
      if u < edge:
        name = candidate
        break
    splits[name].append(row)
  empty = [name for name, members in splits.items() if not members]
  if empty:
    raise ValueError(
      f"splits {empty} are empty: {len(rows)} rows have too few distinct prompts for "
      f"{dict(fractions)}"
    )
  return splits


def _uniform(prompt: str, seed: int) -> float:
  """A number in [0, 1) that only the prompt and the seed decide."""
  digest = hashlib.sha256(f"{seed}\0{prompt}".encode()).digest()
  return int.from_bytes(digest[:8], "big") / 2**64
