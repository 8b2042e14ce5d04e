"""A judge asked in both orders: every figure by hand, biases of known size."""

import numpy as np
import pytest

from xpo_jax.data.records import Pair
from xpo_jax.evaluation import agreement, judge_bias
from xpo_jax.feedback import noisy_judge, rules
from xpo_jax.feedback.protocol import Scores

PAIRS = [("a bb", "a"), ("", "longer"), ("few", "eight letters"), ("size", "same")]
ASKED = agreement.questions(
  [Pair(str(n), f"p{n}", *pair) for n, pair in enumerate(PAIRS)]
)


def _judge(shown, swapped):
  """Answers the better answer shown first, and last."""
  table = dict(zip(PAIRS, shown, strict=True))
  table |= {(b, a): p for (a, b), p in zip(PAIRS, swapped, strict=True)}

  def judge(prompts, first, second):
    pairs = zip(first, second, strict=True)
    return Scores(np.array([table[pair] for pair in pairs], np.float32))

  return judge


@pytest.mark.nonfinite
def test_every_figure_is_what_it_says():
  judge = _judge([0.9, 0.6, np.nan, 1.0], [0.7, 0.4, 0.5, 0.0])
  found = judge_bias.examine(judge, ASKED)
  assert found.abstained.mean == 1 / 8
  assert found.first_wins.mean == pytest.approx(np.mean([0.8, 0.5, 0.5]))
  # Pair 0 goes to whatever is shown first; 1 and 3 stay with the better answer.
  assert (found.flipped.mean, found.flipped.units) == (pytest.approx(1 / 3), 3)
  averaged = found.averaged
  assert (averaged.questions, averaged.abstained) == (3, 1)
  assert averaged.measures["accuracy"].mean == 1
  p_N = np.array([(0.9 + 1 - 0.7) / 2, (0.6 + 1 - 0.4) / 2, 1.0])
  expected = -np.log(p_N).mean()
  assert averaged.measures["log_loss"].mean == pytest.approx(expected, rel=1e-6)
  # Single questions, the swapped ones read as 0.3, 0.6, 0.5 and 1; 0.5 counts a half.
  right = [1, 1, 1, 0, 1, 0.5, 1]
  assert found.one_order.measures["accuracy"].mean == pytest.approx(np.mean(right))
  assert found.one_order.measures["accuracy"].units == 4


def test_degenerate_winners_are_told_of():
  judge = rules.bradley_terry(rules.length(target=0), temperature=0)  # likes silence
  found = judge_bias.examine(judge, ASKED)
  assert [(flag.row, flag.column) for flag in found.flags] == [(1, 0)]
  told = judge_bias.lines(found)
  assert told[-1] == "degenerate winner, pair 1: empty: ''"
  assert "changes its mind with the order: 0.000" in "\n".join(told)


def test_biases_of_a_scripted_judge_show():
  rng = np.random.default_rng(0)
  lengths = rng.permuted(np.tile(np.arange(1, 30), (300, 1)), axis=1)[:, :2]
  rows = []
  for n, words in enumerate(np.sort(lengths, 1).tolist()):
    worse, better = ("w " * words[0], "w " * words[1])
    rows.append(Pair(str(n), f"p{n}", better, worse))
  judge = noisy_judge.preference(rules.length(), error=0.1, position=0.4)
  found = judge_bias.examine(judge, agreement.questions(rows))

  def near(interval, expected):
    return abs(interval.mean - expected) < 4 * interval.se

  assert near(found.flipped, 0.4)
  assert near(found.first_wins, 0.5 + 0.4 / 2)
  # What is not position is length, and mostly right; a position's draw counts 1/2.
  expected = 0.4 / 2 + 0.6 * 0.9
  assert near(found.averaged.measures["accuracy"], expected)
  assert near(found.averaged.measures["length"], 2 * expected - 1)
  assert found.averaged.measures["length_labels"].mean == 1


@pytest.mark.nonfinite
def test_a_judge_that_never_answers_is_reported():
  found = judge_bias.examine(_judge([np.nan] * 4, [np.nan] * 4), ASKED)
  assert found.abstained.mean == 1
  assert found.averaged is None and found.one_order is None
  assert judge_bias.lines(found)[1].startswith("abstained: 1.000")
