"""SAPO on synthetic reviews: a smooth gate of the ratio in place of the clip.

Paper: Gao et al. 2025, arXiv:2511.20347: several updates for each round of samples,
  temperatures of 1.0 and 1.05, no KL.
Command: xpo train sapo [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's; the gate stays near 1,
  as the ratios do (`gate`).
Departs from the paper: 8 samples of each prompt; the paper's batch was not checked.
Result: true reward {SAPO | reward} at {SAPO | kl | 2} nats, from {SFT | reward}; three
  seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """The paper's temperatures; four minibatches of an iteration."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("sapo"),
    task,
    sampling=Sampling(completions=8, max_completion_tokens=task.max_completion_tokens),
    prompts_per_iteration=32,
    minibatches=4,
    iterations=20,
  )
