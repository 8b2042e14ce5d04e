"""Measures win rates between the checkpoints of a run on rollouts.

The judge is the run's own feedback, or a true reward where one is given: the reward
that a policy was trained on is a biased measure of it.
"""

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xpo_jax.config.sampling import Feedback
from xpo_jax.data import sealed_files
from xpo_jax.evaluation import bootstrap, rollout_history
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.evaluation.measure_policy import RewardFn
from xpo_jax.feedback import protocol
from xpo_jax.feedback.protocol import Preference, Scorer, Scores, SelfFeedback
from xpo_jax.models import transformer
from xpo_jax.models.hf_checkpoint import Checkpoint
from xpo_jax.sharding import distributed
from xpo_jax.train import run_directory

WIN_RATES = "win_rates.json"
CHECKPOINTS = 5  # evaluations that are compared


class RunJudge(NamedTuple):
  """Judge of a finished run: a scorer or a preference.

  Attributes:
    name: for display.
    scorer: scores each completion, or None.
    preference: compares two completions, or None.
  """

  name: str
  scorer: Scorer | None = None
  preference: Preference | None = None


def judge(
  feedback: Feedback | None,
  policy: Checkpoint,
  reward: RewardFn | RunJudge | None,
) -> RunJudge | None:
  """Makes the judge from the true reward or judge if given, else from the run's
  feedback; the final policy where it is its own judge; None where there is neither."""
  if isinstance(reward, RunJudge):
    shared = [r and protocol.over_processes(r) for r in reward[1:]]
    return RunJudge(reward.name, *shared)
  if reward is not None:

    def score(prompts, completions):
      whole = [p + c for p, c in zip(prompts, completions, strict=True)]
      return Scores(np.asarray(reward(whole), np.float32))

    return RunJudge(_name(reward), scorer=protocol.over_processes(score))
  if feedback is None:
    return None
  source = feedback.source
  rater, name = source.build(), f"the run's own feedback, {source.title}"
  if isinstance(rater, SelfFeedback):
    model = transformer.model(policy.config)
    rater = rater.make(model, policy.params["lm"], policy.tokenizer)
  rater = protocol.over_processes(rater)
  if feedback.kind == "scores":
    return RunJudge(name, scorer=rater)
  return RunJudge(name, preference=rater)


def _name(reward: RewardFn) -> str:
  """Name for display, also of a partial application and of a callable object."""
  while isinstance(reward, functools.partial):
    reward = reward.func
  named = reward if inspect.isroutine(reward) else type(reward)
  return f"{named.__module__}:{named.__qualname__}"


def measure(run_dir: Path, by: RunJudge) -> dict[int, dict[int, Interval]] | None:
  """Measures win rates between checkpoints on their held-out samples.

  Args:
    run_dir: the run.
    by: the judge.

  Returns:
    The content of win_rates.json, which is written; None where a run has no held-out
    samples.
  """
  samples = rollout_history.read(run_dir / run_directory.HELD_OUT, CHECKPOINTS)
  if not samples:
    return None
  if by.scorer is None:
    rates = rollout_history.preferred(by.preference, samples)
  else:
    rates = rollout_history.win_rates(
      {
        number: protocol.score_groups(by.scorer, drawn.prompts, drawn.texts_BK)
        for number, drawn in samples.items()
      }
    )
  content = {
    "judge": by.name,
    "rates": [
      {"row": row, "column": column, **bootstrap.plain(rate)}
      for row, columns in rates.items()
      for column, rate in columns.items()
    ],
  }
  distributed.on_first(lambda: sealed_files.write_json(run_dir / WIN_RATES, content))
  return rates


def read(
  run_dir: Path,
) -> tuple[str, Mapping[int, Mapping[int, Interval]]] | None:
  """Reads the judge's name and the win rates of `measure`; None before it ran."""
  if not (run_dir / WIN_RATES).exists():
    return None
  content = sealed_files.read_json(run_dir / WIN_RATES)
  rates: dict[int, dict[int, Interval]] = {}
  for rate in content["rates"]:
    row, column = rate.pop("row"), rate.pop("column")
    rates.setdefault(row, {})[column] = bootstrap.read(rate)
  return content["judge"], rates
