"""GKD on synthetic reviews: a student learns on its own completions from a teacher.

Paper: Agarwal et al. 2023, arXiv:2306.13649, which distils T5 models on summaries,
  translation and arithmetic; no number of it can be reproduced at this size.
Command: xpo train gkd [fraction=NUMBER source=FILE policy=DIR teacher=DIR]
Hardware: 2 CPU cores, minutes, without teacher and SFT.
Expected: the divergence to the teacher falls, and the true reward of held-out prompts,
  which is not trained on, rises to the teacher's; `agarwal2023_distillation` compares.
Departs from the paper: the teacher is GRPO of a larger model; below fraction 1 every
  step has both kinds of completions, the fixed ones weighted, in place of a draw.
Result: KL to the teacher from {agarwal2023_distillation: start | to_teacher | 2} nats
  to {agarwal2023_distillation: student's completions, JSD(0.5) | to_teacher | 2}, true
  reward from {agarwal2023_distillation: start | reward.mean} to
  {agarwal2023_distillation: student's completions, JSD(0.5) | reward}, the teacher's
  {agarwal2023_distillation: teacher | reward.mean}; three seeds of the table's.
"""

from xpo_jax.config.experiment import AuxLossConfig, Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import distillation
from xpo_jax.studies.task import Task


def experiment(
  source: str | None = None,
  policy: str | None = None,
  teacher: str | None = None,
  fraction: float = 1.0,
) -> Experiment:
  """Generalised JSD; `fraction` of the completions, lambda, are the student's own."""
  if not 0 < fraction <= 1:
    raise ValueError(
      f"fraction is {fraction}; it must be > 0 and <= 1 (kd is the recipe of 0)"
    )
  task = Task(source, policy=policy)
  teaching = distillation.teacher(task, teacher)
  losses = ()
  if fraction < 1:
    data = distillation.teacher_samples(task, teaching)
    kd = ObjectiveConfig("kd", interpolation=0.5)
    losses = (AuxLossConfig((1 - fraction) / fraction, kd, data, "given"),)
  return distillation.on_samples_of_student(
    ObjectiveConfig("gkd"), task, teaching, aux_losses=losses
  )
