"""XPO on synthetic reviews: online DPO with a bonus for exploration.

Paper: Xie et al. 2024, arXiv:2405.21046: a sample of the policy against a sample of the
  reference, and a bonus for making the latter less likely.
Command: xpo train exploratory_dpo [source=FILE policy=DIR --objective.alpha 0]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's. The bonus matters where
  the start seldom samples what is best; this start praises in half of its samples.
Result: true reward {XPO | reward} at {XPO | kl | 2} nats, from {SFT | reward.mean};
  three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """One sample of the reference and one of the policy for each prompt."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("exploratory_dpo", beta=0.1, alpha=1e-5),
    task,
    sampling=Sampling(
      completions=2,
      max_completion_tokens=task.max_completion_tokens,
      column0_source="reference",
    ),
    prompts_per_iteration=64,
  )
