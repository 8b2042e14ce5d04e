"""Lite PPO on synthetic reviews: rewards scaled over the batch, a mean over tokens.

Paper: Liu et al. 2025, arXiv:2508.08221: PPO's loss without a critic, the group's mean
  reward and the batch's deviation, one mean over all tokens; 8 samples of each prompt,
  one update for each round of samples, no KL.
Command: xpo train lite_ppo [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's.
Departs from the paper: 128 samples an iteration.
Result: true reward {Lite PPO | reward} at {Lite PPO | kl | 2} nats, from {SFT |
  reward}; three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """`bnpo` with rewards scaled over the batch; as many samples as `grpo`."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("bnpo", scale_rewards="batch"),
    task,
    sampling=Sampling(completions=8, max_completion_tokens=task.max_completion_tokens),
    prompts_per_iteration=16,
  )
