"""Measures a judge on labelled pairs: abstentions, position bias, agreement.

Agreement, confidence and length bias are measured by `agreement`; this module measures
what needs both orders of a pair.
"""

from typing import NamedTuple

import numpy as np

from xpo_jax.evaluation import agreement, bootstrap
from xpo_jax.evaluation.agreement import Agreement, Questions
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.feedback import judge_exploits
from xpo_jax.feedback.protocol import Preference, check_probabilities


class Examined(NamedTuple):
  """Measures of a judge on pairs, each shown in both orders.

  Attributes:
    abstained: fraction of the questions (two for each pair) without a verdict.
    first_wins: mean probability that the answer shown first wins; 1/2: no position
      bias. None where no pair has a verdict in both orders.
    flipped: fraction of pairs whose verdict changes with the order; None likewise.
    averaged: agreement of the mean over both orders with the labels; None likewise.
    one_order: agreement of single questions, to compare `averaged` with; None where the
      judge abstained on every question.
    flags: degenerate answers that won; column 0 is the better answer.
  """

  abstained: Interval
  first_wins: Interval | None
  flipped: Interval | None
  averaged: Agreement | None
  one_order: Agreement | None
  flags: list[judge_exploits.Flag]


def examine(judge: Preference, pairs: Questions) -> Examined:
  """Shows pairs to a judge in both orders and measures its biases.

  Give a judge that is shown one order (`both_orders=False`): one that averages both
  orders itself has no measurable position bias.

  Args:
    judge: the judge.
    pairs: see `agreement.questions`.
  """
  prompts, better, worse = pairs.prompts, pairs.better, pairs.worse
  shown_N = check_probabilities(judge(prompts, better, worse), len(prompts)).value_N
  swapped_N = check_probabilities(judge(prompts, worse, better), len(prompts)).value_N
  p_N = (shown_N + 1 - swapped_N) / 2
  twice = Questions(
    prompts * 2, better * 2, worse * 2, np.concatenate([pairs.prompt_N] * 2)
  )
  single_N = np.concatenate([shown_N, 1 - swapped_N])
  silent_N = np.isnan(single_N)
  flags = judge_exploits.flag_winners(
    prompts, list(zip(better, worse, strict=True)), np.stack([p_N, 1 - p_N], 1)
  )
  examined = Examined(
    abstained=bootstrap.bootstrap_mean(silent_N, twice.prompt_N),
    first_wins=None,
    flipped=None,
    averaged=None,
    one_order=None if silent_N.all() else agreement.measure(single_N, twice),
    flags=flags,
  )
  both_N = ~np.isnan(p_N)
  if not both_N.any():
    return examined
  flipped_N = (shown_N - 0.5) * (swapped_N - 0.5) > 0
  return examined._replace(
    first_wins=_mean((shown_N + swapped_N) / 2, both_N, pairs),
    flipped=_mean(flipped_N, both_N, pairs),
    averaged=agreement.measure(p_N, pairs),
  )


def lines(examined: Examined) -> list[str]:
  """Formats the measures of a judge for display, one a line.

  Args:
    examined: of `examine`.
  """
  figures = {
    "abstained": examined.abstained,
    "P(what is shown first wins); 0.5 without a bias": examined.first_wins,
    "changes its mind with the order": examined.flipped,
  }
  for orders, measured in {
    "orders averaged": examined.averaged,
    "one order": examined.one_order,
  }.items():
    if measured is not None:
      figures[f"agrees with people, {orders}"] = measured.measures["accuracy"]
  if examined.averaged is not None:
    figures["verdict with length, -1 to 1"] = examined.averaged.measures["length"]
    figures["people with length"] = examined.averaged.measures["length_labels"]
  measures = [f"{name}: {x}" for name, x in figures.items() if x is not None]
  flags = [
    f"degenerate winner, pair {flag.row}: {flag.problem}: {flag.text[:60]!r}"
    for flag in examined.flags
  ]
  return [f"prompts: {examined.abstained.units}", *measures, *flags]


def _mean(x_N: np.ndarray, at_N: np.ndarray, pairs: Questions) -> Interval:
  return bootstrap.bootstrap_mean(x_N[at_N], pairs.prompt_N[at_N])
