"""Trains any objective on the sentiment of a chat model's own samples.

The model answers questions of opinion (`opinions`); VADER's compound of an answer is
its reward. Methods on records learn from one set of pairs, the best against the worst
of the start's samples for each training prompt; methods on samples from fresh ones.
"""

import dataclasses
from typing import Any, Literal

from xpo_jax.config.data import Prompts
from xpo_jax.config.experiment import Experiment, Loop
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data import records
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
