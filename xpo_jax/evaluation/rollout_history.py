"""Reads the samples of a run over its iterations and measures them.

Held-out samples are of the same prompts at every evaluation, so that checkpoints can be
compared; the rollouts of each iteration are of other prompts.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from xpo_jax.evaluation import bootstrap, measure_policy
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.feedback import protocol
from xpo_jax.train import rollouts
from xpo_jax.train.rollouts import RolloutBatch


def files(directory: Path) -> dict[int, Path]:
  """Lists the files of samples by the number of iterations done, in order."""
  return {int(path.stem): path for path in sorted(directory.glob("*.jsonl"))}


def spread(numbers: Sequence[int], count: int) -> list[int]:
  """Selects at most `count` numbers, evenly spaced, the first and last included."""
  at = np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round()
  return [numbers[int(i)] for i in at]


def read(
  directory: Path, count: int, own: slice = slice(None)
) -> dict[int, RolloutBatch]:
  """Reads samples of at most `count` iterations, evenly spaced over the run.

  Args:
    directory: of files of samples.
    count: largest number of iterations.
    own: columns of K to keep.
  """
  paths = files(directory)
  return {
    number: _columns(rollouts.read(paths[number]), own)
    for number in spread(list(paths), count)
  }


def _columns(drawn: RolloutBatch, own: slice) -> RolloutBatch:
  return dataclasses.replace(
    drawn,
    texts_BK=tuple(texts[own] for texts in drawn.texts_BK),
    examples=tuple(
      dataclasses.replace(example, completions=example.completions[own])
      for example in drawn.examples
    ),
    logp=tuple(arrays[own] for arrays in drawn.logp),
    ended_BK=drawn.ended_BK[:, own],
    reward_BK=drawn.reward_BK[:, own],
  )


def mean_reward(drawn: RolloutBatch) -> Interval | None:
  """Averages rewards over prompts, abstentions left out; None where all abstain."""
  there_BK = ~np.isnan(drawn.reward_BK)
  count_B = there_BK.sum(1)
  if not count_B.any():
    return None
  total_B = np.where(there_BK, drawn.reward_BK, 0).sum(1, dtype=np.float64)
  return bootstrap.bootstrap_mean((total_B / np.maximum(count_B, 1))[count_B > 0])


def pool(drawn: RolloutBatch) -> np.ndarray:
  """Selects rewards of the prompts without an abstention, `[P, K]` float64."""
  whole_B = ~np.isnan(drawn.reward_BK).any(1)
  return drawn.reward_BK[whole_B].astype(np.float64)


def diversity(drawn: RolloutBatch) -> dict[str, float]:
  """Measures the diversity of the samples of an iteration, as fractions.

  Returns:
    `distinct_1`, `distinct_2`: different n-grams over all n-grams of the iteration;
    `repeated_2`: token pairs of a completion that occurred in it before, mean over
    completions (seq-rep-2 of Welleck et al. 2019, arXiv:1908.04319); `different`:
    different completions over all completions of a prompt.
  """
  rows = [
    tokens[: len(tokens) - int(ended)].tolist()  # without the stop token
    for example, ended_K in zip(drawn.examples, drawn.ended_BK, strict=True)
    for tokens, ended in zip(example.completions, ended_K, strict=True)
  ]
  paired = [row for row in rows if len(row) > 1]
  repeated = [1 - measure_policy.distinct([row], 2) for row in paired]
  return {
    "distinct_1": measure_policy.distinct(rows, 1),
    "distinct_2": measure_policy.distinct(rows, 2),
    "repeated_2": float(np.mean(repeated)) if repeated else 0.0,
    "different": float(np.mean([len(set(x)) / len(x) for x in drawn.texts_BK])),
  }


def win_rates(reward: Mapping[int, np.ndarray]) -> dict[int, dict[int, Interval]]:
  """Computes win rates between the checkpoints of a run from rewards.

  Args:
    reward: iterations -> rewards `[B, K]` of its samples, the prompts the same;
      a prompt with an abstention on either side is left out.

  Returns:
    row -> column -> how often the row's sample beats the column's, a tie half. A pair
    without a prompt that both have verdicts on is left out.
  """
  rates: dict[int, dict[int, Interval]] = {row: {} for row in reward}
  for row, ours in reward.items():
    for column, theirs in reward.items():
      there = ~(np.isnan(ours).any(1) | np.isnan(theirs).any(1))
      if there.any() and row != column:
        rate_P = measure_policy.win_rate(ours[there], theirs[there])
        rates[row][column] = bootstrap.bootstrap_mean(rate_P)
  return rates


def preferred(
  preference: protocol.Preference, samples: Mapping[int, RolloutBatch]
) -> dict[int, dict[int, Interval]]:
  """Computes win rates as `win_rates`, by a preference on the first sample of each
  prompt and checkpoint, averaged over both orders so that position bias cancels."""
  rates: dict[int, dict[int, Interval]] = {number: {} for number in samples}
  for row, column in itertools.combinations(samples, 2):
    first, second = samples[row], samples[column]
    ours, theirs = ([x[0] for x in drawn.texts_BK] for drawn in (first, second))
    rate_P = protocol.both_orders(preference)(first.prompts, ours, theirs).value_N
    rate_P = rate_P[~np.isnan(rate_P)]
    if rate_P.size:
      rates[row][column] = bootstrap.bootstrap_mean(rate_P)
      rates[column][row] = bootstrap.bootstrap_mean(1 - rate_P)
  return rates
