"""Configures distillation on a task: a larger teacher and its students.

The default teacher is a larger model, fine-tuned on the task's texts and trained by
GRPO on its reward; students start from the task's own start. Their reward is reported
and not trained on.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Data, Evaluation
from xpo_jax.config.experiment import Experiment, Loop, Pretrained, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Sampling
from xpo_jax.data.tokenise import Example, Limits
from xpo_jax.evaluation import sequence_logps
from xpo_jax.evaluation.measure_policy import Draws
from xpo_jax.models import transformer
from xpo_jax.models.hf_checkpoint import Checkpoint
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import demonstrations, samples
from xpo_jax.studies.task import Task
from xpo_jax.types import Layout

WIDTH = 96  # of the teacher from scratch; students have `Task.width`
UPDATES = 40  # optimiser steps of a student
_PROMPTS = 16  # of an iteration, 4 completions each
_ROWS = 9  # packed rows that hold about as many completions
_OPTIMIZER = Optimizer(learning_rate=1e-3, warmup_steps=5, schedule="constant")


def teacher(task: Task, directory: str | None = None) -> Pretrained | Stage:
  """Makes the teacher of a task.

  Args:
    task: texts, reward and sizes.
    directory: a Hugging Face directory of the tokenizer of `Task.policy`; None: GRPO
      from a larger model, or from `Task.policy` where that is given.
  """
  if directory is not None:
    return Pretrained(directory, remat="none")
  larger = dataclasses.replace(task, width=WIDTH) if task.policy is None else task
  sampling = Sampling(completions=8, max_completion_tokens=task.max_completion_tokens)
  grpo = tasks.on_rollouts(
    ObjectiveConfig("grpo"),
    larger,
    sampling=sampling,
    prompts_per_iteration=16,
    loop=Loop(log_every=5),
    evaluation=Evaluation(),
  )
  return Stage(grpo)


def on_samples_of_student(
  objective: ObjectiveConfig,
  task: Task,
  teacher: Pretrained | Stage,
  *,
  teacher_share: float = 0.0,
  updates: int = UPDATES,
  seed: int = 0,
  **changes: Any,
) -> Experiment:
  """Makes a student that learns on its own completions.

  Args:
    objective: reads a teacher.
    task: start, reward and sizes.
    teacher: of `teacher`.
    teacher_share: see `Sampling`.
    updates: optimiser steps.
    seed: of samples and draws.
    changes: fields of the experiment or its data.
  """
  sampling = Sampling(
    completions=4,
    max_completion_tokens=task.max_completion_tokens,
    teacher_share=teacher_share,
  )
  run = tasks.on_rollouts(
    objective,
    task,
    sampling=sampling,
    iterations=updates,
    prompts_per_iteration=_PROMPTS,
    optimizer=_OPTIMIZER,
    teacher=teacher,
    seed=seed,
  )
  return experiments.replace(run, **changes)


def teacher_samples(
  task: Task, teacher: Pretrained | Stage, *, updates: int = UPDATES, seed: int = 0
) -> Data:
  """Makes the data of the teacher's completions.

  Args:
    task: prompts and sizes.
    teacher: of `teacher`.
    updates: optimiser steps, on about as many completions as a student samples.
    seed: of samples and order.
  """
  weights = teacher if isinstance(teacher, Stage) else teacher.directory
  make = Configured(
    demonstrations.every_sample,
    policy=weights,
    prompts=tasks.prompts(task),
    completions=4,
    max_completion_tokens=task.max_completion_tokens,
    num_prompts=task.num_prompts,
    seed=seed,
  )
  return Data(
    make,
    limits=Limits(completion=task.max_completion_tokens),
    bad_rows="drop",
    row_length=task.row_length,
    rows_per_step=_ROWS,
    epochs=updates,
    steps=updates,
    seed=seed,
  )


def on_samples_of_teacher(
  objective: ObjectiveConfig,
  task: Task,
  teacher: Pretrained | Stage,
  *,
  updates: int = UPDATES,
  seed: int = 0,
) -> Experiment:
  """Makes a student that learns on the teacher's completions.

  Args:
    objective: reads a teacher and demonstrations.
    task: start and sizes.
    teacher: of `teacher`.
    updates: optimiser steps.
    seed: of samples, order and draws.
  """
  return Experiment(
    objective=objective,
    data=teacher_samples(task, teacher, updates=updates, seed=seed),
    start=tasks.start(task),
    optimizer=_OPTIMIZER,
    mesh=tasks.ONE_DEVICE,
    seed=seed,
    teacher=teacher,
  )


def sequence_kl(policy: Checkpoint, other: Checkpoint, draws: Draws) -> np.ndarray:
  """Computes KL(policy || other) along samples of the policy, nats, `[P, K]`.

  The sum over positions of the KL over the whole vocabulary: its mean over samples is
  an unbiased estimate of the KL of completions.

  Args:
    policy: the policy that was sampled.
    other: of the same tokenizer, of any size.
    draws: the samples.
  """
  model, ref_model = (transformer.model(x.config) for x in (policy, other))
  scores = sequence_logps.score_pairs(
    model, policy.params, other.params, _examples(policy, draws), ref_model=ref_model
  )
  return scores["kl_BK"].astype(np.float64)


def _examples(policy: Checkpoint, draws: Draws) -> Sequence[Example]:
  """The samples in tokens, with the EOS that ended them."""
  prompts = samples.encode(policy.tokenizer, draws.prompts)
  eos = policy.tokenizer.eos_token_id
  return [
    Example(
      "",
      prompt,
      tuple(
        np.array([*tokens, eos] if ended else tokens, np.int32)
        for tokens, ended in zip(tokens_K, ended_K, strict=True)
      ),
      Layout.SAMPLED,
    )
    for prompt, tokens_K, ended_K in zip(
      prompts, draws.tokens, draws.ended_PK, strict=True
    )
  ]
