import numpy as np
import pytest

from xpo_jax.feedback import protocol
from xpo_jax.feedback.protocol import Scores


def _length(prompts, completions):
  return Scores(
    np.array([len(p + c) for p, c in zip(prompts, completions, strict=True)])
  )


def _alphabet(prompts, first, second):
  """Prefers the text later in the alphabet; abstains on `?`."""
  del prompts
  pairs = zip(first, second, strict=True)
  return Scores(np.array([np.nan if "?" in a + b else a > b for a, b in pairs]))


def test_score_groups_scores_every_completion():
  reward_BK = protocol.score_groups(_length, ["p", "long "], [["a", "bb"], ["", "c"]])
  assert reward_BK.dtype == np.float32
  assert reward_BK.tolist() == [[2, 3], [5, 6]]


def test_padded_columns_are_not_scored():
  queried = []

  def scorer(prompts, completions):
    queried.extend(completions)
    return _length(prompts, completions)

  present_BK = np.array([[1, 0], [1, 1]])
  texts_BK = [["a", "no"], ["b", "c"]]
  reward_BK = protocol.score_groups(scorer, ["p", "q"], texts_BK, present=present_BK)
  assert queried == ["a", "b", "c"]
  assert reward_BK.tolist() == [[2, 0], [2, 2]]


def test_win_rates_average_over_the_group_with_itself():
  reward_BK = protocol.win_rates(_alphabet, ["p"], [["b", "a", "c"]])
  expected = [[(0.5 + 1 + 0) / 3, (0.5 + 0 + 0) / 3, (0.5 + 1 + 1) / 3]]
  np.testing.assert_allclose(reward_BK, expected, rtol=1e-6)


def test_win_rates_without_self_average_over_the_others():
  """Two completions get p and 1 - p, a single one 1/2."""
  group = [["b", "a", "c"], ["?", "a", "c"]]
  reward_BK = protocol.win_rates(_alphabet, ["p", "q"], group, include_self=False)
  expected = [[1 / 2, 0, 1], [np.nan, (0.5 + 0) / 2, (0.5 + 1) / 2]]
  np.testing.assert_allclose(reward_BK, expected)

  def sure(prompts, first, second):
    return Scores(np.full(len(prompts), 0.9))

  two_BK = protocol.win_rates(sure, ["p"], [["a", "b"]], include_self=False)
  np.testing.assert_allclose(two_BK, [[0.9, 0.1]], rtol=1e-6)
  present_BK = np.array([[0, 1]])
  alone = {"present": present_BK, "include_self": False}
  one_BK = protocol.win_rates(
    lambda *_: Scores(np.zeros(0)), ["p"], [["", "a"]], **alone
  )
  assert one_BK.tolist() == [[0, 0.5]]


def test_each_pair_is_queried_once():
  queried = []

  def preference(prompts, first, second):
    queried.extend(zip(prompts, first, second, strict=True))
    return _alphabet(prompts, first, second)

  win_BKK = protocol.win_matrix(preference, ["p", "q"], [["b", "a"], ["a", "c"]])
  assert queried == [("p", "b", "a"), ("q", "a", "c")]
  assert win_BKK.tolist() == [[[0.5, 1], [0, 0.5]], [[0.5, 0], [1, 0.5]]]


def test_both_orders_cancel_position_bias():
  def biased(prompts, first, second):
    p = {"pa": 0.9, "pb": 0.6, "qa": 0.8, "qb": 0.4}
    return Scores(
      [p[prompt + text] for prompt, text in zip(prompts, first, strict=True)], None
    )

  debiased = protocol.both_orders(biased)
  p_N = debiased(["p", "q"], ["a", "a"], ["b", "b"]).value_N
  np.testing.assert_allclose(p_N, [(0.9 + 0.4) / 2, (0.8 + 0.6) / 2], rtol=1e-6)
  swapped_N = debiased(["p", "q"], ["b", "b"], ["a", "a"]).value_N
  np.testing.assert_allclose(p_N + swapped_N, 1, rtol=1e-6)


@pytest.mark.nonfinite
def test_clamped_keeps_bounds_and_abstentions():
  def preference(prompts, first, second):
    return Scores([0.0, 0.55, 1.0, np.nan])

  p_N = protocol.clamped(preference)(*[["x"] * 4] * 3).value_N
  np.testing.assert_array_equal(p_N, np.float32([0.4, 0.55, 0.6, np.nan]))
  with pytest.raises(ValueError, match=r"low=0.7"):
    protocol.clamped(preference, low=0.7)


def test_win_rates_against_opponents_are_means_over_them():
  texts_BK, opponents_BJ = [["b", "d"], ["y", "a"]], [["a", "c", "e"], ["x", "z", "b"]]
  reward_BK = protocol.win_rates_against(
    _alphabet, ["p", "q"], texts_BK, opponents_BJ=opponents_BJ
  )
  np.testing.assert_allclose(reward_BK, [[1 / 3, 2 / 3], [2 / 3, 0]], rtol=1e-6)


