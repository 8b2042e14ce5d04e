"""A K-wise reward model on AI feedback: two dozen answers a prompt, each judged.

Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, Sec. 3.5 (there 4 to 9
  answers ranked by people, and 6B parameters).
Command: xpo train reward_listwise path=ai_feedback_listwise.jsonl.gz
  then xpo evaluate runs/reward_listwise: normalises it, prints agreement with labels
  path: JSON lines with `prompt` and `responses`, each an object with `text` and
  `p_beats_baseline`, the judge's probability that it beats one fixed answer.
Hardware: 2 CPU cores.
Expected: no number of the paper applies. The judge likes long answers, so a model may
  be right often by length alone: read accuracy beside `accuracy_shorter` and `length`.
  It reads 128 tokens of an answer (62 % of the answers are longer), the judge all.
Last result: 2026-11-22, smaller than these settings, which take some 40 minutes: 64
  tokens of an answer, 160 of a prompt, 30 steps. Of 2,280 pairs of 114 other prompts,
  intervals over prompts: accuracy 0.599 [0.570, 0.627]; log-loss 0.659 [0.641, 0.678];
  calibration error 0.033. Where the judge prefers the longer answer 0.666 [0.634,
  0.697], where the shorter 0.419 [0.368, 0.471]: length orders much of it (0.286
  [0.230, 0.341]; of the judge's own labels 0.462 [0.400, 0.521]).
"""

import dataclasses

from xpo_jax.data.sources import Reading
from xpo_jax.data.tokenise import Limits, Template
from xpo_jax.recipes import small_dialogue
from xpo_jax.train.experiment import Data, Experiment, Loop, Use
from xpo_jax.train.optim import Optimizer


def experiment(path: str) -> Experiment:
  """SFT on the best answer of each list, then all pairs of a list as one example."""
  data = Data(
    path=path,
    reading=Reading(
      rename={
        "responses.text": "completions",
        "responses.p_beats_baseline": "rewards",
      }
    ),
    template=Template(before="Human: ", between="\n\nAssistant:\n"),
    bad_rows="drop",  # an answer that begins with a line break merges with the colon
    limits=Limits(prompt=256, completion=128, long_prompt="truncate"),
  )
  # A row is a prompt with its whole list: up to 256 + 24 x 128 tokens.
  lists = dataclasses.replace(data, row_length=3328, rows_per_step=8, microbatches=8)
  return small_dialogue.after_sft(
    Use("kwise"),
    lists,
    dataclasses.replace(data, row_length=1024, rows_per_step=4, epochs=6),
    optimizer=Optimizer(learning_rate=1e-4, warmup_steps=10, floor=0.1),
    loop=Loop(eval_every=50, checkpoint_every=25),
  )
