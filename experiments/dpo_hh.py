"""DPO on Anthropic HH pairs with a small model trained from scratch.

Paper: Rafailov et al. 2023, arXiv:2305.18290, Sec. 6.3 (there Pythia-2.8B).
Command: xpo train dpo_hh path=hh_harmless_pairs.jsonl.gz
  path: JSON lines with `chosen` and `rejected` HH transcripts (plain or .gz).
Hardware: 2 CPU cores.
Expected: no number of the paper applies at this size. Held-out accuracy above 0.5 says
  that preferences were learnt; the model is too small to answer anything.
Last result: 2026-11-22, 2 cores shared with other jobs, 17 minutes: held-out accuracy
  0.640 [0.585, 0.696] on 289 pairs (95 %, over prompts), KL 2.66 [2.41, 2.91] nats; the
  rejected answers are longer (59 against 43 tokens), so length alone orders many pairs.
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
  """SFT on the chosen answers, then DPO from it; prompts held out from both."""
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
    objective=Use("dpo", beta=0.1),
    data=data,
    start=Trained(sft),
    optimizer=Optimizer(learning_rate=1e-4, warmup_steps=20, floor=0.1),
    loop=Loop(eval_every=50, checkpoint_every=50),
    evaluation=held_out,
  )
