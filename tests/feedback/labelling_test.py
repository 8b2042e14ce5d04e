import numpy as np
import pytest

from xpo_jax.data.records import Pair, Turn
from xpo_jax.feedback import judge, labelling
from xpo_jax.feedback.judge import Backend
from xpo_jax.feedback.protocol import Scores

PAIRS = [Pair(str(n), f"p{n}", "aa", "b", probability=0.9) for n in range(60)]


def _prefer_shorter(prompts, first, second):
  """Prefers the shorter at 0.8; ties on p0; abstains on p1."""

  def p(prompt, a, b):
    return {"p0": 0.5, "p1": np.nan}.get(prompt, 0.8 if len(a) < len(b) else 0.2)

  queries = zip(prompts, first, second, strict=True)
  return Scores(np.array([p(*query) for query in queries], np.float32))


def test_order_of_completions_is_random():
  queries = labelling.make_queries(PAIRS)
  assert 15 < sum(queries.chosen_first) < 45
  for first, second, in_order in zip(
    queries.first, queries.second, queries.chosen_first, strict=True
  ):
    assert (first, second) == (("aa", "b") if in_order else ("b", "aa"))
  assert labelling.make_queries(PAIRS[7:8]).chosen_first == queries.chosen_first[7:8]
  assert labelling.make_queries(PAIRS, seed=1).chosen_first != queries.chosen_first


def test_conversations_are_rendered_as_text():
  turns = (Turn("user", "Hello?"), Turn("assistant", "Yes."))
  queries = labelling.make_queries([Pair("1", turns, turns[:1], turns[1:])])
  assert queries.prompts == ["user: Hello?\n\nassistant: Yes."]
  assert {*queries.first, *queries.second} == {"Hello?", "Yes."}


@pytest.mark.nonfinite
def test_judge_labels_replace_the_old_ones():
  labelled = labelling.label_pairs(_prefer_shorter, PAIRS)
  assert (labelled.abstained, labelled.ties, len(labelled.pairs)) == (1, 1, 58)
  for pair in labelled.pairs:
    assert (pair.chosen, pair.rejected) == ("b", "aa")
    assert pair.probability == pytest.approx(0.8)


@pytest.mark.nonfinite
def test_hard_labels_have_no_probability():
  labelled = labelling.label_pairs(_prefer_shorter, PAIRS, hard=True)
  assert {pair.probability for pair in labelled.pairs} == {None}


def test_rating_demonstrations_match_the_judges_queries():
  prompts = [f"p{n}" for n in range(7)]
  texts = [f" a{n}" for n in range(7)]
  demonstrations = labelling.rating_demonstrations(
    prompts, texts, [5, 5, 5, 5, 2, 2, 1], prompt="brief", levels=5
  )
  # One of each rating, since the rarest occurs once.
  assert [row.completion for row in demonstrations] == [" 5", " 2", " 1"]
  queried = {}

  def options(conversations, names, draw):
    for conversation in conversations:
      (turn,) = conversation
      queried["".join(piece.text for piece in turn.pieces)] = names
    return np.zeros((len(conversations), len(names)), np.float32)

  rate = judge.rating(Backend("constant", None, options), prompt="brief", levels=5)
  rated = [int(row.uid.split()[1]) for row in demonstrations]
  rate([prompts[n] for n in rated], [texts[n] for n in rated])
  assert [row.prompt for row in demonstrations] == list(queried)
