"""Rewards rollouts: asks the judge, refuses NaN, penalises length, summarises."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xpo_jax import objectives
from xpo_jax.config.factories import Configured
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.feedback import protocol
from xpo_jax.feedback.protocol import (
  GroupScores,
  Preference,
  Scorer,
  SelfFeedback,
)
from xpo_jax.models.transformer import Model
from xpo_jax.train import loading
from xpo_jax.train.rollouts import RolloutBatch
from xpo_jax.types import Params

_Groups = Sequence[Sequence[str]]
Judge = Callable[[Sequence[str], _Groups, _Groups], np.ndarray | GroupScores]
"""`(prompts, texts_BK, opponents_BJ) -> reward_BK`, NaN where it abstains, or that in
parts; without opponents the last is empty."""


def judge(feedback: Feedback) -> Judge | SelfFeedback:
  """Makes the judge of an experiment, once for the run; see `facing`.

  Raises:
    ValueError: the source does not make the kind of judge that `Feedback.kind` names.
  """
  source = feedback.source.build()
  if isinstance(source, SelfFeedback):
    # The policy is on the devices of all processes, which all ask it about everything.
    return SelfFeedback(lambda *policy: _asking(feedback, source.make(*policy)))
  return _asking(feedback, protocol.over_processes(source))


def facing(
  judge: Judge | SelfFeedback, model: Model, params: Params, tokenizer: Any
) -> Judge:
  """Selects the judge of this policy's samples: the policy where it is its own judge.

  Args:
    judge: of `judge`.
    model: the policy's.
    params: the policy's current "lm" parameters.
    tokenizer: the policy's.
  """
  if isinstance(judge, SelfFeedback):
    return judge.make(model, params, tokenizer)
  return judge


def digests(source: Any, where: str = "") -> dict[str, str]:
  """Computes argument -> SHA-256 of its files, for each model that a judge loads.

  By the argument that names its directory, not by the directory: a run and the stages
  within it may be moved.

  Args:
    source: `Feedback.source`, or anything that stands in its arguments.
    where: of `source` among them.
  """
  if isinstance(source, Configured):
    return digests(source.arguments, where)
  if isinstance(source, Mapping):
    items = list(source.items())
  elif isinstance(source, list | tuple):
    items = list(enumerate(source))
  else:
    return {}
  by_argument: dict[str, str] = {}
  for name, value in items:
    place = f"{where}.{name}" if where else str(name)
    named = name == "directory" and isinstance(value, str)
    if named and (Path(value) / "config.json").exists():
      by_argument[place] = loading.files_digest(Path(value))
    by_argument |= digests(value, place)
  return by_argument


def _scores(scorer: Scorer, prompts, texts_BK, opponents_BJ) -> GroupScores:
  del opponents_BJ
  return protocol.score_groups_in_parts(scorer, prompts, texts_BK)


def _win_rates(
  preference: Preference, prompts, texts_BK, opponents_BJ, *, include_self: bool
) -> GroupScores:
  if not opponents_BJ:
    return protocol.win_rates_in_parts(
      preference, prompts, texts_BK, include_self=include_self
    )
  return protocol.win_rates_against_in_parts(
    preference, prompts, texts_BK, opponents_BJ=opponents_BJ
  )


def _asking(feedback: Feedback, rater: Scorer | Preference) -> Judge:
  _check_asked(feedback, rater)
  if feedback.kind == "scores":
    return functools.partial(_scores, rater)
  return functools.partial(_win_rates, rater, include_self=feedback.include_self)


# Kind of judge by `Feedback.kind`, and its number of arguments beside the prompts.
_WANTED = {"scores": ("Scorer", 1), "win_rates": ("Preference", 2)}


def _check_asked(feedback: Feedback, rater: Any) -> None:
  name, kind = feedback.source.name, feedback.kind
  wanted, _ = _WANTED[kind]
  if not callable(rater):
    raise ValueError(
      f"Feedback.source is {name}, which makes {type(rater).__name__}; name a function "
      f"that makes a feedback.protocol.{wanted}"
    )
  fits = [each for each, (_, answers) in _WANTED.items() if _takes(rater, 1 + answers)]
  if len(fits) == 1 and kind not in fits:
    other, _ = _WANTED[fits[0]]
    raise ValueError(
      f"Feedback.source is {name}, which makes a {other}, and Feedback.kind is "
      f"{kind!r}; set it to {fits[0]!r}, or name a source that makes a {wanted}"
    )


def _takes(function: Callable[..., Any], count: int) -> bool:
  """Whether a function's signature accepts so many arguments."""
  try:
    inspect.signature(function).bind(*range(count))
  except (TypeError, ValueError):  # another number; a builtin without a signature
    return False
  return True


def ask(judge: Judge, rollouts: RolloutBatch, feedback: Feedback) -> RolloutBatch:
  """Adds the judge's rewards to rollouts.

  Raises:
    ValueError: a NaN, where abstentions stop the run; shows the completion.
  """
  texts = (rollouts.prompts, rollouts.texts_BK, rollouts.opponents_BJ)
  found = judge(*texts)
  parts = found.parts if isinstance(found, GroupScores) else {}
  reward_BK = found.value_BK if isinstance(found, GroupScores) else found
  reward_BK = np.asarray(reward_BK, np.float32)
  abstained = np.argwhere(np.isnan(reward_BK))
  if len(abstained) and feedback.abstained == "stop":
    b, k = abstained[0]
    raise ValueError(
      f"feedback gave NaN on {len(abstained)} of {reward_BK.size} completions of "
      f"iteration {rollouts.iteration + 1}, first on prompt {rollouts.prompts[b]!r}, "
      f"completion {rollouts.texts_BK[b][k]!r}; mend the source, or set "
      'Feedback.abstained="drop" to leave such completions out, counted'
    )
  return dataclasses.replace(rollouts, reward_BK=reward_BK, reward_parts=parts)


