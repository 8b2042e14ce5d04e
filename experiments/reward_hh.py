"""A Bradley-Terry reward model on Anthropic HH pairs, a small model from scratch.

Paper: Bai et al. 2022, arXiv:2204.05862 (there 13M to 52B parameters).
Command: xpo train reward_hh path=hh_harmless_pairs.jsonl.gz
  then xpo evaluate runs/reward_hh: normalises it, prints its agreement with labels
  path: JSON lines with `chosen` and `rejected` HH transcripts (plain or .gz).
Hardware: 2 CPU cores.
Expected: no number of the paper applies at this size; its Fig. 7, read off, has about
  0.53 for 1e8 parameters and a thousand comparisons. An interval above 0.5 says that
  something was learnt; `length` beside `length_labels`, whether more than length.
Last result: not run.
"""

import dataclasses

from xpo_jax.data.tokenise import Limits
from xpo_jax.models.config import Config
from xpo_jax.train.experiment import (
  Data,
  Evaluation,
  Experiment,
  Loop,
  Scratch,
  Trained,
  Use,
)
from xpo_jax.train.optim import Optimizer


def experiment(path: str) -> Experiment:
  """SFT on the chosen answers, then the reward model; prompts held out from both."""
  model = Config(
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
  data = Data(
    path=path,
    bad_rows="drop",  # seven rows of the test split are empty or share no prompt
    limits=Limits(prompt=512, completion=256, long_prompt="truncate"),
    row_length=1024,
    rows_per_step=4,
  )
  held_out = Evaluation(share=0.15)
  sft = Experiment(
    objective=Use("sft"),
    data=dataclasses.replace(data, epochs=3),
    start=Scratch(model),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=20, floor=0.1),
    evaluation=held_out,
  )
  return Experiment(
    objective=Use("bradley_terry"),
    data=data,
    start=Trained(sft),
    optimizer=Optimizer(learning_rate=1e-4, warmup_steps=20, floor=0.1),
    loop=Loop(eval_every=50, checkpoint_every=50),
    evaluation=held_out,
  )
