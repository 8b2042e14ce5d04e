"""Converts examples to other layouts by rules that one asks for (`Data.conversion`).

`collate.to_layout` converts without being asked where there is one way to do it; here
are those with a choice. A function makes a conversion, from examples to examples, in
the order of the input; uids of new examples end with their columns.

| function | from | to |
|---|---|---|
| `all_pairs(gap)` | RANKED | PAIR: all pairs whose rewards differ by more than `gap` |
| `best_worst(gap)` | RANKED | PAIR: the best against the worst, if by more than `gap` |
| `threshold(above)` | RANKED, RATED | RATED, desirable where the reward is above it |
| `lists_by_prompt()` | RATED | RANKED: completions of a prompt, by reward or label |
| `lists_of_two()` | PAIR | RANKED, rewards 1 and 0 |
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from xpo_jax.data import collate
from xpo_jax.data.tokenise import Example
from xpo_jax.types import Layout

Conversion = Callable[[Sequence[Example]], list[Example]]
_RANKED, _RATED, _PAIR = Layout.RANKED, Layout.RATED, Layout.PAIR


def all_pairs(gap: float = 0.0) -> Conversion:
  """Makes a pair of any two completions of a list whose rewards differ enough.

  Args:
    gap: the rewards of a pair differ by more than this; >= 0.

  Raises:
    ValueError: a negative gap.
  """
  _check_gap("all_pairs", gap)

  def pairs(example: Example) -> list[tuple[int, int]]:
    reward_K = _reward(example)
    order = np.argsort(-reward_K, kind="stable").tolist()
    return [
      (i, j)
      for i, j in itertools.combinations(order, 2)
      if reward_K[i] - reward_K[j] > gap
    ]

  return _to_pairs(pairs)


def best_worst(gap: float = 0.0) -> Conversion:
  """Makes a pair of the best and the worst completion of a list, unless they tie.

  Args:
    gap: their rewards differ by more than this; >= 0.

  Raises:
    ValueError: a negative gap.
  """
  _check_gap("best_worst", gap)

  def pairs(example: Example) -> list[tuple[int, int]]:
    reward_K = _reward(example)
    best, worst = int(reward_K.argmax()), int(reward_K.argmin())
    return [(best, worst)] if reward_K[best] - reward_K[worst] > gap else []

  return _to_pairs(pairs)


def threshold(above: float = 0.0) -> Conversion:
  """Labels every completion: desirable where its reward is above a threshold."""

  def convert(examples: Sequence[Example]) -> list[Example]:
    _check(examples, _RANKED, _RATED)
    rated = []
    for example in collate.to_layout(examples, _RATED):
      desirable = np.array(_reward(example) > above, np.float32)
      fields = dict(example.fields) | {"desirable": desirable}
      rated.append(dataclasses.replace(example, fields=fields))
    return rated

  return convert


def lists_by_prompt() -> Conversion:
  """Makes a list of the completions that a prompt has in different rows.

  Their order is by reward, or by label where there are no rewards. A prompt with one
  completion, or with equal rewards only, gives no list.
  """

  def convert(examples: Sequence[Example]) -> list[Example]:
    _check(examples, _RATED)
    groups: dict[bytes, list[Example]] = {}
    for example in examples:
      groups.setdefault(example.prompt.tobytes(), []).append(example)
    lists = [_joined(group) for group in groups.values()]
    return [each for each in lists if len(set(_reward(each).tolist())) > 1]

  return convert


def lists_of_two() -> Conversion:
  """Makes a list of each pair: the chosen completion has reward 1, the rejected 0."""

  def convert(examples: Sequence[Example]) -> list[Example]:
    _check(examples, _PAIR)
    fields = {"reward": np.array([1, 0], np.float32)}
    return [
      dataclasses.replace(example, layout=_RANKED, fields=fields)
      for example in examples
    ]

  return convert


def _to_pairs(pairs: Callable[[Example], list[tuple[int, int]]]) -> Conversion:
  def convert(examples: Sequence[Example]) -> list[Example]:
    _check(examples, _RANKED)
    return [
      collate.select(example, (i, j), _PAIR, f"/{i}-{j}")
      for example in examples
      for i, j in pairs(example)
    ]

  return convert


def _joined(group: Sequence[Example]) -> Example:
  """One list of examples of one prompt."""
  masks = None
  if any(example.masks is not None for example in group):
    masks = tuple(collate.mask(example, 0) for example in group)
  labels = {}
  if all("desirable" in example.fields for example in group):
    labels["desirable"] = np.concatenate([e.fields["desirable"] for e in group])
  return Example(
    uid=group[0].uid,
    prompt=group[0].prompt,
    completions=tuple(example.completions[0] for example in group),
    layout=_RANKED,
    masks=masks,
    fields={"reward": np.concatenate([_reward_or_label(e) for e in group])} | labels,
  )


def _reward(example: Example) -> np.ndarray:
  if "reward" not in example.fields:
    raise ValueError(
      f"{example.uid} has no reward, by which Data.conversion converts; it has "
      f"{sorted(example.fields) or 'no column'}"
    )
  return example.fields["reward"]


def _reward_or_label(example: Example) -> np.ndarray:
  if "reward" in example.fields:
    return example.fields["reward"]
  return example.fields["desirable"]


def _check(examples: Sequence[Example], *layouts: Layout) -> None:
  for example in examples:
    if example.layout not in layouts:
      names = " or ".join(layout.name for layout in layouts)
      raise ValueError(
        f"Data.conversion takes {names}, and {example.uid} is {example.layout.name}"
      )


def _check_gap(name: str, gap: float) -> None:
  if not gap >= 0:
    raise ValueError(f"{name}: gap is {gap}; it must be >= 0")
