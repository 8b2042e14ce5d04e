"""SimPER on synthetic reviews: inverse perplexities, no hyperparameters, no reference.

Paper: Xiao et al. 2025, arXiv:2502.00883.
Command: xpo train simper [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's; completions become
  likely ones, as the loss seeks modes.
Departs from the paper: labels of a Bradley-Terry labeller of the true reward,
  temperature 0.25.
Result: true reward {SimPER | reward} at {SimPER | kl | 2} nats, from {SFT | reward};
  one seed.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import samples
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """SimPER on 800 pairs of the start's samples."""
  task = Task(source, policy=policy)
  pairs = tasks.from_start(
    samples.noisy_pairs, task, seed=0, reward=task.reward, noise=0.25
  )
  return tasks.on_records(ObjectiveConfig("simper"), task, pairs)
