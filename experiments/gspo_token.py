"""GSPO-token on synthetic reviews: the ratio of a completion, at every token.

Paper: Zheng et al. 2025, arXiv:2507.18071: GSPO for an advantage per token; with one
  advantage for a completion it is GSPO.
Command: xpo train gspo_token [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: what `gspo` reaches: values and gradients are the same.
Departs from the paper: as `gspo`, clips of 0.03 and 0.04.
Result: true reward {GSPO-token | reward} at {GSPO-token | kl | 2} nats, from {SFT |
  reward}; three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """The settings of `gspo`."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("gspo_token", clip_low=0.03, clip_high=0.04),
    task,
    sampling=Sampling(completions=8, max_completion_tokens=task.max_completion_tokens),
    prompts_per_iteration=32,
    minibatches=4,
    iterations=20,
  )
