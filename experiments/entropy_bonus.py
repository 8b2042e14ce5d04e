"""GRPO with an entropy bonus on synthetic reviews.

Paper: Mnih et al. 2016 (A3C), arXiv:1602.01783, which adds the policy's entropy to the
  objective of a policy gradient, weight 0.01.
Command: xpo train entropy_bonus [source=FILE policy=DIR --objective.weight 0.03]
Hardware: 2 CPU cores, minutes.
Expected: the entropy of the policy (`entropy`) falls less than `grpo`'s.
Departs from the paper: the objective is GRPO on texts, not actor-critic on games.
Result: true reward {entropy bonus | reward} at {entropy bonus | kl | 2} nats, from {SFT
  | reward}; three seeds.
"""

from xpo_jax import objectives
from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """`grpo` with A3C's weight."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig(
      objectives.entropy_bonus, objective=ObjectiveConfig("grpo"), weight=0.01
    ),
    task,
    sampling=Sampling(completions=8, max_completion_tokens=task.max_completion_tokens),
    prompts_per_iteration=16,
  )
