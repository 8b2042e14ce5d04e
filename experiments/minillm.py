"""MiniLLM on synthetic reviews: policy gradient of the reverse KL to a teacher.

Paper: Gu et al. 2023, arXiv:2306.08543, which distils GPT-2, OPT and LLaMA on
  instructions; no number of it can be reproduced at this size.
Command: xpo train minillm [source=FILE policy=DIR teacher=DIR]
Hardware: 2 CPU cores, minutes, without teacher and SFT.
Expected: the KL to the teacher falls; `agarwal2023_distillation` compares.
Departs from the paper: the teacher is GRPO of a larger model; no loss on pretraining
  text; one update for each round of samples.
Result: KL to the teacher from {agarwal2023_distillation: start | to_teacher | 2} nats
  to {agarwal2023_distillation: MiniLLM | to_teacher | 2}, true reward from
  {agarwal2023_distillation: start | reward.mean} to {agarwal2023_distillation: MiniLLM
  | reward}, the teacher's {agarwal2023_distillation: teacher | reward.mean}; three
  seeds of the table's.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import distillation
from xpo_jax.studies.task import Task


def experiment(
  source: str | None = None, policy: str | None = None, teacher: str | None = None
) -> Experiment:
  """A fifth of the sampling distribution is the teacher's, as in the paper."""
  task = Task(source, policy=policy)
  return distillation.on_samples_of_student(
    ObjectiveConfig("minillm"),
    task,
    distillation.teacher(task, teacher),
    teacher_share=0.2,
  )
