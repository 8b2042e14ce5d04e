"""Trains a small model from scratch for dialogue: SFT, then an objective."""

import dataclasses
from typing import Any

from xpo_jax.config.data import Data, Evaluation
from xpo_jax.config.experiment import Experiment, Loop, Scratch, Stage
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data.tokenise import Limits
from xpo_jax.models.config import Config

MODEL = Config(
  vocab=4096,
  width=128,
  layers=4,
  heads=4,
  kv_heads=4,
  head_dim=32,
  mlp_width=384,
  positions=1024,
  tied=True,
)
HELD_OUT = Evaluation(share=0.15)


def hh(path: str) -> Data:
  """Anthropic HH pairs: JSON lines with `chosen` and `rejected` transcripts."""
  return Data(
    path=path,
    bad_rows="drop",  # seven rows of the test split are empty or share no prompt
    limits=Limits(prompt=512, completion=256, long_prompt="truncate"),
    row_length=1024,
    rows_per_step=4,
  )


def after_sft(
  objective: ObjectiveConfig, data: Data, sft_data: Data, **changes: Any
) -> Experiment:
  """The objective, from SFT on the chosen completions of the same prompts.

  Args:
    objective: the second stage's.
    data: of the second stage.
    sft_data: of SFT, with its own passes and rows.
    changes: other fields of the second stage.
  """
  sft = Experiment(
    objective=ObjectiveConfig("sft"),
    data=sft_data,
    start=Scratch(MODEL),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=20, floor=0.1),
    evaluation=HELD_OUT,
  )
  made = Experiment(
    objective=objective,
    data=data,
    start=Stage(sft),
    optimizer=Optimizer(learning_rate=1e-4, warmup_steps=20, floor=0.1),
    loop=Loop(eval_every=50, checkpoint_every=50),
    evaluation=HELD_OUT,
  )
  return dataclasses.replace(made, **changes)
