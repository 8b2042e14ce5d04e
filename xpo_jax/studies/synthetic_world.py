"""Online runs on the embedded world: a small model that writes reviews, judged truly.

The start is supervised fine-tuning on the world's reviews, the same for every recipe;
the reward is the world's own, VADER's compound of prompt and completion; held-out
prompts are judged the same.
"""

import dataclasses
from typing import Any

from xpo_jax.config.experiment import (
  Data,
  Evaluation,
  Experiment,
  Loop,
  MeshShape,
  ObjectiveConfig,
  Scratch,
  Trained,
)
from xpo_jax.config.on_policy import (
  Configured,
  Feedback,
  OnlineExperiment,
  Prompts,
  Sampling,
)
from xpo_jax.config.optim import Optimizer
from xpo_jax.data.sources import Reading
from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import rules
from xpo_jax.models.config import Config
from xpo_jax.studies.multistage.staged_world import World

ONE = MeshShape(data=1)


def config(world: World) -> Config:
  """The model's sizes."""
  return Config(
    vocab=world.vocab,
    width=world.width,
    layers=world.layers,
    heads=4,
    kv_heads=4,
    head_dim=world.width // 4,
    mlp_width=3 * world.width,
    positions=1024,
    tied=True,
    remat=False,
  )


def writer(world: World) -> Experiment:
  """Supervised fine-tuning on a world's texts: where all policies start."""
  data = Data(
    _path(world),
    portion="train",
    reading=_reading(world),
    limits=Limits(completion=world.longest),
    bad_rows="drop",
    row_length=world.row_length,
    rows_per_step=world.sft_rows,
    epochs=world.sft_steps,
    steps=world.sft_steps,
  )
  optimizer = Optimizer(learning_rate=world.sft_rate, warmup_steps=10, floor=0.1)
  start = Scratch(config(world))
  return Experiment(
    ObjectiveConfig("sft"), data, start, optimizer, Loop(log_every=50), ONE
  )


def run(objective: ObjectiveConfig, world: World, **changes: Any) -> OnlineExperiment:
  """An online experiment on a world; `changes` replace its fields."""
  made = OnlineExperiment(
    objective=objective,
    prompts=Prompts(
      _path(world), portion="train", reading=_reading(world), bad_rows="drop"
    ),
    start=Trained(writer(world)),
    feedback=Feedback(
      Configured(rules.synthetic_reward), missing_eos=world.missing_eos(0.5)
    ),
    sampling=Sampling(completions=4, max_completion_tokens=world.longest),
    iterations=60,
    prompts_per_iteration=32,
    optimizer=Optimizer(learning_rate=3e-4, schedule="constant"),
    loop=Loop(log_every=5, eval_every=20),
    mesh=ONE,
    evaluation=Evaluation(_path(world), portion="test", limit=world.prompts),
  )
  return dataclasses.replace(made, **changes)


def _path(world: World) -> str:
  return f"world:{world.texts}" if world.source is None else world.source


def _reading(world: World) -> Reading:
  return Reading(prompt_words=world.prompt_words)
