"""Measures agreement of feedback with held-out labels: accuracy, calibration, length.

A reward model, a judge or a rule gives P(better) for each labelled pair of answers to a
prompt. A pair is correct where P(better) > 1/2 and counts half at 1/2. Intervals are
over prompts, because the pairs of one prompt are dependent.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from xpo_jax.data import records
from xpo_jax.data.records import Pair, Ranked
from xpo_jax.evaluation import bootstrap
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.feedback.protocol import (
  Preference,
  Scorer,
  check_probabilities,
  check_scores,
)

FILE = "agreement.json"
BINS = 10


class Questions(NamedTuple):
  """N pairs of answers with a label.

  Attributes:
    prompts: N texts.
    better: the answer that the label prefers.
    worse: the other one.
    prompt_N: number of the prompt; pairs of one prompt are resampled together.
  """

  prompts: tuple[str, ...]
  better: tuple[str, ...]
  worse: tuple[str, ...]
  prompt_N: np.ndarray


class Bin(NamedTuple):
  """Pairs of similar confidence, max(P, 1 - P).

  Attributes:
    confidence: mean confidence.
    right: fraction correct.
    questions: number of pairs.
  """

  confidence: float
  right: Interval
  questions: int


class Agreement(NamedTuple):
  """Agreement of feedback with labels.

  Attributes:
    measures: name -> Interval. `accuracy`; `accuracy_longer`, `accuracy_shorter`: where
      the label prefers the longer, the shorter answer; `log_loss`: -log P(better),
      nats; `length`: mean of sign(verdict) * sign(difference of lengths), 1 where the
      longer answer always wins; `length_labels`: the same of the labels.
    reliability: bins of confidence; calibrated where `right` is `confidence`.
    calibration_error: mean distance of the two over pairs (ECE). Noise alone makes it
      greater than 0.
    questions: number of pairs with a verdict.
    abstained: number of pairs without one, which are in no measure.
  """

  measures: dict[str, Interval]
  reliability: tuple[Bin, ...]
  calibration_error: float
  questions: int
  abstained: int


def questions(
  rows: Sequence[records.Record], most: int | None = None, seed: int = 0
) -> Questions:
  """Collects the labelled pairs of held-out records.

  Args:
    rows: pairs, or ranked lists, of which every two different answers of unequal
      reward make one.
    most: largest number of pairs of a list, drawn at random; None: all.
    seed: of the draw.

  Raises:
    ValueError: no rows or no pairs, or a record of another kind.
  """
  numbers: dict[str, int] = {}
  rng = np.random.default_rng(seed)
  labelled: list[tuple[str, str, str]] = []
  for row in rows:
    match row:
      case Pair():
        pairs = [(row.chosen, row.rejected)]
      case Ranked():
        order = sorted(zip(row.rewards, row.completions, strict=True), reverse=True)
        pairs = [
          (a, b)
          for i, (reward, a) in enumerate(order)
          for less, b in order[i:]
          if reward > less and a != b
        ]
        if most is not None and len(pairs) > most:
          indices = rng.choice(len(pairs), most, replace=False)
          pairs = [pairs[i] for i in sorted(indices)]
      case _:
        raise ValueError(
          f"{row.uid} is a {type(row).__name__}; agreement is measured on pairs and "
          "ranked lists"
        )
    prompt = records.prompt_string(row)
    numbers.setdefault(prompt, len(numbers))
    labelled += [
      (prompt, *map(records.completion_string, answers)) for answers in pairs
    ]
  if not labelled:
    raise ValueError(f"no two answers of unequal reward in {len(rows)} records")
  prompts, better, worse = zip(*labelled, strict=True)
  return Questions(prompts, better, worse, np.array([numbers[p] for p in prompts]))


def of_scorer(scorer: Scorer, pairs: Questions, scale: float = 1.0) -> Agreement:
  """Measures the agreement of a Scorer; arguments as of `compare`."""
  return measure(compare(scorer, pairs, scale), pairs)


def compare(scorer: Scorer, pairs: Questions, scale: float = 1.0) -> np.ndarray:
  """Computes P(better) = sigma((score - score of the worse) / scale) of each pair.

  Args:
    scorer: scores each text once.
    pairs: see `questions`.
    scale: units of the score for one nat of log odds: the gain of a normalised reward
      model. Calibration is meaningless where differences of scores are no log odds.
  """
  texts = list(
    dict.fromkeys(
      text
      for answers in (pairs.better, pairs.worse)
      for text in zip(pairs.prompts, answers, strict=True)
    )
  )
  score_N = check_scores(scorer(*zip(*texts, strict=True)), len(texts)).value_N
  score = dict(zip(texts, score_N.astype(np.float64), strict=True))
  sides = (
    np.array([score[text] for text in zip(pairs.prompts, answers, strict=True)])
    for answers in (pairs.better, pairs.worse)
  )
  better_N, worse_N = sides
  return special.expit((better_N - worse_N) / scale)


def of_preference(preference: Preference, pairs: Questions) -> Agreement:
  """Measures the agreement of a Preference, called once for each pair.

  The better answer is shown first in every other pair, so that a verdict that depends
  on the order is no better than chance.
  """
  flip_N = np.arange(len(pairs.prompts)) % 2 == 1
  sides = list(zip(pairs.better, pairs.worse, flip_N, strict=True))
  first = [b if flip else a for a, b, flip in sides]
  second = [a if flip else b for a, b, flip in sides]
  answers = check_probabilities(preference(pairs.prompts, first, second), len(sides))
  p_N = answers.value_N.astype(np.float64)
  return measure(np.where(flip_N, 1 - p_N, p_N), pairs)


def measure(p_N: np.ndarray, pairs: Questions) -> Agreement:
  """Measures agreement from P(the better answer beats the worse) of each pair.

  Args:
    p_N: in [0, 1]; NaN: abstained.
    pairs: see `questions`.

  Raises:
    ValueError: the feedback abstained on every pair.
  """
  valid_N = ~np.isnan(p_N)
  if not valid_N.any():
    raise ValueError(f"no verdict on any of {len(p_N)} questions: all abstained")
  longer_N = np.array(
    [np.sign(len(a) - len(b)) for a, b in zip(pairs.better, pairs.worse, strict=True)]
  )
  p_N, longer_N, prompt_N = p_N[valid_N], longer_N[valid_N], pairs.prompt_N[valid_N]
  verdict_N = np.sign(p_N - 0.5)
  correct_N = (1 + verdict_N) / 2
  values = {
    "accuracy": (correct_N, slice(None)),
    "accuracy_longer": (correct_N, longer_N > 0),
    "accuracy_shorter": (correct_N, longer_N < 0),
    "log_loss": (-np.log(np.maximum(p_N, 1e-12)), slice(None)),
    "length": (verdict_N * longer_N, slice(None)),
    "length_labels": (longer_N, slice(None)),
  }
  measures = {
    name: bootstrap.bootstrap_mean(x_N[at], prompt_N[at])
    for name, (x_N, at) in values.items()
    if x_N[at].size
  }
  reliability = _reliability(np.maximum(p_N, 1 - p_N), correct_N, prompt_N)
  gaps = [b.questions * abs(b.right.mean - b.confidence) for b in reliability]
  return Agreement(
    measures=measures,
    reliability=reliability,
    calibration_error=sum(gaps) / len(p_N),
    questions=len(p_N),
    abstained=int((~valid_N).sum()),
  )


def _reliability(confidence_N, correct_N, prompt_N) -> tuple[Bin, ...]:
  bin_N = np.minimum((2 * BINS * (confidence_N - 0.5)).astype(int), BINS - 1)
  return tuple(
    Bin(
      float(confidence_N[bin_N == i].mean()),
      bootstrap.bootstrap_mean(correct_N[bin_N == i], prompt_N[bin_N == i]),
      int((bin_N == i).sum()),
    )
    for i in range(BINS)
    if (bin_N == i).any()
  )


def plain(agreement: Agreement) -> dict[str, Any]:
  """Converts agreement to plain data for JSON; no interval becomes null."""
  return {
    **agreement._asdict(),
    "measures": {name: bootstrap.plain(x) for name, x in agreement.measures.items()},
    "reliability": [
      bin_._asdict() | {"right": bootstrap.plain(bin_.right)}
      for bin_ in agreement.reliability
    ],
  }
