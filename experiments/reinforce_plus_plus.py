"""REINFORCE++ on synthetic reviews: one sample of a prompt, the batch's advantages.

Paper: Hu et al. 2025, arXiv:2501.03262: one sample of each prompt, the KL penalty in
  the reward, advantages normalised over all tokens of the batch, PPO's clip.
Command: xpo train reinforce_plus_plus [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's, without groups.
Departs from the paper: 128 prompts an iteration, the paper 1024 and more.
Result: true reward {REINFORCE++ | reward} at {REINFORCE++ | kl | 2} nats, from {SFT |
  reward}; three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """As many samples an iteration as `rloo`, each of a prompt of its own."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("reinforce_plus_plus"),
    task,
    sampling=Sampling(completions=1, max_completion_tokens=task.max_completion_tokens),
    prompts_per_iteration=128,
  )
