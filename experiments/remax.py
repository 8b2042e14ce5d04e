"""ReMax on synthetic reviews: REINFORCE with the greedy completion as baseline.

Paper: Li et al. 2023, arXiv:2310.10505: one sample and one greedy completion of each
  prompt.
Command: xpo train remax [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's; the memory that the
  paper saves is that of a value model, which most recipes here lack too.
Result: true reward {ReMax | reward} at {ReMax | kl | 2} nats, from {SFT | reward.mean};
  three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """As many completions an iteration as `rloo`, half of them greedy."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("remax", beta=0.1),
    task,
    sampling=Sampling(
      completions=2,
      max_completion_tokens=task.max_completion_tokens,
      column0_source="greedy",
    ),
    prompts_per_iteration=64,
  )
