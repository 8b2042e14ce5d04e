"""Dr. GRPO on synthetic reviews: GRPO without the divisions that bias it.

Paper: Liu et al. 2025, arXiv:2503.20783: no division by a group's deviation or by a
  completion's length, no KL.
Command: xpo train dr_grpo [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's; without a KL term the
  KL is greater than that of `grpo`.
Result: true reward {Dr. GRPO | reward} at {Dr. GRPO | kl | 2} nats, from {SFT |
  reward.mean}; three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """Sums over tokens divided by the longest completion allowed, as the paper's code."""
  task = Task(source, policy=policy)
  longest = task.max_completion_tokens
  return tasks.on_rollouts(
    ObjectiveConfig("dr_grpo", length=float(longest)),
    task,
    sampling=Sampling(completions=8, max_completion_tokens=longest),
    prompts_per_iteration=16,
  )
