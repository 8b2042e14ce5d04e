"""On-policy distillation on synthetic reviews: the teacher's log-probs are rewards.

Paper: the reverse KL on a student's completions is of Agarwal et al. 2023,
  arXiv:2306.13649; the form is "On-Policy Distillation", Lu and Thinking Machines Lab
  2025, whose mathematics cannot be reproduced at this size.
Command: xpo train on_policy_distillation [source=FILE policy=DIR teacher=DIR]
Hardware: 2 CPU cores, minutes, without teacher and SFT.
Expected: the KL to the teacher falls; `agarwal2023_distillation` compares.
Departs from the paper: the teacher is GRPO of a larger model.
Result: KL to the teacher from {agarwal2023_distillation: start | to_teacher | 2} nats
  to {agarwal2023_distillation: on-policy distillation | to_teacher | 2}, true reward
  from {agarwal2023_distillation: start | reward.mean} to {agarwal2023_distillation:
  on-policy distillation | reward}, the teacher's {agarwal2023_distillation: teacher |
  reward.mean}; three seeds of the table's.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import distillation
from xpo_jax.studies.task import Task


def experiment(
  source: str | None = None, policy: str | None = None, teacher: str | None = None
) -> Experiment:
  """Advantages of single tokens, no reward of later ones."""
  task = Task(source, policy=policy)
  return distillation.on_samples_of_student(
    ObjectiveConfig("on_policy_distillation"),
    task,
    distillation.teacher(task, teacher),
  )
