"""PPO on synthetic reviews: token-level KL in the reward, a learned value.

Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, after Ziegler et al. 2019,
  arXiv:1909.08593, who introduce the adaptive KL. No result of theirs can be reproduced
  at this size.
Command: xpo train ppo [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's, and the KL of a
  completion moves towards the controller's target, 3 nats; no number is taken from the
  papers.
Result: true reward {PPO | reward} at {PPO | kl | 2} nats, from {SFT | reward.mean};
  three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.ops import kl_control
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """Two passes of two minibatches over an iteration; KL controlled to 3 nats."""
  controller = Configured(kl_control.adaptive_kl, beta=0.05, target=3.0, horizon=2000.0)
  return tasks.on_rollouts(
    ObjectiveConfig("ppo", beta=0.05, whiten_reward=False),
    Task(source, policy=policy),
    kl_controller=controller,
    minibatches=2,
    ppo_epochs=2,
  )
