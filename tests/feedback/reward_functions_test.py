"""Reward functions see texts and columns by the names of their parameters."""

import numpy as np
import pytest

from tests.studies import example_rewards
from xpo_jax.data import records
from xpo_jax.data.records import Conversation, PromptText, Turn
from xpo_jax.feedback import protocol, reward_functions


def _with_answer(text, answer):
  return records.prompt_string(records.Prompt("0", text, {"answer": answer}))


def test_function_is_given_the_columns_that_it_names():
  score = reward_functions.scorer(example_rewards.exact_answer)
  prompts = [_with_answer("1 + 1", "2"), _with_answer("1 + 2", "3")]
  assert score(prompts, [" 2 ", "2"]) == [1.0, 0.0]
  chat = _with_answer((Turn("user", "1 + 1"),), "2")
  assert isinstance(chat, Conversation) and score([chat], ["2"]) == [1.0]


def test_columns_survive_repetition_and_are_no_part_of_the_text():
  prompt = _with_answer("1 + 1", "2")
  assert isinstance(prompt, PromptText) and prompt == "1 + 1"
  score = reward_functions.named("tests.studies.example_rewards:answer_as_number")
  prompts, texts = [prompt, _with_answer("p", "7")], [("a", "b"), ("c", "d")]
  reward_BK = protocol.score_groups(score, prompts, texts)
  np.testing.assert_array_equal(reward_BK, [[2, 2], [7, 7]])


def test_function_of_prompts_and_completions_is_a_scorer():
  score = reward_functions.scorer(lambda asked, texts: [len(a) for a in asked])
  assert score(["ab"], ["c"]) == [2]


def test_missing_column_is_named():
  score = reward_functions.scorer(example_rewards.exact_answer)
  prompt = records.prompt_string(records.Prompt("0", "p", {"solution": 1}))
  for given, listed in ((prompt, r"\['solution'\]"), ("p", "no columns")):
    with pytest.raises(ValueError, match=f"column 'answer'.* comes with {listed}"):
      score([given], ["x"])


def test_weighted_sum_has_its_parts_and_abstains_with_them():
  def length(prompts, completions):
    return [None if text == "?" else len(text) for text in completions]

  score = reward_functions.weighted(
    [length, example_rewards.brevity, length], [1.0, 0.25, 2.0]
  )
  got = protocol.score_groups_in_parts(score, ["p"], [("ab", "?", "abcd")])
  np.testing.assert_array_equal(got.value_BK, [[2 - 0.5 + 4, np.nan, 4 - 1 + 8]])
  assert len(got.parts) == 3  # the two of one name are told apart
  np.testing.assert_array_equal(got.parts["brevity"], [[-2, -1, -4]])


@pytest.mark.parametrize(
  ("weights", "match"), [([1.0], "1 weights"), ([1.0, np.inf], "finite")]
)
def test_wrong_weights_are_refused(weights, match):
  scorers = [example_rewards.brevity] * 2
  with pytest.raises(ValueError, match=match):
    reward_functions.weighted(scorers, weights)


def test_module_of_the_working_directory_is_found(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path / "none")  # restores the path afterwards
  (tmp_path / "rewards_of_mine.py").write_text(
    "def ones(completions):\n  return [1.0 for _ in completions]\n"
  )
  assert reward_functions.named("rewards_of_mine:ones")(["p"], ["x"]) == [1.0]


def test_column_with_a_default_is_refused_and_a_setting_is_not():
  def absent(completions, answer=None):
    del answer
    return [0.0 for _ in completions]

  with pytest.raises(ValueError, match="has the parameter answer=None; a column"):
    reward_functions.scorer(absent)

  def tolerant(completions, answer, tolerance=0.1):
    del answer
    return [tolerance for _ in completions]

  assert reward_functions.columns(tolerant) == ("answer",)
