import numpy as np
import pytest

from xpo_jax.data.records import Pair, Turn
from xpo_jax.feedback import judge, labelling
from xpo_jax.feedback.judge import Backend
from xpo_jax.feedback.protocol import Scores

ROWS = [Pair(str(n), f"p{n}", "aa", "b", probability=0.9) for n in range(60)]


def _sure(prompts, first, second):
  """Prefers the shorter at 0.8; draws on p0; silent on p1."""

  def p(prompt, a, b):
    return {"p0": 0.5, "p1": np.nan}.get(prompt, 0.8 if len(a) < len(b) else 0.2)

  rows = zip(prompts, first, second, strict=True)
  return Scores(np.array([p(*row) for row in rows], np.float32))


def test_the_order_of_answers_tells_nothing():
  asked = labelling.questions(ROWS)
  assert 15 < sum(asked.people) < 45
  for first, second, kept in zip(asked.first, asked.second, asked.people, strict=True):
    assert (first, second) == (("aa", "b") if kept else ("b", "aa"))
  assert labelling.questions(ROWS[7:8]).people == asked.people[7:8]
  assert labelling.questions(ROWS, seed=1).people != asked.people


def test_conversations_become_text():
  turns = (Turn("user", "Hello?"), Turn("assistant", "Yes."))
  asked = labelling.questions([Pair("1", turns, turns[:1], turns[1:])])
  assert asked.prompts == ["user: Hello?\n\nassistant: Yes."]
  assert {*asked.first, *asked.second} == {"Hello?", "Yes."}


@pytest.mark.nonfinite
def test_the_judges_labels_replace_the_old_ones():
  labelled = labelling.label(_sure, ROWS)
  assert (labelled.abstained, labelled.draws, len(labelled.pairs)) == (1, 1, 58)
  for pair in labelled.pairs:
    assert (pair.chosen, pair.rejected) == ("b", "aa")
    assert pair.probability == pytest.approx(0.8)


@pytest.mark.nonfinite
def test_hard_labels_have_no_probability():
  labelled = labelling.label(_sure, ROWS, hard=True)
  assert {pair.probability for pair in labelled.pairs} == {None}


def test_ratings_teach_what_a_judge_is_asked():
  prompts, texts = [f"p{n}" for n in range(7)], [f" a{n}" for n in range(7)]
  taught = labelling.ratings(
    prompts, texts, [5, 5, 5, 5, 2, 2, 1], prompt="brief", levels=5
  )
  # One of each rating that there is, for there is but one of the rarest.
  assert [row.completion for row in taught] == [" 5", " 2", " 1"]
  asked = {}

  def options(conversations, names, draw):
    for conversation in conversations:
      (turn,) = conversation
      asked["".join(piece.text for piece in turn.pieces)] = names
    return np.zeros((len(conversations), len(names)), np.float32)

  rate = judge.rating(Backend("all alike", None, options), prompt="brief", levels=5)
  rated = [int(row.uid.split()[1]) for row in taught]
  rate([prompts[n] for n in rated], [texts[n] for n in rated])
  assert [row.prompt for row in taught] == list(asked)
