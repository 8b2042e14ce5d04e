"""Tests judges on a fake backend: their queries, and how verdicts are read."""

import numpy as np
import pytest
from scipy import special

from xpo_jax.feedback import constitution, judge, protocol
from xpo_jax.feedback.judge import Backend

PAIRS = (["p", "q"], ["good", "bad"], ["bad", "good"])
POSITION_BIAS = 0.7  # logit in favour of the first completion


def _text(conversation):
  return "\n".join(piece.text for turn in conversation for piece in turn.pieces)


def _texts(conversation):
  """Returns the fenced texts."""
  return [p.text for turn in conversation for p in turn.pieces if not p.trusted]


def _logits(conversation):
  """Prefers "good", and the first completion."""
  _, first, second = _texts(conversation)[:3]
  return POSITION_BIAS + 2.0 * (first == "good") - 2.0 * (second == "good")


class Fake:
  """A backend that records its queries."""

  def __init__(self, answer=lambda conversation, draw: "1", logit=_logits):
    self.queries = []
    self.answer = answer
    self.logit = logit

  def write(self, conversations, draw):
    self.queries += [(each, draw) for each in conversations]
    return [self.answer(each, draw) for each in conversations]

  def options(self, conversations, names, draw):
    self.queries += [(each, draw) for each in conversations]
    return np.array([[self.logit(each), 0.0] for each in conversations], np.float32)

  def backend(self, logprobs=True):
    return Backend("fake", self.write, self.options if logprobs else None)


def test_orders_are_averaged_as_probabilities():
  p_N = judge.preference(Fake().backend())(*PAIRS).value_N
  sigma = special.expit
  wins = (sigma(POSITION_BIAS + 2) + 1 - sigma(POSITION_BIAS - 2)) / 2
  np.testing.assert_allclose(p_N, [wins, 1 - wins], rtol=1e-5)


def test_one_order_has_position_bias():
  p_N = judge.preference(Fake().backend(), both_orders=False)(*PAIRS).value_N
  expected = special.expit([POSITION_BIAS + 2, POSITION_BIAS - 2])
  np.testing.assert_allclose(p_N, expected, rtol=1e-5)


def test_texts_are_shown_fenced_in_both_orders():
  fake = Fake()
  judge.preference(fake.backend())(["p"], ["good"], ["bad"])
  shown, swapped = (_texts(each) for each, _ in fake.queries)
  assert (shown, swapped) == (["p", "good", "bad"], ["p", "bad", "good"])
  assert _text(fake.queries[0][0]).index("Answer 1") < _text(fake.queries[0][0]).index(
    "good"
  )


def test_reasons_precede_the_verdict():
  fake = Fake(answer=lambda conversation, draw: f"reasons {draw}")
  scores = judge.preference(fake.backend(), reasoning=True, samples=2)(*PAIRS)
  assert scores.reason == ("reasons 0", "reasons 0")
  # 4 reasons and 4 verdicts per sample; each verdict follows its own reasons.
  reasoning = fake.queries[:4]
  verdicts = fake.queries[4:8]
  assert len(fake.queries) == 16
  for (before, _), (after, _) in zip(reasoning, verdicts, strict=True):
    assert after[:1] == before
    assert [turn.role for turn in after] == ["user", "assistant", "user"]
    assert _texts(after)[-1] == "reasons 0"
    assert _text(after).endswith("Preferred answer:")
    assert "Preferred answer" not in _text(before)


def test_samples_are_averaged():
  def logit(conversation):
    return {"reasons 0": 1.0, "reasons 1": -3.0}[_texts(conversation)[-1]]

  fake = Fake(lambda conversation, draw: f"reasons {draw}", logit)
  one_order = judge.preference(
    fake.backend(), reasoning=True, samples=2, both_orders=False
  )
  p_N = one_order(*PAIRS).value_N
  np.testing.assert_allclose(p_N, special.expit([1.0, -3.0]).mean(), rtol=1e-5)


def test_labels_are_clamped():
  p_N = judge.preference(Fake().backend(), clamp=(0.4, 0.6))(*PAIRS).value_N
  np.testing.assert_allclose(p_N, [0.6, 0.4])


def test_text_verdicts_are_zero_or_one():
  fake = Fake(answer=lambda each, _: "1" if _texts(each)[1] == "good" else "2")
  p_N = judge.preference(fake.backend(False), logprobs=False)(*PAIRS).value_N
  assert p_N.tolist() == [1, 0]
  constant = Fake(answer=lambda *_: "Preferred answer: 1")
  p_N = judge.preference(constant.backend(False), logprobs=False)(*PAIRS).value_N
  assert p_N.tolist() == [0.5, 0.5]


