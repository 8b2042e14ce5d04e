"""Step-DPO on synthetic reviews: the best next words against the worst.

Paper: Lai et al. 2024, arXiv:2406.18629: pairs of the first wrong step of a solution
  and a correct one in its place, sampled by the model; beta 0.4.
Command: xpo train step_dpo [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's, although only one step
  of each text is learned from.
Departs from the paper: a step is two words after two others, not a line of reasoning;
  the true reward of the text so far ranks four samples, where the paper looks for an
  error.
Result: true reward {Step-DPO | reward} at {Step-DPO | kl | 2} nats, from {SFT |
  reward}; one seed.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import step_pairs
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """Step-DPO on the second step of the start's samples."""
  task = Task(source, policy=policy)
  pairs = tasks.from_start(step_pairs.best_and_worst, task, seed=0, reward=task.reward)
  return tasks.on_records(
    ObjectiveConfig("step_dpo"),
    task,
    pairs,
    transform="xpo_jax.data.transforms.steps:open_ended",
  )
