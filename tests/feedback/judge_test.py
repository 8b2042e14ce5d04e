"""Judges of scripted backends: what is asked, in which order, what is made of it."""

import numpy as np
import pytest
from scipy import special

from xpo_jax.feedback import constitution, judge, protocol
from xpo_jax.feedback.judge import Backend

PAIRS = (["p", "q"], ["good", "bad"], ["bad", "good"])
SLOT_BIAS = 0.7  # logit towards whatever is shown first


def _said(conversation):
  return "\n".join(piece.text for turn in conversation for piece in turn.pieces)


def _texts(conversation):
  """What stands in the fences."""
  return [p.text for turn in conversation for p in turn.pieces if not p.trusted]


def _logits(conversation):
  """Likes "good", and what stands first."""
  _, first, second = _texts(conversation)[:3]
  return SLOT_BIAS + 2.0 * (first == "good") - 2.0 * (second == "good")


class Fake:
  """A backend that keeps what it was asked."""

  def __init__(self, answer=lambda conversation, draw: "1", logit=_logits):
    self.asked, self.answer, self.logit = [], answer, logit

  def write(self, conversations, draw):
    self.asked += [(each, draw) for each in conversations]
    return [self.answer(each, draw) for each in conversations]

  def options(self, conversations, names, draw):
    self.asked += [(each, draw) for each in conversations]
    return np.array([[self.logit(each), 0.0] for each in conversations], np.float32)

  def backend(self, logprobs=True):
    return Backend("fake", self.write, self.options if logprobs else None)


def test_orders_are_averaged_as_probabilities():
  p_N = judge.preference(Fake().backend())(*PAIRS).value_N
  sigma = special.expit
  wins = (sigma(SLOT_BIAS + 2) + 1 - sigma(SLOT_BIAS - 2)) / 2
  np.testing.assert_allclose(p_N, [wins, 1 - wins], rtol=1e-5)


def test_one_order_shows_the_bias():
  p_N = judge.preference(Fake().backend(), both_orders=False)(*PAIRS).value_N
  expected = special.expit([SLOT_BIAS + 2, SLOT_BIAS - 2])
  np.testing.assert_allclose(p_N, expected, rtol=1e-5)


def test_a_text_is_shown_in_both_places_fenced():
  fake = Fake()
  judge.preference(fake.backend())(["p"], ["good"], ["bad"])
  shown, swapped = (_texts(each) for each, _ in fake.asked)
  assert (shown, swapped) == (["p", "good", "bad"], ["p", "bad", "good"])
  assert _said(fake.asked[0][0]).index("Answer 1") < _said(fake.asked[0][0]).index(
    "good"
  )


def test_reasons_come_before_the_verdict():
  fake = Fake(answer=lambda conversation, draw: f"argued {draw}")
  scores = judge.preference(fake.backend(), reasoning=True, samples=2)(*PAIRS)
  assert scores.reason == ("argued 0", "argued 0")
  # 4 arguments and 4 verdicts, twice; the verdict follows the judge's own argument.
  arguing, verdicts = fake.asked[:4], fake.asked[4:8]
  assert len(fake.asked) == 16
  for (before, _), (after, _) in zip(arguing, verdicts, strict=True):
    assert after[:1] == before
    assert [turn.role for turn in after] == ["user", "assistant", "user"]
    assert _texts(after)[-1] == "argued 0"
    assert _said(after).endswith("Preferred answer:")
    assert "Preferred answer" not in _said(before)


def test_samples_are_averaged():
  def logit(conversation):
    return {"argued 0": 1.0, "argued 1": -3.0}[_texts(conversation)[-1]]

  fake = Fake(lambda conversation, draw: f"argued {draw}", logit)
  one_order = judge.preference(
    fake.backend(), reasoning=True, samples=2, both_orders=False
  )
  p_N = one_order(*PAIRS).value_N
  np.testing.assert_allclose(p_N, special.expit([1.0, -3.0]).mean(), rtol=1e-5)


def test_labels_are_clamped_where_asked():
  p_N = judge.preference(Fake().backend(), clamp=(0.4, 0.6))(*PAIRS).value_N
  np.testing.assert_allclose(p_N, [0.6, 0.4])


def test_written_verdicts_count_whole():
  fake = Fake(answer=lambda each, _: "1" if _texts(each)[1] == "good" else "2")
  p_N = judge.preference(fake.backend(False), logprobs=False)(*PAIRS).value_N
  assert p_N.tolist() == [1, 0]
  stubborn = Fake(answer=lambda *_: "Preferred answer: 1")
  p_N = judge.preference(stubborn.backend(False), logprobs=False)(*PAIRS).value_N
  assert p_N.tolist() == [0.5, 0.5]


@pytest.mark.nonfinite
def test_unreadable_verdicts_are_asked_for_again_then_abstained_from():
  def answer(conversation, draw):
    prompt = _texts(conversation)[0]
    return {"late": "1" if draw == 2 else "hm", "never": "hm", "gone": None}[prompt]

  fake = Fake(answer)
  prompts = ["late", "never", "gone"]
  asked = judge.preference(fake.backend(False), logprobs=False, retries=2)
  p_N = asked(prompts, ["a"] * 3, ["b"] * 3).value_N
  np.testing.assert_array_equal(p_N, [0.5, np.nan, np.nan])
  assert [draw for _, draw in fake.asked] == [0] * 6 + [1] * 6 + [2] * 6
  assert protocol.abstentions(p_N) == 2


