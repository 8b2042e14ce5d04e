"""SPIN on synthetic reviews: texts against the samples of the policy before.

Paper: Chen et al. 2024, arXiv:2401.01335: four iterations, each from, against and tied
  to the policy of the one before; beta 0.1, in the last iteration 5.
Command: xpo train spin [iterations=3 source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: samples come nearer to the texts; what SFT has learned already leaves little
  to gain (the policy's distribution is where the iteration ends).
Departs from the paper: two iterations of one beta; the samples of earlier iterations
  are not added.
Result: true reward {SPIN, two iterations | reward} at {SPIN, two iterations | kl | 2}
  nats after two iterations, from {SFT | reward}; one seed. Not separable.
"""

from xpo_jax.config.experiment import Experiment, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import self_play
from xpo_jax.studies.task import Task


def experiment(
  source: str | None = None, policy: str | None = None, iterations: int = 2
) -> Experiment:
  """The last iteration; those before are its stages."""
  if iterations < 1:
    raise ValueError(f"iterations is {iterations}; it must be >= 1")
  return iteration(Task(source, policy=policy), iterations)


def iteration(task: Task, number: int) -> Experiment:
  """SPIN against the policy of the iteration before, which is also the reference.

  Args:
    task: start, texts and sizes.
    number: of the iteration, from 1.
  """
  before = tasks.start_weights(task)
  start = tasks.start(task)
  if number > 1:
    before = start = Stage(iteration(task, number - 1))
  pairs = Configured(
    self_play.pairs,
    policy=before,
    texts=tasks.sft(task).data,
    max_completion_tokens=task.max_completion_tokens,
    seed=number,
  )
  return tasks.on_records(
    ObjectiveConfig("spin"), task, pairs, seed=number, start=start
  )
