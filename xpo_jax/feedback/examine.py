"""What a judge is worth: abstentions, biases, agreement with people; one function."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xpo_jax.feedback import degenerate
from xpo_jax.feedback.protocol import Preference, check_probabilities


class Share(NamedTuple):
  """A share, and its standard error over n pairs; NaN where there are none."""

  value: float
  error: float
  n: int


class Report(NamedTuple):
  """How a judge behaves on pairs, each shown in both orders.

  Attributes:
    pairs: how many.
    abstained: share of the questions (two a pair) without a verdict.
    first_wins: mean probability given to what is shown first; 1/2: no position bias.
    flipped: share of pairs whose verdict changes with the order.
    longer_wins: mean probability that the longer answer (in characters) wins, orders
      averaged; 1/2 where length does not matter or does not show.
    people_longer: share in which people prefer the longer; None without labels.
    agreement: share in which the judge, orders averaged, prefers what people prefer; a
      draw counts 1/2. None without labels.
    agreement_one_order: the same of single questions: what averaging gains.
    flags: degenerate answers that won; column 0 is the first answer.
  """

  pairs: int
  abstained: Share
  first_wins: Share
  flipped: Share
  longer_wins: Share
  people_longer: Share | None
  agreement: Share | None
  agreement_one_order: Share | None
  flags: list[degenerate.Flag]


def examine(
  judge: Preference,
  prompts: Sequence[str],
  first: Sequence[str],
  second: Sequence[str],
  people: Sequence[bool] | None = None,
) -> Report:
  """Asks a judge about pairs in both orders and reports how it behaves.

  Give a judge that shows one order only (`both_orders=False`): of one that averages the
  orders by itself no position bias can be seen.

  Args:
    judge: who is examined.
    prompts: N texts.
    first: an answer to each.
    second: another.
    people: whether people prefer the first.

  Raises:
    ValueError: no pairs, or columns of unequal length.
  """
  sizes = {len(prompts), len(first), len(second)}
  sizes |= set() if people is None else {len(people)}
  if len(sizes) != 1 or not len(prompts):
    raise ValueError(
      f"examine: {len(prompts)} prompts, {len(first)} and {len(second)} answers"
      + ("" if people is None else f", {len(people)} labels")
      + "; as many of each, and at least one"
    )
  shown_N = check_probabilities(judge(prompts, first, second), len(prompts)).value_N
  swapped_N = check_probabilities(judge(prompts, second, first), len(prompts)).value_N
  p_N = (shown_N + 1 - swapped_N) / 2
  sign_N = np.sign(shown_N - 0.5) * np.sign(0.5 - swapped_N)
  longer_N = np.sign([len(a) - len(b) for a, b in zip(first, second, strict=True)])
  report = Report(
    pairs=len(prompts),
    abstained=_share(np.isnan([shown_N, swapped_N])),
    first_wins=_share((shown_N + swapped_N) / 2),
    flipped=_share(np.where(np.isnan(sign_N), np.nan, sign_N < 0)),
    longer_wins=_share(_of_longer(p_N, longer_N)),
    people_longer=None,
    agreement=None,
    agreement_one_order=None,
    flags=degenerate.flagged_winners(
      prompts, list(zip(first, second, strict=True)), np.stack([p_N, 1 - p_N], 1)
    ),
  )
  if people is None:
    return report
  people_N = np.asarray(people, np.float64)
  each_N = (_agrees(shown_N, people_N) + _agrees(1 - swapped_N, people_N)) / 2
  return report._replace(
    people_longer=_share(_of_longer(people_N, longer_N)),
    agreement=_share(_agrees(p_N, people_N)),
    agreement_one_order=_share(each_N),
  )


def lines(report: Report) -> list[str]:
  """A report for people, a line a figure.

  Args:
    report: of `examine`.
  """
  figures = (
    ("abstained", report.abstained),
    ("takes the first shown (unbiased: 50%)", report.first_wins),
    ("changes its mind with the order", report.flipped),
    ("takes the longer", report.longer_wins),
    ("people take the longer", report.people_longer),
    ("agrees with people, orders averaged", report.agreement),
    ("agrees with people, one order", report.agreement_one_order),
  )
  told = [
    f"{name}: {share.value:.1%} +- {share.error:.1%} (n={share.n})"
    for name, share in figures
    if share is not None
  ]
  flags = [
    f"degenerate winner, pair {flag.row}: {flag.problem}: {flag.text[:60]!r}"
    for flag in report.flags
  ]
  return [f"pairs: {report.pairs}", *told, *flags]


def _share(value_N) -> Share:
  known = np.asarray(value_N, np.float64).ravel()
  known = known[~np.isnan(known)]
  if not len(known):
    return Share(float("nan"), float("nan"), 0)
  error = known.std(ddof=1) / np.sqrt(len(known)) if len(known) > 1 else float("nan")
  return Share(float(known.mean()), float(error), len(known))


def _of_longer(p_N: np.ndarray, longer_N: np.ndarray) -> np.ndarray:
  """Probability that the longer answer wins; NaN where both are as long."""
  p_N = np.where(longer_N > 0, p_N, 1 - p_N)
  return np.where(longer_N == 0, np.nan, p_N)


def _agrees(p_N: np.ndarray, people_N: np.ndarray) -> np.ndarray:
  agrees_N = np.where(p_N == 0.5, 0.5, (p_N > 0.5) == (people_N > 0.5))
  return np.where(np.isnan(p_N), np.nan, agrees_N)
