"""Splits records by prompt: no prompt is in two splits, whatever the record order."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from xpo_jax.data import records

Item = TypeVar("Item")
PORTIONS = {"train": 0.8, "tune": 0.1, "test": 0.1}  # of the prompts


def prompt_text(record: records.Record) -> str:
  """Returns the prompt as plain text, by which a record is split; the template's
  arguments are part of it."""
  text, arguments = records.plain_text(record.prompt), record.template_arguments
  return f"{text}\n{json.dumps(arguments, sort_keys=True)}" if arguments else text


def by_prompt(
  items: Sequence[Item],
  fractions: Mapping[str, float],
  seed: int = 0,
  *,
  prompt: Callable[[Item], str] = prompt_text,
) -> dict[str, list[Item]]:
  """Assigns each item to a split by a hash of the seed and its prompt.

  An item's split does not depend on the other items.

  Args:
    items: records, or anything that `prompt` reads.
    fractions: expected share of the *prompts* in each split, in order; sum 1.
    seed: of the hash.
    prompt: returns the prompt of an item.

  Returns:
    The items of each split, in their order.

  Raises:
    ValueError: a fraction outside (0, 1], fractions that do not sum to 1, or an empty
      split.
  """
  check_fractions(fractions)
  splits: dict[str, list[Item]] = {name: [] for name in fractions}
  for item in items:
    splits[name_of(prompt(item), fractions, seed)].append(item)
  check_members({name: len(members) for name, members in splits.items()}, fractions)
  return splits


def check_fractions(fractions: Mapping[str, float]) -> None:
  """Refuses shares that are no shares of a whole.

  Raises:
    ValueError: a fraction outside (0, 1], fractions that do not sum to 1.
  """
  if any(not 0 < share <= 1 for share in fractions.values()):
    raise ValueError(f"fractions: {dict(fractions)}; each must lie in (0, 1]")
  if abs(sum(fractions.values()) - 1) > 1e-9:
    raise ValueError(f"fractions: {dict(fractions)} sum to {sum(fractions.values())}")


def check_members(counts: Mapping[str, int], fractions: Mapping[str, float]) -> None:
  """Refuses an empty split.

  Args:
    counts: number of items of each split.
    fractions: see `by_prompt`.

  Raises:
    ValueError: one is empty.
  """
  empty = [name for name, count in counts.items() if not count]
  if empty:
    raise ValueError(
      f"splits {empty} are empty: {sum(counts.values())} records have too few distinct "
      f"prompts for {dict(fractions)}; add prompts or use fewer splits (a share held "
      "out: Evaluation.share)"
    )


def name_of(prompt: str, fractions: Mapping[str, float], seed: int) -> str:
  """The split of a prompt, by its hash; see `by_prompt`."""
  u, cumulative = uniform(prompt, seed), 0.0
  *names, last = fractions
  for name in names:
    cumulative += fractions[name]
    if u < cumulative:
      return name
  return last


def uniform(text: str, seed: int) -> float:
  """Returns a uniform number in [0, 1), a hash of a text and the seed."""
  digest = hashlib.sha256(f"{seed}\0{text}".encode()).digest()
  return int.from_bytes(digest[:8], "big") / 2**64
