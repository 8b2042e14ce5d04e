"""MiniLLM on synthetic reviews: policy gradient of the reverse KL to a teacher.

Paper: Gu et al. 2023, arXiv:2306.08543, which distils GPT-2, OPT and LLaMA on
  instructions; no number of it can be reproduced at this size.
Command: xpo train minillm [source=FILE policy=DIR teacher=DIR]
Hardware: 2 CPU cores, beside many other jobs: two minutes, without teacher and SFT.
Expected: the KL to the teacher falls; `agarwal2023_distillation` compares.
Departs from the paper: the teacher is GRPO of a larger model; no loss on pretraining
  text; one update for each round of samples.
Result: KL to the teacher from 3.85 [3.75, 3.96] nats to 0.33 [0.27, 0.41], true reward
  from 0.089 to 0.835 [0.822, 0.847], the teacher's 0.823; three seeds of the table's.
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
