"""How well feedback agrees with labels it has not seen: right, sure, and how long.

Whatever gives feedback, a reward model, a judge or a rule, answers the same questions:
which of two answers to a prompt is better, and how sure is it. A pair is right where
P(better) > 1/2, half right at 1/2. Everything has an interval over prompts, for the
pairs of one prompt hang together.
"""

import math
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
  """Questions answered with about the same confidence, max(P, 1 - P).

  Attributes:
    confidence: its mean.
    right: share answered right.
    questions: how many.
  """

  confidence: float
  right: Interval
  questions: int


class Agreement(NamedTuple):
  """Feedback beside labels.

  Attributes:
    measures: name -> Interval. `accuracy`; `accuracy_longer`, `accuracy_shorter`: where
      the label prefers the longer, the shorter answer; `log_loss`: -log P(better),
      nats; `length`: mean of sign(verdict) * sign(difference of lengths), 1 where the
      longer answer always wins; `length_labels`: the same of the labels.
    reliability: bins of confidence; calibrated where `right` is `confidence`.
    calibration_error: mean distance of the two over questions (ECE). Noise alone makes
      it greater than 0.
    questions: answered.
    abstained: not answered, and in no measure.
  """

  measures: dict[str, Interval]
  reliability: tuple[Bin, ...]
  calibration_error: float
  questions: int
  abstained: int


def questions(
  rows: Sequence[records.Record], most: int | None = None, seed: int = 0
) -> Questions:
  """The labelled pairs of held-out records.

  Args:
    rows: pairs, or ranked lists, of which every two answers of unequal reward and
      unequal words make one.
    most: at most so many pairs of a list, drawn at random; None: all.
    seed: of the draw.

  Raises:
    ValueError: no rows or no pairs, a record of another kind, or a conversation (a
      Scorer reads text).
  """
  numbers: dict[str, int] = {}
  rng = np.random.default_rng(seed)
  found: list[tuple[str, str, str]] = []
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
          kept = rng.choice(len(pairs), most, replace=False)
          pairs = [pairs[i] for i in sorted(kept)]
      case _:
        raise ValueError(
          f"{row.uid} is a {type(row).__name__}; agreement is measured on pairs and "
          "ranked lists"
        )
    if not isinstance(row.prompt, str):
      raise ValueError(
        f"{row.uid} is a conversation; feedback reads text: give prompt and answers as "
        "strings"
      )
    numbers.setdefault(row.prompt, len(numbers))
    found += [(row.prompt, better, worse) for better, worse in pairs]
  if not found:
    raise ValueError(f"no two answers of unequal reward in {len(rows)} records")
  prompts, better, worse = zip(*found, strict=True)
  return Questions(prompts, better, worse, np.array([numbers[p] for p in prompts]))


def of_scorer(scorer: Scorer, asked: Questions, scale: float = 1.0) -> Agreement:
  """Agreement of a Scorer; arguments as of `compare`."""
  return measure(compare(scorer, asked, scale), asked)


def compare(scorer: Scorer, asked: Questions, scale: float = 1.0) -> np.ndarray:
  """P(better) = sigma((score - score of the worse) / scale) of each question.

  Args:
    scorer: scores each text once.
    asked: see `questions`.
    scale: units of the score that make one nat of log odds: the gain of a normalised
      reward model. Of a scorer that is no log odds, calibration says nothing.
  """
  texts = list(
    dict.fromkeys(
      pair
      for answers in (asked.better, asked.worse)
      for pair in zip(asked.prompts, answers, strict=True)
    )
  )
  score_N = check_scores(scorer(*zip(*texts, strict=True)), len(texts)).value_N
  score = dict(zip(texts, score_N.astype(np.float64), strict=True))
  sides = (
    np.array([score[pair] for pair in zip(asked.prompts, answers, strict=True)])
    for answers in (asked.better, asked.worse)
  )
  better_N, worse_N = sides
  return special.expit((better_N - worse_N) / scale)


def of_preference(preference: Preference, asked: Questions) -> Agreement:
  """Agreement of a Preference, asked once a pair.

  The better answer is shown first in every other question, so that a verdict that
  hangs on the order cannot look like knowledge.
  """
  flip_N = np.arange(len(asked.prompts)) % 2 == 1
  sides = list(zip(asked.better, asked.worse, flip_N, strict=True))
  first = [b if flip else a for a, b, flip in sides]
  second = [a if flip else b for a, b, flip in sides]
  answers = check_probabilities(preference(asked.prompts, first, second), len(sides))
  p_N = answers.value_N.astype(np.float64)
  return measure(np.where(flip_N, 1 - p_N, p_N), asked)


def measure(p_N: np.ndarray, asked: Questions) -> Agreement:
  """Agreement from P(the better answer beats the worse) of each question.

  Args:
    p_N: in [0, 1]; NaN: abstained.
    asked: the questions.

  Raises:
    ValueError: every question was abstained from.
  """
  there_N = ~np.isnan(p_N)
  if not there_N.any():
    raise ValueError(f"no verdict on any of {len(p_N)} questions: all abstained")
  longer_N = np.array(
    [np.sign(len(a) - len(b)) for a, b in zip(asked.better, asked.worse, strict=True)]
  )
  p_N, longer_N, prompt_N = p_N[there_N], longer_N[there_N], asked.prompt_N[there_N]
  verdict_N = np.sign(p_N - 0.5)
  right_N = (1 + verdict_N) / 2
  values = {
    "accuracy": (right_N, slice(None)),
    "accuracy_longer": (right_N, longer_N > 0),
    "accuracy_shorter": (right_N, longer_N < 0),
    "log_loss": (-np.log(np.maximum(p_N, 1e-12)), slice(None)),
    "length": (verdict_N * longer_N, slice(None)),
    "length_labels": (longer_N, slice(None)),
  }
  measures = {
    name: bootstrap.bootstrap_mean(x_N[at], prompt_N[at])
    for name, (x_N, at) in values.items()
    if x_N[at].size
  }
  reliability = _reliability(np.maximum(p_N, 1 - p_N), right_N, prompt_N)
  gaps = [b.questions * abs(b.right.mean - b.confidence) for b in reliability]
  return Agreement(
    measures=measures,
    reliability=reliability,
    calibration_error=sum(gaps) / len(p_N),
    questions=len(p_N),
    abstained=int((~there_N).sum()),
  )


def _reliability(confidence_N, right_N, prompt_N) -> tuple[Bin, ...]:
  bin_N = np.minimum((2 * BINS * (confidence_N - 0.5)).astype(int), BINS - 1)
  return tuple(
    Bin(
      float(confidence_N[bin_N == i].mean()),
      bootstrap.bootstrap_mean(right_N[bin_N == i], prompt_N[bin_N == i]),
      int((bin_N == i).sum()),
    )
    for i in range(BINS)
    if (bin_N == i).any()
  )


def plain(found: Agreement) -> dict[str, Any]:
  """For JSON, which has no NaN: null where there is no interval."""

  def interval(x: Interval) -> dict[str, Any]:
    return {
      name: None if isinstance(value, float) and math.isnan(value) else value
      for name, value in x._asdict().items()
    }

  return {
    **found._asdict(),
    "measures": {name: interval(x) for name, x in found.measures.items()},
    "reliability": [
      bin_._asdict() | {"right": interval(bin_.right)} for bin_ in found.reliability
    ],
  }
