"""REINFORCE++ with a baseline on synthetic reviews: group means, the batch's deviation.

Paper: Hu et al. 2025, arXiv:2501.03262: several samples of each prompt, rewards minus
  their group's mean, normalised over all tokens of the batch, a k2 loss of the KL.
Command: xpo train reinforce_plus_plus_baseline [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's.
Departs from the paper: 128 samples an iteration, one update.
Result: true reward {REINFORCE++-baseline | reward} at {REINFORCE++-baseline | kl | 2}
  nats, from {SFT | reward}; three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """As many samples an iteration as `grpo`."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("reinforce_plus_plus_baseline"),
    task,
    sampling=Sampling(completions=8, max_completion_tokens=task.max_completion_tokens),
    prompts_per_iteration=16,
  )
