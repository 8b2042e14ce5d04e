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
def test_mismatched_completions_are_a_derangement_by_prompt(seed):
  rng = np.random.default_rng(seed)
  prompts = [0] * 10 + rng.integers(1, 6, 10).tolist()  # one prompt holds half
  examples = [
    example(str(i), Layout.RATED, [prompts[i]], [100 + i], desirable=[1])
    for i in rng.permutation(20)
  ]
  mismatched = collate.add_mismatched(examples, seed)
  own = {100 + i: prompts[i] for i in range(20)}
  assert [m.completions[0][0] for m in mismatched] == [
    r.completions[0][0] for r in examples
  ]
  others = [int(m.completions[1][0]) for m in mismatched]
  assert sorted(others) == sorted(own)
  assert all(
    own[other] != m.prompt[0] for other, m in zip(others, mismatched, strict=True)
  )
  again = collate.add_mismatched(examples, seed)
  assert others == [int(m.completions[1][0]) for m in again]


def test_mismatched_raises_if_one_prompt_has_more_than_half():
  examples = [example(str(i), Layout.RATED, [min(i, 1)], [i]) for i in range(3)]
  with pytest.raises(ValueError, match="one prompt has 2 of 3"):
    collate.add_mismatched(examples, 0)


def test_mismatches_depend_on_the_seed():
  examples = [example(str(i), Layout.RATED, [i], [i]) for i in range(30)]
  a, b = (
    [int(m.completions[1][0]) for m in collate.add_mismatched(examples, seed)]
    for seed in (0, 1)
  )
  assert a != b


def test_pairs_convert_to_rated_mismatched():
  mask = (np.array([True, False]), np.array([True]))
  pairs = [
    example("a", Layout.PAIR, [1], [10, 11], [12], masks=mask),
    example("b", Layout.PAIR, [2], [20], [21]),
  ]
  examples = collate.to_layout(pairs, Layout.RATED_MISMATCHED)
  assert [each.uid for each in examples] == [
    "a/chosen",
    "a/rejected",
    "b/chosen",
    "b/rejected",
  ]
  assert [int(each.completions[0][0]) for each in examples] == [10, 12, 20, 21]
  assert [each.fields["desirable"][0] for each in examples] == [1, 0, 1, 0]
  assert {int(each.completions[1][0]) for each in examples[:2]} == {20, 21}
  assert all(len(each.fields["desirable"]) == 2 for each in examples)
  assert examples[0].masks[0].tolist() == [True, False]
  assert examples[0].masks[1].tolist() == [True]
  assert {each.layout for each in examples} == {Layout.RATED_MISMATCHED}


def test_default_reward_of_a_rated_pair_is_its_desirable_bit():
  pairs = [
    example("a", Layout.PAIR, [1], [2], [3]),
    example("b", Layout.PAIR, [4], [5], [6], reward=[0.7, 0.2]),
  ]
  examples = collate.to_layout(pairs, Layout.RATED)
  assert [each.fields["reward"][0] for each in examples] == pytest.approx(
    [1, 0, 0.7, 0.2]
  )
  assert [each.fields["desirable"][0] for each in examples] == [1, 0, 1, 0]


def test_pair_converts_to_a_demonstration_of_its_chosen_completion():
  (demo,) = collate.to_layout([example("a", Layout.PAIR, [1], [2], [3])], Layout.DEMO)
  assert (demo.layout, lists(demo.completions)) == (Layout.DEMO, [[2]])


def test_margin_of_a_pair_is_left_out_of_other_layouts():
  pair = example("a", Layout.PAIR, [1], [2], [3], margin=[2, 0])
  assert set(collate.to_layout([pair], Layout.PAIR)[0].fields) == {"margin"}
  assert not collate.to_layout([pair], Layout.DEMO)[0].fields
  for single in collate.to_layout([pair], Layout.RATED):
    assert set(single.fields) == {"reward", "desirable"}


def test_ranked_list_converts_to_demo_pair_and_rated():
  ranked = example("a", Layout.RANKED, [1], [2], [3], [4], reward=[0.5, -1, 2])
  (demo,) = collate.to_layout([ranked], Layout.DEMO)
  (pair,) = collate.to_layout([ranked], Layout.PAIR)
  rated = collate.to_layout([ranked], Layout.RATED)
  assert lists(demo.completions) == [[4]]
  assert lists(pair.completions) == [[4], [3]]
  assert pair.fields["reward"].tolist() == [2, -1]
  counted = collections.Counter(len(each.completions) for each in rated)
  assert counted == {1: 3}
  assert [each.fields["reward"].tolist() for each in rated] == [[0.5], [-1], [2]]


def test_same_layout_is_unchanged():
  examples = [example("a", Layout.PAIR, [1], [2], [3])]
  assert collate.to_layout(examples, Layout.PAIR) == examples


@pytest.mark.parametrize(
  ("examples", "layout", "message"),
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
def test_layout_without_a_rule_raises(examples, layout, message):
  with pytest.raises(ValueError, match=message):
    collate.to_layout(examples, layout)