@pytest.mark.nonfinite
def test_unreadable_verdicts_are_retried_then_abstentions():
  def answer(conversation, draw):
    prompt = _texts(conversation)[0]
    return {"late": "1" if draw == 2 else "hm", "never": "hm", "gone": None}[prompt]

  fake = Fake(answer)
  prompts = ["late", "never", "gone"]
  preference = judge.preference(fake.backend(False), logprobs=False, retries=2)
  p_N = preference(prompts, ["a"] * 3, ["b"] * 3).value_N
  np.testing.assert_array_equal(p_N, [0.5, np.nan, np.nan])
  assert [draw for _, draw in fake.queries] == [0] * 6 + [1] * 6 + [2] * 6
  assert protocol.count_abstentions(p_N) == 2


@pytest.mark.nonfinite
def test_one_unreadable_order_is_an_abstention():
  fake = Fake(answer=lambda each, _: "1" if _texts(each)[1] == "good" else "?")
  p_N = judge.preference(fake.backend(False), logprobs=False, retries=0)(*PAIRS).value_N
  assert np.isnan(p_N).all()


@pytest.mark.nonfinite
def test_empty_reasons_are_an_abstention():
  fake = Fake(answer=lambda each, _: "" if "q" in _texts(each) else "because")
  p_N = judge.preference(fake.backend(), reasoning=True)(*PAIRS).value_N
  assert np.isnan(p_N).tolist() == [False, True]


def test_both_orders_share_one_sampled_principle():
  fake = Fake()
  prompts = [f"p{n}" for n in range(40)]
  preference = judge.preference(
    fake.backend(), prompt="principle", principles="principles"
  )
  preference(prompts, ["good"] * 40, ["bad"] * 40)
  used = [
    _text(each).split("Principle: ")[1].splitlines()[0] for each, _ in fake.queries
  ]
  assert used[:40] == used[40:]
  assert len(set(used)) > 4


def test_scores_are_averaged_over_readable_samples():
  answers = {0: "Score: 5", 1: "no idea", 2: "Fair.\nScore: 2/5"}
  fake = Fake(answer=lambda _, draw: answers[draw % 3])
  scores = judge.scorer(fake.backend(False), samples=3, retries=1)(["p"], ["c"])
  assert scores.value_N.tolist() == [(5 + 2) / 2]
  assert scores.reason == ("Score: 5",)
  assert [draw for _, draw in fake.queries] == [0, 1, 4, 2]


@pytest.mark.nonfinite
def test_unreadable_score_is_an_abstention():
  fake = Fake(answer=lambda each, _: "Score: 9" if "c" in _texts(each) else "Score: 1")
  scores = judge.scorer(fake.backend(False), samples=2)(["p", "p"], ["c", "d"])
  np.testing.assert_array_equal(scores.value_N, [np.nan, 1])


def test_rating_is_the_expected_level():
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
def test_invalid_settings_raise_before_any_query(settings, message):
  fake = Fake()
  with pytest.raises(ValueError, match=message):
    judge.preference(fake.backend(), **settings)
  assert not fake.queries


@pytest.mark.parametrize("make", [judge.preference, judge.rating])
def test_logprobs_of_a_backend_without_them_raise(make):
  with pytest.raises(ValueError, match="fake gives no log-probabilities"):
    make(Fake().backend(logprobs=False))


def test_no_queries_give_empty_results():
  assert judge.preference(Fake().backend())([], [], []).value_N.shape == (0,)
  assert judge.scorer(Fake().backend())([], []).value_N.shape == (0,)
  assert judge.rating(Fake().backend())([], []).value_N.shape == (0,)


def test_revisions_use_the_critique_and_its_principle():
  def answer(conversation, draw):
    text = _text(conversation)
    if text.endswith("Critique:"):
      return "too rude"
    assert "too rude" in _texts(conversation)
    return f"kinder {draw}"

  fake = Fake(answer)
  rounds = constitution.revise(
    constitution.critic(fake.backend()), ["p"], ["c"], rounds=3
  )
  assert [each.text for each in rounds] == [("kinder 0",), ("kinder 3",), ("kinder 6",)]
  assert [_texts(each)[1] for each, _ in fake.queries[::2]] == [
    "c",
    "kinder 0",
    "kinder 3",
  ]
  for each, (query, _) in zip(rounds, fake.queries[1::2], strict=True):
    assert each.principle[0] in _text(query)


def test_empty_critiques_leave_the_text():
  fake = Fake(answer=lambda each, draw: None)
  rounds = constitution.revise(
    constitution.critic(fake.backend()), ["p"], ["c"], rounds=2
  )
  assert [each.text for each in rounds] == [(None,), (None,)]
  assert all(_texts(each) == ["p", "c"] for each, _ in fake.queries)
