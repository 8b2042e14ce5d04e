"""RLOO on synthetic reviews: REINFORCE with the other samples as baseline.

Paper: Ahmadian et al. 2024, arXiv:2402.14740. Its results are of language models of
  billions of parameters and cannot be reproduced at this size.
Command: xpo train rloo [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's; no number is taken
  from the paper.
Result: true reward {RLOO | reward} at {RLOO | kl | 2} nats, from {SFT | reward.mean};
  three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """Four samples of each prompt, one update an iteration, beta of the paper's HH
  runs."""
  return tasks.on_rollouts(
    ObjectiveConfig("rloo", beta=0.1), Task(source, policy=policy)
  )
