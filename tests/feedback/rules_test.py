import numpy as np
import pytest
from scipy import special

from xpo_jax.data import synthetic_reviews
from xpo_jax.feedback import rules


def _value(scorer, texts, prompts=None):
  return scorer(prompts or ["p"] * len(texts), texts).value_N.tolist()


def test_synthetic_reward_scores_the_text_and_sentiment_the_completion():
  prompts, texts = ["a dreadful, awful plot"], [" with fun."]
  whole = synthetic_reviews.true_reward([prompts[0] + texts[0]]).tolist()
  assert _value(rules.synthetic_reward(), texts, prompts) == whole
  assert (
    _value(rules.sentiment(), texts, prompts)
    == synthetic_reviews.true_reward(texts).tolist()
  )
  assert _value(rules.sentiment(), texts)[0] > whole[0]


def test_patterns_match_within_or_the_whole_text():
  texts = ["the answer is 42", " 42\n", "none"]
  assert _value(rules.matches(r"\d+"), texts) == [1, 1, 0]
  assert _value(rules.matches(r"\d+", whole=True), texts) == [0, 1, 0]


@pytest.mark.nonfinite
def test_success_is_a_score_that_reaches_the_threshold():
  success = rules.at_least(rules.length(), 2.0)
  assert _value(success, ["one", "one two", "one two three"]) == [0, 1, 1]
  known = rules.at_least(rules.exact_match({"p": "a"}), 0.5)
  np.testing.assert_equal(
    _value(known, ["a", "b", "a"], ["p", "p", "q"]), [1, 0, np.nan]
  )


@pytest.mark.nonfinite
def test_exact_match_abstains_on_unknown_prompts():
  scorer = rules.exact_match({"2+2": "4", "capital": "Paris"}, extract=r"#### *(.*)")
  prompts = ["2+2", "2+2", "2+2", "capital", "other"]
  texts = ["#### 5 no #### 4", "#### 44", "4", "so\n#### paris ", "#### 4"]
  np.testing.assert_equal(_value(scorer, texts, prompts), [0, 0, 0, 1, np.nan])
  texts = ["#### 5 no\n#### 4", "4"]
  assert _value(scorer, texts, ["2+2", "2+2"]) == [1, 0]
  assert _value(rules.exact_match({"2+2": "4"}), [" 4 ", "#### 4"], ["2+2"] * 2) == [
    1,
    0,
  ]


def test_length_counts_words():
  assert _value(rules.length(), ["", "a  bc d"]) == [0, 3]
  assert _value(rules.length(target=2), ["", "a  bc d"]) == [-2, -1]


def test_bradley_terry_converts_a_scorer_to_a_preference():
  query = ["p"] * 3, ["a b c", "a", "x"], ["a", "a b", "y"]
  p_N = rules.bradley_terry(rules.length(), temperature=0.5)(*query).value_N
  np.testing.assert_allclose(p_N, special.expit([4, -2, 0]), rtol=1e-6)
  p_N = rules.bradley_terry(rules.length(), temperature=0)(*query).value_N
  assert p_N.tolist() == [1, 0, 0.5]


@pytest.mark.nonfinite
@pytest.mark.parametrize("temperature", [0, 1])
def test_bradley_terry_abstains_with_its_scorer(temperature):
  judge = rules.bradley_terry(rules.exact_match({"p": "a"}), temperature)
  p_N = judge(["p", "other"], ["a", "a"], ["b", "b"]).value_N
  assert p_N[0] > 0.5
  assert np.isnan(p_N[1])


def test_invalid_rules_raise():
  with pytest.raises(ValueError, match="not a regular expression"):
    rules.matches("(")
  with pytest.raises(ValueError, match="answers is empty"):
    rules.exact_match({})
  with pytest.raises(ValueError, match="temperature is -1"):
    rules.bradley_terry(rules.length(), -1)


def test_cyclic_preference_has_no_best_kind():
  prefer = rules.cyclic_preference(["rock", "paper", "scissors"], edge=0.8)
  texts = ["rock", "paper", "scissors", "well"]
  pairs = [(a, b) for a in texts for b in texts]
  win = prefer(["p"] * 16, *zip(*pairs, strict=True)).value_N.reshape(4, 4)
  np.testing.assert_allclose(win + win.T, 1, rtol=1e-6)
  assert win[0, 1] == win[1, 2] == win[2, 0] == np.float32(0.8)
  assert (win[:3, 3] == np.float32(0.8)).all()  # any kind beats none
  np.testing.assert_allclose(win[:3, :3].mean(1), 0.5, rtol=1e-6)
  for arguments, message in (
    ({"patterns": ["a", "b"]}, "at least 3"),
    ({"edge": 0.3}, "edge"),
  ):
    with pytest.raises(ValueError, match=message):
      rules.cyclic_preference(**({"patterns": ["a", "b", "c"]} | arguments))
