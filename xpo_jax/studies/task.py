"""Configures the task of a recipe: texts, start, reward, sizes.

The default is synthetic reviews with a small model from scratch; texts, policy and
reward can be replaced.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from xpo_jax.config import experiment
from xpo_jax.config.data import Data, Evaluation, Prompts
from xpo_jax.config.experiment import (
  Experiment,
  Loop,
  MeshShape,
  Pretrained,
  Rollouts,
  Scratch,
  Stage,
  Start,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.data.sources import Reading
from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import rules
from xpo_jax.models.config import Config
from xpo_jax.models.lora import Adapter

ONE_DEVICE = MeshShape(data=1)


@dataclasses.dataclass(frozen=True)
class Task:
  """Texts, start, reward and sizes of a recipe.

  Attributes:
    source: other texts than the synthetic reviews, as `Data.path`; records that a
      function makes have no held-out data in the runs themselves (`held_out`).
    prompt_words: number of words of such a text that are its prompt.
    policy: a Hugging Face directory to start from; None: a small model from scratch,
      fine-tuned on the texts.
    reward: makes the true reward, a `feedback.protocol.Scorer`.
    num_texts: number of synthetic reviews.
    vocab: entries of the tokenizer trained on the texts.
    width: of the small model.
    layers: of the small model.
    max_completion_tokens: longest completion.
    row_length: tokens of a packed row.
    sft_steps: steps of supervised fine-tuning on the texts.
    sft_rows: packed rows of such a step.
    sft_learning_rate: its peak learning rate.
    num_prompts: number of prompts of the training portion, the first so many.
    rows: packed rows of a step after SFT.
    learning_rate: peak learning rate after SFT, of policies and reward models.
    temperature: of rollouts and of the samples that policies are judged by.
    adapter: what is trained after SFT; None: every weight.
    eval_prompts: number of held-out prompts for evaluation.
    eval_samples: completions of each.
    eval_batch: held-out prompts that are sampled and scored at once; None: all of them.
    seeds: seeds of samples, order and evaluation; SFT is shared.
  """

  source: str | Configured | None = None
  prompt_words: int = 4
  policy: str | None = None
  reward: Configured = dataclasses.field(
    default_factory=lambda: Configured(rules.synthetic_reward)
  )
  num_texts: int = 12_000
  vocab: int = 1024
  width: int = 64
  layers: int = 2
  max_completion_tokens: int = 16
  row_length: int = 96
  sft_steps: int = 400
  sft_rows: int = 10
  sft_learning_rate: float = 3e-3
  num_prompts: int = 800
  rows: int = 4
  learning_rate: float = 7e-4
  temperature: float = 1.0
  adapter: Adapter | None = None
  eval_prompts: int = 128
  eval_samples: int = 4
  eval_batch: int | None = None
  seeds: tuple[int, ...] = (0, 1, 2)

  def __post_init__(self):
    if not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise ValueError(
        f"Task.seeds is {self.seeds}; one seed at least, and none of them twice"
      )

  @property
  def path(self) -> str | Configured:
    """Path of the texts, as `Data.path`."""
    return f"synthetic:{self.num_texts}" if self.source is None else self.source

  @property
  def reading(self) -> Reading:
    """How texts are read."""
    return Reading(prompt_words=self.prompt_words)

  def missing_eos(self, penalty: float) -> float | None:
    """Penalty of a completion cut at the limit, as `Feedback.missing_eos`.

    Synthetic reviews are shorter than the limit. Other texts may be longer: they have
    no penalty, which would otherwise reward ending early.
    """
    return penalty if self.source is None else None


def small_model(vocab: int, width: int, layers: int) -> Config:
  """Makes the config of the small model from scratch.

  Args:
    vocab: entries of its tokenizer.
    width: of its residual stream; a multiple of 4.
    layers: of it.
  """
  return Config(
    vocab=vocab,
    width=width,
    layers=layers,
    heads=4,
    kv_heads=4,
    head_dim=width // 4,
    mlp_width=3 * width,
    positions=1024,
    tied=True,
    remat="none",  # the activations of a row are a few kilobytes
  )


def sft(task: Task) -> Experiment:
  """Makes the supervised fine-tuning on the texts of a model from scratch."""
  data = Data(
    task.path,
    portion="train",
    reading=task.reading,
    limits=Limits(completion=task.max_completion_tokens),
    bad_rows="drop",
    row_length=task.row_length,
    rows_per_step=task.sft_rows,
    epochs=task.sft_steps,
    steps=task.sft_steps,
  )
  return Experiment(
    objective=ObjectiveConfig("sft"),
    data=data,
    start=Scratch(small_model(task.vocab, task.width, task.layers)),
    optimizer=Optimizer(
      learning_rate=task.sft_learning_rate, warmup_steps=10, floor=0.1
    ),
    loop=Loop(log_every=50),
    mesh=ONE_DEVICE,
  )


def start(task: Task) -> Start:
  """Makes the start of all policies of a recipe, which is also the reference."""
  if task.policy is not None:
    return Pretrained(task.policy, remat="none")
  return Stage(sft(task))


def start_weights(task: Task) -> str | Stage:
  """Makes the start as an argument of a function that loads a policy."""
  return start(task) if task.policy is None else task.policy


def prompts(task: Task, portion: str = "train") -> Prompts:
  """Makes the config of the prompts of a portion of the texts."""
  return Prompts(task.path, portion=portion, reading=task.reading, bad_rows="drop")


def held_out(task: Task) -> Evaluation:
  """Makes the config of a run's own held-out prompts; none where a function makes the
  texts: the study alone then judges its policies."""
  if isinstance(task.path, Configured):
    return Evaluation()
  return Evaluation(task.path, portion="test", limit=task.eval_prompts)


def from_start(
  make: Callable[..., Any], task: Task, *, seed: int, **arguments: Any
) -> Configured:
  """Makes the config of a function that samples the task's start on its prompts.

  Args:
    make: takes `policy`, `prompts`, `max_completion_tokens`, `num_prompts` and `seed`.
    task: start, prompts and sizes.
    seed: of the samples.
    arguments: further arguments of the function.
  """
  return Configured(
    make,
    policy=start_weights(task),
    prompts=prompts(task),
    max_completion_tokens=task.max_completion_tokens,
    num_prompts=task.num_prompts,
    seed=seed,
    **arguments,
  )


def on_records(
  objective: ObjectiveConfig,
  task: Task,
  records: str | Configured,
  *,
  seed: int = 0,
  epochs: int = 1,
  **changes: Any,
) -> Experiment:
  """Makes a run on records, from the task's start.

  Args:
    objective: what is minimised.
    task: start and sizes.
    records: a path, or the function that makes them (`multistage.samples`).
    seed: of order and draws.
    epochs: passes over the records.
    changes: fields of the experiment or its data.
  """
  data = Data(
    records,
    limits=Limits(completion=task.max_completion_tokens),
    bad_rows="drop",
    row_length=task.row_length,
    rows_per_step=task.rows,
    epochs=epochs,
    seed=seed,
  )
  run = Experiment(
    objective=objective,
    data=data,
    start=start(task),
    optimizer=Optimizer(learning_rate=task.learning_rate, warmup_steps=10, floor=0.1),
    mesh=ONE_DEVICE,
    seed=seed,
    adapter=task.adapter,
  )
  return experiment.replace(run, **changes)


def on_rollouts(objective: ObjectiveConfig, task: Task, **changes: Any) -> Experiment:
  """Makes a run on rollouts with the task's reward, from the task's start.

  Args:
    objective: what is minimised.
    task: start, reward and sizes.
    changes: fields of the experiment or its data.
  """
  data = Rollouts(
    prompts=prompts(task),
    feedback=Feedback(task.reward, missing_eos=task.missing_eos(0.5)),
    sampling=Sampling(
      completions=4,
      max_completion_tokens=task.max_completion_tokens,
      temperature=task.temperature,
    ),
    iterations=60,
    prompts_per_iteration=32,
  )
  run = Experiment(
    objective=objective,
    data=data,
    start=start(task),
    optimizer=Optimizer(learning_rate=3e-4, schedule="constant"),
    loop=Loop(log_every=5, eval_every=20),
    mesh=ONE_DEVICE,
    evaluation=held_out(task),
    adapter=task.adapter,
  )
  return experiment.replace(run, **changes)
