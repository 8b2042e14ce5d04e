"""GMPO on synthetic reviews: the geometric mean of a completion's token ratios.

Paper: Zhao et al. 2025, arXiv:2507.20673: 8 samples of each prompt, 8 updates for each
  round of samples, log-ratios clipped to +-0.4, no KL.
Command: xpo train gmpo [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's.
Departs from the paper: 32 prompts a round in place of 128.
Result: true reward {GMPO | reward} at {GMPO | kl | 2} nats, from {SFT | reward}; three
  seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """The paper's clip; eight minibatches of an iteration."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("gmpo"),
    task,
    sampling=Sampling(completions=8, max_completion_tokens=task.max_completion_tokens),
    prompts_per_iteration=32,
    minibatches=8,
    iterations=10,
  )