@pytest.mark.nonfinite
def test_abstention_on_all_opponents_is_nan():
  texts_BK, opponents_BJ = [["b", "?"]], [["a", "?"]]
  reward_BK = protocol.win_rates_against(
    _alphabet, ["p"], texts_BK, opponents_BJ=opponents_BJ
  )
  np.testing.assert_array_equal(reward_BK, [[(1 + 0.5) / 2, np.nan]])


@pytest.mark.nonfinite
def test_one_abstention_is_a_tie_and_all_are_nan():
  one = protocol.win_rates(_alphabet, ["p"], [["b", "a", "?"]])
  assert np.isnan(one[0, 2])
  np.testing.assert_allclose(one[0, :2], [(0.5 + 1 + 0.5) / 3, (0.5 + 0 + 0.5) / 3])
  matrix = protocol.win_matrix(_alphabet, ["p"], [["b", "a", "?"]])
  assert protocol.count_abstentions(matrix) == 2 * 2
  assert protocol.count_abstentions(one) == 1


def test_padded_columns_are_left_out_of_win_rates():
  present_BK = np.array([[1, 1, 0], [1, 0, 0]])
  texts_BK = [["b", "a", "z"], ["x", "y", "z"]]
  reward_BK = protocol.win_rates(_alphabet, ["p", "q"], texts_BK, present=present_BK)
  np.testing.assert_allclose(reward_BK, [[0.75, 0.25, 0], [0.5, 0, 0]])


@pytest.mark.parametrize(
  ("scores", "message"),
  [
    (Scores(np.zeros(1)), r"shape \(1,\) on 2"),
    (Scores(np.array([0, np.inf])), "query 1 is inf"),
    (Scores(np.zeros(2), ("why",)), "1 reasons for 2"),
  ],
)
def test_invalid_scores_raise(scores, message):
  with pytest.raises(ValueError, match=message):
    protocol.score_groups(lambda *_: scores, ["p"], [["a", "b"]])


@pytest.mark.parametrize("kind", [list, np.array, Scores])
def test_scorer_may_return_numbers_alone(kind):
  reward_BK = protocol.score_groups(
    lambda prompts, texts: kind([len(text) for text in texts]), ["a"], [["x", "yy"]]
  )
  np.testing.assert_array_equal(reward_BK, [[1, 2]])


@pytest.mark.parametrize("result", [None, "good", {"a": 1}, object()])
def test_what_is_no_list_of_numbers_is_named_with_its_function(result):
  def my_reward(prompts, texts):
    return result

  with pytest.raises(ValueError, match=r"my_reward returned \w+ on 2 queries; it must"):
    protocol.score_groups(my_reward, ["a"], [["x", "y"]])


def test_function_that_raises_is_named_with_the_query():
  def my_reward(prompts, texts):
    return [1 / len(text) for text in texts]

  match = r"my_reward raised ZeroDivisionError: .* query 1: prompt 'a', completion ''"
  with pytest.raises(ValueError, match=match):
    protocol.score_groups(my_reward, ["a", "b"], [["x", ""], ["y", "z"]])


@pytest.mark.parametrize(
  ("error", "calls"), [(ConnectionError("gone"), 1), (KeyError("x"), 17)]
)
def test_source_that_raises_is_asked_again_a_few_times_at_most(error, calls):
  """A server that is down is not asked again; no other one text by text to the end."""
  asked = []

  def paid(prompts, texts):
    asked.append(len(texts))
    if len(texts) > 1:
      raise error
    return [0.0]

  with pytest.raises(ValueError, match=rf"paid raised {type(error).__name__}.*40 quer"):
    protocol.score_groups(paid, ["p"], [[str(n) for n in range(40)]])
  assert asked == [40] + [1] * (calls - 1)


def test_score_outside_the_unit_interval_raises():
  with pytest.raises(ValueError, match=r"query 0 is 7.0.*score_groups"):
    protocol.win_rates(lambda *_: Scores(np.array([7.0])), ["p"], [["a", "b"]])


@pytest.mark.parametrize(
  ("prompts", "texts_BK", "present", "message"),
  [
    ([], [], None, "prompts is empty"),
    (["p"], [["a"], ["b"]], None, "1 prompts, but 2 groups"),
    (["p", "q"], [["a"], ["b", "c"]], None, r"groups of \[1, 2\]"),
    (["p"], [["a"]], np.ones((1, 2)), r"present has shape \(1, 2\)"),
  ],
)
def test_ragged_groups_raise(prompts, texts_BK, present, message):
  with pytest.raises(ValueError, match=message):
    protocol.score_groups(_length, prompts, texts_BK, present=present)
