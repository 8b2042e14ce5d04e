import numpy as np
import pytest

from xpo_jax.feedback import examine, rules, scripted
from xpo_jax.feedback.protocol import Scores

PROMPTS = ["p"] * 4
FIRST = ["a bb", "", "eight letters", "same"]
SECOND = ["a", "longer", "few", "size"]


def _judge(table):
  """Answers by (first, second)."""

  def judge(prompts, first, second):
    pairs = zip(first, second, strict=True)
    return Scores(np.array([table[pair] for pair in pairs], np.float32))

  return judge


@pytest.mark.nonfinite
def test_every_figure_is_what_it_says():
  shown, swapped = [0.9, 0.6, np.nan, 1.0], [0.7, 0.4, 0.5, 0.0]
  table = dict(zip(zip(FIRST, SECOND, strict=True), shown, strict=True))
  table |= dict(zip(zip(SECOND, FIRST, strict=True), swapped, strict=True))
  people = [True, True, False, False]
  report = examine.examine(_judge(table), PROMPTS, FIRST, SECOND, people)
  p = [(0.9 + 1 - 0.7) / 2, (0.6 + 1 - 0.4) / 2, np.nan, 1.0]
  assert report.pairs == 4
  assert report.abstained.value == 1 / 8
  np.testing.assert_allclose(
    report.first_wins.value, np.mean([0.8, 0.5, 0.5]), rtol=1e-6
  )
  # Pair 0 goes to whatever is shown first; pairs 1 and 3 stay with the first answer.
  assert (report.flipped.value, report.flipped.n) == (1 / 3, 3)
  np.testing.assert_allclose(
    report.longer_wins.value, np.mean([p[0], 1 - p[1]]), rtol=1e-6
  )
  assert report.people_longer.value == np.mean([1, 0, 0])
  assert report.agreement.value == np.mean([1, 1, 0])
  assert report.agreement_one_order.value == np.mean([(1 + 0) / 2, 1, 0])
  assert report.agreement.error == pytest.approx(np.std([1, 1, 0], ddof=1) / 3**0.5)


def test_degenerate_winners_are_told_of():
  judge = rules.bradley_terry(rules.length(target=0), temperature=0)  # likes silence
  report = examine.examine(judge, PROMPTS, FIRST, SECOND)
  assert [(flag.row, flag.column) for flag in report.flags] == [(1, 0)]
  told = examine.lines(report)
  assert told[-1] == "degenerate winner, pair 1: empty: ''"
  assert report.agreement is None
  assert not any("people" in line for line in told)


def test_biases_of_a_scripted_judge_show():
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 30, (300, 2))
  first, second = ([f"{'w ' * n}{k}" for k, n in enumerate(x)] for x in lengths.T)
  prompts = [f"p{n}" for n in range(300)]
  people = lengths[:, 0] > lengths[:, 1]
  judge = scripted.preference(rules.length(), error=0.1, position=0.4)
  report = examine.examine(judge, prompts, first, second, people)
  assert abs(report.flipped.value - 0.4) < 4 * report.flipped.error
  assert abs(report.first_wins.value - (0.5 + 0.4 / 2)) < 4 * report.first_wins.error
  # What is not position is length, and mostly right; a position's draw counts 1/2.
  expected = 0.4 / 2 + 0.6 * 0.9
  assert abs(report.agreement.value - expected) < 4 * report.agreement.error
  assert abs(report.longer_wins.value - expected) < 4 * report.longer_wins.error


@pytest.mark.nonfinite
def test_a_judge_that_never_answers_is_reported():
  def silent(prompts, first, second):
    return Scores(np.full(len(prompts), np.nan))

  report = examine.examine(silent, PROMPTS, FIRST, SECOND, [True] * 4)
  assert report.abstained.value == 1
  assert report.agreement.n == 0
  assert examine.lines(report)


def test_columns_of_unequal_length_are_refused():
  judge = rules.bradley_terry(rules.length())
  with pytest.raises(ValueError, match="4 prompts, 4 and 3 answers"):
    examine.examine(judge, PROMPTS, FIRST, SECOND[:3])
  with pytest.raises(ValueError, match="2 labels"):
    examine.examine(judge, PROMPTS, FIRST, SECOND, [True, False])
