"""A preference model that reads both answers, on Anthropic HH pairs.

Paper: Munos et al. 2023 (Nash learning from human feedback), arXiv:2312.00886
  (there summaries and T5X models).
Command: xpo train preference_hh path=hh_harmless_pairs.jsonl.gz
  then xpo evaluate runs/preference_hh: prints its agreement with labels
  path: JSON lines with `chosen` and `rejected` HH transcripts (plain or .gz).
Hardware: 2 CPU cores.
Expected: no number of the paper applies at this size. Compare with `reward_hh`, which
  holds out the same prompts: HH labels are nearly transitive, so no more than it.
Last result: not run.
"""

import dataclasses

from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import preference_model
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
  """SFT on the chosen answers, then the preference model on both orders of a pair."""
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
    limits=Limits(prompt=380, completion=160, long_prompt="truncate"),
    row_length=1024,  # a prompt, and twice both answers, each with its EOS
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
    objective=Use("preference_model"),
    data=dataclasses.replace(data, transform=preference_model.BOTH_ORDERS),
    start=Trained(sft),
    optimizer=Optimizer(learning_rate=1e-4, warmup_steps=20, floor=0.1),
    loop=Loop(eval_every=50, checkpoint_every=50),
    evaluation=held_out,
  )
