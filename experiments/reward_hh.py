"""A Bradley-Terry reward model on Anthropic HH pairs, a small model from scratch.

Paper: Bai et al. 2022, arXiv:2204.05862 (there 13M to 52B parameters).
Command: xpo train reward_hh path=hh_harmless_pairs.jsonl.gz
  then xpo evaluate runs/reward_hh: normalises it, prints its agreement with labels
  path: JSON lines with `chosen` and `rejected` HH transcripts (plain or .gz).
Hardware: 2 CPU cores.
Expected: no number of the paper applies at this size; its Fig. 7, read off, has about
  0.53 for 1e8 parameters and a thousand comparisons. An interval above 0.5 says that
  something was learnt; `length` beside `length_labels`, whether more than length.
Last result: 2026-11-22, one seed, 289 pairs of held-out prompts, intervals over
  prompts: accuracy 0.571 [0.512, 0.626]; log-loss 0.671 [0.645, 0.697], 0.693 knows
  nothing; calibration error 0.041. Where people prefer the shorter answer 0.716 [0.651,
  0.781], where the longer 0.364 [0.280, 0.449]: verdicts go with brevity (length -0.363
  [-0.474, -0.260]), the labels do so half as much (-0.176 [-0.291, -0.062]). 13 CPU
  minutes on one core.
"""

import dataclasses

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import small_dialogue


def experiment(path: str) -> Experiment:
  """SFT on the chosen answers, then the reward model; prompts held out from both."""
  data = small_dialogue.hh(path)
  taught = dataclasses.replace(data, epochs=3)
  return small_dialogue.after_sft(ObjectiveConfig("bradley_terry"), data, taught)
