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


def test_the_judge_errs_at_its_rate_in_either_order():
  judge = noisy_judge.preference(error=0.2)
  p_N = _ask(judge)
  decided = TRUE != 0.5
  assert _near((p_N != TRUE)[decided].mean(), 0.2, decided.sum())
  assert (p_N[~decided] == 0.5).all()
  np.testing.assert_array_equal(_ask(judge, SECOND, FIRST), 1 - p_N)


def test_the_judge_says_the_same_whatever_the_batch():
  judge = noisy_judge.preference(error=0.3, position=0.2, seed=1)
  rows = zip(PROMPTS, FIRST, SECOND, strict=True)
  alone = [judge([p], [a], [b]).value_N[0] for p, a, b in rows]
  np.testing.assert_array_equal(_ask(judge), alone)
  other = noisy_judge.preference(error=0.3, position=0.2, seed=2)
  assert (_ask(other) != alone).any()


def test_a_judge_without_error_is_the_truth_and_with_all_its_opposite():
  np.testing.assert_array_equal(_ask(noisy_judge.preference(error=0)), TRUE)
  np.testing.assert_array_equal(_ask(noisy_judge.preference(error=1)), 1 - TRUE)


def test_an_unsure_judge_is_as_unsure_where_it_is_wrong():
  sure = rules.bradley_terry(rules.synthetic_reward(), 0.5)(
    PROMPTS, FIRST, SECOND
  ).value_N
  p_N = _ask(noisy_judge.preference(error=0.2, temperature=0.5))
  wrong = p_N != sure
  np.testing.assert_allclose(p_N[wrong], 1 - sure[wrong])
  assert _near(wrong[sure != 0.5].mean(), 0.2, (sure != 0.5).sum())


def test_a_lazy_judge_takes_the_first_shown():
  judge = noisy_judge.preference(error=0, position=0.3)
  both = (_ask(judge) == 1) & (_ask(judge, SECOND, FIRST) == 1)
  assert _near(both.mean(), 0.3, N)


def test_the_rater_errs_at_its_rate_with_any_other_rating():
  right = noisy_judge.scorer(error=0)(PROMPTS, FIRST).value_N
  reward = synthetic_reviews.true_reward(
    [p + c for p, c in zip(PROMPTS, FIRST, strict=True)]
  )
  np.testing.assert_array_equal(right, np.round(5 * (reward + 1) / 2))
  rated = noisy_judge.scorer(error=0.3)(PROMPTS, FIRST).value_N
  wrong = rated != right
  assert _near(wrong.mean(), 0.3, N)
  assert set(rated[wrong]) == {0, 1, 2, 3, 4, 5}
  away = np.bincount(((rated - right)[wrong] % 6).astype(int), minlength=6)
  assert away[0] == 0
  assert all(_near(share, 0.2, wrong.sum()) for share in away[1:] / wrong.sum())


def test_the_critic_mends_a_word_a_round():
  critic = noisy_judge.critic({"bad": "good", "ugly": "fair"}, error=0)
  rounds = constitution.revise(critic, ["p"], [" a bad, ugly film."], rounds=3)
  assert [each.text[0] for each in rounds] == [
    " a good, ugly film.",
    " a good, fair film.",
    " a good, fair film.",
  ]
  assert rounds[0].critique == ("The word 'bad' is wrong.",)
  assert rounds[2].critique == ("No word is wrong.",)


def test_faults_decay_geometrically_with_revisions():
  """Each round mends a fault with probability 1 - error."""
  texts = ["bad"] * N
  critic = noisy_judge.critic({"bad": "good"}, error=0.4)
  prompts = [str(n) for n in range(N)]
  rounds = constitution.revise(critic, prompts, texts, rounds=3)
  for number, each in enumerate(rounds):
    left = np.mean([text == "bad" for text in each.text])
    assert _near(left, 0.4 ** (number + 1), N)


def test_revisions_raise_the_worlds_reward():
  critic = noisy_judge.critic(error=0)
  last = constitution.revise(critic, PROMPTS, FIRST, rounds=4)[-1].text
  before = rules.synthetic_reward()(PROMPTS, FIRST).value_N
  after = rules.synthetic_reward()(PROMPTS, last).value_N
  assert (after < 0).mean() < (before < 0).mean() / 2


@pytest.mark.parametrize(
  "make", [noisy_judge.preference, noisy_judge.scorer, noisy_judge.critic]
)
def test_a_share_outside_its_range_is_refused(make):
  with pytest.raises(ValueError, match=r"error is 1.5; allowed: 0 to 1"):
    make(error=1.5)


def test_harshness_counts_what_the_critic_mends():
  texts = [" a dull, stupid film.", " fine.", " Terrible"]
  found = noisy_judge.harshness()(["p"] * 3, texts)
  assert found.value_N.tolist() == [2, 0, 1]
  critic = noisy_judge.critic(error=0)
  last = constitution.revise(critic, ["p"] * 3, texts, rounds=2)[-1].text
  assert noisy_judge.harshness()(["p"] * 3, last).value_N.tolist() == [0, 0, 0]


def test_each_pair_is_judged_by_one_drawn_principle():
  kinder = noisy_judge.preference(error=0)
  crueller = noisy_judge.preference(error=1)
  judge = constitution.by_principle((kinder, crueller), seed=2)
  p_N = _ask(judge)
  np.testing.assert_array_equal(_ask(judge, SECOND, FIRST), 1 - p_N)
  decided = TRUE != 0.5
  assert _near((p_N == TRUE)[decided].mean(), 0.5, decided.sum())
  with pytest.raises(ValueError, match="no judge"):
    constitution.by_principle(())
