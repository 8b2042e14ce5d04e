"""REINFORCE on synthetic reviews: one sample of each prompt, past rewards as baseline.

Paper: Ahmadian et al. 2024, arXiv:2402.14740, where it is the simplest of the policy
  gradients; its results are of models of billions of parameters.
Command: xpo train reinforce [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's, less than `rloo`'s
  from as many samples, whose baseline is the prompt's own (paper, Table 1: REINFORCE
  with a baseline 6 to 9 points of win rate below RLOO with four samples).
Result: true reward {REINFORCE | reward} at {REINFORCE | kl | 2} nats, from {SFT |
  reward.mean}; three seeds. Above RLOO's: the claim does not reproduce here.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """As many samples an iteration as `rloo`, each of another prompt."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("reinforce", beta=0.1),
    task,
    sampling=Sampling(completions=1, max_completion_tokens=task.max_completion_tokens),
    prompts_per_iteration=128,
  )
