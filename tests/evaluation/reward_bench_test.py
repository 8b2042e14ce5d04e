"""Accuracy by subset of a reward that is the number of letters a."""

import json

import numpy as np
import pytest

from xpo_jax.evaluation import reward_bench
from xpo_jax.feedback import protocol

ROWS = [
  {"prompt": "p", "chosen": "aa", "rejected": "a", "subset": "easy"},
  {"prompt": "q", "chosen": "aaa", "rejected": "ba", "subset": "easy"},
  {"prompt": "r", "chosen": "ab", "rejected": "ba", "subset": "tie"},
  {"prompt": "s", "chosen": "b", "rejected": "a", "subset": "hard"},
]


def _scorer(prompts, completions):
  del prompts
  return protocol.Scores(np.array([c.count("a") for c in completions], np.float32))


def _write(tmp_path, rows):
  path = tmp_path / "pairs.jsonl"
  path.write_text("\n".join(json.dumps(row) for row in rows))
  return path


def test_accuracy_is_by_subset_and_a_tie_is_wrong(tmp_path):
  found = reward_bench.measure(_scorer, *reward_bench.read(_write(tmp_path, ROWS)))
  means = {name: interval.mean for name, interval in found.items()}
  assert means == {"all": 0.5, "easy": 1.0, "tie": 0.0, "hard": 0.0}
  assert found["easy"].units == 2


def test_chat_makes_messages_of_texts(tmp_path):
  pairs, subsets = reward_bench.read(_write(tmp_path, ROWS), chat=True)
  assert subsets == ("easy", "easy", "tie", "hard")
  pair = pairs[-1]
  assert [(turn.role, turn.content) for turn in pair.prompt] == [("user", "s")]
  assert [turn.role for turn in pair.chosen] == ["assistant"]
  found = reward_bench.measure(_scorer, pairs, subsets)
  assert found["all"].mean == 0.5


@pytest.mark.parametrize(
  ("row", "says"),
  [
    ({"prompt": "p", "chosen": "a"}, r"pairs\.jsonl:2 lacks \['rejected'\]"),
    ([1], r"pairs\.jsonl:2 is no JSON object"),
    ({"prompt": "p", "chosen": "a", "rejected": "a", "subset": "x"}, r"pairs\.jsonl:2"),
    ({"prompt": "p", "chosen": "a", "rejected": "b", "subset": "all"}, "rename it"),
  ],
)
def test_bad_rows_are_refused_with_their_place(tmp_path, row, says):
  with pytest.raises(ValueError, match=says):
    reward_bench.read(_write(tmp_path, [ROWS[0], row]))