@pytest.mark.nonfinite
def test_one_unreadable_order_is_an_abstention():
  fake = Fake(answer=lambda each, _: "1" if _texts(each)[1] == "good" else "?")
  p_N = judge.preference(fake.backend(False), logprobs=False, retries=0)(*PAIRS).value_N
  assert np.isnan(p_N).all()


@pytest.mark.nonfinite
def test_a_judge_without_an_argument_gives_no_verdict():
  fake = Fake(answer=lambda each, _: "" if "q" in _texts(each) else "because")
  p_N = judge.preference(fake.backend(), reasoning=True)(*PAIRS).value_N
  assert np.isnan(p_N).tolist() == [False, True]


def test_both_orders_are_judged_by_one_drawn_principle():
  fake = Fake()
  prompts = [f"p{n}" for n in range(40)]
  judging = judge.preference(
    fake.backend(), prompt="principle", principles="principles"
  )
  judging(prompts, ["good"] * 40, ["bad"] * 40)
  used = [_said(each).split("Principle: ")[1].splitlines()[0] for each, _ in fake.asked]
  assert used[:40] == used[40:]
  assert len(set(used)) > 4


def test_scores_are_averaged_over_what_could_be_read():
  answers = {0: "Score: 5", 1: "no idea", 2: "Fair.\nScore: 2/5"}
  fake = Fake(answer=lambda _, draw: answers[draw % 3])
  scores = judge.scorer(fake.backend(False), samples=3, retries=1)(["p"], ["c"])
  assert scores.value_N.tolist() == [(5 + 2) / 2]
  assert scores.reason == ("Score: 5",)
  assert [draw for _, draw in fake.asked] == [0, 1, 4, 2]


@pytest.mark.nonfinite
def test_a_score_that_is_never_read_is_an_abstention():
  fake = Fake(answer=lambda each, _: "Score: 9" if "c" in _texts(each) else "Score: 1")
  scores = judge.scorer(fake.backend(False), samples=2)(["p", "p"], ["c", "d"])
  np.testing.assert_array_equal(scores.value_N, [np.nan, 1])


def test_a_rating_is_the_mean_under_the_probabilities():
  def options(conversations, names, draw):
    assert names == ("1", "2", "3")
    return np.log(np.array([[0.2, 0.3, 0.5]], np.float32))

  rating = judge.rating(Backend("fake", Fake().write, options), levels=3)
  mean = 0.2 * 1 + 0.3 * 2 + 0.5 * 3
  np.testing.assert_allclose(rating(["p"], ["c"]).value_N, [mean - 2], rtol=1e-5)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (dict(samples=2), "samples=2 without reasoning"),
    (dict(samples=0), "samples >= 1"),
    (dict(options=("1", "1")), "two names"),
    (dict(clamp=(0.6, 0.4)), "clamped: low=0.6"),
    (dict(prompt="additive"), "completion"),
    (dict(principles="principles"), "principle"),
  ],
)
def test_a_judge_that_cannot_be_is_refused_before_asking(settings, message):
  fake = Fake()
  with pytest.raises(ValueError, match=message):
    judge.preference(fake.backend(), **settings)
  assert not fake.asked


@pytest.mark.parametrize("make", [judge.preference, judge.rating])
def test_probabilities_of_a_judge_without_them_are_refused(make):
  with pytest.raises(ValueError, match="fake gives no log-probabilities"):
    make(Fake().backend(logprobs=False))


def test_nothing_asked_is_nothing_answered():
  assert judge.preference(Fake().backend())([], [], []).value_N.shape == (0,)
  assert judge.scorer(Fake().backend())([], []).value_N.shape == (0,)
  assert judge.rating(Fake().backend())([], []).value_N.shape == (0,)


def test_revisions_follow_a_critique_by_one_principle():
  def answer(conversation, draw):
    said = _said(conversation)
    if said.endswith("Critique:"):
      return "too rude"
    assert "too rude" in _texts(conversation)
    return f"kinder {draw}"

  fake = Fake(answer)
  rounds = constitution.revise(
    constitution.critic(fake.backend()), ["p"], ["c"], rounds=3
  )
  assert [each.text for each in rounds] == [("kinder 0",), ("kinder 3",), ("kinder 6",)]
  assert [_texts(each)[1] for each, _ in fake.asked[::2]] == [
    "c",
    "kinder 0",
    "kinder 3",
  ]
  for each, (asked, _) in zip(rounds, fake.asked[1::2], strict=True):
    assert each.principle[0] in _said(asked)


def test_a_critic_without_a_word_leaves_the_text():
  fake = Fake(answer=lambda each, draw: None)
  rounds = constitution.revise(
    constitution.critic(fake.backend()), ["p"], ["c"], rounds=2
  )
  assert [each.text for each in rounds] == [(None,), (None,)]
  assert all(_texts(each) == ["p", "c"] for each, _ in fake.asked)
