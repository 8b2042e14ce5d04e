"""Trains any objective on the sentiment of a chat model's own samples.

The model answers questions of opinion (`opinions`); VADER's compound of an answer is
its reward. Methods on records learn from one set of pairs, the best against the worst
of the start's samples for each training prompt; methods on samples from fresh ones. A
method costs its training and one sampling on held-out prompts.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xpo_jax.config.data import Prompts
from xpo_jax.config.experiment import Experiment, Loop
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data import records
from xpo_jax.evaluation.measure_policy import Draws
from xpo_jax.feedback import rules
from xpo_jax.feedback.protocol import Scorer
from xpo_jax.models import hf_checkpoint
from xpo_jax.models.lora import Adapter
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import arms, preference_pairs
from xpo_jax.studies.multistage.arms import Arms, Trained
from xpo_jax.studies.real_model import opinions
from xpo_jax.studies.task import Task
from xpo_jax.train import metrics, run_directory
from xpo_jax.types import Layout

Labels = Literal["true", "flipped"]
CANDIDATES = 8  # samples of a prompt, of which the best and the worst make a pair
# Of a method on fresh samples, four of each prompt.
ITERATIONS, PROMPTS_PER_ITERATION = 5, 16
SCORES = {"cut": lambda seed, draws: ~draws.ended_PK}


def task(policy: str, **changes: Any) -> Task:
  """The study's task: a chat model that answers in a sentence, LoRA on it.

  Args:
    policy: a Hugging Face directory with a chat template.
    changes: fields of the task.
  """
  settings = Task(
    source=Configured(opinions.prompts),
    policy=policy,
    reward=Configured(rules.sentiment),
    max_completion_tokens=48,
    row_length=192,
    num_prompts=72,
    rows=6,
    learning_rate=3e-4,
    temperature=0.7,
    adapter=Adapter(rank=8, alpha=16.0),
    eval_prompts=23,
    eval_samples=4,
    seeds=(0,),
  )
  return dataclasses.replace(settings, **changes)


def experiment(
  objective: ObjectiveConfig, task: Task, *, seed: int, labels: Labels = "true"
) -> Experiment:
  """A run of an objective: on the model's own pairs, or on fresh samples.

  Args:
    objective: what is minimised; its layout says which of the two.
    task: of `task`.
    seed: of order, adapters and fresh samples; the pairs are the same for every seed.
    labels: "flipped": what is worse is called chosen.

  Raises:
    ValueError: flipped labels of a method on samples.
  """
  optimizer = Optimizer(
    learning_rate=task.learning_rate, warmup_steps=1, schedule="constant"
  )
  loop = Loop(log_every=1, checkpoint_minutes=None)
  changes = {"optimizer": optimizer, "loop": loop, "seed": seed}
  if objective.build().layout is Layout.SAMPLED:
    if labels != "true":
      raise ValueError(
        f"labels is {labels!r}, and {objective.name} learns from the reward of its own "
        "samples, which has none to flip"
      )
    return tasks.on_rollouts(
      objective,
      task,
      iterations=ITERATIONS,
      prompts_per_iteration=PROMPTS_PER_ITERATION,
      **changes,
    )
  pairs = tasks.from_start(
    own_pairs,
    task,
    seed=0,
    reward=task.reward,
    temperature=task.temperature,
    labels=labels,
  )
  return tasks.on_records(objective, task, pairs, **changes)


def own_pairs(
  policy: str,
  prompts: Prompts,
  reward: Scorer,
  max_completion_tokens: int,
  *,
  num_prompts: int,
  seed: int,
  temperature: float,
  labels: Labels = "true",
) -> list[records.Pair]:
  """Pairs of the best and the worst of a policy's samples for each prompt.

  A pair with a completion that was cut at the limit is left out: training would end it
  there.

  Args:
    policy: directory of the policy that writes.
    prompts: what for.
    reward: says which is better, `Scorer`.
    max_completion_tokens: longest completion.
    num_prompts: the first so many prompts.
    seed: of the samples.
    temperature: of the samples.
    labels: "flipped": the worse one is called chosen.
  """
  pairs = preference_pairs.ranked(
    policy,
    prompts,
    reward,
    max_completion_tokens,
    candidates=CANDIDATES,
    kept=CANDIDATES,
    rejection_beta=None,
    ranking="best_worst",
    sampling_temperature=temperature,
    num_prompts=num_prompts,
    seed=seed,
  )
  whole = [
    pair
    for pair in pairs
    if not (records.is_cut(pair.chosen) or records.is_cut(pair.rejected))
  ]
  if labels == "true":
    return whole
  return [
    dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen)
    for pair in whole
  ]


def train(study: Arms, one: Experiment) -> Trained:
  """Trains a run in the study's store, or finds it there."""
  run_dir = arms.train(study, one)
  checkpoint = hf_checkpoint.load(run_directory.policy(run_dir), remat=False)
  seconds = sum(line["time/seconds"] for line in metrics.read(run_dir))
  return Trained({one.seed: checkpoint.params}, seconds)


def run(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  learning_rate: float,
  labels: Labels = "true",
  portion: str = "test",
  policy: str = "smollm2",
  study_dir: str = "runs/real_model",
) -> dict[str, float | list[float]]:
  """Trains an objective on the model's own samples; a cell of a table.

  Args:
    seed: of the run and of the samples that it is judged by.
    objective: name of the index.
    hparams: of the objective.
    learning_rate: peak.
    labels: see `experiment`.
    portion: of the prompts that it is judged on: "test", or "tune" to choose settings.
    policy: a Hugging Face directory with a chat template.
    study_dir: runs are stored there; one with the same settings is found.

  Returns:
    `measures` of the policy and its start on held-out prompts.
  """
  settings = task(policy, learning_rate=learning_rate, seeds=(seed,))
  study = Arms(settings, Path(study_dir), _quiet)
  one = experiment(
    ObjectiveConfig(objective, **hparams), settings, seed=seed, labels=labels
  )
  trained = train(study, one)
  after = arms.judge(study, trained.policies[seed], seed, portion=portion)
  return measures(after, arms.reference_draws(study, seed, portion=portion))


def measures(after: Draws, before: Draws) -> dict[str, float | list[float]]:
  """Reward, KL and length of a policy beside its start's, as plain data.

  Args:
    after: samples of the policy.
    before: samples of the start on the same prompts.

  Returns:
    reward, length (tokens) and cut (share that met the limit) of the policy, the same
    with `_before` of the start; kl (nats a completion); prompts and samples, numbers;
    reward_P and reward_before_P, means of each prompt, for paired intervals.
  """
  found: dict[str, float | list[float]] = {}
  for suffix, draws in (("", after), ("_before", before)):
    found[f"reward{suffix}"] = float(draws.reward_PK.mean())
    found[f"length{suffix}"] = float(draws.length_PK.mean())
    found[f"cut{suffix}"] = float(np.mean(~draws.ended_PK))
    found[f"reward{suffix}_P"] = draws.reward_PK.mean(1).tolist()
  prompts, samples = after.reward_PK.shape
  return found | {
    "kl": float(after.kl_PK.mean()),
    "prompts": float(prompts),
    "samples": float(samples),
  }


def _quiet(text: str) -> None:
  del text
