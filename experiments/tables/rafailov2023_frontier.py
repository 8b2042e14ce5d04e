"""The DPO paper's reward-KL frontier: DPO against fine-tuning on preferred completions.

Paper: Rafailov et al. 2023, arXiv:2305.18290, Fig. 2 (left): DPO has more reward at
  equal KL than every other method, preferred fine-tuning among them.
Command: xpo train rafailov2023_frontier
  `make demo` runs the same study with five more methods.
Hardware: 2 CPU cores, minutes.
Expected: DPO above preferred fine-tuning at every matched KL; best of n and the optimal
  policy above both.
Departs from the paper: synthetic reviews and a small model in place of IMDb and GPT-2
  large; the reward is VADER's compound.
Result: DPO - preferred fine-tuning, true reward at 0.5 nats: {DPO - Preferred-FT, at
  0.5 nats | reward}; three seeds, the runs of `xpo demo`.
"""

import dataclasses
from pathlib import Path

from xpo_jax.studies import demo
from xpo_jax.studies.sentiment.settings import SentimentStudy

METHODS = ("DPO", "Preferred-FT")


def experiment() -> SentimentStudy:
  """The demo's study with DPO over four betas and preferred fine-tuning, three
  seeds."""
  study = SentimentStudy()
  arms = tuple(arm for arm in study.arms if arm.label in METHODS)
  return dataclasses.replace(study, arms=arms, online=())


def run(study: SentimentStudy, run_dir: Path) -> int:
  """The study and its page."""
  return demo.run(study, run_dir, "xpo train rafailov2023_frontier")
