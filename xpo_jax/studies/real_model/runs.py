"""Trains any objective on the sentiment of a chat model's own samples.

The model answers questions of opinion (`opinions`); VADER's compound of an answer is
its reward. Methods on records learn from one set of pairs, the best against the worst
of the start's samples for each training prompt; methods on samples from fresh ones.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xpo_jax.config.data import Prompts
from xpo_jax.config.experiment import Experiment, Loop
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data import records
from xpo_jax.feedback import reward_functions, rules
from xpo_jax.feedback.protocol import Scorer
from xpo_jax.models import hf_checkpoint
from xpo_jax.models.lora import Adapter
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import arms, samples
from xpo_jax.studies.multistage.arms import Arms, Trained
from xpo_jax.studies.real_model import opinions
from xpo_jax.studies.task import Task
from xpo_jax.train import metrics, references, run_directory
from xpo_jax.types import Layout

Labels = Literal["true", "flipped", "longer"]
CANDIDATES = 4  # samples of a prompt, of which the best and the worst make a pair
MIN_GAP = 0.3  # of their rewards
EPOCHS = 2  # over the pairs: some six steps
PER_WORD = 0.05  # reward that the length-biased labeller adds for each word
# Of a method on fresh samples, four of each prompt.
ITERATIONS, PROMPTS_PER_ITERATION = 5, 16
SCORES = {"cut": lambda seed, draws: ~draws.ended_PK}
_SEQUENCES = 96  # decoded together; memory grows with it


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
    eval_batch=8,
    seeds=(0,),
  )
  return dataclasses.replace(settings, **changes)


def experiment(
  objective: ObjectiveConfig,
  task: Task,
  *,
  seed: int,
  labels: Labels = "true",
  store: Path | None = None,
) -> Experiment:
  """A run of an objective: on the model's own pairs, or on fresh samples.

  Args:
    objective: what is minimised; its layout says which of the two.
    task: of `task`.
    seed: of order, adapters and fresh samples; the pairs are the same for every seed.
    labels: "flipped": what is worse is called chosen; "longer": each word adds
      `PER_WORD` to the reward that the labeller ranks by.
    store: directory where runs on the same pairs share the reference's log-probs; None:
      each has its own.

  Raises:
    ValueError: other labels of a method on samples.
  """
  optimizer = Optimizer(
    learning_rate=task.learning_rate, warmup_steps=1, schedule="constant"
  )
  loop = Loop(log_every=1, checkpoint_minutes=None)
  changes = {"optimizer": optimizer, "loop": loop, "seed": seed}
  built = objective.build()
  if built.layout is Layout.SAMPLED:
    if labels != "true":
      raise ValueError(
        f"labels is {labels!r}, and {objective.name} learns from the reward of its own "
        "samples, which has no labels"
      )
    return tasks.on_rollouts(
      objective,
      task,
      iterations=ITERATIONS,
      prompts_per_iteration=PROMPTS_PER_ITERATION,
      **changes,
    )
  if cached := references.cacheable(built):
    parts = [labels, built.layout.name.lower(), *(stat.field for stat in cached)]
    if store is not None:
      changes["reference_cache"] = str(store / "references" / "-".join(parts))
  pairs = tasks.from_start(
    own_pairs,
    task,
    seed=0,
    reward=_labeller(task) if labels == "longer" else task.reward,
    temperature=task.temperature,
    flipped=labels == "flipped",
  )
  return tasks.on_records(objective, task, pairs, epochs=EPOCHS, **changes)


def _labeller(task: Task) -> Configured:
  """Ranks by the reward and by length."""
  return Configured(
    reward_functions.weighted,
    scorers=(task.reward, Configured(rules.length)),
    weights=(1.0, PER_WORD),
  )


def own_pairs(
  policy: str,
  prompts: Prompts,
  reward: Scorer,
  max_completion_tokens: int,
  *,
  num_prompts: int,
  seed: int,
  temperature: float,
  flipped: bool = False,
) -> list[records.Pair]:
  """Pairs of the best and the worst of a policy's samples for each prompt.

  A completion that was cut at the limit is in no pair: training would end it there.
  Neither is an empty one, nor are two whose rewards are less than `MIN_GAP` apart.

  Args:
    policy: directory of the policy that writes.
    prompts: what for.
    reward: says which is better, `Scorer`.
    max_completion_tokens: longest completion.
    num_prompts: the first so many prompts.
    seed: of the samples.
    temperature: of the samples.
    flipped: the worse one is called chosen.
  """
  sampled = samples.sample(
    policy,
    samples.texts_of(prompts, 0, num_prompts),
    completions=CANDIDATES,
    max_completion_tokens=max_completion_tokens,
    seed=seed,
    temperature=temperature,
    sequences=_SEQUENCES,
  )
  reward_BK = samples.rewards(reward, sampled)
  whole_BK = np.array([list(map(_is_whole, row)) for row in sampled.texts_BK])
  best_B = np.where(whole_BK, reward_BK, -np.inf).argmax(1)
  worst_B = np.where(whole_BK, reward_BK, np.inf).argmin(1)
  row_B = np.arange(len(reward_BK))
  gap_B = reward_BK[row_B, best_B] - reward_BK[row_B, worst_B]
  keep_B = (gap_B >= MIN_GAP) & whole_BK.any(1)
  chosen_B, rejected_B = (worst_B, best_B) if flipped else (best_B, worst_B)
  columns = (x_B[:, None] for x_B in (chosen_B, rejected_B, keep_B))
  return samples.to_pairs(sampled, reward_BK, *columns)


def _is_whole(text: str) -> bool:
  return bool(text.strip()) and not records.is_cut(text)


def train(study: Arms, one: Experiment) -> Trained:
  """Trains a run in the study's store, or finds it there."""
  run_dir = arms.train(study, one)
  checkpoint = hf_checkpoint.load(run_directory.policy(run_dir), remat="none")
  seconds = sum(line["time/seconds"] for line in metrics.read(run_dir))
  return Trained({one.seed: checkpoint.params}, seconds)
