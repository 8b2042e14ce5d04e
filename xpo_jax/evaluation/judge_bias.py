"""What a judge is worth on labelled pairs: abstentions, biases, agreement with people.

Agreement, confidence and what length does to both are measured in one place, by
`agreement`; here is what needs both orders of a pair.
"""

from typing import NamedTuple

import numpy as np

from xpo_jax.evaluation import agreement, bootstrap
from xpo_jax.evaluation.agreement import Agreement, Questions
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.feedback import judge_exploits
from xpo_jax.feedback.protocol import Preference, check_probabilities


class Examined(NamedTuple):
  """How a judge behaves on pairs, each shown in both orders.

  Attributes:
    abstained: share of the questions (two a pair) without a verdict.
    first_wins: mean probability given to what is shown first; 1/2: no position bias.
      None where no pair has a verdict in both orders.
    flipped: share of pairs whose verdict changes with the order; None likewise.
    averaged: agreement of both orders' average with the labels; None likewise.
    one_order: of single questions: beside `averaged`, what averaging gains; None where
      every question was abstained from.
    flags: degenerate answers that won; column 0 is the better answer.
  """

  abstained: Interval
  first_wins: Interval | None
  flipped: Interval | None
  averaged: Agreement | None
  one_order: Agreement | None
  flags: list[judge_exploits.Flag]


def examine(judge: Preference, asked: Questions) -> Examined:
  """Asks a judge about pairs in both orders and reports how it behaves.

  Give a judge that shows one order only (`both_orders=False`): of one that averages the
  orders by itself no position bias can be seen.

  Args:
    judge: who is examined.
    asked: see `agreement.questions`.
  """
  prompts, better, worse = asked.prompts, asked.better, asked.worse
  shown_N = check_probabilities(judge(prompts, better, worse), len(prompts)).value_N
  swapped_N = check_probabilities(judge(prompts, worse, better), len(prompts)).value_N
  p_N = (shown_N + 1 - swapped_N) / 2
  twice = Questions(
    prompts * 2, better * 2, worse * 2, np.concatenate([asked.prompt_N] * 2)
  )
  single_N = np.concatenate([shown_N, 1 - swapped_N])
  silent_N = np.isnan(single_N)
  flags = judge_exploits.flag_winners(
    prompts, list(zip(better, worse, strict=True)), np.stack([p_N, 1 - p_N], 1)
  )
  found = Examined(
    abstained=bootstrap.bootstrap_mean(silent_N, twice.prompt_N),
    first_wins=None,
    flipped=None,
    averaged=None,
    one_order=None if silent_N.all() else agreement.measure(single_N, twice),
    flags=flags,
  )
  both_N = ~np.isnan(p_N)
  if not both_N.any():
    return found
  flipped_N = (shown_N - 0.5) * (swapped_N - 0.5) > 0
  return found._replace(
    first_wins=_mean((shown_N + swapped_N) / 2, both_N, asked),
    flipped=_mean(flipped_N, both_N, asked),
    averaged=agreement.measure(p_N, asked),
  )


def lines(found: Examined) -> list[str]:
  """What was found, for people, a line a figure.

  Args:
    found: of `examine`.
  """
  figures = {
    "abstained": found.abstained,
    "P(what is shown first wins); 0.5 without a bias": found.first_wins,
    "changes its mind with the order": found.flipped,
  }
  for orders, one in {
    "orders averaged": found.averaged,
    "one order": found.one_order,
  }.items():
    if one is not None:
      figures[f"agrees with people, {orders}"] = one.measures["accuracy"]
  if found.averaged is not None:
    figures["verdict with length, -1 to 1"] = found.averaged.measures["length"]
    figures["people with length"] = found.averaged.measures["length_labels"]
  told = [f"{name}: {x}" for name, x in figures.items() if x is not None]
  flags = [
    f"degenerate winner, pair {flag.row}: {flag.problem}: {flag.text[:60]!r}"
    for flag in found.flags
  ]
  return [f"prompts: {found.abstained.units}", *told, *flags]


def _mean(x_N: np.ndarray, at_N: np.ndarray, asked: Questions) -> Interval:
  return bootstrap.bootstrap_mean(x_N[at_N], asked.prompt_N[at_N])
