"""A K-wise reward model on AI feedback: two dozen answers a prompt, each judged.

Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, Sec. 3.5 (there 4 to 9
  answers ranked by people, and 6B parameters).
Command: xpo train reward_listwise path=ai_feedback_listwise.jsonl.gz
  then xpo evaluate runs/reward_listwise: normalises it, prints agreement with labels
  path: JSON lines with `prompt` and `responses`, each an object with `text` and
  `p_beats_baseline`, the judge's probability that it beats one fixed answer.
Hardware: 2 CPU cores; an hour on one of them, beside other jobs.
Expected: no number of the paper applies. The judge likes long answers, so a model may
  be right often by length alone: read accuracy beside `accuracy_shorter` and `length`.
  It reads 128 tokens of an answer (62 % of the answers are longer), the judge all.
Last result: 2026-11-22, 2,280 pairs of 114 held-out prompts, intervals over prompts:
  accuracy 0.703 [0.680, 0.726]; log-loss 0.576 [0.548, 0.607]; calibration error 0.027.
  Where the judge prefers the longer answer 0.807 [0.783, 0.829], where the shorter
  0.398 [0.353, 0.446]: length orders the rewards (0.508 [0.461, 0.555]) as it does the
  judge's own labels (0.493 [0.444, 0.540]). With 64 tokens of an answer, 160 of a
  prompt and 30 steps, accuracy was 0.599.
"""

import dataclasses

from xpo_jax.config.data import Data
from xpo_jax.config.experiment import Experiment, Loop
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data.sources import Reading
from xpo_jax.data.tokenise import Limits, Template
from xpo_jax.studies import small_dialogue


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
    ObjectiveConfig("kwise"),
    lists,
    dataclasses.replace(data, row_length=1024, rows_per_step=4, epochs=6),
    optimizer=Optimizer(learning_rate=1e-4, warmup_steps=10, floor=0.1),
    loop=Loop(eval_every=50, checkpoint_every=25),
  )