def shaped(
  rollouts: RolloutBatch, feedback: Feedback, sampling: Sampling
) -> tuple[np.ndarray, np.ndarray]:
  """Applies the rules for cut and overlong completions, and masks abstentions.

  Returns:
    reward_BK, 0 where absent; present_BK float32, 0 where feedback abstained, on a
    whole prompt where it abstained on a column 0 of another source, and with
    `Feedback.overlong_filtering` where a completion was cut.
  """
  reward_BK = rollouts.reward_BK
  if feedback.missing_eos is not None:
    cut = {
      "subtract": reward_BK - np.float32(feedback.missing_eos),
      "replace": np.full_like(reward_BK, feedback.missing_eos),
    }[feedback.missing_eos_rule]
    # An abstention is unchanged by the rule.
    changed = ~rollouts.ended_BK & ~np.isnan(reward_BK)
    reward_BK = np.where(changed, cut, reward_BK)
  if feedback.overlong_buffer is not None:
    penalty_BK = objectives.overlong_penalty(
      rollouts.length_BK, sampling.max_completion_tokens, feedback.overlong_buffer
    )
    reward_BK = reward_BK + feedback.overlong_weight * np.asarray(penalty_BK)
  present_BK = ~np.isnan(reward_BK)
  first = int(sampling.column0_source != "sample")
  if first:
    present_BK &= present_BK[:, :1]
  if feedback.overlong_filtering:
    present_BK[:, first:] &= rollouts.ended_BK[:, first:]
  return (
    np.where(present_BK, reward_BK, 0).astype(np.float32),
    present_BK.astype(np.float32),
  )


def summary(
  rollouts: RolloutBatch,
  reward_BK: np.ndarray,
  present_BK: np.ndarray,
  kl_BK: np.ndarray,
  sampling: Sampling,
) -> dict[str, float]:
  """Summarises an iteration's samples as metrics `rollout/...`.

  `reward` is the feedback's mean, before the rules for length, and `reward_std` its
  standard deviation over all completions (neither where it abstained on all);
  `reward/NAME` the mean of each reward that it is the weighted sum of, if any; where it
  is a win rate, of each reward in the weighted sums that are compared;
  `reward_std_within` that of the shaped rewards within a prompt; `kl` the log-ratio of
  sampler and reference summed over a completion's tokens (k1), nats, `kl_token` its
  mean per token; `length` in tokens; fractions: `no_eos`, `abstained`,
  `frac_informative_prompts` (prompts whose shaped rewards differ), `idle` (of the
  sampler's slots, see `rollouts.RolloutBatch`).
  Columns that are not the policy's (`Sampling.own`) are left out of all but the last
  three.
  """
  own = sampling.own
  given_BK = rollouts.reward_BK[:, own]
  valid_BK, length_BK = ~np.isnan(given_BK), rollouts.length_BK[:, own]
  metrics = {}
  if valid_BK.any():
    given = given_BK[valid_BK]
    metrics = {"reward": given.mean(), "reward_std": given.std()}
    for name, part_BK in rollouts.reward_parts.items():
      metrics[f"reward/{name}"] = part_BK[:, own][valid_BK].mean()
  metrics |= {
    "reward_std_within": _spread(reward_BK[:, own], present_BK[:, own]).mean(),
    "kl": kl_BK[:, own].mean(),
    "kl_token": kl_BK[:, own].sum() / length_BK.sum(),
    "length": length_BK.mean(),
    "no_eos": 1 - rollouts.ended_BK[:, own].mean(),
    "abstained": np.isnan(rollouts.reward_BK).mean(),
    "frac_informative_prompts": informative(reward_BK, present_BK).mean(),
    "idle": rollouts.idle,
  }
  return {f"rollout/{name}": float(value) for name, value in metrics.items()}


def informative(reward_BK: np.ndarray, present_BK: np.ndarray) -> np.ndarray:
  """Whether the present rewards of each prompt differ, bool `[B]`."""
  # Equal rewards have equal maximum and minimum; absent ones are left out.
  most_B = np.where(present_BK > 0, reward_BK, -np.inf).max(1)
  least_B = np.where(present_BK > 0, reward_BK, np.inf).min(1)
  return most_B > least_B


def used(rollouts: RolloutBatch, present_BK: np.ndarray, count: int) -> np.ndarray:
  """Selects the prompts that dynamic sampling trains on, bool `[B]`: the first `count`
  whose rewards by the feedback differ.

  By the feedback alone, as in DAPO, which asks whether answers are correct: a penalty
  of length would make all prompts differ.

  Args:
    rollouts: all that an iteration has sampled, in that order.
    present_BK: of `shaped`.
    count: number of prompts of an iteration.
  """
  differ_B = informative(rollouts.reward_BK, present_BK)
  return differ_B & (np.cumsum(differ_B) <= count)


def sampling_cost(used_B: np.ndarray) -> dict[str, float]:
  """Metrics of dynamic sampling: prompts that are trained on, and completions sampled
  per completion of those (no such metric where there are none)."""
  count = int(used_B.sum())
  metrics = {"rollout/prompts_used": float(count)}
  if count:
    metrics["rollout/sampled_per_used"] = len(used_B) / count
  return metrics


def _spread(reward_BK: np.ndarray, present_BK: np.ndarray) -> np.ndarray:
  """Standard deviation of each prompt's present rewards; 0 where all are absent."""
  count_B = np.maximum(present_BK.sum(1), 1)
  mean_B = (reward_BK * present_BK).sum(1) / count_B
  square_BK = present_BK * (reward_BK - mean_B[:, None]) ** 2
  return np.sqrt(square_BK.sum(1) / count_B)
