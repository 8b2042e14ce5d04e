"""KD on synthetic reviews: a student learns on the completions of its teacher.

Paper: Hinton et al. 2015, arXiv:1503.02531; on sequences Kim and Rush 2016,
  arXiv:1606.07947, whose translations cannot be reproduced at this size.
Command: xpo train kd [source=FILE policy=DIR teacher=DIR]
Hardware: 2 CPU cores, minutes, without teacher and SFT.
Expected: the KL from the teacher falls; `agarwal2023_distillation` compares.
Departs from the paper: the teacher is GRPO of a larger model.
Result: KL from the teacher from {agarwal2023_distillation: start | from_teacher | 2}
  nats to {agarwal2023_distillation: teacher's completions, forward KL | from_teacher |
  2}, true reward from {agarwal2023_distillation: start | reward.mean} to
  {agarwal2023_distillation: teacher's completions, forward KL | reward}, the teacher's
  {agarwal2023_distillation: teacher | reward.mean}; three seeds of the table's.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import distillation
from xpo_jax.studies.task import Task


def experiment(
  source: str | None = None, policy: str | None = None, teacher: str | None = None
) -> Experiment:
  """The forward KL on the teacher's completions."""
  task = Task(source, policy=policy)
  return distillation.on_samples_of_teacher(
    ObjectiveConfig("kd"), task, distillation.teacher(task, teacher)
  )
