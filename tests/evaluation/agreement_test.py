"""Agreement with labels: by hand where numbers are few, by law where they are many."""

import numpy as np
import pytest
from scipy import special

from xpo_jax.data.records import Demonstration, Pair, Ranked, Turn
from xpo_jax.evaluation import agreement
from xpo_jax.feedback.protocol import Scores
from xpo_jax.report import agreement_tables, html

ROWS = [
  Pair("0", "p", " long one", " no"),
  Pair("1", "p", " a", " long"),
  Ranked("2", "q", (" aa", " b", " cc", " aa"), (0.1, 0.9, 0.1, 0.5)),
]


def test_questions_are_pairs_of_unequal_reward_and_words():
  asked = agreement.questions(ROWS)
  found = list(zip(asked.prompts, asked.better, asked.worse, strict=True))
  assert found[:2] == [("p", " long one", " no"), ("p", " a", " long")]
  # Of six pairs of the list one is tied and one has the same words.
  assert set(found[2:]) == {
    ("q", " b", " aa"),
    ("q", " b", " cc"),
    ("q", " aa", " cc"),
  }
  assert sum(pair == ("q", " b", " aa") for pair in found) == 2
  assert asked.prompt_N.tolist() == [0, 0, 1, 1, 1, 1]
  few = agreement.questions(ROWS, most=2)
  assert len(few.prompts) == 4


def test_measures_by_hand():
  asked = agreement.questions([*ROWS[:2], Pair("2", "q", " xy", " zw")])
  found = agreement.measure(np.array([0.9, 0.4, 0.5]), asked)
  assert found.measures["accuracy"].mean == pytest.approx((1 + 0 + 0.5) / 3)
  assert found.measures["accuracy"].units == 2  # prompts
  assert found.measures["accuracy_longer"].mean == 1
  assert found.measures["accuracy_shorter"].mean == 0
  # Longer wins the first two in the verdict; the third has equal lengths.
  assert found.measures["length"].mean == pytest.approx(2 / 3)
  assert found.measures["length_labels"].mean == pytest.approx((1 - 1 + 0) / 3)
  loss = -np.log([0.9, 0.4, 0.5]).mean()
  assert found.measures["log_loss"].mean == pytest.approx(loss)
  # Confidences 0.9, 0.6, 0.5, right 1, 0, 0.5.
  assert found.calibration_error == pytest.approx((0.1 + 0.6 + 0) / 3)
  assert [b.questions for b in found.reliability] == [1, 1, 1]
  assert found.questions == 3 and found.abstained == 0


def test_abstentions_are_counted_and_left_out():
  asked = agreement.questions(ROWS[:2])
  found = agreement.measure(np.array([0.9, np.nan]), asked)
  assert found.questions == 1 and found.abstained == 1
  assert found.measures["accuracy"].mean == 1
  assert "accuracy_shorter" not in found.measures  # no such pair is left
  with pytest.raises(ValueError, match="all abstained"):
    agreement.measure(np.full(2, np.nan), asked)


def test_calibrated_verdicts_have_little_error_and_overconfident_ones_much():
  rng = np.random.default_rng(0)
  gap_N = rng.normal(0, 1.5, 4000)
  # The label takes answer x with the probability that the score states.
  first_N = rng.random(4000) < special.expit(gap_N)
  sides = [
    (f" x{n}", f" y{n}") if f else (f" y{n}", f" x{n}") for n, f in enumerate(first_N)
  ]
  asked = agreement.questions(
    [Pair(str(n), f"p{n}", *pair) for n, pair in enumerate(sides)]
  )

  def scorer(prompts, texts):
    del prompts
    return Scores(np.array([gap_N[int(y[2:])] if y[1] == "x" else 0 for y in texts]))

  found = agreement.of_scorer(scorer, asked)
  assert found.calibration_error < 0.03
  optimum = special.expit(np.abs(gap_N)).mean()  # what a perfect ranker gets right
  assert found.measures["accuracy"].low < optimum < found.measures["accuracy"].high
  assert found.measures["log_loss"].mean < np.log(2)
  sure = agreement.of_scorer(scorer, asked, scale=1 / 5)
  assert sure.calibration_error > 0.1
  assert sure.measures["accuracy"] == found.measures["accuracy"]


def test_verdict_that_hangs_on_the_order_is_no_knowledge():
  rows = [Pair(str(n), f"p{n}", " a", " b") for n in range(10)]

  def first_wins(prompts, first, second):
    del first, second
    return Scores(np.full(len(prompts), 0.9))

  found = agreement.of_preference(first_wins, agreement.questions(rows))
  assert found.measures["accuracy"].mean == 0.5

  def a_wins(prompts, first, second):
    del prompts, second
    return Scores(np.array([0.9 if text == " a" else 0.1 for text in first]))

  found = agreement.of_preference(a_wins, agreement.questions(rows))
  assert found.measures["accuracy"].mean == 1
  assert found.calibration_error == pytest.approx(0.1)


@pytest.mark.parametrize(
  ("rows", "says"),
  [
    ([Demonstration("x", "p", " a")], "x is a Demonstration"),
    ([Ranked("x", "p", (" a", " b"), (1.0, 1.0))], "no two answers of unequal reward"),
  ],
)
def test_what_cannot_be_asked_is_refused(rows, says):
  with pytest.raises(ValueError, match=says):
    agreement.questions(rows)


def test_conversations_are_asked_as_conversations():
  def reply(text):
    return (Turn("assistant", text, loss=True),)

  turns = (Turn("user", "p"),)
  asked = agreement.questions([Pair("x", turns, reply("good"), reply("bad"))])
  (prompt,) = asked.prompts
  assert (prompt, prompt.turns) == ("user: p", turns)
  assert (asked.better, asked.worse) == (("good",), ("bad",))


def test_tables_show_every_measure():
  asked = agreement.questions(ROWS)
  found = agreement.measure(np.linspace(0.2, 0.9, 6), asked)
  first, bins = agreement_tables.tables(agreement.plain(found))
  assert len(first.rows) == len(found.measures) + 3
  assert len(bins.rows) == len(found.reliability)
  text = html.markdown(html.Page("t", "", [html.Section("s", [first, bins])]))
  assert "calibration error" in text
