"""A K-wise reward model on AI feedback: two dozen completions a prompt, each judged.

Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, Sec. 3.5 (there 4 to 9
  completions ranked by people, and 6B parameters).
Command: xpo train reward_listwise path=ai_feedback_listwise.jsonl.gz
  then xpo evaluate runs/reward_listwise: prints its agreement with labels
  path: JSON lines with `prompt` and `responses`, each an object with `text` and
  `p_beats_baseline`, the judge's probability that it beats one fixed completion.
Hardware: 2 CPU cores, an hour.
Expected: no number of the paper applies. The judge prefers long completions, so a model
  may be accurate by length alone: read accuracy beside `accuracy_shorter` and `length`.
  It reads 128 tokens of a completion (62 % are longer), the judge all of it.
Departs from the paper: a judge's probabilities in place of people's rankings.
Result: held-out accuracy {K-wise | accuracy} over 114 prompts, one seed; length orders
  the rewards as it does the judge's labels.
"""

import dataclasses

from xpo_jax.config.data import Data
from xpo_jax.config.experiment import Experiment, Loop
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data.render import Template
from xpo_jax.data.sources import Reading
from xpo_jax.data.tokenise import Limits
from xpo_jax.studies import small_dialogue


def experiment(path: str) -> Experiment:
  """SFT on the best completion of each list, then all pairs of a list as an example."""
  data = Data(
    path=path,
    reading=Reading(
      rename={
        "responses.text": "completions",
        "responses.p_beats_baseline": "rewards",
      }
    ),
    template=Template(before="Human: ", between="\n\nAssistant:\n"),
    bad_rows="drop",  # one that begins with a line break merges with the colon
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
