"""A Bradley-Terry reward model on Anthropic HH pairs, a small model from scratch.

Paper: Bai et al. 2022, arXiv:2204.05862 (there 13M to 52B parameters).
Command: xpo train reward_hh path=hh_harmless_pairs.jsonl.gz
  then xpo evaluate runs/reward_hh: prints its agreement with labels
  path: JSON lines with `chosen` and `rejected` HH transcripts (plain or .gz).
Hardware: 2 CPU cores.
Expected: no number of the paper applies at this size; its Fig. 7, read off, has about
  0.53 for 1e8 parameters and a thousand comparisons. Read accuracy beside `length` and
  `length_labels`: how far the model and the labels go with length.
Departs from the paper: a small model from scratch.
Result: held-out accuracy {Bradley-Terry | accuracy} on 289 pairs, one seed; where
  people prefer the longer completion {Bradley-Terry | accuracy_longer}.
"""

import dataclasses

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import small_dialogue


def experiment(path: str) -> Experiment:
  """SFT on the chosen completions, then the reward model; both hold out the same
  prompts."""
  data = small_dialogue.hh(path)
  sft_data = dataclasses.replace(data, epochs=3)
  return small_dialogue.after_sft(ObjectiveConfig("bradley_terry"), data, sft_data)
