"""Online runs on the embedded world: a small model that writes reviews, judged truly.

The start is supervised fine-tuning on the world's reviews; the reward is the world's
own, VADER's compound of prompt and completion; held-out prompts are judged the same.
"""

import dataclasses
from typing import Any

from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import rules
from xpo_jax.models.config import Config
from xpo_jax.train.experiment import (
  Data,
  Evaluation,
  Experiment,
  Loop,
  MeshShape,
  Scratch,
  Trained,
  Use,
)
from xpo_jax.train.online_experiment import (
  Call,
  Feedback,
  OnlineExperiment,
  Prompts,
  Sampling,
)
from xpo_jax.train.optim import Optimizer

LONGEST = 16  # tokens of a completion
MODEL = Config(
  vocab=1024,
  width=64,
  layers=2,
  heads=4,
  kv_heads=4,
  head_dim=16,
  mlp_width=192,
  positions=64,
  tied=True,
  remat=False,
)
ONE = MeshShape(data=1)


def writer(texts: int = 4000, steps: int = 300) -> Experiment:
  """Supervised fine-tuning on reviews of the world: where the policies start."""
  data = Data(
    f"world:{texts}",
    limits=Limits(completion=LONGEST),
    row_length=96,
    rows_per_step=10,
    epochs=8,
    steps=steps,
  )
  return Experiment(
    Use("sft"),
    data,
    Scratch(MODEL),
    Optimizer(learning_rate=3e-3, warmup_steps=20),
    Loop(log_every=50),
    ONE,
  )


def run(objective: Use, **changes: Any) -> OnlineExperiment:
  """An online experiment on the world; `changes` replace its fields."""
  made = OnlineExperiment(
    objective=objective,
    prompts=Prompts("world:4000"),
    start=Trained(writer()),
    feedback=Feedback(Call(rules.world_reward), missing_eos=0.5),
    sampling=Sampling(completions=4, max_tokens=LONGEST),
    iterations=60,
    prompts_per_iteration=32,
    optimizer=Optimizer(learning_rate=3e-4, schedule="constant"),
    loop=Loop(log_every=5, eval_every=20),
    mesh=ONE,
    evaluation=Evaluation(share=0.1, limit=64),
  )
  return dataclasses.replace(made, **changes)
