"""DPO-Shift on synthetic reviews: DPO whose rejected reward counts a little less.

Paper: Yang et al. 2025, arXiv:2502.07599: lambda 0.5 to 0.95, released models 0.95.
Command: xpo train dpo_shift [source=FILE policy=DIR --objective.shift 1.0]
Hardware: 2 CPU cores, minutes.
Expected: the chosen completions keep more of their likelihood than with DPO (shift
  1.0), at a smaller margin.
Departs from the paper: beta 0.1, where the authors' configuration has 0.01; labels of a
  Bradley-Terry labeller of the true reward, temperature 0.25.
Result: true reward {DPO-Shift | reward} at {DPO-Shift | kl | 2} nats against DPO's {DPO
  | reward} at {DPO | kl | 2}, from {SFT | reward}; one seed.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import samples
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """DPO-Shift on 800 pairs of the start's samples."""
  task = Task(source, policy=policy)
  pairs = tasks.from_start(
    samples.noisy_pairs, task, seed=0, reward=task.reward, noise=0.25
  )
  objective = ObjectiveConfig("dpo_shift", beta=0.1)
  return tasks.on_records(objective, task, pairs)
