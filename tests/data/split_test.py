import numpy as np
import pytest

from xpo_jax.data import split
from xpo_jax.data.records import Demonstration, Turn


def demonstrations(prompts):
  return [Demonstration(str(i), prompt, " a") for i, prompt in enumerate(prompts)]


def test_splits_partition_the_prompts():
  data = demonstrations([f"prompt {i % 50}" for i in range(200)])
  splits = split.by_prompt(data, {"train": 0.5, "tune": 0.25, "test": 0.25})
  prompts = [{record.prompt for record in members} for members in splits.values()]
  assert sum(map(len, splits.values())) == 200
  assert len(set.union(*prompts)) == sum(map(len, prompts)) == 50


def test_split_sizes_match_the_fractions():
  n = 4000
  splits = split.by_prompt(
    demonstrations(map(str, range(n))), {"train": 0.9, "test": 0.1}
  )
  assert abs(len(splits["test"]) - 0.1 * n) < 4 * np.sqrt(0.09 * n)


def test_split_depends_on_the_prompt_and_the_seed_only():
  data = demonstrations(map(str, range(100)))
  halves = {"a": 0.5, "b": 0.5}
  whole = split.by_prompt(data, halves)
  part = split.by_prompt(data[::-3], halves)
  assert set(part["a"]) <= set(whole["a"])
  assert split.by_prompt(data, halves, seed=1) != whole


def test_conversations_are_split_by_all_turns():
  data = demonstrations([(Turn("user", str(i)),) for i in range(50)])
  splits = split.by_prompt(data, {"a": 0.5, "b": 0.5})
  assert all(splits.values())


@pytest.mark.parametrize(
  ("fractions", "message"),
  [
    ({"a": 0.5, "b": 0.4}, "sum to 0.9"),
    ({"a": 1.5, "b": -0.5}, r"must lie in \(0, 1\]"),
    ({"a": 0.5, "b": 0.5}, r"are empty: 1 records"),
  ],
)
def test_invalid_split_raises(fractions, message):
  with pytest.raises(ValueError, match=message):
    split.by_prompt(demonstrations(["only"]), fractions)
