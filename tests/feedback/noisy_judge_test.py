import numpy as np
import pytest

from xpo_jax.data import synthetic_reviews
from xpo_jax.feedback import constitution, noisy_judge, rules

N = 400
REVIEWS = synthetic_reviews.generate(2 * N, seed=3)
PROMPTS = [prompt for prompt, _ in REVIEWS[:N]]
FIRST = [text for _, text in REVIEWS[:N]]
SECOND = [text for _, text in REVIEWS[N:]]
TRUE = rules.bradley_terry(rules.synthetic_reward(), 0)(PROMPTS, FIRST, SECOND).value_N


def _ask(judge, first=FIRST, second=SECOND):
  return judge(PROMPTS, first, second).value_N


def _near(share, expected, n):
  return abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_error_rate_holds_in_both_orders():
  judge = noisy_judge.preference(error=0.2)
  p_N = _ask(judge)
  decided = TRUE != 0.5
  assert _near((p_N != TRUE)[decided].mean(), 0.2, decided.sum())
  assert (p_N[~decided] == 0.5).all()
  np.testing.assert_array_equal(_ask(judge, SECOND, FIRST), 1 - p_N)


def test_verdicts_do_not_depend_on_the_batch():
  judge = noisy_judge.preference(error=0.3, position=0.2, seed=1)
  queries = zip(PROMPTS, FIRST, SECOND, strict=True)
  alone = [judge([p], [a], [b]).value_N[0] for p, a, b in queries]
  np.testing.assert_array_equal(_ask(judge), alone)
  other = noisy_judge.preference(error=0.3, position=0.2, seed=2)
  assert (_ask(other) != alone).any()


def test_error_zero_is_the_truth_and_error_one_its_opposite():
  np.testing.assert_array_equal(_ask(noisy_judge.preference(error=0)), TRUE)
  np.testing.assert_array_equal(_ask(noisy_judge.preference(error=1)), 1 - TRUE)


def test_flipped_verdict_has_the_same_confidence():
  soft = rules.bradley_terry(rules.synthetic_reward(), 0.5)(
    PROMPTS, FIRST, SECOND
  ).value_N
  p_N = _ask(noisy_judge.preference(error=0.2, temperature=0.5))
  flipped = p_N != soft
  np.testing.assert_allclose(p_N[flipped], 1 - soft[flipped])
  assert _near(flipped[soft != 0.5].mean(), 0.2, (soft != 0.5).sum())


def test_position_bias_chooses_the_first():
  judge = noisy_judge.preference(error=0, position=0.3)
  both = (_ask(judge) == 1) & (_ask(judge, SECOND, FIRST) == 1)
  assert _near(both.mean(), 0.3, N)


def test_wrong_ratings_are_uniform_over_the_others():
  expected = noisy_judge.scorer(error=0)(PROMPTS, FIRST).value_N
  reward = synthetic_reviews.true_reward(
    [p + c for p, c in zip(PROMPTS, FIRST, strict=True)]
  )
  np.testing.assert_array_equal(expected, np.round(5 * (reward + 1) / 2))
  rated = noisy_judge.scorer(error=0.3)(PROMPTS, FIRST).value_N
  flipped = rated != expected
  assert _near(flipped.mean(), 0.3, N)
  assert set(rated[flipped]) == {0, 1, 2, 3, 4, 5}
  offsets = np.bincount(((rated - expected)[flipped] % 6).astype(int), minlength=6)
  assert offsets[0] == 0
  assert all(_near(share, 0.2, flipped.sum()) for share in offsets[1:] / flipped.sum())


def test_critic_replaces_one_word_per_round():
  critic = noisy_judge.critic({"bad": "good", "ugly": "fair"}, error=0)
  rounds = constitution.revise(critic, ["p"], [" a bad, ugly film."], rounds=3)
  assert [each.text[0] for each in rounds] == [
    " a good, ugly film.",
    " a good, fair film.",
    " a good, fair film.",
  ]
  assert rounds[0].critique == ("The word 'bad' is wrong.",)
  assert rounds[2].critique == ("No word is wrong.",)


def test_listed_words_decay_geometrically_with_rounds():
  """Each round replaces a word with probability 1 - error."""
  texts = ["bad"] * N
  critic = noisy_judge.critic({"bad": "good"}, error=0.4)
  prompts = [str(n) for n in range(N)]
  rounds = constitution.revise(critic, prompts, texts, rounds=3)
  for number, each in enumerate(rounds):
    remaining = np.mean([text == "bad" for text in each.text])
    assert _near(remaining, 0.4 ** (number + 1), N)


def test_revisions_raise_the_reward():
  critic = noisy_judge.critic(error=0)
  last = constitution.revise(critic, PROMPTS, FIRST, rounds=4)[-1].text
  before = rules.synthetic_reward()(PROMPTS, FIRST).value_N
  after = rules.synthetic_reward()(PROMPTS, last).value_N
  assert (after < 0).mean() < (before < 0).mean() / 2


@pytest.mark.parametrize(
  "make", [noisy_judge.preference, noisy_judge.scorer, noisy_judge.critic]
)
def test_probability_out_of_range_raises(make):
  with pytest.raises(ValueError, match=r"error is 1.5; allowed: 0 to 1"):
    make(error=1.5)


def test_negative_word_count_counts_what_the_critic_replaces():
  texts = [" a dull, stupid film.", " fine.", " Terrible"]
  counts = noisy_judge.negative_word_count()(["p"] * 3, texts)
  assert counts.value_N.tolist() == [2, 0, 1]
  critic = noisy_judge.critic(error=0)
  last = constitution.revise(critic, ["p"] * 3, texts, rounds=2)[-1].text
  assert noisy_judge.negative_word_count()(["p"] * 3, last).value_N.tolist() == [
    0,
    0,
    0,
  ]


def test_random_judge_samples_one_judge_per_pair():
  accurate = noisy_judge.preference(error=0)
  inverted = noisy_judge.preference(error=1)
  judge = constitution.random_judge((accurate, inverted), seed=2)
  p_N = _ask(judge)
  np.testing.assert_array_equal(_ask(judge, SECOND, FIRST), 1 - p_N)
  decided = TRUE != 0.5
  assert _near((p_N == TRUE)[decided].mean(), 0.5, decided.sum())
  with pytest.raises(ValueError, match="judges is empty"):
    constitution.random_judge(())
