"""What a run wrote, measured: by hand on a few words."""

import math

import numpy as np
import pytest

from tests.train import written
from xpo_jax.evaluation import rollout_history
from xpo_jax.feedback.protocol import Scores
from xpo_jax.train import rollouts

NAN = math.nan


@pytest.mark.parametrize(
  ("numbers", "count", "want"),
  [
    ([], 3, []),
    ([4], 3, [4]),
    ([0, 10, 20, 30, 40], 3, [0, 20, 40]),
    ([1, 2], 5, [1, 2]),
  ],
)
def test_spread_takes_the_ends_and_what_lies_between(numbers, count, want):
  assert rollout_history.spread(numbers, count) == want


def test_samples_are_read_in_order_without_the_columns_of_others(tmp_path):
  for number in (20, 3):
    drawn = written.rollouts([[0.5, number]], [["a", "b c"]])
    rollouts.write(tmp_path / f"{number:06d}.jsonl", drawn)
  found = rollout_history.read(tmp_path, 5, slice(1, None))
  assert list(found) == [3, 20]
  assert found[3].texts_BK == (("b c",),)
  assert found[3].length_BK.tolist() == [[3]]
  assert found[20].reward_BK.tolist() == [[20.0]]
  assert rollout_history.read(tmp_path / "none", 5) == {}


def test_mean_reward_takes_the_verdicts_there_are():
  mean = rollout_history.mean_reward(written.rollouts([[1, NAN], [2, 4], [NAN, NAN]]))
  assert mean.mean == (1 + 3) / 2 and mean.units == 2
  assert rollout_history.mean_reward(written.rollouts([[NAN, NAN]])) is None
  whole = rollout_history.pool(written.rollouts([[1, NAN], [2, 4]]))
  assert whole.tolist() == [[2.0, 4.0]]


def test_diversity_counts_words_not_ends():
  # Tokens 1 2 1 2 and 1 2, the same prompt's; then 3 3 3 and 3 3 3.
  texts = [["a bb a bb", "a bb"], ["ccc ccc ccc", "ccc ccc ccc…"]]
  found = rollout_history.diversity(written.rollouts(np.zeros((2, 2)), texts))
  assert found["distinct_1"] == pytest.approx(3 / 12)
  # Pairs 12 21 12, 12, 33 33, 33 33: three different ones of eight.
  assert found["distinct_2"] == pytest.approx(3 / 8)
  assert found["repeated_2"] == pytest.approx(np.mean([1 / 3, 0, 1 / 2, 1 / 2]))
  assert found["different"] == 1
  same = rollout_history.diversity(written.rollouts([[0, 0]], [["a", "a"]]))
  assert same["different"] == 1 / 2 and same["repeated_2"] == 0


def test_win_rates_are_over_all_pairs_of_a_prompts_samples():
  ours, theirs = (
    np.array([[1.0, 3], [0, 0], [NAN, 9]]),
    np.array([[2.0, 1], [0, 1], [0, 0]]),
  )
  found = rollout_history.win_rates({0: theirs, 5: ours})
  # 1 against 2, 1: loss, draw; 3: two wins. 0 against 0, 1: draw and loss, twice.
  assert found[5][0].mean == pytest.approx((2.5 / 4 + 1 / 4) / 2)
  assert found[0][5].mean == pytest.approx(1 - found[5][0].mean)
  assert found[5][0].units == 2 and 5 not in found[5]


def test_preference_is_asked_in_both_orders_about_two_policies():
  asked = []

  def longer(prompts, first, second):
    asked.append(list(zip(prompts, first, second, strict=True)))
    gaps = [np.sign(len(a) - len(b)) for a, b in zip(first, second, strict=True)]
    return Scores(np.array([NAN, *(0.5 + 0.5 * np.array(gaps[1:]))], np.float32))

  samples = {
    0: written.rollouts(np.zeros((3, 1)), [["a"], ["bb"], ["c"]]),
    9: written.rollouts(np.zeros((3, 1)), [["a"], ["b"], ["c"]]),
  }
  found = rollout_history.preferred(longer, samples)
  assert asked == [
    [
      ("prompt 0", "a", "a"),
      ("prompt 1", "bb", "b"),
      ("prompt 2", "c", "c"),
      ("prompt 0", "a", "a"),
      ("prompt 1", "b", "bb"),
      ("prompt 2", "c", "c"),
    ]
  ]
  assert found[0][9].mean == 0.75 and found[9][0].mean == 0.25  # a win and a draw


def test_a_liking_for_what_is_shown_first_wins_nothing():
  def shown_first(prompts, first, second):
    return Scores(np.ones(len(prompts), np.float32))

  samples = {n: written.rollouts(np.zeros((2, 1))) for n in (0, 4, 9)}
  found = rollout_history.preferred(shown_first, samples)
  assert {rate.mean for row in found.values() for rate in row.values()} == {0.5}
