"""A finished online run judged: its policy, and its checkpoints against each other.

The judge is the run's own feedback, or a true reward where one is given: what a policy
was trained on says little about what it is worth.
"""

import functools
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from xpo_jax.config.experiment import Trained
from xpo_jax.config.on_policy import OnlineExperiment
from xpo_jax.evaluation import bootstrap, measure_policy, rollout_history
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.evaluation.measure_policy import Draws, Report, RewardFn
from xpo_jax.feedback import protocol
from xpo_jax.feedback.protocol import Preference, Scorer, Scores, SelfFeedback
from xpo_jax.models import transformer
from xpo_jax.models.hf_checkpoint import Pretrained
from xpo_jax.train import loading, offline, online, online_setup
from xpo_jax.train.loading import Datasets

WIN_RATES = "win_rates.json"
CHECKPOINTS = 5  # evaluations that are held against each other


class Judge(NamedTuple):
  """Who judges a finished run: one of the last two.

  Attributes:
    name: for readers.
    scorer: gives each completion a score.
    preference: says which of two is better.
  """

  name: str
  scorer: Scorer | None = None
  preference: Preference | None = None


def judge(
  experiment: OnlineExperiment, policy: Pretrained, reward: RewardFn | None
) -> Judge:
  """The true reward as a judge where there is one, else the run's own feedback; where
  the policy is its own judge, the finished one."""
  if reward is not None:

    def score(prompts, completions):
      whole = [p + c for p, c in zip(prompts, completions, strict=True)]
      return Scores(np.asarray(reward(whole), np.float32))

    return Judge(_name(reward), scorer=score)
  source = experiment.feedback.source
  made, name = source.build(), f"the run's own feedback, {source.name}"
  if isinstance(made, SelfFeedback):
    model = transformer.model(policy.config)
    made = made.make(model, policy.params["lm"], policy.tokenizer)
  if experiment.feedback.kind == "scores":
    return Judge(name, scorer=made)
  return Judge(name, preference=made)


def _name(reward: RewardFn) -> str:
  """For readers; a partial application and an object that is called have none."""
  while isinstance(reward, functools.partial):
    reward = reward.func
  named = reward if inspect.isroutine(reward) else type(reward)
  return f"{named.__module__}:{named.__qualname__}"


def policy_report(
  experiment: OnlineExperiment,
  run_dir: Path,
  policy: Pretrained,
  by: Judge,
  *,
  prompts: int,
  completions: int,
  max_completion_tokens: int,
  seed: int,
  batch: int,
  datasets: Datasets,
) -> Report:
  """Judges the policy on held-out prompts beside the start, both sampled at the run's
  temperature; see `evaluate_run.evaluate_run`.

  Raises:
    ValueError: the run holds nothing out, or the judge abstains.
  """
  loaded = loading.load(experiment.prompts, experiment.prompts, datasets)
  stage = run_dir / offline.START / offline.POLICY
  trained = isinstance(experiment.start, Trained)
  start = loading.begin(experiment, run_dir, loaded, stage if trained else None)
  _, held_out, _ = online_setup.prompt_sets(
    experiment, loaded, start.tokenizer, run_dir, datasets
  )
  if held_out is None:
    raise ValueError(
      f"{run_dir} holds no prompts out; set Evaluation.share or Evaluation.path and "
      "train again"
    )
  texts = held_out.texts[:prompts]
  ours, theirs = (
    measure_policy.draw(
      transformer.model(start.config),
      params,
      start.params,
      held_out.ids[:prompts],
      policy.tokenizer,
      max_completion_tokens=max_completion_tokens,
      key=jax.random.key(seed),
      completions=completions,
      batch=batch,
      temperature=experiment.sampling.temperature,
    )
    for params in (policy.params, start.params)
  )
  if by.scorer is not None:
    ours, theirs = (_rewarded(by.scorer, texts, draws) for draws in (ours, theirs))
    return measure_policy.beside(ours, theirs)
  rivals = [answers[:1] for answers in theirs.texts]
  asked = protocol.both_orders(by.preference)
  rate_PK = protocol.win_rates_against(asked, texts, ours.texts, opponents_BJ=rivals)
  _refuse_silence(rate_PK)
  report = measure_policy.beside(ours, theirs)
  rate = bootstrap.bootstrap_mean(measure_policy.per_prompt(rate_PK))
  measures = dict(report.measures) | {"win_rate_vs_reference": rate}
  return report._replace(measures=measures)


def _rewarded(scorer: Scorer, prompts, draws: Draws) -> Draws:
  reward_PK = protocol.score_groups(scorer, prompts, draws.texts)
  _refuse_silence(reward_PK)
  return draws._replace(reward_PK=reward_PK.astype(np.float64))


def _refuse_silence(verdict_PK: np.ndarray) -> None:
  if count := protocol.count_abstentions(verdict_PK):
    raise ValueError(
      f"the judge abstains on {count} of {verdict_PK.size} completions, and what is "
      "left would be no sample of the policy; judge by another one with --reward"
    )


def checkpoint_win_rates(
  run_dir: Path, by: Judge
) -> dict[int, dict[int, Interval]] | None:
  """Policies along a run held against each other on their held-out samples.

  Args:
    run_dir: the run.
    by: who judges.

  Returns:
    What is also written as win_rates.json; None where a run kept no held-out samples.
  """
  samples = rollout_history.read(run_dir / online.HELD_OUT, CHECKPOINTS)
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
  text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
  (run_dir / WIN_RATES).write_text(text, encoding="utf-8")
  return rates


def kept_win_rates(
  run_dir: Path,
) -> tuple[str, Mapping[int, Mapping[int, Interval]]] | None:
  """Who judged, and what `checkpoint_win_rates` found; None before it ran."""
  if not (run_dir / WIN_RATES).exists():
    return None
  content = json.loads((run_dir / WIN_RATES).read_text(encoding="utf-8"))
  rates: dict[int, dict[int, Interval]] = {}
  for rate in content["rates"]:
    row, column = rate.pop("row"), rate.pop("column")
    rates.setdefault(row, {})[column] = bootstrap.read(rate)
  return content["judge"], rates
