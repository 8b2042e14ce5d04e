import collections

import numpy as np
import pytest

from xpo_jax.data import collate
from xpo_jax.data.tokenise import Example
from xpo_jax.types import Layout


def example(uid, layout, prompt, *completions, masks=None, **fields):
  return Example(
    uid,
    np.array(prompt, np.int32),
    tuple(np.array(y, np.int32) for y in completions),
    layout,
    masks,
    {name: np.array(x, np.float32) for name, x in fields.items()},
  )


def lists(arrays):
  return [array.tolist() for array in arrays]


@pytest.mark.parametrize("seed", range(5))
def test_mismatched_answers_are_a_derangement_by_prompt(seed):
  rng = np.random.default_rng(seed)
  prompts = [0] * 10 + rng.integers(1, 6, 10).tolist()  # one prompt holds half
  rows = [
    example(str(i), Layout.RATED, [prompts[i]], [100 + i], desirable=[1])
    for i in rng.permutation(20)
  ]
  made = collate.mismatched(rows, seed)
  own = {100 + i: prompts[i] for i in range(20)}
  assert [m.completions[0][0] for m in made] == [r.completions[0][0] for r in rows]
  others = [int(m.completions[1][0]) for m in made]
  assert sorted(others) == sorted(own)
  assert all(own[other] != m.prompt[0] for other, m in zip(others, made, strict=True))
  again = collate.mismatched(rows, seed)
  assert others == [int(m.completions[1][0]) for m in again]


def test_mismatched_refuses_a_prompt_that_holds_more_than_half():
  rows = [example(str(i), Layout.RATED, [min(i, 1)], [i]) for i in range(3)]
  with pytest.raises(ValueError, match="one prompt holds 2 of 3"):
    collate.mismatched(rows, 0)


def test_another_seed_gives_other_mismatches():
  rows = [example(str(i), Layout.RATED, [i], [i]) for i in range(30)]
  a, b = (
    [int(m.completions[1][0]) for m in collate.mismatched(rows, seed)]
    for seed in (0, 1)
  )
  assert a != b


def test_pairs_become_thumbs_beside_an_answer_to_another_prompt():
  mask = (np.array([True, False]), np.array([True]))
  pairs = [
    example("a", Layout.PAIR, [1], [10, 11], [12], masks=mask),
    example("b", Layout.PAIR, [2], [20], [21]),
  ]
  rows = collate.to_layout(pairs, Layout.RATED_MISMATCHED)
  assert [row.uid for row in rows] == [
    "a/chosen",
    "a/rejected",
    "b/chosen",
    "b/rejected",
  ]
  assert [int(row.completions[0][0]) for row in rows] == [10, 12, 20, 21]
  assert [row.fields["desirable"][0] for row in rows] == [1, 0, 1, 0]
  assert {int(row.completions[1][0]) for row in rows[:2]} == {20, 21}
  assert all(len(row.fields["desirable"]) == 2 for row in rows)
  assert rows[0].masks[0].tolist() == [True, False]
  assert rows[0].masks[1].tolist() == [True]
  assert {row.layout for row in rows} == {Layout.RATED_MISMATCHED}


def test_reward_of_a_pair_without_one_is_its_thumb():
  pairs = [
    example("a", Layout.PAIR, [1], [2], [3]),
    example("b", Layout.PAIR, [4], [5], [6], reward=[0.7, 0.2]),
  ]
  rows = collate.to_layout(pairs, Layout.RATED)
  assert [row.fields["reward"][0] for row in rows] == pytest.approx([1, 0, 0.7, 0.2])
  assert [row.fields["desirable"][0] for row in rows] == [1, 0, 1, 0]


def test_pair_gives_its_chosen_answer_as_demonstration():
  (row,) = collate.to_layout([example("a", Layout.PAIR, [1], [2], [3])], Layout.DEMO)
  assert (row.layout, lists(row.completions)) == (Layout.DEMO, [[2]])


def test_ranked_list_gives_best_pair_and_rows():
  ranked = example("a", Layout.RANKED, [1], [2], [3], [4], reward=[0.5, -1, 2])
  (demo,) = collate.to_layout([ranked], Layout.DEMO)
  (pair,) = collate.to_layout([ranked], Layout.PAIR)
  rated = collate.to_layout([ranked], Layout.RATED)
  assert lists(demo.completions) == [[4]]
  assert lists(pair.completions) == [[4], [3]]
  assert pair.fields["reward"].tolist() == [2, -1]
  counted = collections.Counter(len(row.completions) for row in rated)
  assert counted == {1: 3}
  assert [row.fields["reward"].tolist() for row in rated] == [[0.5], [-1], [2]]


def test_same_layout_is_left_alone():
  rows = [example("a", Layout.PAIR, [1], [2], [3])]
  assert collate.to_layout(rows, Layout.PAIR) == rows


@pytest.mark.parametrize(
  ("rows", "layout", "message"),
  [
    ([example("a", Layout.DEMO, [1], [2])], Layout.PAIR, "the data are DEMO"),
    ([example("a", Layout.DEMO, [1], [2])], Layout.RATED_MISMATCHED, "are DEMO"),
    ([example("a", Layout.RATED, [1], [2])], Layout.SAMPLED, "needs SAMPLED"),
    (
      [
        example("a", Layout.DEMO, [1], [2]),
        example("b", Layout.PAIR, [1], [2], [3]),
      ],
      Layout.DEMO,
      "mix layouts",
    ),
    (
      [example("a", Layout.RANKED, [1], [2], [3], reward=[1, 1])],
      Layout.PAIR,
      "a: all 2 rewards are 1",
    ),
    ([example("a", Layout.RANKED, [1], [2])], Layout.DEMO, "'reward' is missing"),
  ],
)
def test_layout_without_a_rule_is_refused(rows, layout, message):
  with pytest.raises(ValueError, match=message):
    collate.to_layout(rows, layout)
